"""Adding a perturbation to the output of a model's word embedding, for one forward pass.

A temporary forward hook serves where `inputs_embeds` would not: XLM-R derives positions from `input_ids`, some
classifiers look for the last token in them, and others refuse embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_xlt.errors import ConfigError

REENTRANT = (
    "reentrant activation checkpointing is incompatible with `autograd.grad`, which finds the adversarial "
    'perturbation. Set `activation_checkpointing_kwargs` to {"use_reentrant": false} (the default).'
)


def word_embedding(model: nn.Module) -> nn.Module:
    """Return the module that looks up word embeddings.

    Raises:
        ConfigError: the model does not name one.
    """
    try:
        module = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        module = None
    if getattr(module, "weight", None) is None:
        raise ConfigError(
            f"`{type(model).__name__}.get_input_embeddings()` returns no embedding with a weight; embedding "
            "perturbations need one. Implement it, or set `method` to none."
        )
    return module


@contextmanager
def perturbed_embeddings(
    model: nn.Module, inputs: Mapping[str, Any], perturbation: Tensor, *, detach: bool = False
) -> Iterator[dict[str, Any]]:
    """Let every forward pass inside the block see embeddings + perturbation; the hook is gone afterwards.

    Args:
        model: the bare model; a wrapper around it runs the same hook.
        inputs: one batch, not changed. One that holds `inputs_embeds` instead of `input_ids` has those perturbed.
        perturbation: (B, T, D).
        detach: cut the embeddings off the graph, so that a gradient reaches the perturbation alone.

    Yields:
        The inputs to call the model with.

    Raises:
        ConfigError: the model looks embeddings up more than once or not at all in the block, or in another shape.
    """
    if inputs.get("input_ids") is None:
        embeds = inputs["inputs_embeds"]
        yield {**inputs, "inputs_embeds": (embeds.detach() if detach else embeds) + perturbation.to(embeds.dtype)}
        return
    calls = 0

    def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ConfigError(
                f"{type(model).__name__} looks up its word embeddings more than once in a forward pass (an encoder "
                "and a decoder sharing them?); embedding perturbations support encoder-only models."
            )
        if output.shape != perturbation.shape:
            raise ConfigError(
                f"the word embeddings of {type(model).__name__} have shape {tuple(output.shape)}, not "
                f"{tuple(perturbation.shape)} (batch, tokens, width). If it removes padding before the lookup, load "
                "it with `attn_implementation` `sdpa` or `eager`."
            )
        return (output.detach() if detach else output) + perturbation.to(output.dtype)

    handle = word_embedding(model).register_forward_hook(add)
    try:
        yield dict(inputs)
    finally:
        handle.remove()
    if calls == 0:
        raise ConfigError(f"{type(model).__name__} did not look up its word embeddings; nothing was perturbed.")


def gradient_to(perturbation: Tensor, loss: Tensor, *, keep_graph: bool = False) -> Tensor:
    """Return the gradient of a loss to a perturbation (B, T, D); no `.grad` is written.

    Args:
        perturbation: a leaf that requires a gradient.
        loss: scalar.
        keep_graph: keep the graph for a later backward pass instead of freeing it.

    Raises:
        ConfigError: the model was put under reentrant activation checkpointing.
    """
    try:
        # Backward passes are not meant to run under autocast.
        with torch.autocast(perturbation.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(loss, perturbation, retain_graph=keep_graph)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise ConfigError(REENTRANT) from error
        raise
    return gradient
