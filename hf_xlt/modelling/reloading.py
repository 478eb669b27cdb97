"""Weights from files into models: which of them are the encoder's, and how they get into a model that is in memory.

transformers keeps some architectures under other names, or in other shapes, than it holds them in memory; only
`from_pretrained` knows how to turn the one into the other.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import RunError, setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHOWN = 3


def body_of(model: PreTrainedModel) -> Any:
    """Return a model's encoder: the part that its class names, or else the largest of its parts."""
    if model.base_model is not model:
        return model.base_model
    parts = [part for part in model.children() if any(True for _ in part.parameters())]
    return max(parts, key=lambda part: sum(weight.numel() for weight in part.parameters()), default=model)


def body_names(model: PreTrainedModel) -> set[str]:
    """Return the names of a model's weights that are its encoder's."""
    own = {id(value) for value in body_of(model).state_dict(keep_vars=True).values()}
    return {name for name, value in model.state_dict(keep_vars=True).items() if id(value) in own}


def bare_names(model: PreTrainedModel) -> set[str]:
    """Return which of a model's weights it would have without a head, by the names that they have in it."""
    import torch
    from transformers import AutoModel

    trusted = {"trust_remote_code": True} if getattr(model.config, "auto_map", None) else {}
    with torch.device("meta"):
        bare = AutoModel.from_config(copy.deepcopy(model.config), **trusted)
    return {f"{model.base_model_prefix}.{name}" for name in bare.state_dict()}


def body_renaming(head_class: Any, body_class: Any) -> dict[str, str]:
    """Return how files name the encoder where a class with a head holds it under another name.

    The heads for answers of Llama, Qwen, Mistral and their kin call it `transformer`; all other classes, and the
    files of pretrained models, call it `model`.

    Args:
        head_class: class of the model with the task's head.
        body_class: class of the bare encoder.

    Returns:
        A pattern of names in files, and what stands for it in memory; nothing where they agree.
    """
    held, filed = head_class.base_model_prefix, body_class.base_model_prefix
    return {rf"^{filed}\.": f"{held}."} if held and filed and held != filed else {}


def forget_renaming(model: PreTrainedModel, renaming: Mapping[str, str]) -> None:
    """Let a model be saved under the names that it holds its weights by, so that its class alone can load it."""
    kept = [
        conversion
        for conversion in getattr(model, "_weight_conversions", None) or []
        if not set(conversion._original_source_patterns) & set(renaming)
    ]
    model._weight_conversions = kept or None


def reload_weights(model: PreTrainedModel, folder: Path) -> None:
    """Put saved weights into a model, which keeps its parameters: an optimizer goes on with them.

    Args:
        model: of the class that was saved; changed in place, on its own device and in its own formats.
        folder: a checkpoint.

    Raises:
        RunError: weights are missing, left over, or of another shape. The model is as it was.
    """
    import torch

    from hf_xlt.models import quiet, readable_errors

    formats = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    with torch.random.fork_rng(devices=[]), readable_errors(str(folder)), quiet():
        saved, report = type(model).from_pretrained(
            folder,
            config=copy.deepcopy(model.config),
            # Whatever was trained in half precision comes out of single precision as it went in.
            dtype=torch.float64 if torch.float64 in formats else torch.float32,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    check_complete(folder, [*report["missing_keys"], *mismatched], list(report["unexpected_keys"]))
    model.load_state_dict(saved.state_dict())


def check_complete(folder: Path, missing: list[str], unexpected: list[str]) -> None:
    """Refuse a checkpoint that is not wholly the model's.

    Raises:
        RunError: there are such weights.
    """
    for names, problem in ((missing, "lacks"), (unexpected, "holds, beyond the model's,")):
        if names:
            shown = ", ".join(f"`{name}`" for name in sorted(names)[:_SHOWN])
            raise RunError(
                f"checkpoint `{folder}` {problem} {len(names)} weights, such as {shown}: the model cannot be what it "
                f"was. Remove the checkpoint and resume from an older one, or start anew with {setting('overwrite')}."
            )
