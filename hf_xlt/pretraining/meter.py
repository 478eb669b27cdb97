"""What a pre-training measures between two log lines: the parts of the loss, speed, and waiting for data."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Meter:
    """Sums since the last reading.

    Attributes:
        waited: seconds spent waiting for batches.
        tokens: tokens that went through the encoder, padding apart.
        updates: forward passes by part of the loss.
    """

    waited: float = 0.0
    tokens: int = 0
    parts: dict[str, Tensor] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)
    rounds: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, loss: Tensor, tokens: int) -> None:
        """Add one micro-batch's share of a part of the loss."""
        self.parts[name] = self.parts.get(name, 0.0) + loss.detach()
        self.rounds[name] = self.rounds.get(name, 0) + 1
        self.tokens += tokens

    def read(self, processes: int, accumulation: int = 1) -> dict[str, float]:
        """Return the log entries and start anew.

        Args:
            processes: for the speed over all of them.
            accumulation: micro-batches of an update.
        """
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        entries = {
            f"loss_{name}": round(float(total) / max(self.rounds[name] / accumulation, 1), 4)
            for name, total in self.parts.items()
        }
        entries["tokens_per_second"] = round(self.tokens * processes / elapsed, 1)
        entries["data_wait_ratio"] = round(self.waited / elapsed, 5)
        self.parts, self.rounds, self.tokens, self.waited = {}, {}, 0, 0.0
        self.since = time.perf_counter()
        return entries
