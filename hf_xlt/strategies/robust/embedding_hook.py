"""Adding a perturbation to the output of a model's word embedding, for one forward pass.

A temporary forward hook serves where `inputs_embeds` would not: XLM-R derives positions from `input_ids`, some
classifiers look for the last token in them, and others refuse embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    """Return the module that looks up the word embeddings of the input; of two stacks, the encoder's.

    T5, BART and their kin name a module that is never called: each stack looks up in one of its own, whose weight is
    tied to it.

    Raises:
        ConfigError: the model does not name one.
    """
    module = _named_embedding(_encoder(model)) or _named_embedding(model)
    if module is None:
        raise ConfigError(
            f"`{type(model).__name__}.get_input_embeddings()` returns no embedding with a weight; embedding "
            "perturbations need one. Implement it, or set `method` to none."
        )
    return module


def _named_embedding(model: nn.Module | None) -> nn.Module | None:
    try:
        module = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return module if getattr(module, "weight", None) is not None else None


def _encoder(model: nn.Module) -> nn.Module | None:
    """Return the stack that reads the input; None where a model has no parts that could be told apart."""
    try:
        encoder = model.get_encoder()
    except (AttributeError, NotImplementedError):
        return None
    return encoder if isinstance(encoder, nn.Module) and encoder is not model else None


@contextmanager
def _reading(model: nn.Module, module: nn.Module) -> Iterator[Callable[[], bool]]:
    """Tell whether a look-up is the input's: a decoder may use the encoder's module for its own tokens."""
    encoder = _encoder(model)
    if encoder is None or not any(part is module for part in encoder.modules()):
        yield lambda: True
        return
    depth = 0

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    handles = (encoder.register_forward_pre_hook(enter), encoder.register_forward_hook(leave, always_call=True))
    try:
        yield lambda: depth > 0
    finally:
        for handle in handles:
            handle.remove()


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
    calls, embedding = 0, word_embedding(model)

    def add(module: nn.Module, args: tuple, output: Any) -> Any:
        nonlocal calls
        looked_up = args[0] if args else None
        if not reads_input() or _is_padding(looked_up, model):
            return output
        calls += 1
        if calls > 1:
            raise ConfigError(
                f"{type(model).__name__} looks up its word embeddings more than once in a forward pass; embedding "
                "perturbations need a model that reads its input once. Use another model, or set `method` to none."
            )
        delta = _laid_out(perturbation, looked_up, inputs["input_ids"])
        states = looked_up_states(output)
        if states.shape != delta.shape:
            raise ConfigError(
                f"the word embeddings of {type(model).__name__} have shape {tuple(states.shape)}, not "
                f"{tuple(perturbation.shape)} (batch, tokens, width). If it removes padding before the lookup, load "
                "it with `attn_implementation` `sdpa` or `eager`."
            )
        changed = (states.detach() if detach else states) + delta.to(states.dtype)
        return changed if states is output else (changed, *output[1:])

    with _reading(model, embedding) as reads_input:
        handle = embedding.register_forward_hook(add)
        try:
            yield dict(inputs)
        finally:
            handle.remove()
    if calls == 0:
        raise ConfigError(
            f"{type(model).__name__} did not look up its word embeddings in `{type(embedding).__name__}`; nothing was "
            "perturbed. Use another model, or set `method` to none."
        )


def looked_up_states(output: Any) -> Tensor:
    """Return the embeddings in what a module gave: I-BERT's gives the scale of its integers beside them."""
    return output if isinstance(output, Tensor) else output[0]


def _is_padding(looked_up: Any, model: nn.Module) -> bool:
    """Say whether ids are padding alone: LED looks up what it adds to fill its windows by itself."""
    pad = getattr(getattr(model, "config", None), "pad_token_id", None)
    return isinstance(looked_up, Tensor) and pad is not None and bool((looked_up == pad).all())


def _laid_out(perturbation: Tensor, looked_up: Any, ids: Tensor) -> Tensor:
    """Lay a perturbation (B, T, D) out as the ids that a module was called with.

    Args:
        perturbation: (B, T, D).
        looked_up: what the module was called with. Where it is the batch's ids with more at their end (Longformer
            fills its windows), zeros are added; where they are turned (T, B) (XLNet), it is turned.
        ids: (B, T), those of the batch.
    """
    if not isinstance(looked_up, Tensor) or looked_up.dim() != 2 or torch.equal(looked_up, ids):
        return perturbation
    if torch.equal(looked_up, ids.T):
        return perturbation.transpose(0, 1)
    more = looked_up.shape[1] - ids.shape[1]
    if more > 0 and torch.equal(looked_up[:, : ids.shape[1]], ids):
        return torch.nn.functional.pad(perturbation, (0, 0, 0, more))
    return perturbation


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
