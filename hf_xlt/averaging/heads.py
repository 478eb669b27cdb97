"""Sharing one head between runs, so that the runs can be averaged (spec 1.3, 4.6).

The head is trained once, by a donor run; every other run loads it and keeps it frozen. Which parameters are the head
follows from the model's class: what does not belong to its `base_model_prefix` part. Names are not searched, so a
module of the encoder that is named like a head is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.averaging.adapter_files import is_adapter_weight, plain_name
from hf_xlt.averaging.average import REQUIRE_EQUAL, average_checkpoints
from hf_xlt.averaging.compatibility import read_config
from hf_xlt.averaging.inputs import Checkpoint, Snapshot, open_checkpoints
from hf_xlt.averaging.report import AverageReport
from hf_xlt.averaging.tensors import read_tensor
from hf_xlt.errors import ConfigError
from hf_xlt.files import sync_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

HEAD_NAME = "head.safetensors"


def head_names(folder: Path, names: Iterable[str]) -> list[str]:
    """Return which tensors of a checkpoint are its head.

    Args:
        folder: where its `config.json` lies, which names the class.
        names: of all its tensors.

    Raises:
        ConfigError: the class is not told, or not known.
    """
    config = read_config(folder)
    classes = (config or {}).get("architectures") or []
    import transformers

    model_class = getattr(transformers, classes[0], None) if classes else None
    if model_class is None:
        raise ConfigError(
            f"`{folder}` does not say by a known class which weights are its head"
            f"{f' (`{classes[0]}`)' if classes else ''}. Give `--head average` if the heads are shared."
        )
    names, body = list(names), f"{model_class.base_model_prefix}."
    # A bare encoder has no such prefix, and no head.
    return [name for name in names if not name.startswith(body)] if any(n.startswith(body) for n in names) else []


def head_parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Return a model's parameters outside its encoder, by name."""
    body = {id(parameter) for parameter in model.base_model.parameters()}
    if model.base_model is model:
        return {}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in body}


def head_digest(model: PreTrainedModel) -> str:
    """Return a SHA-256 of the head's names, formats and bits: a frozen head's does not change."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(head_parameters(model).items()):
        bits = parameter.detach().cpu().contiguous().view(torch.uint8).numpy()
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(bits)
    return digest.hexdigest()


def extract_head(checkpoint: str | Path, output: str | Path | None = None) -> Path:
    """Save a checkpoint's head by itself, with its labels.

    Args:
        checkpoint: model or adapter folder of the donor run.
        output: the file to write; None is `head.safetensors` in the current folder.

    Returns:
        The file written.

    Raises:
        ConfigError: the folder holds no model with a head, or the output exists.
    """
    from safetensors.torch import save_file

    place = Path(checkpoint)
    output = Path(output) if output is not None else Path(HEAD_NAME)
    if output.exists():
        raise ConfigError(f"`{output}` exists already; give another file.")
    if not place.is_dir():
        raise ConfigError(f"`{place}` is no folder; give the folder of a fine-tuned model.")
    opened = open_checkpoints([Snapshot(place)])[0]
    names = _names_of_head(opened)
    if not names:
        raise ConfigError(f"`{place}` holds a bare encoder without a head; give a fine-tuned model.")
    tensors = {plain_name(name): read_tensor(opened, name) for name in names}
    config = read_config(place) or {}
    metadata = {"format": "pt", "id2label": json.dumps(config.get("id2label")), "names": json.dumps(sorted(tensors))}
    part = output.with_name(f".{output.name}.{secrets.token_hex(4)}.part")
    try:
        save_file(tensors, part, metadata)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(output.parent)
    return output


def _names_of_head(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.is_adapter:
        return [name for name in checkpoint.tensors if not is_adapter_weight(name)]
    return head_names(checkpoint.snapshot.folder, checkpoint.tensors)


def load_shared_head(model: PreTrainedModel, path: str | Path, freeze: bool = True) -> list[str]:
    """Load a donor's head into a model, before its optimizer is made.

    Args:
        model: with a head of the same class and size; changed in place.
        path: what `extract_head` wrote.
        freeze: keep the head out of training. An optimizer made earlier would go on moving it, by weight decay alone;
            `head_digest` before and after training shows that.

    Returns:
        Names of the head's parameters.

    Raises:
        ConfigError: names, shapes or labels differ.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"`{path}` cannot be read as a head: {error}. Write it with `extract_head`.") from error
    own = head_parameters(model)
    if set(own) != set(tensors):
        raise ConfigError(
            f"the head in `{path}` has {_listed(tensors)}, and this model's {_listed(own)}. Use the donor's class."
        )
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise ConfigError(
                f"`{name}` has shape {list(tensors[name].shape)} in `{path}` and {list(parameter.shape)} here."
            )
    labels = json.loads(metadata.get("id2label") or "null")
    if labels is not None and _plain_labels(labels) != _plain_labels(model.config.id2label):
        raise ConfigError(
            f"the head in `{path}` was trained for the classes {_plain_labels(labels)}, and this model has "
            f"{_plain_labels(model.config.id2label)}. Give the same `--labels`."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
            if freeze:
                parameter.requires_grad_(False)
    return sorted(own)


def _plain_labels(table: dict[Any, str]) -> list[str]:
    return [table[key] for key in sorted(table, key=int)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"


def average_runs(
    run_dirs: Sequence[str | Path], output: str | Path, head: str = REQUIRE_EQUAL, **settings: Any
) -> AverageReport:
    """Average the snapshots of several runs, each snapshot counting the same.

    Args:
        run_dirs: output directories of runs.
        output: the folder to be.
        head: `require-equal` compares the heads bit for bit and refuses others; `take-first` and `average` do not.
        **settings: as for `average_checkpoints`; `last_k=1` averages the last snapshots only.

    Raises:
        ConfigError: the heads differ, or anything that `average_checkpoints` refuses.
        RunError: as there.
    """
    return average_checkpoints([], output, runs=run_dirs, head=head, **settings)
