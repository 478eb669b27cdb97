"""A model with a part of its vocabulary: rows and entries of the kept tokens, and the settings that name a token."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_xlt.errors import ConfigError
from hf_xlt.modelling.token_tensors import (
    renumber_settings,
    resize_config,
    row_count,
    settings_of,
    shifted_positions,
    vocabulary_tensors,
)
from hf_xlt.models import ModelSource, quiet, readable_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(source: ModelSource) -> tuple[PreTrainedModel, list[str], list[str]]:
    """Load a model with the class that its config names, in the precision of its files.

    Returns:
        The model, the names of weights that its files lack (such as a pooler), and notes for the user.

    Raises:
        ConfigError: it cannot be loaded, its weights are quantized, or it takes no ids of tokens.
    """
    config = source.load_config()
    if getattr(config, "quantization_config", None):
        raise ConfigError(f"the weights of `{source.path}` are quantized; trim the original, and quantize the result.")
    with readable_errors(source.path), quiet():
        model, report = _class_of(config, source).from_pretrained(
            source.path,
            dtype="auto",
            output_loading_info=True,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
        )
    source.check_body(model, report)
    notes = []
    if report["unexpected_keys"]:
        first = sorted(report["unexpected_keys"])[0]
        notes.append(
            f"{len(report['unexpected_keys'])} tensors, such as `{first}`, are no part of `{type(model).__name__}`, "
            "which the config names, and are left out."
        )
    return source.anonymous(model).eval(), sorted(report["missing_keys"]), notes


def _class_of(config: Any, source: ModelSource) -> Any:
    import transformers

    name = (config.architectures or [""])[0]
    known = getattr(transformers, name, None)
    if known is not None:
        return known
    for auto, path in (getattr(config, "auto_map", None) or {}).items():
        if source.trust_remote_code and str(path).endswith(f".{name}"):
            return getattr(transformers, auto)
    return transformers.AutoModel


@torch.no_grad()
def trim_model(model: PreTrainedModel, kept: Collection[int]) -> None:
    """Leave the kept rows, in their order, in every tensor with one entry per token, and renumber all settings.

    Args:
        model: changed in place; save it and load it again before it is used, since layers keep sizes of their own.
        kept: old ids, sorted.
    """
    rows, new_ids = row_count(model), {old: new for new, old in enumerate(kept)}
    chosen = torch.tensor(list(kept))
    places = vocabulary_tensors(model)
    resize_config(model.config, rows, len(kept))
    renumber_settings(settings_of(model), lambda index: new_ids.get(index, index))
    # Tied weights are one tensor under several names, and stay one.
    made: dict[int, torch.Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for name in places:
        tensor = state[name]
        if id(tensor) not in made:
            smaller = tensor.detach()
            for place in places[name]:
                smaller = smaller.index_select(place, chosen)
            made[id(tensor)] = torch.nn.Parameter(smaller) if isinstance(tensor, torch.nn.Parameter) else smaller
    for name, tensor in state.items():
        if id(tensor) in made:
            _put(model, name, made[id(tensor)])
    for name, tensor in shifted_positions(model, model.config.get_text_config()).items():
        _put(model, name, torch.nn.Parameter(tensor))


def _put(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> None:
    parent, _, last = name.rpartition(".")
    module = model.get_submodule(parent)
    (module._parameters if last in module._parameters else module._buffers)[last] = tensor


def save_model(model: PreTrainedModel, missing: Collection[str], folder: Path) -> None:
    """Save a trimmed model without the weights that its files lacked before."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in set(missing)}
    with quiet():
        model.save_pretrained(folder, state_dict=state)


def reload_model(model: PreTrainedModel, missing: Collection[str], folder: Path) -> PreTrainedModel:
    """Load what was saved; weights that its files lack are those of the model that was saved.

    Raises:
        ConfigError: it does not load as it was saved.
    """
    with readable_errors(str(folder)), quiet():
        loaded, report = type(model).from_pretrained(folder, dtype="auto", output_loading_info=True)
    left = {name: sorted(map(str, keys)) for name, keys in report.items() if keys and name != "missing_keys"}
    lost = sorted(set(report["missing_keys"]) - set(missing))
    if left or lost:
        raise ConfigError(f"the trimmed model does not load as it was saved: {json.dumps({**left, 'lost': lost})}.")
    loaded.load_state_dict({name: model.state_dict()[name] for name in missing}, strict=False)
    return loaded.eval()
