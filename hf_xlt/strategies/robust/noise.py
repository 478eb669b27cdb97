"""The random numbers of embedding perturbations: starts of an ascent, and the noise laws of randomized smoothing.

Shapes and types as in `perturbation`. Random numbers come from one generator per example and are drawn at the
example's unpadded length, so that padding and the split of a batch change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_xlt.strategies.robust.perturbation import TINY, Ball, perturbation_norms, project


class Place(NamedTuple):
    """Where a batch may be perturbed, and whose random numbers serve.

    Attributes:
        content: (B, T) positions that hold text; random numbers are drawn for all of them.
        mask: (B, T) positions that may be perturbed, a subset of `content`.
        width: D.
        generators: B generators on the device of `content`; none are needed where nothing is drawn.
        dtype: of what is drawn.
    """

    content: Tensor
    mask: Tensor
    width: int
    generators: Sequence[torch.Generator]
    dtype: torch.dtype


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


def initial_perturbation(init: str, ball: Ball, place: Place, scale: float = 1.0) -> Tensor:
    """Return the point where the ascent starts, inside the ball.

    With n coordinates sharing a radius: in l2, `uniform` has entries in ±radius/√n (norm about radius/√3, FreeLB's
    choice) and `gaussian` has standard deviation radius/√n (norm about the radius); in linf, `uniform` fills the
    box and `gaussian` has standard deviation radius/3. Both are then multiplied by `scale` and projected.

    Args:
        init: `zero`, `uniform` or `gaussian`.
        ball: constraint.
        place: where, and by which random numbers; `zero` needs none.
        scale: above 0 and at most 1.

    Returns:
        (B, T, D).
    """
    content, mask, width, generators, dtype = place
    if init == "zero":
        return torch.zeros(*mask.shape, width, dtype=dtype, device=mask.device)
    numbers = draw("uniform" if init == "uniform" else "normal", content, width, generators, dtype)
    size = ball.radius * scale
    if ball.norm == "l2":
        dimensions = torch.as_tensor(_dimensions(mask, width, ball.scope), dtype=dtype, device=mask.device)
        numbers = numbers * (size / dimensions.sqrt())
    else:
        numbers = numbers * (size if init == "uniform" else size / 3)
    return project(numbers * mask.unsqueeze(-1), ball)


def draw_noise(noise: str, scope: str, radius: float, place: Place) -> Tensor:
    """Draw the noise of randomized smoothing.

    Args:
        noise: `gaussian` (standard deviation `radius` per coordinate), `uniform` (entries in ±`radius`), `l2_ball`
            (uniform in the ball) or `l2_sphere` (uniform on its surface).
        scope: `token` or `sentence`; counts for the l2 laws.
        radius: absolute.
        place: where, and by which random numbers; a further call with the same generators gives a further draw.

    Returns:
        (B, T, D), 0 off the mask.
    """
    content, mask, width, generators, dtype = place
    allowed = mask.unsqueeze(-1)
    numbers = draw("uniform" if noise == "uniform" else "normal", content, width, generators, dtype) * allowed
    if noise in ("gaussian", "uniform"):
        return numbers * radius
    directions = numbers / perturbation_norms(numbers, "l2", scope).clamp(min=TINY)
    if noise == "l2_sphere":
        return directions * radius
    # Volume grows with the power D of the radius, so the radius of a uniform point is U^(1/D).
    holders = content if scope == "token" else torch.ones_like(content[:, :1])
    levels = draw("uniform", holders, 1, generators, dtype).add(1.0).div(2.0).clamp(0.0, 1.0)
    return directions * radius * levels ** (1.0 / _dimensions(mask, width, scope))
