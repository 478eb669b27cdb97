"""What robust training logs, summed on the device so that no step waits for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Statistics:
    """Sums since the last log.

    `clean_loss` and `perturbed_loss` are shares of an update's loss, added per micro-batch and averaged over updates;
    `norm_ratio` is averaged over micro-batches; `skipped_rows` is a count.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._updates = 0

    def start_batch(self, *, first_of_update: bool) -> None:
        """Count a perturbed micro-batch."""
        self._batches += 1
        self._updates += first_of_update

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar tensor."""
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def drain(self, total_over_processes: Callable[[Tensor], Tensor], processes: int) -> dict[str, float]:
        """Return the values to log and start again at zero; every process must call it together.

        Args:
            total_over_processes: sums a tensor over processes.
            processes: their number.

        Returns:
            By name with the prefix `robust_`; empty when nothing was perturbed since the last call.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        totals = total_over_processes(torch.stack([self._sums[name] for name in names])).tolist()
        divisors = {"skipped_rows": 1, "norm_ratio": self._batches * processes}
        updates = max(self._updates, 1) * processes
        values = {
            f"robust_{name}": total / divisors.get(name, updates) for name, total in zip(names, totals, strict=True)
        }
        self._reset()
        return values
