"""Which source language an update trains on: uniform, by size, or by a bandit on the meta loss.

`exp3` follows the published code of MetaXLR (arXiv 2306.00100): a language whose meta loss is high is drawn more
often. Weights are kept as logarithms, so that long runs do not overflow; the draw is a function of (seed, update) and
the weights, equal on every process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_xlt.randomness import keyed_generator

MIXED, UNIFORM, PROPORTIONAL, TEMPERATURE, EXP3 = "mixed", "uniform", "proportional", "temperature", "exp3"


class SourceSampler:
    """Draws a source language per update, and where in its endless stream the update's batch begins."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        rule: str,
        *,
        seed: int,
        temperature: float = 1.0,
        exploration: float = 0.01,
        reward_scale: float = 2.5,
    ) -> None:
        """Draw among languages.

        Args:
            sizes: examples by language, in a fixed order.
            rule: `uniform`, `proportional`, `temperature` or `exp3`.
            seed: of the run.
            temperature: T of p ~ size ** (1 / T).
            exploration: γ of `exp3`.
            reward_scale: meta loss that counts as reward 1; higher ones do not count more.
        """
        self.languages, self.rule, self.seed = list(sizes), rule, seed
        self.exploration, self.reward_scale = exploration, reward_scale
        power = {UNIFORM: 0.0, EXP3: 0.0, PROPORTIONAL: 1.0, TEMPERATURE: 1.0 / temperature}[rule]
        counts = torch.tensor([float(size) for size in sizes.values()], dtype=torch.float64)
        self.log_weights: Tensor = power * counts.log()
        self.drawn = dict.fromkeys(self.languages, 0)
        self.updates = dict.fromkeys(self.languages, 0)

    def probabilities(self) -> Tensor:
        """Return each language's probability: (K,) float64, summing to 1."""
        shares = self.log_weights.softmax(0)
        if self.rule != EXP3:
            return shares
        return (1 - self.exploration) * shares + self.exploration / len(shares)

    def draw(self, update: int, examples: int) -> tuple[str, int]:
        """Draw the language of an update.

        Args:
            update: number of updates done before this one.
            examples: that the update takes, over all micro-batches and processes.

        Returns:
            The language, and the position in its stream where the update's examples begin.
        """
        generator = keyed_generator(self.seed, "source language", update)
        language = self.languages[int(torch.multinomial(self.probabilities(), 1, generator=generator))]
        start = self.drawn[language]
        self.drawn[language] += examples
        self.updates[language] += 1
        return language, start

    def reward(self, language: str, meta_loss: float) -> None:
        """Tell the bandit the meta loss after an update on a language: w <- w exp(γ r / (p K)); others ignore it."""
        if self.rule != EXP3 or not meta_loss >= 0:
            return
        place, count = self.languages.index(language), len(self.languages)
        reward = min(meta_loss / self.reward_scale, 1.0) / float(self.probabilities()[place])
        self.log_weights[place] += self.exploration * reward / count

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the weights, and how much of each stream is drawn."""
        return {"source_log_weights": self.log_weights}, {"drawn": dict(self.drawn), "updates": dict(self.updates)}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.log_weights = tensors["source_log_weights"].clone()
        self.drawn, self.updates = dict(values["drawn"]), dict(values["updates"])
