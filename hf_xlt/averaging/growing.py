"""`GrowingAverage`: the mean of the snapshots so far, as tensors beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_xlt.averaging.running import add_to_ema, add_to_mean


class GrowingAverage:
    """One copy of the trained weights, into which snapshots are taken one by one.

    Attributes:
        means: m by name, in the shapes of the weights; empty before the first snapshot.
        total: W, the sum of the weights so far.
        steps: the updates after which snapshots were taken.
    """

    def __init__(self, device: str | torch.device, dtype: torch.dtype, ema_decay: float | None = None) -> None:
        """Start empty.

        Args:
            device: where the copy lies.
            dtype: float32 or float64.
            ema_decay: β of an exponential mean, or None for a weighted one.
        """
        self.device, self.dtype, self.ema_decay = torch.device(device), dtype, ema_decay
        self.clear()

    def clear(self) -> None:
        """Forget all snapshots."""
        self.means: dict[str, Tensor] = {}
        self.total, self.steps = 0.0, []

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor], weight: float, step: int) -> None:
        """Take a snapshot: one pass over the weights.

        Args:
            weights: θ by name; the same names each time.
            weight: w, above 0.
            step: update after which it is taken.
        """
        first = not self.steps
        self.total += weight
        self.steps.append(step)
        for name, value in weights.items():
            if first:
                self.means[name] = torch.empty(value.shape, dtype=self.dtype, device=self.device)
            value = value.detach().to(self.device)
            if self.ema_decay is None:
                add_to_mean(self.means[name], value, weight, self.total)
            else:
                add_to_ema(self.means[name], value, self.ema_decay, first)

    def is_finite(self) -> bool:
        """Say whether no snapshot held NaN or infinity."""
        return all(bool(torch.isfinite(mean).all()) for mean in self.means.values())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors, and the JSON-able rest; `restore` is the inverse."""
        return dict(self.means), {"total": self.total, "steps": list(self.steps)}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.means = {name: tensor.to(self.device, self.dtype, copy=True) for name, tensor in tensors.items()}
        self.total, self.steps = float(values["total"]), list(values["steps"])
