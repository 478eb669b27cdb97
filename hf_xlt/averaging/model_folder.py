"""Writing an averaged model as a folder that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn

from hf_xlt.averaging.parameters import bare
from hf_xlt.errors import ConfigError
from hf_xlt.files import sync_file, sync_folder
from hf_xlt.written import carry_over


def check_name(name: str | None) -> None:
    """Check the name of a folder beside checkpoints; None is no folder.

    Raises:
        ConfigError: it is a path, or looks like a checkpoint.
    """
    if name is None:
        return
    if not name or Path(name).name != name:
        raise ConfigError(f"`output_name` is {name!r}; give the plain name of a subfolder.")
    if name.startswith("checkpoint-"):
        raise ConfigError(f"`output_name` {name!r} would be rotated away as a checkpoint; give another.")


def write_model(model: nn.Module, processing_class: Any, folder: Path) -> None:
    """Save a model and its tokenizer; an earlier one in a folder of that name is replaced, other files there stay.

    Args:
        model: to save; one without `save_pretrained` becomes a weight file alone.
        processing_class: its tokenizer or processor, or None.
        folder: where; its parent is made if need be.

    Raises:
        OSError: the disk is full or not writable; what was there is kept.
    """
    part, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)
    if old.exists():
        # Left by a killed process.
        carry_over(old, folder) if folder.exists() else os.replace(old, folder)
    part.mkdir(parents=True)
    try:
        model = bare(model)
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(part)
        else:
            save_model(model, str(part / "model.safetensors"), {"format": "pt"})
        if processing_class is not None:
            processing_class.save_pretrained(part)
        for path in sorted(part.rglob("*")):
            sync_file(path) if path.is_file() else sync_folder(path)
        sync_folder(part)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(part, folder)
        except OSError:
            if os.path.lexists(old):
                os.replace(old, folder)
            raise
        sync_folder(folder.parent)
        if os.path.lexists(old):
            carry_over(old, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
