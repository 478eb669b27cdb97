"""`gates.json`: the gates that a run learned, to be read by people and used again by another run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_xlt.errors import ConfigError
from hf_xlt.files import write_json
from hf_xlt.randomness import permutation
from hf_xlt.strategies.soft_layers.card import GATES_NAME
from hf_xlt.strategies.soft_layers.gates import GATE_TYPES, Gates, make_gates
from hf_xlt.strategies.soft_layers.groups import layer_number

FORMAT_VERSION = 1
# Rows of the history that a file keeps, evenly spaced.
MOST_ROWS = 200


@dataclass
class GatesFile:
    """Learned gates and how they were learned.

    Attributes:
        groups: the gated groups, from the embeddings up.
        sizes: number of weights of each.
        open_groups: groups that were not gated.
        gates: last value of each gate.
        gate_type: one of `GATE_TYPES`.
        parameters: meta-parameters by name, as nested lists.
        options: arguments of the gates: `maximum`, `temperature`, `bins`, `hidden`, `mean_one`.
        grouping: how groups were found: `granularity`, `separate_word_embeddings`, `patterns`.
        learned: how: `mode`, `inner_steps`, `meta_gradient`, `meta_learning_rate`, `updates`, `skipped`,
            `auxiliary_languages`, `source_languages`.
        evidence: by group, as `Evidence.report`.
        audit: comparisons of first-order with exact gradients, or [].
        history: `updates`, and `gates` at each.
        format_version: of this layout.
    """

    groups: list[str]
    sizes: list[int]
    open_groups: list[str]
    gates: list[float]
    gate_type: str
    parameters: dict[str, Any]
    options: dict[str, Any]
    grouping: dict[str, Any]
    learned: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    audit: list[dict[str, Any]] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> GatesFile:
        """Read a file, or the one in a run's directory.

        Raises:
            ConfigError: it is missing or no file of gates.
        """
        path = Path(path)
        if path.is_dir():
            path = path / GATES_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
            found = cls(**values)
            found._check()
            return found
        except FileNotFoundError as error:
            raise ConfigError(f"`{path}` is missing; give the `{GATES_NAME}` of a run of soft-layers.") from error
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise ConfigError(f"`{path}` is no file of gates: {error}.") from error

    def _check(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"it has format {self.format_version!r}, this hf_xlt reads {FORMAT_VERSION}")
        if self.gate_type not in GATE_TYPES:
            raise ValueError(f"unknown gate type {self.gate_type!r}")
        if not len(self.groups) == len(self.sizes) == len(self.gates):
            raise ValueError("groups, sizes and gates differ in number")
        self.build(self.groups, self.sizes)

    def build(
        self, names: Sequence[str], sizes: Sequence[int], *, interpolate: bool = False, shuffle_seed: int | None = None
    ) -> Gates:
        """Make the gates for a model.

        Args:
            names: its gated groups.
            sizes: number of weights of each.
            interpolate: let layers of another depth take gates by relative depth.
            shuffle_seed: permute the gates over the groups, as a control; None leaves them.

        Raises:
            ConfigError: the model has other groups.
        """
        columns = self._columns(list(names), interpolate)
        options = dict(self.options)
        weights = sizes if options.pop("mean_one", False) else None
        gates = make_gates(self.gate_type, len(columns), init=0.0, weights=weights, **options)
        state = {name: torch.tensor(value, dtype=torch.float64) for name, value in self.parameters.items()}
        if "table" in state:
            table = torch.stack([_blend(state["table"], column) for column in columns], dim=1)
            if shuffle_seed is not None:
                table = table[:, permutation(len(columns), shuffle_seed, "shuffled gates")]
            state["table"] = table
        if "state" in state:
            # A new run starts with the memory that the old one started with.
            state["state"] = torch.zeros(len(columns), state["state"].shape[1], dtype=torch.float64)
        gates.load_state_dict(state)
        return gates

    def _columns(self, names: list[str], interpolate: bool) -> list[tuple[int, int, float]]:
        """Return, per group of the model, two columns of the table here and the share of the second."""
        if set(names) == set(self.groups):
            return [(self.groups.index(name), self.groups.index(name), 0.0) for name in names]
        if not interpolate or self.gate_type not in ("constant", "table"):
            raise ConfigError(
                f"the gates are of the groups {', '.join(self.groups)}; this model has {', '.join(names)}. Use a "
                "model of the same depth and family, or let constant or table gates be taken by relative depth with "
                "`interpolate_gates`."
            )
        own = sorted((layer_number(name), place) for place, name in enumerate(self.groups) if _is_layer(name))
        layers = [name for name in names if _is_layer(name)]
        columns = []
        for name in names:
            if name in layers and own:
                position = layers.index(name) / max(len(layers) - 1, 1) * (len(own) - 1)
                low = min(int(position), len(own) - 1)
                high = min(low + 1, len(own) - 1)
                columns.append((own[low][1], own[high][1], position - low))
            elif name in self.groups:
                columns.append((self.groups.index(name), self.groups.index(name), 0.0))
            else:
                raise ConfigError(f"the gates have none for the group `{name}`: {', '.join(self.groups)}.")
        return columns


def _is_layer(name: str) -> bool:
    return layer_number(name) is not None


def _blend(table: torch.Tensor, column: tuple[int, int, float]) -> torch.Tensor:
    low, high, share = column
    return table[:, low] * (1 - share) + table[:, high] * share


def thin(updates: Sequence[int], rows: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return at most `MOST_ROWS` rows of a history, evenly spaced, the last one among them."""
    count = len(updates)
    chosen = (
        range(count) if count <= MOST_ROWS else [round(i * (count - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)]
    )
    return {
        "updates": [updates[number] for number in chosen],
        "gates": [[round(value, 6) for value in rows[number].tolist()] for number in chosen],
    }
