"""Episodes: the updates between two query batches, as they are kept, saved and restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_xlt.strategies.soft_layers.meta_gradient import InnerStep
from hf_xlt.strategies.soft_layers.replay import MicroBatch
from hf_xlt.training.window import UpdateWindow

if TYPE_CHECKING:
    from hf_xlt.strategies.soft_layers.gating import GatedOptimizer


@dataclass
class Episode:
    """An episode under way.

    Attributes:
        recorded: whether its updates are kept for the exact gradient.
        done: its updates so far.
        progress: share of training that was done when it began.
        start: weights when it began; None where nothing asks for them.
        steps: its updates, where they are recorded.
        passes: source passes of the update under way, where it is recorded.
    """

    recorded: bool = False
    done: int = 0
    progress: float = 0.0
    start: list[Tensor] | None = None
    steps: list[InnerStep] = field(default_factory=list)
    passes: list[MicroBatch] = field(default_factory=list)

    def record(self, gated: GatedOptimizer, parameters: Sequence[Tensor]) -> None:
        """Keep the update that is about to be made, on the host."""
        self.steps.append(
            InnerStep(
                before=[parameter.detach().to("cpu", copy=True) for parameter in parameters],
                states=[_host(gated.optimizer.state.get(parameter, {})) for parameter in parameters],
                settings=gated.settings_of(parameters),
                moved=[parameter.grad is not None for parameter in parameters],
                replay=self.passes,
            )
        )
        self.passes = []

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what is the same on every process: tensors, and JSON-able values."""
        tensors = {f"start/{place}": tensor for place, tensor in enumerate(self.start or ())}
        rates = []
        for number, step in enumerate(self.steps):
            tensors |= {f"step{number}/before/{place}": tensor for place, tensor in enumerate(step.before)}
            for place, state in enumerate(step.states):
                kept = {name: value for name, value in state.items() if isinstance(value, Tensor)}
                tensors |= {f"step{number}/state/{place}/{name}": value for name, value in kept.items()}
            rates.append({"rates": [float(settings["lr"]) for settings in step.settings], "moved": step.moved})
        values = {"recorded": self.recorded, "done": self.done, "progress": self.progress, "steps": rates}
        return tensors, values

    @classmethod
    def restore(
        cls,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        gated: GatedOptimizer,
        parameters: Sequence[Tensor],
        passes: Sequence[list[MicroBatch]],
    ) -> Episode:
        """Rebuild from `state` and from `load_passes`."""
        places = range(len(parameters))
        episode = cls(values["recorded"], values["done"], values["progress"])
        if "start/0" in tensors:
            episode.start = [tensors[f"start/{place}"].to(parameters[place].device) for place in places]
        settings = gated.settings_of(parameters)
        for number, saved in enumerate(values["steps"]):
            states: list[dict[str, Tensor]] = [{} for _ in places]
            for key, tensor in tensors.items():
                if key.startswith(f"step{number}/state/"):
                    _, _, place, name = key.split("/")
                    states[int(place)][name] = tensor
            episode.steps.append(
                InnerStep(
                    before=[tensors[f"step{number}/before/{place}"] for place in places],
                    states=states,
                    settings=[{**settings[place], "lr": saved["rates"][place]} for place in places],
                    moved=list(saved["moved"]),
                    replay=passes[number],
                )
            )
        return episode


def _host(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }


def passes_file(folder: Path, rank: int) -> Path:
    """Return where a process keeps its own examples of an episode that a checkpoint cut short."""
    return folder / f"soft_layers_{rank}.safetensors"


def save_passes(path: Path, steps: Sequence[InnerStep]) -> None:
    """Write the source passes of recorded updates: inputs, units, and where the random number generators stood."""
    tensors: dict[str, Tensor] = {}
    for number, step in enumerate(steps):
        for place, one in enumerate(step.replay):
            prefix = f"{number}/{place}"
            window = one.window
            tensors |= {f"{prefix}/inputs/{name}": value for name, value in one.inputs.items()}
            states = {f"{prefix}/generator/{n}": value for n, value in enumerate(one.generators)}
            tensors |= {name: value for name, value in states.items() if value is not None}
            tensors[f"{prefix}/units"] = window.units
            tensors[f"{prefix}/rows"] = window.rows[one.place]
            if window.groups[one.place] is not None:
                tensors[f"{prefix}/group"] = window.groups[one.place]
            tensors[f"{prefix}/update"] = torch.tensor(window.update)
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)


def load_passes(path: Path, seed: int, device: torch.device) -> list[list[MicroBatch]]:
    """Read what `save_passes` wrote, updates in order."""
    parts: dict[tuple[int, int], dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        number, place, name = key.split("/", 2)
        parts.setdefault((int(number), int(place)), {})[name] = value
    updates: dict[int, list[MicroBatch]] = {}
    for (number, _), found in sorted(parts.items()):
        window = UpdateWindow(
            seed, int(found["update"]), found["units"].to(device), [found.get("group")], [found["rows"]]
        )
        inputs = {
            name.removeprefix("inputs/"): v.to(device) for name, v in found.items() if name.startswith("inputs/")
        }
        # A device without a generator of its own leaves only that of the CPU.
        states = (found["generator/0"], found.get("generator/1"))
        updates.setdefault(number, []).append(MicroBatch(inputs, window, 0, states))
    return [updates[number] for number in sorted(updates)]
