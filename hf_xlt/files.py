"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Collection
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


def has_keys(path: Path, keys: Collection[str]) -> bool:
    """Say whether a file is a JSON document with these keys at its top."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and set(keys) <= set(document)


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
