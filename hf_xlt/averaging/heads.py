"""Sharing one head between runs, so that the runs can be averaged.

The head is trained once, by a donor run; every other run loads it and keeps it frozen. Which parameters are the head
follows from the model's class: what does not belong to its body. Names are not searched, so a module of the encoder
that is named like a head is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.averaging.adapter_files import is_adapter_weight, plain_name
from hf_xlt.averaging.average import REQUIRE_EQUAL, average_checkpoints
from hf_xlt.averaging.compatibility import read_config
from hf_xlt.averaging.inputs import Checkpoint, Snapshot, open_checkpoints
from hf_xlt.averaging.report import AverageReport
from hf_xlt.averaging.summary import averaged
from hf_xlt.averaging.tensors import read_tensor
from hf_xlt.errors import ConfigError, setting
from hf_xlt.files import sync_folder
from hf_xlt.models import readable_errors
from hf_xlt.record import RECORD_NAME, RunRecord

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
    held = held_names(folder)
    # A bare encoder has none of them.
    return [name for name in names if name in held]


def held_names(folder: Path) -> dict[str, str]:
    """Return, by the names that files have for the weights of a checkpoint's head, those that the model has for them.

    Both differ where transformers saves an architecture under other names than it holds in memory, and files of such
    an encoder do not begin with the name that its class has for it.

    Args:
        folder: where its `config.json` lies, which names the class.

    Raises:
        ConfigError: the class is not told, or not known.
    """
    config = read_config(folder)
    classes = (config or {}).get("architectures") or []
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    model_class = getattr(transformers, classes[0], None) if classes else None
    if model_class is None:
        raise ConfigError(
            f"`{folder}` does not say by a known class which weights are its head"
            f"{f' (`{classes[0]}`)' if classes else ''}. Give {setting('head', 'average')} if the heads are shared."
        )
    with readable_errors(str(folder)), torch.device("meta"):
        model = model_class(transformers.AutoConfig.from_pretrained(folder))
    head = head_parameters(model)
    return {filed: name for name, value in head.items() for filed in revert_weight_conversion(model, {name: value})}


def is_body(model: PreTrainedModel) -> bool:
    """Say whether a model is the bare one of its family, without a head."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    bare = MODEL_MAPPING.get(type(model.config), ())
    return type(model) in (bare if isinstance(bare, tuple) else (bare,))


def body_modules(model: PreTrainedModel) -> set[str]:
    """Return the names of the children of a task model that a bare model of the family consists of.

    It is one child as a rule. T5's model for questions holds the parts of its body itself: embeddings and stacks.
    """
    children = dict(model.named_children())
    if model.base_model_prefix in children:
        return {model.base_model_prefix}
    parts = {id(part) for part in (model.get_input_embeddings(), model.get_encoder(), model.get_decoder())}
    return {name for name, child in children.items() if any(id(module) in parts for module in child.modules())}


def head_parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Return a model's parameters outside its encoder, by name."""
    if is_body(model):
        return {}
    parts = [model.get_submodule(name) for name in body_modules(model)]
    body = {id(parameter) for part in parts for parameter in part.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in body}


@dataclass(frozen=True)
class Head:
    """A trained head.

    Attributes:
        tensors: by the names of the model's parameters.
        labels: class names in index order; None where they are not told.
        place: where it was read, for messages.
    """

    tensors: Mapping[str, torch.Tensor]
    labels: list[str] | None
    place: str


def head_digest(model: PreTrainedModel) -> str:
    """Return a SHA-256 of the head's names, formats and bits: a frozen head's does not change."""
    return digest_of(head_parameters(model))


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 of tensors: their names, formats, shapes and bits."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        bits = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(bits)
    return digest.hexdigest()


def read_head(place: str | Path) -> Head:
    """Read the head of a donor.

    Args:
        place: what `extract_head` wrote, the folder of a fine-tuned model, or of a run; of a run that averages, the
            head is that of its last (or selected) weights, as in the code of Schmidt et al. (2023).

    Raises:
        ConfigError: there is no head.
    """
    place = Path(place)
    if place.is_dir():
        return _head_of_folder(own_weights(place))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"`{place}` cannot be read as a head: {error}. Write it with `extract_head`.") from error
    labels = json.loads(metadata.get("id2label") or "null")
    return Head(tensors, _plain_labels(labels) if labels else None, str(place))


def own_weights(folder: Path) -> Path:
    """Return where a run's own weights lie: its folder, or that beside them when it saved their average."""
    if not (folder / RECORD_NAME).is_file():
        return folder
    facts = averaged(RunRecord.read(folder).phases)
    return folder / facts["beside"] if facts else folder


def _head_of_folder(folder: Path) -> Head:
    opened = open_checkpoints([Snapshot(folder)])[0]
    names = _names_of_head(opened)
    if not names:
        raise ConfigError(f"`{folder}` holds a bare encoder without a head; give a fine-tuned model.")
    labels = (read_config(folder) or {}).get("id2label")
    held = {} if opened.is_adapter else held_names(folder)
    tensors = {held.get(name, plain_name(name)): read_tensor(opened, name) for name in names}
    return Head(tensors, _plain_labels(labels) if labels else None, str(folder))


def extract_head(checkpoint: str | Path, output: str | Path | None = None) -> Path:
    """Save a checkpoint's head by itself, with its labels.

    Args:
        checkpoint: model, adapter or run folder of the donor.
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
    head = read_head(place)
    labels = dict(enumerate(head.labels)) if head.labels is not None else None
    metadata = {"format": "pt", "id2label": json.dumps(labels), "names": json.dumps(sorted(head.tensors))}
    part = output.with_name(f".{output.name}.{secrets.token_hex(4)}.part")
    try:
        save_file(dict(head.tensors), part, metadata)
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
        path: what `extract_head` wrote, or the folder of the donor.
        freeze: keep the head out of training. An optimizer made earlier would go on moving it, by weight decay alone;
            `head_digest` before and after training shows that.

    Returns:
        Names of the head's parameters.

    Raises:
        ConfigError: names, shapes or labels differ.
    """
    return put_head(model, read_head(path), freeze)


def put_head(model: PreTrainedModel, head: Head, freeze: bool = True) -> list[str]:
    """Put a head into a model; arguments and errors as `load_shared_head`."""
    import torch

    tensors, own = head.tensors, head_parameters(model)
    if set(own) != set(tensors):
        raise ConfigError(
            f"the head in `{head.place}` has {_listed(tensors)}, and this model's {_listed(own)}. Use the donor's "
            "class."
        )
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise ConfigError(
                f"`{name}` has shape {list(tensors[name].shape)} in `{head.place}` and {list(parameter.shape)} here."
            )
    if head.labels is not None and head.labels != _plain_labels(model.config.id2label):
        raise ConfigError(
            f"the head in `{head.place}` was trained for the classes {head.labels}, and this model has "
            f"{_plain_labels(model.config.id2label)}. Give the same {setting('labels')}."
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
