"""What a model predicts, for all kinds of task alike: logits, probabilities, and how far two predictions lie apart.

Kinds of prediction: `class` (one of C for each example or token), `span` (one of the positions for a start and for an
end), `labels` (each of C labels by itself) and `number`. Shapes: B batch, T tokens, C classes. Float32, or float64
for a float64 model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_xlt.training.losses import IGNORED, LABEL_NAMES

# A logit for padding: its probability is exactly 0, and differences to it stay finite.
_OFF = -1e4


def logits_of(outputs: Any) -> dict[str, Tensor]:
    """Return a model's logits by name: `logits` (B, C) or (B, T, C), or `start_logits` and `end_logits` (B, T)."""
    if isinstance(outputs, Mapping):
        names = ("start_logits", "end_logits") if "start_logits" in outputs else ("logits",)
        return {name: outputs[name] for name in names}
    return {"logits": outputs[0]}


def detached(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return logits without history."""
    return {name: value.detach() for name, value in logits.items()}


def without_labels(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch without its labels."""
    return {name: value for name, value in inputs.items() if name not in LABEL_NAMES}


def kind_of(logits: Mapping[str, Tensor], config: Any, labels: Mapping[str, Tensor] | None = None) -> str:
    """Tell the kind of prediction from logits, the model's config and, where known, labels."""
    if "start_logits" in logits:
        return "span"
    problem = getattr(config, "problem_type", None)
    if problem == "regression" or (problem is None and logits["logits"].shape[-1] == 1):
        return "number"
    values = (labels or {}).get("labels")
    several = values is not None and values.is_floating_point()
    return "labels" if several or problem == "multi_label_classification" else "class"


def log_probabilities(logits: Tensor, kind: str, content: Tensor) -> Tensor:
    """Return log probabilities over the choices of a decision, which are the last axis.

    Args:
        logits: (B, C), (B, T, C), or for `span` (B, T).
        kind: `class`, `span` or `labels`.
        content: bool (B, T), positions that hold text; others get probability 0 in `span`.

    Returns:
        Of the shape of `logits`; (B, C, 2) for `labels`: absent, present.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if kind == "span":
        logits = logits.masked_fill(~content, _OFF)
    elif kind == "labels":
        logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)
    return logits.log_softmax(dim=-1)


def counted_units(inputs: Mapping[str, Any], logits: Mapping[str, Tensor], content: Tensor) -> Tensor:
    """Say which units of a batch count, as in the task loss; in a batch without labels all that hold text.

    Args:
        inputs: one batch.
        logits: as `logits_of` returns.
        content: bool (B, T), positions that hold text.

    Returns:
        bool (B, T) for a prediction per token, else (B,).
    """
    for name in LABEL_NAMES:
        values = inputs.get(name)
        if values is not None and not values.is_floating_point():
            return values.ne(IGNORED) if name == "labels" else values.ge(0)
    one = next(iter(logits.values()))
    return content if one.dim() == 3 else torch.ones_like(one[:, 0], dtype=torch.bool)


def divergences(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    kind: str,
    counted: Tensor,
    content: Tensor,
    *,
    symmetric: bool,
) -> Tensor:
    """Sum each example's divergences between two predictions over its units.

    KL(p ‖ q) for predictions p and q, or KL(p ‖ q) + KL(q ‖ p) = Σ (p - q) (log p - log q). Like the task loss it is
    the mean of start and end for spans, and the mean over labels for several labels. For numbers it is the squared
    difference, the symmetric KL of normal distributions of variance 1, or half of it.

    Args:
        first: logits of p, as `logits_of` returns.
        second: logits of q.
        kind: as `kind_of` returns.
        counted: as `counted_units` returns.
        content: bool (B, T), positions that hold text.
        symmetric: which of the two.

    Returns:
        (B,), 0 or more.
    """
    parts = [_divergence(first[name], second[name], kind, content, symmetric) for name in first]
    apart = sum(parts) / len(parts)
    return (apart * counted).reshape(len(apart), -1).sum(dim=1)


def _divergence(first: Tensor, second: Tensor, kind: str, content: Tensor, symmetric: bool) -> Tensor:
    if kind == "number":
        square = (first - second).to(torch.promote_types(first.dtype, torch.float32)).square().sum(dim=-1)
        return square if symmetric else square / 2
    log_first, log_second = (log_probabilities(logits, kind, content) for logits in (first, second))
    weights = log_first.exp() - log_second.exp() if symmetric else log_first.exp()
    apart = (weights * (log_first - log_second)).sum(dim=-1)
    return apart.mean(dim=-1) if kind == "labels" else apart
