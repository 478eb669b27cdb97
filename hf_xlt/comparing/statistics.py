"""Intervals and tests for paired differences.

Sources: Efron and Tibshirani (1993) for the bootstrap; Fisher's randomisation test over sign flips, exact where all
flips can be listed; Noreen (1989) for approximate randomisation over items; Holm (1979) for several tests at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Up to so many differences all sign flips are listed: 2^16 of them.
EXACT_UP_TO = 16
_CHUNK = 1 << 14
# Differences that are equal in exact arithmetic are not told apart by rounding.
_TOLERANCE, _DIGITS = 1e-12, 12


def sign_flip_test(differences: Sequence[float], draws: int = 100_000, seed: int = 0) -> float:
    """Test whether paired differences are symmetric about 0, two-sided, by their mean.

    Args:
        differences: (n,) of paired runs.
        draws: random flips where n is too large to list all.
        seed: of these.

    Returns:
        The share of sign flips whose mean is as far from 0 as the observed one; at least 2 / 2^n (n up to 16), else at
        least 1 / (draws + 1). 1 for no differences.
    """
    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=np.float64)
    scale = np.abs(values).sum()
    if values.size < 2 or scale == 0:
        return 1.0

    def distance(sample: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        # Sums that are equal in exact arithmetic are not told apart by rounding.
        return np.round(np.abs(sample.sum(axis=axis)) / scale, _DIGITS)

    exact = values.size <= EXACT_UP_TO
    result = permutation_test(
        (values,),
        distance,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if exact else draws,
        batch=_CHUNK,
        alternative="greater",
        random_state=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for several tests (Holm 1979): each below a level says that the family-wise error is."""
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


@dataclass(frozen=True)
class PairedItems:
    """Per-item scores of two systems on the same items of one language.

    A metric is the sum of numerators over the sum of denominators: accuracy counts (right, 1), F1 over spans (2 x
    matching, gold + predicted).

    Attributes:
        ours: (S, N, 2) numerators and denominators of S paired runs on N items.
        theirs: the same of the baseline.
    """

    ours: NDArray[np.float64]
    theirs: NDArray[np.float64]

    @property
    def count(self) -> int:
        """N."""
        return self.ours.shape[1]


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return numerator / denominator along the last axis; 0 where there is no denominator."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] != 0)


def _weighted(weights: NDArray[np.float64], items: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sums over items: (D, N) weights and (S, N, 2) items give (S, D, 2)."""
    return np.moveaxis(np.tensordot(weights, items, axes=(1, 1)), 1, 0)


def average_differences(languages: Mapping[str, PairedItems]) -> NDArray[np.float64]:
    """Return the difference of the unweighted means over languages, (S,) by pair of runs."""
    gaps = [_ratio(items.ours.sum(1)) - _ratio(items.theirs.sum(1)) for items in languages.values()]
    return np.mean(gaps, axis=0)


def bootstrap_interval(
    languages: Mapping[str, PairedItems], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return a percentile interval for the mean difference, over runs and items at once.

    Each draw takes S pairs of runs and, of each language, N items, with replacement. Languages with equally many items
    share the draw: where they are translations of each other their items are not independent, and where they are not
    sharing changes nothing on average.

    Args:
        languages: items by language.
        level: share of the draws inside.
        draws: how many.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    runs = next(iter(languages.values())).ours.shape[0]
    of_size = {items.count: None for items in languages.values()}
    totals = np.zeros((runs, draws))
    for size in of_size:
        weights = generator.multinomial(size, np.full(size, 1 / size), size=draws).astype(np.float64)
        for items in languages.values():
            if items.count == size:
                totals += _ratio(_weighted(weights, items.ours))
                totals -= _ratio(_weighted(weights, items.theirs))
    chosen = generator.multinomial(runs, np.full(runs, 1 / runs), size=draws)
    means = (chosen.T * totals).sum(0) / (runs * len(languages))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_runs(
    differences: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return a percentile interval for the mean difference over runs alone, where no items are known."""
    values = np.asarray(differences, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[chosen].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def item_test(languages: Mapping[str, PairedItems], draws: int = 10_000, seed: int = 0) -> float:
    """Test over items whether two systems are exchangeable, two-sided, by approximate randomisation.

    Each draw exchanges the systems on a random half of the items, in all runs and, of languages with equally many
    items, at the same places.

    Returns:
        (draws as far from 0 as observed + 1) / (draws + 1).
    """
    generator = np.random.default_rng(seed)
    totals = np.zeros(draws)
    for size in {items.count: None for items in languages.values()}:
        flips = (generator.random((draws, size)) < 0.5).astype(np.float64)
        for items in languages.values():
            if items.count == size:
                # Swapping moves the difference of the two from one side's sums to the other's.
                moved = _weighted(flips, items.theirs - items.ours)
                ours = _ratio(items.ours.sum(1)[:, None] + moved)
                theirs = _ratio(items.theirs.sum(1)[:, None] - moved)
                totals += (ours - theirs).mean(0)
    observed = abs(float(average_differences(languages).mean()) * len(languages))
    return (int((np.abs(totals) >= observed - _TOLERANCE).sum()) + 1) / (draws + 1)
