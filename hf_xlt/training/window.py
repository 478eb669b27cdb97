"""The update under way: how many units it has, and which row of the global batch each example is."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_xlt.randomness import keyed_generator


@dataclass
class UpdateWindow:
    """All micro-batches of one update on one process.

    Attributes:
        seed: seed of the run, first part of every key.
        update: number of updates done before this one.
        units: (K,) units per language group over all micro-batches and processes; K is 1 unless languages are
            trained jointly.
        groups: per micro-batch (B,) the language group of each example; None when K is 1.
        rows: per micro-batch (B,) the row of each example in the global batch, numbered within its group.
        current: index of the micro-batch at hand.
    """

    seed: int
    update: int
    units: Tensor
    groups: list[Tensor | None] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    current: int = 0

    def advance(self) -> None:
        """Go on to the next micro-batch."""
        self.current += 1

    @property
    def group(self) -> Tensor | None:
        """(B,) language group of each example of the micro-batch at hand; None when there is one group."""
        return self.groups[self.current]

    def generators(self, purpose: str, device: torch.device | str = "cpu") -> list[torch.Generator]:
        """Return one generator per example of the micro-batch at hand.

        Args:
            purpose: what the numbers are for; streams of different purposes are independent.
            device: where to draw; streams differ between kinds of device.

        Returns:
            B generators, keyed by (seed, purpose, update, group, row).
        """
        rows = self.rows[self.current].tolist()
        groups = [0] * len(rows) if self.group is None else self.group.tolist()
        return [
            keyed_generator(self.seed, purpose, self.update, group, row, device=device)
            for group, row in zip(groups, rows, strict=True)
        ]
