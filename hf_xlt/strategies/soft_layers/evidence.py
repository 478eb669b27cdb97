"""What the query batches said of each gate: mean, standard error, sign by language.

A gate that did not move is undecided, not useful: the evidence tells "no evidence" apart from "keep open".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_xlt.strategies.soft_layers.card import CLOSE, ENOUGH, NO_EVIDENCE, OPEN


class Evidence:
    """Running moments of the gate gradients dL/dz, in float64: (A, L) for A languages and L gates."""

    def __init__(self, languages: Sequence[str], count: int) -> None:
        """Start with none."""
        self.languages, self.count = tuple(languages), count
        self.updates = torch.zeros(len(languages), dtype=torch.int64)
        self.mean = torch.zeros(len(languages), count, dtype=torch.float64)
        self.squares = torch.zeros(len(languages), count, dtype=torch.float64)

    def add(self, language: int, gradient: Tensor) -> None:
        """Add one gradient (L,) of one language (its number), by Welford's recursion."""
        self.updates[language] += 1
        gap = gradient - self.mean[language]
        self.mean[language] += gap / self.updates[language]
        self.squares[language] += gap * (gradient - self.mean[language])

    def report(self, number: int) -> dict[str, Any]:
        """Describe one gate: mean gradient, its standard error, their ratio, a verdict, and the mean by language."""
        mean, error = _pooled(self.updates, self.mean[:, number], self.squares[:, number])
        ratio = abs(mean) / error if error > 0 else 0.0
        decided = ratio > ENOUGH and int(self.updates.sum()) > 2
        return {
            "mean_gradient": mean,
            "standard_error": error,
            "signal_to_noise": ratio,
            "verdict": (OPEN if mean < 0 else CLOSE) if decided else NO_EVIDENCE,
            "by_language": {
                language: float(self.mean[place, number])
                for place, language in enumerate(self.languages)
                if self.updates[place]
            },
        }

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to save."""
        return {"updates": self.updates, "mean": self.mean, "squares": self.squares}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        self.updates, self.mean, self.squares = (state[name].clone() for name in ("updates", "mean", "squares"))


def _pooled(counts: Tensor, means: Tensor, squares: Tensor) -> tuple[float, float]:
    total = int(counts.sum())
    if total < 2:
        return (float((counts * means).sum()) / max(total, 1), 0.0)
    mean = float((counts * means).sum() / total)
    spread = float(squares.sum() + (counts * (means - mean) ** 2).sum())
    return mean, math.sqrt(max(spread, 0.0) / (total - 1) / total)
