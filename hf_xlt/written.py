"""What runs write into folders, told by place and name, so that nothing else in them is ever deleted.

A folder of a run may hold notes, plots or models of its user. Whatever deletes or replaces such a folder goes through
here: `delete_written` takes away what was written by a run, `carry_over` moves the rest to the folder's successor.
"""

from __future__ import annotations

import contextlib
import filecmp
import fnmatch
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_xlt.files import TOKENIZER_FILES, has_keys
from hf_xlt.registry import left_beside

COMPLETE_NAME = "complete.json"
_PAIRS_NAME = "pairs.json"
# Counts of text; others may call a file so as well.
LANGUAGES_NAME, LANGUAGES_KEYS = "languages.json", ("format_version", "tokenizer", "languages")
# What commands say of a tokenizer, or of a model with another vocabulary, beside it; each lists what was written.
TRIMMING_NAME, SWAPPING_NAME, TOKENIZER_NAME = "trimming.json", "swapping.json", "tokenizer_training.json"
_LISTS = (COMPLETE_NAME, TRIMMING_NAME, SWAPPING_NAME, TOKENIZER_NAME)
# They say what a folder is, and are deleted last: a deletion cut short still looks like what may be overwritten.
_MARKERS = ("xlt_run.json", "sweep.json", "averaging.json")

_MODEL = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "head.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    *TOKENIZER_FILES,
    # Vocabularies of tokenizers without a `tokenizer.json`.
    "bpe.codes",
    "emoji.json",
    "entity_vocab.json",
    "sentencepiece.model",
    "source.spm",
    "spm.model",
    "spm_char.model",
    "target.spm",
)
_TRAINING = (
    COMPLETE_NAME,
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_*.pth",
    "trainer_state.json",
    "training_args.bin",
    "xlt_state.safetensors",
    "xlt_state.json",
    "averaging_state.safetensors",
    "data_state-rank*.json",
    "phases.json",
    "projection.safetensors",
    "states-*.safetensors",
)
_SCORES = (
    "results.json",
    "results.md",
    "results.png",
    "generalized.json",
    "generalized.md",
    "generalized.png",
    "comparators.json",
    "comparators.md",
    "items.safetensors",
)
_SWEEP = ("sweep_results.json", "sweep_results.md", "accumulated.json")
_COMPARISON = ("comparison.md", "comparison.json", "comparison.csv", "comparison.html", "comparison.png")
# Of commands that write beside a model where they are told to.
_BESIDE = (TRIMMING_NAME, SWAPPING_NAME, TOKENIZER_NAME, "retrieval.json", "retrieval.md", *_COMPARISON)
_HALF_WRITTEN = (".*.part", ".*.old")
_RUN = (*_MARKERS, "README.md", *_MODEL, *_TRAINING, *_SCORES, *_SWEEP, *_BESIDE, *_HALF_WRITTEN)
# Folders that hold other things than a model, and what.
_OTHER_FOLDERS = {
    "evaluations": (*_SCORES, *_HALF_WRITTEN),
    "runs": ("events.out.tfevents.*",),
    "logs": ("*.txt",),
    "comparison": _COMPARISON,
}
_DEEP_FOLDERS = ("evaluations", "runs")
_FOLDER = re.compile(
    r"checkpoint-\d+|phase-\d+-[\w-]+|teacher-[0-9a-f]{16}|step-\d+|snapshots|final|last|best|adapter|averaged|global_step\d+"
    r"|pytorch_model_fsdp_\d+|optimizer_\d+|\.accumulating|\..+\.(part|old)"
)


@dataclass(frozen=True)
class Contents:
    """What lies in a folder.

    Attributes:
        written: files and folders that runs wrote, each folder behind what it holds.
        others: files and folders of other origin; of a folder, nothing in it was looked at.
    """

    written: tuple[Path, ...]
    others: tuple[Path, ...]


def sort_out(folder: Path, members: tuple[str, ...] = ()) -> Contents:
    """Tell what runs wrote into a folder from everything else; links are not followed.

    Args:
        folder: of a run, a sweep, an average, a checkpoint, or sets of pairs.
        members: names of the folders in it that are folders of runs themselves.
    """
    written, others = [], []
    strategies = (*left_beside("PLOTS"), *left_beside("FILES"))
    kept = frozenset(left_beside("KEPT"))

    def visit(place: Path, parts: tuple[str, ...], listed: frozenset[Path]) -> None:
        listed = listed | _listed(place)
        above = {path for name in listed for path in name.parents}
        for entry in sorted(place.iterdir(), key=lambda path: (path.name in _MARKERS, path.name)):
            inner = (*parts, entry.name)
            if not entry.is_dir() or entry.is_symlink():
                known = _is_written(inner, (*_RUN, *strategies)) or "/".join(inner[-2:]) in kept
                known = entry in listed or (known and not _is_edited_card(entry))
                (written if known else others).append(entry)
            elif not parts and entry.name in members:
                enter(entry, (), listed)
            elif _is_folder(inner, kept) or entry in above:
                enter(entry, inner, listed)
            else:
                others.append(entry)

    def enter(place: Path, parts: tuple[str, ...], listed: frozenset[Path]) -> None:
        before = len(written)
        visit(place, parts, listed)
        if len(written) > before or not any(place.iterdir()):
            written.append(place)

    if folder.is_dir():
        visit(folder, (), frozenset())
    return Contents(tuple(written), tuple(others))


def _is_written(parts: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    *folders, name = parts
    if folders and folders[0] in _OTHER_FOLDERS:
        patterns = _OTHER_FOLDERS[folders[0]]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_edited_card(path: Path) -> bool:
    """Say whether a card holds words of the user's."""
    if path.name != "README.md" or path.is_symlink():
        return False
    from hf_xlt.model_cards.card import is_generated

    return not is_generated(path.read_text(encoding="utf-8", errors="replace"))


def _is_folder(parts: tuple[str, ...], kept: frozenset[str]) -> bool:
    name, top = parts[-1], parts[0]
    if top in _OTHER_FOLDERS:
        return len(parts) == 1 or top in _DEEP_FOLDERS
    return _FOLDER.fullmatch(name) is not None or any(path.startswith(f"{name}/") for path in kept)


def _listed(folder: Path) -> frozenset[Path]:
    """Return the files that a sealed checkpoint, a folder of pairs, or a command's report says are its own."""
    names: list[str] = [LANGUAGES_NAME] if has_keys(folder / LANGUAGES_NAME, LANGUAGES_KEYS) else []
    for name in _LISTS:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            names += json.loads((folder / name).read_text(encoding="utf-8"))["files"]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        splits = json.loads((folder / _PAIRS_NAME).read_text(encoding="utf-8"))["splits"]
        names += [f"{split}.{code}.parquet" for split, facts in splits.items() for code in facts["languages"]]
        names += [_PAIRS_NAME, "README.md"]
    return frozenset(folder / name for name in names)


def delete_written(folder: Path, members: tuple[str, ...] = (), *, itself: bool = False) -> tuple[Path, ...]:
    """Delete what runs wrote into a folder.

    Args:
        folder: as `sort_out`.
        members: as `sort_out`.
        itself: the folder goes as well, if nothing is left in it.

    Returns:
        What was of other origin and stays.

    Raises:
        OSError: something cannot be deleted.
    """
    if folder.is_symlink():
        return (folder,)
    contents = sort_out(folder, members)
    delete_files(contents)
    if itself and folder.is_dir():
        _delete(folder)
    return contents.others


def delete_files(contents: Contents) -> None:
    """Delete what runs wrote, and of the folders those that are left empty."""
    for path in contents.written:
        _delete(path)


def _delete(path: Path) -> None:
    """Delete a file, or a folder if it is empty."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    elif not any(path.iterdir()):
        path.rmdir()


def carry_over(old: Path, new: Path) -> None:
    """Move what no run wrote from a folder to the one that replaced it, and delete the old one.

    Nothing in `new` is replaced: where it has another file of the same name, the old one gets a name of its own.

    Raises:
        OSError: something cannot be moved or deleted; nothing of other origin is lost.
    """
    if old.is_symlink():
        old.unlink()
        return
    for path in sort_out(old).others:
        target = new / path.relative_to(old)
        if path.is_file() and target.is_file() and filecmp.cmp(path, target, shallow=False):
            path.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, next(name for name in _names(target) if not os.path.lexists(name)))
    delete_written(old, itself=True)


def _names(path: Path) -> Iterator[Path]:
    yield path
    number = 1
    while True:
        yield path.with_name(f"{path.name}.kept-{number}")
        number += 1
