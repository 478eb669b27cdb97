"""The mathematics of embedding perturbations: norms, projection, ascent. Pure functions on tensors.

Notation: `perturbation` (δ), `gradient` (g), `radius` (ε), `mask` (m). Shapes: B batch,
T tokens (padded), D width of the word embedding's output. Perturbations and gradients are (B, T, D) in float32
(float64 for a float64 model); masks are bool (B, T). A perturbation is exactly 0 wherever its mask is False.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Below this a norm counts as zero in a division.
TINY = 1e-12


@dataclass(frozen=True)
class Ball:
    """Where perturbations live.

    Attributes:
        norm: `l2` or `linf`.
        scope: `token` (one radius per position) or `sentence` (one per example).
        radius: absolute, 0 or more.
    """

    norm: str
    scope: str
    radius: float


def content_positions(inputs: Mapping[str, Any], pad_token_id: int | None) -> Tensor:
    """Say which positions hold text.

    Args:
        inputs: a batch with `attention_mask` (B, T), or else `input_ids` (B, T) or `inputs_embeds` (B, T, D).
        pad_token_id: tells padding when the batch has no attention mask; None means there is no padding.

    Returns:
        bool (B, T).

    Raises:
        ValueError: the attention mask is not of shape (B, T).
    """
    attention_mask, input_ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if attention_mask is not None:
        if attention_mask.dim() != 2:
            shape = tuple(attention_mask.shape)
            raise ValueError(f"`attention_mask` has shape {shape}; perturbations need (batch, tokens).")
        return attention_mask.bool()
    if input_ids is None:
        embeds = inputs["inputs_embeds"]
        return torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    if pad_token_id is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return input_ids.ne(pad_token_id)


def perturbation_norms(perturbation: Tensor, norm: str, scope: str) -> Tensor:
    """Return the norm per position (B, T, 1) for scope `token`, per example (B, 1, 1) for `sentence`."""
    axes = (-1,) if scope == "token" else (-2, -1)
    order = 2 if norm == "l2" else torch.inf
    return torch.linalg.vector_norm(perturbation, ord=order, dim=axes, keepdim=True)


def project(perturbation: Tensor, ball: Ball) -> Tensor:
    """Return the nearest point of the ball, (B, T, D); points inside stay as they are."""
    if ball.norm == "linf":
        return perturbation.clamp(-ball.radius, ball.radius)
    norms = perturbation_norms(perturbation, ball.norm, ball.scope)
    return torch.where(norms > ball.radius, perturbation * (ball.radius / norms.clamp(min=TINY)), perturbation)


def ascent_direction(gradient: Tensor, ball: Ball, linf_direction: str = "sign") -> Tensor:
    """Return the direction of steepest ascent in the ball's norm.

    Args:
        gradient: (B, T, D), 0 where nothing may be perturbed.
        ball: its norm and scope count, not its radius.
        linf_direction: `sign`, or `maxnorm` to divide by the example's (`sentence`) or position's (`token`) largest
            entry instead, as FreeLB's code does per example.

    Returns:
        (B, T, D) of norm 1, or 0 where the gradient is 0.
    """
    if ball.norm == "linf" and linf_direction == "sign":
        return gradient.sign()
    return gradient / perturbation_norms(gradient, ball.norm, ball.scope).clamp(min=TINY)


def usable_rows(gradient: Tensor) -> Tensor:
    """Say which examples have a gradient to follow: every entry finite, not all 0. bool (B,)."""
    largest = gradient.abs().amax(dim=(1, 2))
    return largest.isfinite() & (largest > 0)


def rescale_rows(gradient: Tensor) -> Tensor:
    """Bring each example's largest entry to 1, (B, T, D); an example without a usable gradient gets NaN.

    A gradient of the training loss, which is divided by the units of the update, can be so small that norms are not
    told from 0.
    """
    return gradient / gradient.abs().amax(dim=(1, 2), keepdim=True)


def ascend(
    perturbation: Tensor,
    gradient: Tensor,
    mask: Tensor,
    ball: Ball,
    step_size: float,
    linf_direction: str = "sign",
) -> tuple[Tensor, Tensor]:
    """Do one projected ascent step; an example whose gradient is unusable keeps its perturbation.

    Args:
        perturbation: (B, T, D), inside the ball and 0 off the mask.
        gradient: (B, T, D) of the summed losses; its scale does not matter.
        mask: (B, T) positions that may be perturbed.
        ball: constraint.
        step_size: length of the step in the ball's norm; negative descends.
        linf_direction: as in `ascent_direction`.

    Returns:
        The new perturbation (B, T, D), and bool (B,): examples that should have moved and could not.
    """
    gradient = gradient.to(perturbation.dtype).masked_fill(~mask.unsqueeze(-1), 0.0)
    usable = usable_rows(gradient)
    direction = ascent_direction(gradient, ball, linf_direction)
    moved = project(perturbation + step_size * direction, ball)
    return torch.where(usable[:, None, None], moved, perturbation), ~usable & mask.any(dim=1)


def norm_ratio(perturbation: Tensor, mask: Tensor, ball: Ball, noise: str | None = None) -> Tensor:
    """Return the mean norm over perturbed positions or examples as a share of the radius.

    Args:
        perturbation: (B, T, D), 0 off the mask.
        mask: (B, T).
        ball: norm, scope and radius; the norm is overruled by `noise`.
        noise: law of random noise; `gaussian` is measured per position against its expected length, radius * √D.

    Returns:
        Scalar.
    """
    norm, scope, radius = ball.norm, ball.scope, ball.radius
    if noise is not None:
        norm = "linf" if noise == "uniform" else "l2"
    if noise == "gaussian":
        scope, radius = "token", radius * perturbation.shape[-1] ** 0.5
    perturbed = mask if scope == "token" else mask.any(dim=1)
    return perturbation_norms(perturbation, norm, scope).sum() / perturbed.sum().clamp(min=1) / radius
