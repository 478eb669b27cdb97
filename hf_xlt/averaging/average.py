"""`average_checkpoints`: from checkpoints on disk to an averaged model on disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from hf_xlt.averaging.blocks import BlockWorker
from hf_xlt.averaging.compatibility import check_configs, check_tokenizers, copy_companions
from hf_xlt.averaging.dtypes import from_torch_name, torch_name
from hf_xlt.averaging.headers import Tensor
from hf_xlt.averaging.inputs import (
    Checkpoint,
    Snapshot,
    choose,
    find_snapshots,
    in_order,
    open_checkpoints,
    parse_window,
)
from hf_xlt.averaging.plan import FIRST, MEAN, SAME, Matching, OutputFile, Source, match, plan_files, plan_spans
from hf_xlt.averaging.report import AverageReport, Parents, describe_inputs, find_parents, write_manifest
from hf_xlt.averaging.staging import check_output, check_space, staged
from hf_xlt.averaging.streaming import Inputs, write_average
from hf_xlt.averaging.trajectory import early_snapshot_notes
from hf_xlt.averaging.weights import as_fractions, snapshot_weights, summation
from hf_xlt.errors import ConfigError, RunError, is_disk_full, setting
from hf_xlt.files import write_json
from hf_xlt.registry import dependent, unused_problems

MODES = ("uniform", "weighted", "last-k", "window", "ema", "greedy")
ACCUMULATE = ("auto", "float32", "float64")
LORA_MODES = ("error", "merge", "concat", "factors", "svd")
REQUIRE_EQUAL, TAKE_FIRST, AVERAGE = "require-equal", "take-first", "average"
HEADS = (REQUIRE_EQUAL, TAKE_FIRST, AVERAGE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How to average; the fields are the arguments of `average_checkpoints`."""

    weights: Sequence[float | str | Fraction] | None = None
    mode: str = "uniform"
    last_k: int | None = None
    window: str | tuple[float, float] | None = None
    ema_decay: float | None = None
    per_run: bool = False
    dtype: Any = None
    accumulate: str = "auto"
    head: str | None = None
    strict: bool = True
    lora_mode: str = "error"
    base: str | None = None
    max_shard_size: int | str | None = None
    overwrite: bool = False
    allow_non_finite: bool = False
    allow_negative: bool = False
    command: str = "hf-xlt average"
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Check choices and what goes together.

        Raises:
            ConfigError: a setting is out of range, or two contradict each other.
        """
        for name, known in (("mode", MODES), ("accumulate", ACCUMULATE), ("lora_mode", LORA_MODES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"`{name}` {getattr(self, name)!r} is not known; choose one of {', '.join(known)}.")
        if self.head is not None and self.head not in HEADS:
            raise ConfigError(f"{setting('head', self.head)} is not known; choose one of {', '.join(HEADS)}.")
        if self.last_k is not None and self.last_k < 1:
            raise ConfigError(f"{setting('last_k', self.last_k, flag='last')} must be 1 or more.")
        if self.ema_decay is not None and self.weights is not None:
            raise ConfigError(
                f"{setting('ema_decay', flag='ema')} makes its own weights: leave out {setting('weights')}."
            )
        needed = {"weighted": "weights", "last-k": "last_k", "window": "window", "ema": "ema_decay"}.get(self.mode)
        if needed and getattr(self, needed) is None:
            raise ConfigError(f"mode `{self.mode}` needs `{needed}`.")

    def mode_name(self) -> str:
        """Name what was asked for; several options are joined by `+`."""
        asked = [
            ("last-k", self.last_k),
            ("window", self.window),
            ("weighted", self.weights),
            ("ema", self.ema_decay),
            ("greedy", self.mode == "greedy" or None),
        ]
        return "+".join(name for name, value in asked if value is not None) or "uniform"

    def shard_bytes(self) -> int | None:
        """Return the most bytes per weight file, or None for one file.

        Raises:
            ConfigError: it is no size.
        """
        if self.max_shard_size is None:
            return None
        match_ = _SIZE.fullmatch(str(self.max_shard_size).strip())
        size = 0
        if match_:
            scale = (1024 if match_[3] else 1000) ** " KMGT".index(match_[2].upper() or " ")
            size = int(float(match_[1]) * scale)
        if size < 1:
            raise ConfigError(f"{setting('max_shard_size', self.max_shard_size)} is no size; write 5GB or 500MB.")
        return size


# What only one kind of input has a use for; known once the inputs are open.
_OF_MODELS = (
    dependent("accumulate head", lambda settings: False, "models; adapters are summed in float64, heads and all"),
    dependent("max_shard_size", lambda settings: settings.lora_mode == "merge", "models, and `lora_mode` merge"),
    dependent("base", lambda settings: settings.lora_mode == "merge", "`lora_mode` merge"),
)
_OF_ADAPTERS = (dependent("lora_mode base", lambda settings: False, "adapters, and the inputs are models"),)


@dataclass
class Selection:
    """What is averaged: snapshots that count, their weights, and notes for the user."""

    snapshots: list[Snapshot]
    weights: list[Fraction]
    notes: list[str] = field(default_factory=list)


def average_checkpoints(
    inputs: Sequence[str | Path],
    output: str | Path | None,
    *,
    runs: Sequence[str | Path] = (),
    check_only: bool = False,
    score: Callable[[Path], float] | None = None,
    **settings: Any,
) -> AverageReport:
    """Average checkpoints on disk into a model folder that `from_pretrained` loads; return what was averaged.

    Memory grows neither with the number of checkpoints nor with their size. Of inputs of weight 0 headers are read.

    Args:
        inputs: checkpoint folders, run folders, weight files, adapter folders.
        output: the folder to be; None only with `check_only`.
        runs: run folders; one without kept checkpoints contributes its final model.
        check_only: compare headers, configs and tokenizers, and write nothing.
        score: of mode `greedy`: scores a model folder on source-language validation data, higher being better.
        **settings: fields of `Settings`. `weights`: one per snapshot. `last_k`: that many of each run. `window`:
            `(first, last)`, steps or, up to 1, fractions of a run's last step. `ema_decay`: β per snapshot of a run.
            `per_run`: runs count the same. `dtype`: of the output, as torch calls it. `accumulate`: `auto`
            (float64 for float32 weights, float32 for halves), `float32`, `float64`. `head`: `require-equal` (default
            for several runs), `take-first` or `average`. `strict`: refuse other configs, labels and tokenizers.
            `lora_mode`: `merge`, `concat`, `factors`, `svd`; `base`: the model to merge into. `max_shard_size`: bytes,
            or `5GB`. `overwrite`: replace an average. `allow_non_finite`, `allow_negative`. `command`: for the record.
            `progress`: called with new bytes and bytes in all.

    Raises:
        ConfigError: inputs, settings or output cannot be used; nothing was written.
        RunError: the disk is full, or an input changed meanwhile; nothing is left of the attempt.
    """
    asked = Settings(**settings)
    place = Path(output) if output is not None else None
    if place is None and not check_only:
        raise ConfigError("no output: give the folder to write with `-o`.")
    selection, greedy = select(inputs, runs, asked), None
    if place:
        used = [*map(Path, (*inputs, *runs)), *(snapshot.place for snapshot in selection.snapshots)]
        check_output(place, used, asked.overwrite)
    if asked.mode == "greedy":
        from hf_xlt.averaging.greedy import choose_greedily

        greedy = choose_greedily(selection, asked, place, score)
    try:
        return _Job(selection, asked, place, greedy).run(check_only)
    except OSError as error:
        raise _as_run_error(error) from error


def _as_run_error(error: OSError) -> RunError:
    if is_disk_full(error):
        return RunError(
            "no space is left on the disk. Nothing was kept of the attempt, and what was there is untouched."
        )
    place = f" (`{error.filename}`)" if error.filename else ""
    return RunError(f"{error.strerror or error}{place}. Nothing was kept of the attempt.")


def select(inputs: Sequence[str | Path], runs: Sequence[str | Path], settings: Settings) -> Selection:
    """Find the snapshots, put them in order, choose among them and weigh them.

    Raises:
        ConfigError: there are none, or weights do not fit them.
    """
    notes: list[str] = []
    found = find_snapshots(inputs, runs, notes)
    order = in_order(found)
    snapshots = [found[number] for number in order]
    window = settings.window
    if window is not None:
        window = parse_window(window if isinstance(window, str) else ":".join(map(str, window)))
    chosen = choose(snapshots, settings.last_k, window)
    given = None
    if settings.weights is not None:
        given = as_fractions(settings.weights)
        if len(given) not in (len(found), len(chosen)):
            raise ConfigError(f"{len(given)} weights for {len(chosen)} snapshots; give one weight per snapshot.")
        # Weights stand in the order in which the snapshots were given, which is not always that of their steps.
        place = sorted(order) if len(given) == len(found) else sorted(order[number] for number in chosen)
        by_snapshot = dict(zip(place, given, strict=True))
        given = [by_snapshot[order[number]] for number in chosen]
    snapshots = [snapshots[number] for number in chosen]
    groups = [snapshot.run for snapshot in snapshots]
    weights = snapshot_weights(
        groups,
        given=given,
        per_run=settings.per_run,
        ema_decay=None if settings.ema_decay is None else Fraction(str(settings.ema_decay)),
        allow_negative=settings.allow_negative,
    )
    counts = {run: groups.count(run) for run in dict.fromkeys(groups) if run is not None}
    if len(set(counts.values())) > 1 and not settings.per_run:
        sizes = ", ".join(str(count) for count in counts.values())
        notes.append(
            f"the runs give {sizes} snapshots, each counting the same; {setting('per_run')} lets runs count the same."
        )
    return Selection(snapshots, weights, notes + early_snapshot_notes(snapshots))


@dataclass
class _Job:
    """One average from opened inputs to the output."""

    selection: Selection
    settings: Settings
    output: Path | None
    greedy: dict[str, Any] | None = None

    def run(self, check_only: bool) -> AverageReport:
        weights, notes = self.selection.weights, self.selection.notes
        checkpoints = open_checkpoints(self.selection.snapshots)
        folders = [checkpoint.snapshot.folder for checkpoint in checkpoints]
        check_tokenizers(folders, self.settings.strict, notes)
        parents = find_parents(checkpoints, notes)
        adapters = {checkpoint.is_adapter for checkpoint in checkpoints}
        if adapters == {True, False}:
            raise ConfigError("some inputs are adapters and some are models; average only one kind.")
        unused = unused_problems(self.settings, _OF_MODELS if adapters == {True} else _OF_ADAPTERS)
        if unused:
            raise ConfigError(f"{'; '.join(unused)}.")
        if adapters == {True}:
            from hf_xlt.averaging.lora import average_adapters

            return average_adapters(checkpoints, weights, self.settings, self.output, check_only, notes, parents)
        configs = check_configs(folders, self.settings.strict, notes)
        counted = [checkpoint for checkpoint, weight in zip(checkpoints, weights, strict=True) if weight]
        matching, head = self._match(checkpoints, configs[-1])
        files = plan_files(matching.tensors, self.settings.shard_bytes())
        report = self._report(checkpoints, matching, files)
        if check_only:
            return report
        check_space(self.output, sum(file.size for file in files))
        self._write(report, counted, matching, files, head, parents)
        return report

    def _match(self, checkpoints: Sequence[Checkpoint], config: dict | None) -> tuple[Matching, frozenset[str]]:
        rule, head = self.settings.head, frozenset()
        runs = {checkpoint.snapshot.run for checkpoint in checkpoints} - {None}
        if rule is None and len(runs) > 1:
            rule = REQUIRE_EQUAL
        if rule is not None:
            from hf_xlt.averaging.heads import head_names

            head = frozenset(head_names(checkpoints[-1].snapshot.folder, checkpoints[-1].tensors))
        if rule in (TAKE_FIRST, AVERAGE) and head:
            how = "is that of the first input" if rule == TAKE_FIRST else "is averaged"
            self.selection.notes.append(f"the head {how}, whether or not the inputs share it.")
        dtype = None if self.settings.dtype is None else from_torch_name(self.settings.dtype)
        matching = match(
            checkpoints,
            dtype=dtype,
            head=head,
            head_action={REQUIRE_EQUAL: SAME, TAKE_FIRST: FIRST}.get(rule, MEAN),
            is_tied=(config or {}).get("tie_word_embeddings", True) is not False,
            equal_data=equal_data,
        )
        return matching, head

    def _report(
        self, checkpoints: Sequence[Checkpoint], matching: Matching, files: Sequence[OutputFile]
    ) -> AverageReport:
        from hf_xlt.averaging.dtypes import FLOATS

        averaged = sum(tensor.action == MEAN for tensor in matching.tensors)
        return AverageReport(
            output=self.output,
            mode=self.settings.mode_name(),
            inputs=describe_inputs(checkpoints, self.selection.weights),
            tensors={"averaged": averaged, "copied": len(matching.tensors) - averaged},
            dtypes=tuple(sorted({torch_name(t.dtype) for t in matching.tensors if t.dtype in FLOATS})),
            accumulate=self.settings.accumulate,
            files={file.name: file.size for file in files},
            greedy=self.greedy,
            notes=tuple(dict.fromkeys([*self.selection.notes, *matching.notes])),
        )

    def _write(
        self,
        report: AverageReport,
        counted: Sequence[Checkpoint],
        matching: Matching,
        files: Sequence[OutputFile],
        head: frozenset[str],
        parents: Parents,
    ) -> None:
        settings = self.settings
        spans = plan_spans(matching.tensors, files, counted)
        factors, divisor = summation([weight for weight in self.selection.weights if weight])
        total, progress = sum(file.size for file in files), settings.progress

        def make_worker() -> BlockWorker:
            return BlockWorker(inputs.read, factors, divisor, settings.accumulate, settings.allow_non_finite)

        inputs = Inputs([file for checkpoint in counted for file in checkpoint.files])
        with staged(self.output) as part:
            told = None if progress is None else lambda count: progress(count, total)
            with inputs.opened():
                write_average(part, files, spans, inputs, make_worker, told, head)
            write_folder(part, report, files, counted[-1].snapshot.folder, parents, settings)


def write_folder(
    part: Path,
    report: AverageReport,
    files: Sequence[OutputFile],
    companions: Path,
    parents: Parents,
    settings: Settings,
) -> None:
    """Write what lies beside averaged weights: index, config, tokenizer, `averaging.json`, the record.

    Args:
        part: the folder, with the weights.
        report: of the average.
        files: the weight files; several get an index.
        companions: folder that config and tokenizer are copied from.
        parents: the runs behind it.
        settings: of the average.

    Raises:
        OSError: the disk is full.
    """
    if len(files) > 1:
        sizes = sum(place.size for file in files for place in file.places.values())
        index = {name: file.name for file in files for name in file.places}
        write_json(
            part / "model.safetensors.index.json",
            {"metadata": {"total_size": sizes}, "weight_map": dict(sorted(index.items()))},
        )
    copy_companions(companions, part, None if settings.dtype is None else from_torch_name(settings.dtype))
    write_manifest(part, report, parents, settings.command)


def equal_data(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Say whether two tensors of a checkpoint, of the same format and shape, hold the same bits."""
    places: list[tuple[int, Tensor]] = [checkpoint.tensors[name] for name in (one, other)]
    if places[0] == places[1]:
        return True
    sources = [Source(number, place.start, place.dtype) for number, place in places]
    from hf_xlt.averaging.dtypes import SIZES

    return Inputs(checkpoint.files).equal(*sources, places[0][1].size // SIZES[places[0][1].dtype])
