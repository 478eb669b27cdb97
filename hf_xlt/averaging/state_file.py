"""`averaging_state.safetensors`: the average so far, beside a checkpoint of a stock Trainer.

The stock Trainer restores state of callbacks only on request and into new objects, and only what is JSON. So the file
is written and found here; a Trainer of this package keeps the same content in its own sealed checkpoints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_xlt.errors import RunError
from hf_xlt.files import sync_file, sync_folder

STATE_NAME = "averaging_state.safetensors"
SCHEMA = 1


def write_state(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write the state into a checkpoint, atomically.

    Args:
        folder: the checkpoint; it exists.
        tensors: by name, any shape.
        values: JSON-able, by name; they become the file's metadata.

    Raises:
        OSError: the disk is full; no half file is left under the name.
    """
    path, part = folder / STATE_NAME, folder / f".{STATE_NAME}.part"
    metadata = {"format": "pt", **{name: json.dumps(value) for name, value in values.items()}}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part, metadata)
    sync_file(part)
    os.replace(part, path)
    sync_folder(folder)


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_state` wrote.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / STATE_NAME
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, {name: json.loads(value) for name, value in metadata.items() if name != "format"}
    except (SafetensorError, ValueError) as error:
        raise RunError(f"`{path}` is damaged ({error}); resume from an earlier checkpoint.") from error


def find_state(folders: Iterable[Path], step: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the state of an update from the first folder that holds one; None when there is none.

    Raises:
        RunError: there are only states of other updates, or one is damaged.
    """
    others = []
    for folder in dict.fromkeys(folders):
        if (folder / STATE_NAME).is_file():
            tensors, values = read_state(folder)
            if values.get("step") == step:
                return tensors, values
            others.append(f"`{folder.name}/{STATE_NAME}` is of update {values.get('step')}")
    if others:
        raise RunError(
            f"training resumes after update {step}, and {' and '.join(others)}. Resume from a checkpoint whose files "
            "belong together."
        )
    return None


def check_state(
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    step: int,
    definition: Mapping[str, Any],
    names: Sequence[str],
) -> None:
    """Check that a state belongs to the training that resumes.

    Args:
        tensors: of the state, by name; none before the first snapshot.
        values: of the state.
        step: update that training resumes after.
        definition: `settings` of the average by name, and `plan`, a hash of its updates and their weights.
        names: of the weights that are trained.

    Raises:
        RunError: it is of another update, version, average or model.
    """
    if values.get("schema") != SCHEMA:
        raise RunError(
            f"the state of the average has format {values.get('schema')!r}, this hf_xlt reads {SCHEMA}; resume with "
            "the version that wrote it."
        )
    if values["step"] != step:
        raise RunError(f"the state of the average is of update {values['step']}, not {step}; resume from an earlier.")
    for name, value in definition["settings"].items():
        before = values["settings"].get(name)
        if before != value:
            raise RunError(
                f"the run to resume averages with `{name}` {before!r}, not {value!r}. Resume it with the same "
                "settings, or start anew."
            )
    if values["plan"] != definition["plan"]:
        raise RunError(
            "the run to resume takes its snapshots after other updates, or weighs them otherwise: the length of the "
            "training or `weight_fn` has changed. Resume it with the same, or start anew."
        )
    if tensors and sorted(tensors) != sorted(names):
        raise RunError("the run to resume trains other weights; resume it with the same, or start anew.")
