"""Pre-training losses: masked language modelling on masked positions alone, contrast of pairs, distillation.

Masked language modelling: stock models project every token onto the vocabulary, although about
15 % are predicted. Here the stock model runs as it is, so that DDP, autocast, PEFT and gradient checkpointing keep
working, with two changes for one forward pass: the base model's output is cut down to the masked positions before the
head sees it, and the output layer computes the loss in chunks of rows, with its gradients, so that never more than
one chunk of logits exists.

The contrastive loss is our addition to the pre-training paper: symmetric in-batch softmax over cosines. So is
distillation: how far sentence vectors and token states are from a teacher's.

Shapes: B batch, T tokens, D hidden, V vocabulary, M masked positions, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.projection import chunked_cross_entropy

IGNORED = -100
TEMPERATURE = 0.05


@dataclass
class _Capture:
    """What the hooks saw of one forward pass."""

    hidden: Tensor | None = None
    loss: Tensor | None = None


def language_model(bare: nn.Module) -> nn.Module:
    """Return the masked language model inside a PEFT model, or the model itself."""
    return bare.get_base_model() if hasattr(bare, "get_base_model") else bare


def base_model(bare: nn.Module) -> nn.Module:
    """Return the encoder below the language-modelling head.

    Raises:
        ConfigError: the model has no head on a base model.
    """
    model = language_model(bare)
    base = getattr(model, getattr(model, "base_model_prefix", "") or " ", None)
    if not isinstance(base, nn.Module):
        raise ConfigError(
            f"`{type(model).__name__}` has no base model below a head; load it with `AutoModelForMaskedLM`."
        )
    return base


def output_layer(bare: nn.Module) -> nn.Linear | None:
    """Return the plain linear layer that ends in the vocabulary, or None when there is none to stand in for."""
    model = language_model(bare)
    layer = model.get_output_embeddings()
    # DeBERTa-v2 without `legacy` names an inner layer here and multiplies by the embedding itself. A subclass, a hook
    # or a forward of its own (LoRA, quantisation, parametrisation) computes something else than weight and bias say.
    plain = (
        type(layer) is nn.Linear
        and layer.out_features == model.config.get_text_config().vocab_size
        and "forward" not in vars(layer)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
    )
    return layer if plain else None


@contextmanager
def _gathered_rows(bare: nn.Module, positions: Tensor, shape: torch.Size, capture: _Capture) -> Iterator[None]:
    """Let the head see only the rows at `positions` (M,) of the flattened batch; keep the full states."""

    def gather(module: nn.Module, args: tuple, output: Any) -> Any:
        if capture.hidden is not None:
            raise ConfigError(f"{type(module).__name__} ran more than once in a forward pass; use one device.")
        hidden = output[0]
        if hidden.shape[:2] != shape:
            raise ConfigError(
                f"{type(module).__name__} returns states of shape {tuple(hidden.shape)} for labels of shape "
                f"{tuple(shape)}. If it removes padding, load it with `attn_implementation` `sdpa` or `eager`."
            )
        capture.hidden = hidden
        rows = hidden.flatten(0, 1).index_select(0, positions)[None]
        if isinstance(output, tuple):
            return (rows, *output[1:])
        output.last_hidden_state = rows
        return output

    handle = base_model(bare).register_forward_hook(gather)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced_forward(layer: nn.Module | None, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    if layer is None:
        yield
        return
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def masked_lm_outputs(
    model: nn.Module,
    bare: nn.Module,
    inputs: Mapping[str, Any],
    labels: Tensor,
    weights: Tensor | None = None,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the masked-LM loss, as `masked_lm_loss`, and give the last hidden states along.

    Returns:
        Scalar loss, and hidden states (B, T, D) on the graph.

    Raises:
        ConfigError: as `masked_lm_loss`.
    """
    positions = labels.flatten().ne(IGNORED).nonzero()[:, 0]
    targets = labels.flatten().index_select(0, positions)
    if weights is None:
        weights = torch.ones(labels.shape[0], device=labels.device)
    spread = weights[:, None].expand(labels.shape) if weights.dim() == 1 else weights
    row_weights = spread.flatten().index_select(0, positions)
    layer, capture = output_layer(bare), _Capture()

    def project(hidden: Tensor) -> Tensor:
        # The loss is computed inside the model's forward, where FSDP has the weights gathered and DDP finds the graph.
        loss = chunked_cross_entropy(hidden.flatten(0, -2), layer.weight, layer.bias, targets, row_weights, chunk_rows)
        capture.loss = loss
        return loss.reshape(1, 1, 1)

    with _gathered_rows(bare, positions, labels.shape, capture), _replaced_forward(layer, project):
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
    if capture.hidden is None:
        raise ConfigError(
            f"the base model of `{type(bare).__name__}` did not run as a module (`torch.compile`?); its masked "
            "positions could not be picked out."
        )
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    if capture.loss is not None:
        return logits.reshape(()), capture.hidden
    logits = logits.flatten(0, -2).float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * row_weights).sum(), capture.hidden


def masked_lm_loss(
    model: nn.Module,
    bare: nn.Module,
    inputs: Mapping[str, Any],
    labels: Tensor,
    weights: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Sum the weighted cross-entropy over masked positions, projecting only those onto the vocabulary.

    With weights 1 / M it equals the loss of the stock model. Without masked positions it is a zero on the graph: every
    parameter gets a zero gradient, as DDP needs.

    Args:
        model: wrapped or bare; its forward is what runs.
        bare: the model without wrappers, or a PEFT model.
        inputs: what the model is called with; `labels` among them are left out.
        labels: (B, T) int64; -100 where nothing is predicted.
        weights: (B, T) or (B,) weight of each position or row; None for 1.
        chunk_rows: rows of logits at a time; see `projection.default_chunk_rows`.

    Returns:
        Float32 scalar.

    Raises:
        ConfigError: the model has no base model below a head, runs it twice or not at all, or drops positions.
    """
    return masked_lm_outputs(model, bare, inputs, labels, weights, chunk_rows)[0]


def mean_pool(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Average the states (B, T, D) of the tokens that `attention_mask` (B, T) keeps: (B, D)."""
    if attention_mask is None:
        return hidden.mean(1)
    mask = attention_mask[..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def sentence_vectors(model: nn.Module, bare: nn.Module, inputs: Mapping[str, Any], pooling: str = "mean") -> Tensor:
    """Return a vector per sentence: the mean of its last hidden states, or the first of them.

    The wrapped model's forward runs, with no row for the head, whose parameters get zero gradients.

    Args:
        model: wrapped or bare.
        bare: the model without wrappers, or a PEFT model.
        inputs: with `input_ids` (P, T) and `attention_mask` (P, T).
        pooling: `mean` or `first`; the one that the stock classification head of the model uses.

    Returns:
        (P, D).

    Raises:
        ConfigError: another pooling, or as `masked_lm_loss`.
    """
    if pooling not in ("mean", "first"):
        raise ConfigError(f"the pooling is `{pooling}`; it must be `mean` or `first`.")
    hidden = hidden_states(model, bare, inputs)
    return mean_pool(hidden, inputs.get("attention_mask")) if pooling == "mean" else hidden[:, 0]


def hidden_states(model: nn.Module, bare: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the last hidden states (P, T, D), with no row for the head, whose parameters get zero gradients.

    Args:
        model: wrapped or bare.
        bare: the model without wrappers, or a PEFT model.
        inputs: with `input_ids` and `attention_mask` (P, T).

    Raises:
        ConfigError: as `masked_lm_loss`.
    """
    zero, hidden = masked_lm_outputs(model, bare, inputs, torch.full_like(inputs["input_ids"], IGNORED))
    return hidden + zero.to(hidden.dtype)


def contrastive_losses(
    left: Tensor, right: Tensor, temperature: float = TEMPERATURE, same: Tensor | None = None
) -> Tensor:
    """Return the symmetric in-batch softmax loss of each pair, over cosines in float32.

    Args:
        left: (P, D); row i belongs to row i of `right`.
        right: (P, D).
        temperature: divides the cosines; above 0.
        same: (P, P) bool; where True off the diagonal, pairs i and j hold the same sentence and are no negatives of
            each other.

    Returns:
        (P,) float32, the mean of both directions.

    Raises:
        ConfigError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ConfigError(f"the temperature is {temperature}; it must be above 0, usually {TEMPERATURE}.")
    with torch.autocast(left.device.type, enabled=False):
        exact = torch.promote_types(torch.float32, left.dtype)
        cosines = F.normalize(left.to(exact), dim=-1) @ F.normalize(right.to(exact), dim=-1).T
        scores = cosines / temperature
        if same is not None:
            others = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
            scores = scores.masked_fill(same.to(scores.device) & others, -torch.inf)
        own = torch.arange(len(scores), device=scores.device)
        forth, back = (F.cross_entropy(side, own, reduction="none") for side in (scores, scores.T))
        return (forth + back) / 2


def distances(own: Tensor, target: Tensor, match: str) -> Tensor:
    """Return how far each vector is from its target, in float32.

    Args:
        own: (..., D).
        target: (..., D), without gradient.
        match: `cosine`, 1 less the cosine, or `mse`, the mean of the squared differences.

    Returns:
        (...,).
    """
    with torch.autocast(own.device.type, enabled=False):
        exact = torch.promote_types(torch.float32, own.dtype)
        own, target = own.to(exact), target.to(exact)
        if match == "cosine":
            return 1 - F.cosine_similarity(own, target, dim=-1)
        return (own - target).square().mean(-1)


def distillation_losses(
    hidden: Tensor, batch: Mapping[str, Tensor], match: str, poolings: tuple[str, ...]
) -> tuple[Tensor, Tensor | None]:
    """Compare a student's states with what its teacher makes of the same texts.

    Args:
        hidden: (N, S, D), last states of the student.
        batch: with `text_attention_mask` (N, S), `teacher_vectors` (N, D), and, where token states are matched,
            `state_mask` (N, S) and `teacher_states` (N, S, D).
        match: as `distances`.
        poolings: how the student's sentence vectors are pooled, each of which is to match: `mean`, `first`.

    Returns:
        Losses of the texts (N,), the mean over `poolings`; and of the matched tokens (K,), or None.
    """
    pooled = {"mean": lambda: mean_pool(hidden, batch["text_attention_mask"]), "first": lambda: hidden[:, 0]}
    sides = [distances(pooled[name](), batch["teacher_vectors"], match) for name in poolings]
    texts = torch.stack(sides).mean(0)
    if "teacher_states" not in batch:
        return texts, None
    chosen = batch["state_mask"]
    return texts, distances(hidden[chosen], batch["teacher_states"][chosen], match)
