"""Saving a model so that plain `AutoModelFor…` loads it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.files import sync_file, sync_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PART = ".final.part"


def save_final(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, parts: Mapping[str, Any] | None = None
) -> None:
    """Save model and tokenizer into a folder: written beside, made durable, then moved in file by file.

    Args:
        model: to load with the plain class.
        tokenizer: its tokenizer.
        folder: it exists.
        parts: by the name of a subfolder, what else is saved there by its own `save_pretrained`.

    Raises:
        OSError: the disk is full or not writable; what the folder held is untouched.
    """
    part = folder / _PART
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        for name, other in (parts or {}).items():
            other.save_pretrained(part / name)
        files = sorted(path for path in part.rglob("*") if path.is_file())
        for path in files:
            sync_file(path)
        for path in files:
            target = folder / path.relative_to(part)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for name in parts or ():
        sync_folder(folder / name)
    sync_folder(folder)
