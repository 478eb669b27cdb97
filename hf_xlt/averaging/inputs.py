"""What is averaged: checkpoint folders, run folders and weight files, found and put in order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from hf_xlt.averaging import pickles
from hf_xlt.averaging.headers import DamagedFile, Layout, Tensor, WeightFile, open_weights
from hf_xlt.errors import ConfigError, setting
from hf_xlt.record import RECORD_NAME
from hf_xlt.training.checkpoints import COMPLETE_NAME, is_complete, list_checkpoints, step_of

ADAPTER_CONFIG = "adapter_config.json"
# In the order in which they are looked for.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_PHASE = re.compile(r"phase-(\d+)-.*")


@dataclass(frozen=True)
class Snapshot:
    """One input that is averaged.

    Attributes:
        place: folder or file.
        run: folder of the run that it belongs to; None for a folder or file that stands for itself.
        step: update after which it was taken, or None.
    """

    place: Path
    run: Path | None = None
    step: int | None = None

    @property
    def folder(self) -> Path:
        """Where its config and tokenizer lie."""
        return self.place if self.place.is_dir() else self.place.parent


@dataclass(frozen=True)
class Checkpoint:
    """A snapshot whose headers were read.

    Attributes:
        snapshot: where it is.
        files: its weight files.
        tensors: by name, the index of the file and the place in it; equal layouts share one mapping.
        aliases: names that share the data of another.
        is_adapter: whether it holds adapters of `peft`, not a model.
    """

    snapshot: Snapshot
    files: tuple[WeightFile, ...]
    tensors: Mapping[str, tuple[int, Tensor]]
    aliases: Mapping[str, str]
    is_adapter: bool = False

    @property
    def place(self) -> Path:
        """Folder or file."""
        return self.snapshot.place


def find_snapshots(inputs: Sequence[str | Path], runs: Sequence[str | Path], notes: list[str]) -> list[Snapshot]:
    """Resolve what the user named into snapshots, runs in numeric order of their checkpoints.

    Args:
        inputs: checkpoint folders, run folders, weight files.
        runs: run folders; one without kept checkpoints contributes its final model.
        notes: what the user should know is added here.

    Raises:
        ConfigError: a place is missing or holds nothing that can be averaged.
    """
    found: list[Snapshot] = []
    for place in map(Path, inputs):
        if not place.exists():
            raise ConfigError(f"input `{place}` is missing.")
        if place.is_dir():
            found += _of_run(place, notes) or [_of_folder(place)]
        else:
            found.append(Snapshot(place))
    for place in map(Path, runs):
        if not place.is_dir():
            raise ConfigError(
                f"{setting('runs', place, flag='run')} is no folder; give the output directory of a run."
            )
        snapshots = _of_run(place, notes)
        if not snapshots:
            if weight_name(place) is None:
                raise ConfigError(
                    f"{setting('runs', place, flag='run')} holds neither checkpoints nor a model; give a run's "
                    "directory."
                )
            notes.append(f"`{place}` keeps no checkpoints: its final model stands for the run.")
            snapshots = [Snapshot(place, place)]
        found += snapshots
    if not found:
        raise ConfigError(f"nothing to average: give checkpoints, or runs with {setting('runs', flag='run')}.")
    return found


def _of_folder(place: Path) -> Snapshot:
    match = _CHECKPOINT.fullmatch(place.name)
    if match:
        return Snapshot(place, place.resolve().parent, int(match[1]))
    # Of several finished runs the heads are compared, with or without `--run`.
    return Snapshot(place, place.resolve() if (place / RECORD_NAME).is_file() else None)


def _of_run(place: Path, notes: list[str]) -> list[Snapshot]:
    """Return the snapshots of a run folder; empty when it is none."""
    folders, home = list_checkpoints(place), place
    if not folders:
        phases = [path for path in place.iterdir() if _PHASE.fullmatch(path.name) and list_checkpoints(path)]
        if not phases:
            return []
        home = max(phases, key=lambda path: int(_PHASE.fullmatch(path.name)[1]))
        folders = list_checkpoints(home)
        notes.append(f"of `{place}` the checkpoints of the phase `{home.name}` are taken.")
    ours = (place / RECORD_NAME).is_file() or any((folder / COMPLETE_NAME).is_file() for folder in folders)
    whole = [folder for folder in folders if not ours or is_complete(folder)]
    skipped = [folder.name for folder in folders if folder not in whole]
    if skipped:
        notes.append(f"of `{place}` left out, as they are incomplete: {', '.join(skipped)}.")
    if not whole:
        raise ConfigError(
            f"`{place}` holds no complete checkpoint. Continue the run with {setting('resume')}, or give others."
        )
    return [Snapshot(folder, place.resolve(), step_of(folder)) for folder in whole]


def in_order(snapshots: Sequence[Snapshot]) -> list[int]:
    """Return the order to average in: runs as given, within a run by step; `checkpoint-2` before `checkpoint-10`.

    What stands for itself stays where it was given.
    """
    runs: dict[Path | None, int] = {}
    for number, snapshot in enumerate(snapshots):
        runs.setdefault(snapshot.run, number)
    loose = any(snapshot.step is None for snapshot in snapshots)

    def key(number: int) -> tuple[int, int]:
        snapshot = snapshots[number]
        return (number, 0) if loose else (runs[snapshot.run], snapshot.step)

    return sorted(range(len(snapshots)), key=key)


def choose(
    snapshots: Sequence[Snapshot], last_k: int | None, window: tuple[Fraction, Fraction, bool] | None
) -> list[int]:
    """Choose snapshots of each run: the last ones, or those between two points.

    Args:
        snapshots: in order.
        last_k: how many of each run, 1 or more; runs with fewer give all.
        window: first and last point, both included, and whether they are fractions of the run's last step.

    Raises:
        ConfigError: nothing is left, or there are no steps to compare with a window.
    """
    groups: dict[Path | None, list[int]] = {}
    for number, snapshot in enumerate(snapshots):
        groups.setdefault(snapshot.run, []).append(number)
    chosen = []
    for members in groups.values():
        if window is not None:
            members = _within(snapshots, members, window)
        chosen += members[-last_k:] if last_k else members
    if not chosen:
        raise ConfigError(f"{setting('window')} leaves no snapshot; widen it.")
    return sorted(chosen)


def _within(
    snapshots: Sequence[Snapshot], members: Sequence[int], window: tuple[Fraction, Fraction, bool]
) -> list[int]:
    if any(snapshots[number].step is None for number in members):
        raise ConfigError(f"{setting('window')} needs folders named `checkpoint-<step>`; other inputs have no step.")
    first, last, is_fraction = window
    scale = max(snapshots[number].step for number in members) if is_fraction else 1
    return [number for number in members if first * scale <= snapshots[number].step <= last * scale]


def parse_window(text: str) -> tuple[Fraction, Fraction, bool]:
    """Read `a:b`: two steps, or two fractions when neither is above 1; an empty side is open.

    Raises:
        ConfigError: it is neither.
    """
    left, colon, right = text.partition(":")
    try:
        first = Fraction(left.strip() or 0)
        is_fraction = (Fraction(right.strip()) if right.strip() else first) <= 1
        last = Fraction(right.strip() or (1 if is_fraction else 10**18))
    except ValueError as error:
        raise ConfigError(f"{setting('window', text)} is not `FIRST:LAST`, such as 0.2:1.0 or 500:2000.") from error
    if not colon or not 0 <= first <= last:
        raise ConfigError(f"{setting('window', text)} is not `FIRST:LAST` with FIRST at most LAST, such as 0.2:1.0.")
    return first, last, is_fraction


def weight_name(folder: Path) -> str | None:
    """Return the name of a folder's weight file or index; None when it holds none."""
    adapter = (folder / ADAPTER_CONFIG).is_file()
    names = (*_ADAPTERS, *_WEIGHTS, *_PICKLES) if adapter else (*_WEIGHTS, *_PICKLES)
    return next((name for name in names if (folder / name).is_file()), None)


def open_checkpoints(snapshots: Sequence[Snapshot]) -> list[Checkpoint]:
    """Read the headers of all snapshots.

    Raises:
        ConfigError: a file is damaged, missing or foreign, or the same file is there twice.
    """
    known: dict[str, Layout] = {}
    merged: dict[tuple[str, ...], tuple[Mapping, Mapping]] = {}
    checkpoints, seen = [], {}
    for snapshot in snapshots:
        files = _files(snapshot.place, known)
        for file in files:
            other = seen.setdefault(file.state[:2], file.path)
            if other is not file.path:
                raise ConfigError(
                    f"`{file.path}` and `{other}` are one and the same file, which would count twice. Leave out one; "
                    f"to count it double give {setting('weights')}."
                )
        key = tuple(f"{file.layout.sha256}:{file.state[2]}" for file in files)
        if key not in merged:
            merged[key] = _merge(files)
        is_adapter = snapshot.place.is_dir() and (weight_name(snapshot.place) or "").startswith("adapter_")
        checkpoints.append(Checkpoint(snapshot, files, *merged[key], is_adapter))
    return checkpoints


def _merge(files: Sequence[WeightFile]) -> tuple[dict[str, tuple[int, Tensor]], dict[str, str]]:
    tensors, aliases = {}, {}
    for number, file in enumerate(files):
        for name, tensor in file.layout.tensors.items():
            if name in tensors:
                raise DamagedFile(file.path, f"holds `{name}`, which another shard holds as well.")
            tensors[name] = (number, tensor)
        aliases |= file.layout.aliases
    return tensors, aliases


def _files(place: Path, known: dict[str, Layout]) -> tuple[WeightFile, ...]:
    if not place.is_dir():
        return _of_path(place, known)
    name = weight_name(place)
    if name is None:
        if (place / "optimizer.pt").is_file():
            raise ConfigError(f"`{place}` holds the state of an optimizer and no weights. Give a folder with weights.")
        raise ConfigError(
            f"`{place}` holds no weights: neither `model.safetensors`, its index, `pytorch_model.bin` nor an adapter."
        )
    return _of_path(place / name, known)


def _of_path(path: Path, known: dict[str, Layout]) -> tuple[WeightFile, ...]:
    if path.name.endswith(".index.json"):
        return tuple(_of_path(shard, known)[0] for shard in _shards(path))
    if path.suffix == ".safetensors":
        return (open_weights(path, known),)
    if path.suffix in pickles.SUFFIXES:
        return (pickles.open_pickle(path),)
    raise ConfigError(f"`{path}` is no weight file: its name ends neither in `.safetensors` nor in `.bin` or `.pt`.")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        bad = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(index, "is damaged: it holds no `weight_map`.") from error
    if not names or bad:
        raise DamagedFile(index, "is damaged: it names no files beside it.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConfigError(
            f"`{index}` names {len(names)} shards, and {', '.join(f'`{name}`' for name in missing[:3])} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Copy or download them as well."
        )
    return [index.parent / name for name in names]
