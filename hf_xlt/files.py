"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What a tokenizer may consist of, saved beside a model.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
)

_RESULTS = ("results", "comparators", "generalized", "retrieval", "comparison", "gates", "representations", "losses")
_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")
# What a model of ours is saved as, tokenizer included, as shell patterns.
MODEL_FILES = (
    *_WEIGHTS,
    *TOKENIZER_FILES,
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "head.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "*vocab*.json",
    "*vocab*.txt",
    "bpe.codes",
    "*.bpe.model",
    "*.spm",
    "modeling_*.py",
    "configuration_*.py",
    "tokenization_*.py",
    "training_args.bin",
    "README.md",
)
# What runs, pre-trainings, evaluations and sweeps add to it: files, and folders that are theirs as a whole.
RUN_FILES = (
    *MODEL_FILES,
    "xlt_*.json",
    "xlt_state.safetensors",
    "averaging*.json",
    "averaging_state.safetensors",
    "trainer_state.json",
    "all_results.json",
    "*_results.json",
    "phases.json",
    "complete.json",
    "items.safetensors",
    *(f"{name}.{end}" for name in _RESULTS for end in ("json", "md", "png", "csv", "html")),
    "sweep_results.*",
    "accumulated.json",
    ".*.part",
    ".*.old",
)
RUN_FOLDERS = (
    "checkpoint-*",
    "phase-*",
    "adapter",
    "last",
    "best",
    "final",
    "rtn",
    "snapshots",
    "evaluations",
    ".*.part",
    ".*.old",
)


def is_written(path: Path, files: Iterable[str] = RUN_FILES, folders: Iterable[str] = RUN_FOLDERS) -> bool:
    """Say whether a file or folder has a name that ours have, so that it may be replaced.

    Args:
        path: the file or folder; a link is the user's own.
        files: names of files, as shell patterns.
        folders: names of folders.
    """
    if path.is_symlink():
        return False
    return any(fnmatch.fnmatchcase(path.name, known) for known in (folders if path.is_dir() else files))


def remove_written(
    folder: Path, last: str, files: Iterable[str] = RUN_FILES, folders: Iterable[str] = RUN_FOLDERS
) -> None:
    """Delete what ours wrote into a folder; all else stays.

    Args:
        folder: the folder.
        last: the file that says what it is; it goes last, so that a deletion cut short can be repeated.
        files: names of files, as shell patterns.
        folders: names of folders.

    Raises:
        OSError: something cannot be deleted.
    """
    for path in sorted(folder.iterdir(), key=lambda entry: entry.name == last):
        if path.name == last or is_written(path, files, folders):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def keep_others(old: Path, new: Path, files: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Move what is not ours from a folder that is replaced into the one that replaces it.

    Raises:
        OSError: something cannot be moved; it is where it was.
    """
    for path in old.iterdir():
        if not is_written(path, files, folders) and not os.path.lexists(new / path.name):
            os.rename(path, new / path.name)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace a file atomically: write beside, fsync, rename, fsync the folder.

    Raises:
        OSError: the disk is full or the place is not writable; the old file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replace a JSON file atomically.

    Raises:
        OSError: as `write_text`.
        TypeError: `value` is not JSON-able.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync_folder(folder: str | os.PathLike) -> None:
    """Make a folder's entries durable, where the system allows it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: str | os.PathLike) -> None:
    """Make a file's bytes durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
