"""What an average was made of: for the user, for `averaging.json`, and for the run record."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from hf_xlt.averaging.inputs import Checkpoint
from hf_xlt.averaging.staging import MANIFEST_NAME
from hf_xlt.averaging.summary import MADE_OF, averaged
from hf_xlt.environment import versions
from hf_xlt.errors import ConfigError, setting
from hf_xlt.files import write_json
from hf_xlt.record import RECORD_NAME, SOURCE_VALIDATION, TRAINED, RunRecord

FORMAT_VERSION = 1
PAPER = {
    "title": "Free Lunch: Robust Cross-Lingual Transfer via Model Checkpoint Averaging",
    "authors": "Fabian David Schmidt, Ivan Vulić, Goran Glavaš",
    "venue": "ACL 2023",
    "url": "https://aclanthology.org/2023.acl-long.314",
    "bibtex": "@inproceedings{schmidt-etal-2023-free,\n"
    "  title = {Free Lunch: Robust Cross-Lingual Transfer via Model Checkpoint Averaging},\n"
    "  author = {Schmidt, Fabian David and Vuli{\\'c}, Ivan and Glava{\\v{s}}, Goran},\n"
    "  booktitle = {Proceedings of the 61st Annual Meeting of the Association for Computational Linguistics (Volume "
    "1: Long Papers)},\n"
    "  year = {2023},\n"
    "}",
}


@dataclass(frozen=True)
class Input:
    """One snapshot of an average.

    Attributes:
        path: where it was read.
        run: number of its run, from 1; None for a snapshot of no run.
        step: update after which it was taken, or None.
        weight: its share; all sum to 1.
        files: name, size in bytes and SHA-256 of the header of each weight file.
    """

    path: Path
    run: int | None
    step: int | None
    weight: float
    files: tuple[tuple[str, int, str], ...]

    @property
    def name(self) -> str:
        """The last part of the path; of a weight file its folder as well, as all of them are called alike."""
        return f"{self.path.parent.name}/{self.path.name}" if self.path.is_file() else self.path.name

    def to_dict(self, shareable: bool) -> dict[str, Any]:
        """Return a JSON form; a shareable one names the last part of the path only."""
        return {
            "name": self.name if shareable else str(self.path),
            "run": self.run,
            "step": self.step,
            "weight": self.weight,
            "files": [{"name": name, "size": size, "header_sha256": digest} for name, size, digest in self.files],
        }


@dataclass(frozen=True)
class AverageReport:
    """What `average_checkpoints` did, or with `check_only` would do.

    Attributes:
        output: the folder written, or None.
        mode: `uniform`, `weighted`, `last-k`, `window`, `ema`, `greedy`, or several joined by `+`.
        lora_mode: how adapters were averaged; None for models.
        inputs: what was averaged, in order, with normalised weights.
        tensors: numbers of tensors `averaged` and `copied`.
        dtypes: floating formats of the output, as torch calls them.
        accumulate: `auto`, `float32` or `float64`.
        files: weight files written and their sizes in bytes.
        discarded_energy: share of the squared singular values that `svd` cut off; None otherwise.
        greedy: what the greedy soup tried and scored; None otherwise.
        notes: what the user should know, in sentences.
    """

    output: Path | None
    mode: str
    inputs: tuple[Input, ...]
    tensors: dict[str, int]
    dtypes: tuple[str, ...]
    accumulate: str
    files: dict[str, int]
    lora_mode: str | None = None
    discarded_energy: float | None = None
    greedy: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form for the user, with paths."""
        return {**self._common(shareable=False), "output": str(self.output) if self.output else None}

    def manifest(self) -> dict[str, Any]:
        """Return what goes into `averaging.json`: nothing of this machine, and the same for the same inputs."""
        values = self._common(shareable=True)
        del values["notes"]
        return {"format_version": FORMAT_VERSION, **values, "versions": versions()}

    def _common(self, shareable: bool) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "lora_mode": self.lora_mode,
            "inputs": [entry.to_dict(shareable) for entry in self.inputs],
            "tensors": self.tensors,
            "dtypes": list(self.dtypes),
            "accumulate": self.accumulate,
            "files": self.files,
            "discarded_energy": self.discarded_energy,
            "greedy": self.greedy,
            "notes": list(self.notes),
        }

    def describe(self) -> str:
        """Return the report as text."""
        lines = []
        for entry in self.inputs:
            names = ", ".join(name for name, _, _ in entry.files[:3])
            more = f" and {len(entry.files) - 3} more" if len(entry.files) > 3 else ""
            lines.append(
                f"  {entry.weight:8.4f}  {entry.path}" + ("" if entry.path.is_file() else f" ({names}{more})")
            )
        lines.append(
            f"{len(self.inputs)} inputs, mode {self.mode}; {self.tensors['averaged']} tensors averaged, "
            f"{self.tensors['copied']} copied; {', '.join(self.dtypes) or 'no'} weights, "
            f"{sum(self.files.values()):,} bytes."
        )
        if self.discarded_energy is not None:
            lines.append(f"Cut off with the smaller singular values: {self.discarded_energy:.3%} of the energy.")
        if self.greedy is not None:
            lines += [f"  tried {', '.join(trial['names'])}: {trial['score']:.4f}" for trial in self.greedy["trials"]]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def describe_inputs(checkpoints: Sequence[Checkpoint], weights: Sequence[Fraction]) -> tuple[Input, ...]:
    """Describe snapshots and their weights; runs are numbered in the order of the snapshots."""
    runs: dict[Path, int] = {}
    described = []
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        run = checkpoint.snapshot.run
        number = runs.setdefault(run, len(runs) + 1) if run is not None else None
        files = tuple((file.path.name, file.state[2], file.layout.sha256) for file in checkpoint.files)
        described.append(Input(checkpoint.place, number, checkpoint.snapshot.step, float(weight), files))
    return tuple(described)


@dataclass
class Parents:
    """The runs that snapshots belong to, as far as they have records.

    Attributes:
        records: one per run.
        complete: whether every snapshot belongs to a run with a record.
    """

    records: list[RunRecord] = field(default_factory=list)
    complete: bool = True


def find_parents(checkpoints: Sequence[Checkpoint], notes: list[str]) -> Parents:
    """Read the records of the runs that snapshots belong to.

    A run of several phases keeps its record above the folder of the phase.

    Raises:
        ConfigError: the runs are of different tasks, or have other labels.
    """
    parents, seen = Parents(), set()
    for checkpoint in checkpoints:
        run = checkpoint.snapshot.run or checkpoint.place
        home = next((folder for folder in (run, run.parent) if (folder / RECORD_NAME).is_file()), None)
        if home is None:
            parents.complete = False
        elif home not in seen:
            seen.add(home)
            try:
                parents.records.append(RunRecord.read(home))
            except ConfigError as error:
                notes.append(f"no run record is written: {error}")
                parents.complete = False
    tasks = {record.task["name"] for record in parents.records}
    if len(tasks) > 1:
        raise ConfigError(f"the runs are of different tasks: {', '.join(sorted(tasks))}. Average runs of one task.")
    if len({tuple(record.labels) for record in parents.records}) > 1:
        labels = " and ".join(str(record.labels) for record in parents.records[:2])
        raise ConfigError(
            f"the runs have other labels, or another order of them: {labels}. Give one {setting('labels')}."
        )
    return parents


def make_record(report: AverageReport, parents: Parents, command: str) -> RunRecord | None:
    """Make the record of an average of runs.

    It is that of the last run in everything that its checkpoints share; what training did stands in `parents`.

    Args:
        report: of the average.
        parents: its runs.
        command: what was typed, without paths.

    Returns:
        The record, or None when not all inputs are runs with records.
    """
    if not parents.records or not parents.complete:
        return None
    last, several = parents.records[-1], len(parents.records) > 1
    oracle = next((record.selection for record in parents.records if record.selection.get("oracle")), None)
    selection = oracle or {"protocol": None, "metric": None, "languages": [], "oracle": False}
    if report.greedy is not None and oracle is None:
        greedy = report.greedy
        selection = {**selection, "protocol": SOURCE_VALIDATION, "metric": greedy["metric"]}
        selection["languages"] = greedy["languages"]
    shared = {
        field.name: getattr(last, field.name) for field in dataclasses.fields(RunRecord) if field.name in _SHARED
    }
    # A threshold was chosen for the probabilities of one model alone.
    shared["task"] = {name: value for name, value in last.task.items() if name != "threshold"}
    return RunRecord(
        strategy={
            "name": "averaging",
            "title": "Run averaging" if several else "Checkpoint averaging",
            "paper": PAPER,
            MADE_OF: {
                "checkpoints": len(report.inputs),
                "runs": len(parents.records),
                "of_means": _sizes_of_means(report, parents),
            },
        },
        settings={
            "mode": report.mode,
            "checkpoints": [entry.name for entry in report.inputs],
            "weights": [round(entry.weight, 6) for entry in report.inputs],
            **({"lora_mode": report.lora_mode} if report.lora_mode else {}),
        },
        **shared,
        selection=selection,
        versions=versions(),
        command=command,
        parents=[_parent(record) for record in parents.records],
        demo=any(record.demo for record in parents.records),
        status=TRAINED,
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _sizes_of_means(report: AverageReport, parents: Parents) -> list[int]:
    """Return how many snapshots the inputs are means of, where they are what runs with averaging saved; else none."""
    facts = [averaged(record.phases) for record in parents.records]
    if not all(facts) or any(entry.step is not None for entry in report.inputs):
        return []
    return sorted({entry["snapshots"] for entry in facts})


_SHARED = ("task", "arguments", "model", "data", "languages", "labels", "few_shot")
_OF_PARENT = ("strategy", "settings", "seeds", "selection", "phases", "versions", "created", "command", "parents")


def _parent(record: RunRecord) -> dict[str, Any]:
    values, scores = record.to_dict(), record.scores
    averages = {"source_average": scores.source_average, "target_average": scores.target_average} if scores else {}
    return {**{name: values[name] for name in _OF_PARENT}, **averages}


def write_manifest(folder: Path, report: AverageReport, parents: Parents, command: str) -> None:
    """Write `averaging.json`, and the record where all inputs are runs with one.

    Args:
        folder: the output.
        report: of the average.
        parents: its runs.
        command: what was typed, without paths.

    Raises:
        OSError: the disk is full.
    """
    write_json(folder / MANIFEST_NAME, report.manifest())
    record = make_record(report, parents, command)
    if record is not None:
        record.write(folder)
