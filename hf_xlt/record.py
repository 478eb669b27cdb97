"""The run record, `xlt_run.json`: what a run was, and the only hand-over between commands.

It holds no local path, user name or token. What a card says and the record does not hold, the card does not say.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_xlt.comparator_results import Comparators
from hf_xlt.errors import ConfigError
from hf_xlt.files import write_json
from hf_xlt.generalized_results import GeneralizedResults
from hf_xlt.registry import left_beside
from hf_xlt.results import FLOOR, ZERO_SHOT, Results

RECORD_NAME = "xlt_run.json"
FORMAT_VERSION = 1

RUNNING = "running"
INTERRUPTED = "interrupted"
TRAINED = "trained"
FINISHED = "finished"

LAST_CHECKPOINT = "last checkpoint"
SOURCE_VALIDATION = "source-language validation"
TARGET_VALIDATION = "target-language validation (oracle)"

# Pictures that may lie beside a model, in the order in which a card shows them; those of strategies come after.
_PLOTS = ("results.png", "generalized.png")


@dataclass
class RunRecord:
    """One run, JSON-able throughout.

    Attributes:
        strategy: `name`, `title`, and `paper` (`title`, `authors`, `venue`, `url`, `bibtex`) or None; of an average on
            disk `made_of` (`checkpoints`, `runs`, `of_means`); in older records its words, `summary` and `notes`;
            `defaults`: names of those of its own settings that were left at their defaults.
        task: `name`, `pipeline_tag`, `auto_model` (class name), `metric` (the main one); of several labels the
            `threshold`, the probability from which one is said.
        arguments: every resolved argument that a reader can use: no paths, no tokens.
        settings: the arguments that differ from their defaults, and every setting of the strategy itself.
        model: `name` (Hub id, or the plain name of an embedded encoder; None for a local directory), `revision`,
            `parameters` (count), `model_type`, `license` (None when unknown); `adapter` where one was trained in
            place of all weights (`method`, `rank`, `alpha`, `dropout`, `target_modules`, `modules_to_save`,
            `trainable_parameters`).
        data: per role (`source`, `validation`, `target`, `few-shot`, ...) `sources` (Hub ids, or file patterns without
            their local part), `hub_ids`, `split`, `columns` by their role in the task, and per language `examples` and
            `fingerprints`, and `written_in` where rows are read as something else (a scheme of tags); where the data
            say so themselves, `licenses` by source and `citations` (BibTeX). Of parts of divided sets `divided`:
            `shares` by part, `seed`, and by language the hash of the whole (`wholes`). Of rows with another role as
            well, by language `shared_with` (roles). Of tests, by language and role of what was learned from, `seen`:
            how many rows have a text that was, to the letter, learned from.
        languages: per role a list of `{code, iso, name}`.
        labels: the label inventory in index order.
        few_shot: `shots`, `shot_seed`, `mode`; None for zero-shot.
        seeds: every seed by name.
        selection: `protocol` (one of the three constants above), `metric`, `languages`; `oracle` is True when
            target-language labels chose anything.
        phases: `name`, `updates`, `seconds`, per phase done; of one that was averaged `averaging` (see
            `hf_xlt.averaging.summary`), and what the strategy says of itself.
        versions: package to version.
        hardware: `device`, `processor`, `processes`, `threads`, and `attention`, the kernel of training.
        wall_time_seconds: training and scoring, over all resumptions.
        command: the command without local paths and tokens.
        results: `Results.to_dict()` of the final scoring, or None.
        floor: the same of the randomly initialised model, or None.
        zero_shot: the same of the model that few-shot training started from, or None.
        comparators: `Comparators.to_dict()` of the run's own snapshots, or None.
        generalized: `GeneralizedResults.to_dict()` of all ordered pairs of languages, or None.
        trimming: of a vocabulary that was cut down afterwards (`hf-xlt trim-vocab`): sizes `before` and `after`,
            `limit`, `characters`, `sources` of the text, tokens per word by `languages`, how text and `outputs`
            compare; or None.
        plots: names of the pictures beside the model.
        parents: records that this one was made from (averages).
        demo: whether this is the embedded default, whose numbers say nothing about other tasks.
        status: `running`, `interrupted`, `trained` (saved, not yet scored) or `finished`.
        created: UTC date of the start, ISO 8601.
    """

    strategy: dict[str, Any]
    task: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    languages: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    few_shot: dict[str, Any] | None = None
    seeds: dict[str, int] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)
    phases: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    wall_time_seconds: float = 0.0
    command: str = ""
    results: dict[str, Any] | None = None
    floor: dict[str, Any] | None = None
    zero_shot: dict[str, Any] | None = None
    comparators: dict[str, Any] | None = None
    generalized: dict[str, Any] | None = None
    trimming: dict[str, Any] | None = None
    plots: list[str] = field(default_factory=list)
    parents: list[dict[str, Any]] = field(default_factory=list)
    demo: bool = False
    status: str = RUNNING
    created: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def scores(self) -> Results | None:
        """The final scores, or None before scoring."""
        return Results.from_dict(self.results) if self.results else None

    @property
    def scores_beside(self) -> dict[str, Results]:
        """The scores of other models beside the run's, by name (`hf_xlt.results.BESIDE`)."""
        kept = {ZERO_SHOT: self.zero_shot, FLOOR: self.floor}
        return {name: Results.from_dict(values) for name, values in kept.items() if values}

    @property
    def comparator_scores(self) -> Comparators | None:
        """The scores of what could have been taken in place of the average, or None."""
        return Comparators.from_dict(self.comparators) if self.comparators else None

    @property
    def generalized_scores(self) -> GeneralizedResults | None:
        """The scores of all ordered pairs of languages, or None."""
        return GeneralizedResults.from_dict(self.generalized) if self.generalized else None

    def with_plots(self, folder: str | os.PathLike) -> RunRecord:
        """Return a copy that names the pictures which lie in a folder, and no other."""
        return dataclasses.replace(self, plots=[name for name in plots() if (Path(folder) / name).is_file()])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunRecord:
        """Rebuild from `to_dict`.

        Raises:
            ConfigError: keys are missing or unknown, or the format is newer than this package.
        """
        if not isinstance(values, dict):
            raise ConfigError("run record is damaged: it is no JSON object.")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise ConfigError(f"run record has format {version!r}, this hf_xlt reads {FORMAT_VERSION}; update hf_xlt.")
        known = {f.name for f in dataclasses.fields(cls)}
        unknown, missing = sorted(set(values) - known), sorted({"strategy", "task"} - set(values))
        if unknown or missing:
            raise ConfigError(f"run record is damaged: unknown keys {unknown}, missing keys {missing}.")
        wrong = sorted(f.name for f in dataclasses.fields(cls) if f.name in values and not _fits(f, values[f.name]))
        if wrong:
            raise ConfigError(f"run record is damaged: values of another kind than they have to be: {wrong}.")
        return cls(**values)

    def write(self, folder: str | os.PathLike) -> None:
        """Write `xlt_run.json` into a run directory, atomically."""
        write_json(Path(folder) / RECORD_NAME, self.to_dict())

    @classmethod
    def read(cls, folder: str | os.PathLike) -> RunRecord:
        """Read the record of a run directory.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        path = Path(folder) / RECORD_NAME
        if not path.is_file():
            raise ConfigError(
                f"`{folder}` holds no run: `{RECORD_NAME}` is missing. Give the output directory of a run."
            )
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ConfigError(f"`{path}` cannot be read as a run record: {error}.") from error
        except ConfigError as error:
            raise ConfigError(f"`{path}`: {error}") from error


def plots() -> tuple[str, ...]:
    """Return the names of the pictures that may lie beside a model, in the order in which a card shows them."""
    return (*_PLOTS, *left_beside("PLOTS"))


def _fits(entry: dataclasses.Field, value: Any) -> bool:
    """Say whether a value is an object, a list, or nothing, as its field's annotation has it, which is a string."""
    kind, _, optional = str(entry.type).partition(" | ")
    expected = {"dict": dict, "list": list}.get(kind.split("[")[0], object)
    return isinstance(value, expected) or (value is None and optional == "None")
