"""How much each snapshot counts: uniform, weighted, per run, exponential.

Weights are exact fractions until the end, so that equal proportions give equal bits however they are written.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from fractions import Fraction

from hf_xlt.errors import ConfigError, setting

# Weights of so many parts are summed as whole numbers and divided once; finer ones are multiplied as fractions.
_WHOLE_LIMIT = 2**20


def parse_weights(text: str) -> list[Fraction]:
    """Read numbers separated by commas.

    Raises:
        ConfigError: one of them is no finite number.
    """
    return as_fractions([part.strip() for part in text.split(",")])


def as_fractions(weights: Sequence[float | str | Fraction]) -> list[Fraction]:
    """Return weights as the exact decimal numbers that they are written as.

    Raises:
        ConfigError: one of them is no finite number.
    """
    try:
        return [weight if isinstance(weight, Fraction) else Fraction(str(weight)) for weight in weights]
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"weights must be finite numbers, separated by commas on the command line: {error}.") from (
            error
        )


def ema_weights(count: int, decay: Fraction) -> list[Fraction]:
    """Return the weights that m ← β m + (1 - β) θ gives to snapshots, the first update being a copy.

    Args:
        count: how many, in order of time.
        decay: β per snapshot, at least 0 and below 1.
    """
    return [decay ** (count - 1), *((1 - decay) * decay ** (count - 1 - number) for number in range(1, count))]


def snapshot_weights(
    runs: Sequence[Hashable],
    *,
    given: Sequence[Fraction] | None = None,
    per_run: bool = False,
    ema_decay: Fraction | None = None,
    allow_negative: bool = False,
) -> list[Fraction]:
    """Return each snapshot's weight, summing to 1.

    Args:
        runs: which run each snapshot belongs to; snapshots of a run stand in order of time.
        given: the user's weights, one per snapshot.
        per_run: let each run count the same, whatever the number of its snapshots.
        ema_decay: β of an exponential mean within each run.
        allow_negative: whether weights may be below 0.

    Raises:
        ConfigError: weights that cannot be used, or that sum to 0.
    """
    weights = [Fraction(1)] * len(runs) if given is None else list(given)
    if len(weights) != len(runs):
        raise ConfigError(f"{len(weights)} weights for {len(runs)} snapshots; give one weight per snapshot.")
    if any(weight < 0 for weight in weights) and not allow_negative:
        raise ConfigError(f"a weight is negative; {setting('allow_negative')} permits that.")
    if ema_decay is not None:
        if not 0 <= ema_decay < 1:
            raise ConfigError(
                f"{setting('ema_decay', f'{float(ema_decay):g}', flag='ema')} must be at least 0 and below 1."
            )
        for run in dict.fromkeys(runs):
            members = [number for number, other in enumerate(runs) if other == run]
            for number, weight in zip(members, ema_weights(len(members), ema_decay), strict=True):
                weights[number] = weight
    if per_run:
        for run in dict.fromkeys(runs):
            members = [number for number, other in enumerate(runs) if other == run]
            total = sum(weights[number] for number in members)
            if total:
                for number in members:
                    weights[number] /= total
    total = sum(weights)
    if not total:
        raise ConfigError("the weights sum to 0, so there is no mean; give others.")
    return [weight / total for weight in weights]


def summation(weights: Sequence[Fraction]) -> tuple[list[float], float]:
    """Return the factors to sum with and the number to divide the sum by.

    Dividing a sum by a whole number rounds once; multiplying by an inexact 1/N would round each term.
    """
    scale = math.lcm(*(weight.denominator for weight in weights))
    factors = [int(weight * scale) for weight in weights]
    shared = math.gcd(*factors)
    factors = [factor // shared for factor in factors]
    if sum(map(abs, factors)) <= _WHOLE_LIMIT:
        return [float(factor) for factor in factors], float(sum(factors))
    return [float(weight) for weight in weights], 1.0
