"""The mathematics of embedding perturbations: norms, projection, ascent, noise laws. Pure functions on tensors.

Notation of the design document: `perturbation` (δ), `gradient` (g), `radius` (ε), `mask` (m). Shapes: B batch,
T tokens (padded), D width of the word embedding's output. Perturbations, gradients and noise are (B, T, D) in
float32 (float64 for a float64 model); masks are bool (B, T). A perturbation is exactly 0 wherever its mask is False.

Random numbers come from one generator per example and are drawn at the example's unpadded length, so that padding
and the split of a batch change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Below this a norm counts as zero in a division; the design document's value.
_TINY = 1e-12


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
    return torch.where(norms > ball.radius, perturbation * (ball.radius / norms.clamp(min=_TINY)), perturbation)


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
    return gradient / perturbation_norms(gradient, ball.norm, ball.scope).clamp(min=_TINY)


def usable_rows(gradient: Tensor) -> Tensor:
    """Say which examples have a gradient to follow: every entry finite, not all 0. bool (B,)."""
    largest = gradient.abs().amax(dim=(1, 2))
    return largest.isfinite() & (largest > 0)


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


def draw(law: str, content: Tensor, width: int, generators: Sequence[torch.Generator], dtype: torch.dtype) -> Tensor:
    """Draw independent numbers at the positions of the text.

    Args:
        law: `normal` (mean 0, variance 1) or `uniform` (on [-1, 1)).
        content: (B, T) positions that hold text.
        width: numbers per position.
        generators: B generators on the device of `content`.
        dtype: of the result.

    Returns:
        (B, T, `width`), 0 off the text. Row b depends on its generator and number of text positions alone.
    """
    # One transfer for the batch; drawing at each example's own length is what makes padding irrelevant.
    lengths = content.sum(dim=1).tolist()
    numbers = torch.empty(sum(lengths), width, dtype=dtype, device=content.device)
    for part, generator in zip(numbers.split(lengths), generators, strict=True):
        if law == "normal":
            part.normal_(generator=generator)
        else:
            part.uniform_(-1.0, 1.0, generator=generator)
    placed = torch.zeros(*content.shape, width, dtype=dtype, device=content.device)
    return placed.masked_scatter_(content.unsqueeze(-1).expand_as(placed), numbers)


def _dimensions(mask: Tensor, width: int, scope: str) -> Tensor | int:
    """Coordinates that share one radius: D per token; (B, 1, 1) per sentence, at least 1."""
    return width if scope == "token" else (mask.sum(dim=1) * width).clamp(min=1)[:, None, None]


def initial_perturbation(
    init: str,
    ball: Ball,
    content: Tensor,
    mask: Tensor,
    width: int,
    generators: Sequence[torch.Generator],
    dtype: torch.dtype,
) -> Tensor:
    """Return the point where the ascent starts, inside the ball.

    With n coordinates sharing a radius: in l2, `uniform` has entries in ±radius/√n (norm about radius/√3, FreeLB's
    choice) and `gaussian` has standard deviation radius/√n (norm about the radius); in linf, `uniform` fills the
    box and `gaussian` has standard deviation radius/3. Both are then projected.

    Args:
        init: `zero`, `uniform` or `gaussian`.
        ball: constraint.
        content: (B, T) positions that hold text; random numbers are drawn for all of them.
        mask: (B, T) positions that may be perturbed, a subset of `content`.
        width: D.
        generators: B generators; unused for `zero`.
        dtype: of the result.

    Returns:
        (B, T, D).
    """
    if init == "zero":
        return torch.zeros(*mask.shape, width, dtype=dtype, device=mask.device)
    numbers = draw("uniform" if init == "uniform" else "normal", content, width, generators, dtype)
    if ball.norm == "l2":
        dimensions = torch.as_tensor(_dimensions(mask, width, ball.scope), dtype=dtype, device=mask.device)
        numbers = numbers * (ball.radius / dimensions.sqrt())
    else:
        numbers = numbers * (ball.radius if init == "uniform" else ball.radius / 3)
    return project(numbers * mask.unsqueeze(-1), ball)


def draw_noise(
    noise: str,
    scope: str,
    radius: float,
    content: Tensor,
    mask: Tensor,
    width: int,
    generators: Sequence[torch.Generator],
    dtype: torch.dtype,
) -> Tensor:
    """Draw the noise of randomized smoothing.

    Args:
        noise: `gaussian` (standard deviation `radius` per coordinate), `uniform` (entries in ±`radius`), `l2_ball`
            (uniform in the ball) or `l2_sphere` (uniform on its surface).
        scope: `token` or `sentence`; counts for the l2 laws.
        radius: absolute.
        content: as in `initial_perturbation`.
        mask: as in `initial_perturbation`.
        width: D.
        generators: B generators; a further call with the same ones gives a further draw.
        dtype: of the result.

    Returns:
        (B, T, D), 0 off the mask.
    """
    allowed = mask.unsqueeze(-1)
    numbers = draw("uniform" if noise == "uniform" else "normal", content, width, generators, dtype) * allowed
    if noise in ("gaussian", "uniform"):
        return numbers * radius
    directions = numbers / perturbation_norms(numbers, "l2", scope).clamp(min=_TINY)
    if noise == "l2_sphere":
        return directions * radius
    # Volume grows with the power D of the radius, so the radius of a uniform point is U^(1/D).
    holders = content if scope == "token" else torch.ones_like(content[:, :1])
    levels = draw("uniform", holders, 1, generators, dtype).add(1.0).div(2.0).clamp(0.0, 1.0)
    return directions * radius * levels ** (1.0 / _dimensions(mask, width, scope))


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
