"""The arithmetic of an average that grows while snapshots come in, on tensors in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def add_to_mean(mean: torch.Tensor, value: torch.Tensor, weight: float, total: float) -> None:
    """Take a snapshot into a weighted mean: m ← m + (w / W)(θ - m).

    Args:
        mean: m, float32 or float64, any shape; changed in place. Its content counts for `total - weight`.
        value: θ, the same shape; any floating dtype.
        weight: w, of this snapshot; above 0.
        total: W, of all snapshots up to and with this one; with `total == weight` the mean becomes a copy.
    """
    if total == weight:
        mean.copy_(value)
    else:
        mean.lerp_(value.to(mean.dtype), weight / total)


def add_to_ema(mean: torch.Tensor, value: torch.Tensor, decay: float, first: bool) -> None:
    """Take a snapshot into an exponential mean: m ← β m + (1 - β) θ.

    Args:
        mean: m, float32 or float64, any shape; changed in place.
        value: θ, the same shape; any floating dtype.
        decay: β per snapshot, at least 0 and below 1.
        first: whether this is the first snapshot, which is copied: there is no bias towards zero.
    """
    if first:
        mean.copy_(value)
    else:
        mean.lerp_(value.to(mean.dtype), 1.0 - decay)
