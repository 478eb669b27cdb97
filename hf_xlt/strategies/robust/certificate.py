"""Within what distance a smoothed prediction cannot change.

Source: Cohen, Rosenfeld and Kolter (2019), "Certified Adversarial Robustness via Randomized Smoothing": theorem 1 for
the radius, CERTIFY in section 3.2 for its estimate from votes. It holds for `noise` gaussian and the vote. The
distance is the L2 norm over all perturbed coordinates of an example's embedding sequence; it says nothing of edits of
words, and nothing of coordinates that are not perturbed.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

ABSTAIN = -1


class Certificate(NamedTuple):
    """A certified prediction.

    Attributes:
        label: (...) the predicted choice, or `ABSTAIN` where its probability is not shown to be above one half.
        radius: (...) float64, 0 where the label is `ABSTAIN`.
    """

    label: Tensor
    radius: Tensor


def certified_radius(lower: Tensor | float, upper: Tensor | float, sigma: float) -> Tensor:
    """Return sigma / 2 * (Φ⁻¹(pA) - Φ⁻¹(pB)), theorem 1.

    Args:
        lower: pA, lower bound on the probability of the most probable choice under the noise.
        upper: pB, upper bound on that of every other choice; `1 - lower` always is one.
        sigma: standard deviation of the noise per coordinate.

    Returns:
        float64 in the shape of the bounds; 0 where `lower` is not above `upper`, infinite at 1 and 0.

    Raises:
        ValueError: a bound outside [0, 1], or a sigma of 0 or less.
    """
    lower, upper = (torch.as_tensor(bound, dtype=torch.float64) for bound in (lower, upper))
    if any(bool(((bound < 0) | (bound > 1)).any()) for bound in (lower, upper)) or not sigma > 0:
        raise ValueError("Bounds on probabilities lie between 0 and 1, and sigma is above 0.")
    radius = sigma / 2 * (torch.special.ndtri(lower) - torch.special.ndtri(upper))
    return torch.where(lower > upper, radius, torch.zeros_like(radius))


@functools.lru_cache(maxsize=4096)
def probability_lower_bound(successes: int, trials: int, alpha: float) -> float:
    """Return the one-sided Clopper-Pearson bound: below it lies the probability with a chance of at most `alpha`.

    Args:
        successes: 0 to `trials`.
        trials: 1 or more.
        alpha: between 0 and 1, both excluded.

    Raises:
        ValueError: a number out of range.
    """
    if not (0 <= successes <= trials and trials >= 1 and 0 < alpha < 1):
        raise ValueError(f"{successes} of {trials} at alpha {alpha}: give 0 <= successes <= trials, 0 < alpha < 1.")
    if successes == 0:
        return 0.0
    from scipy.stats import beta

    return float(beta.ppf(alpha, successes, trials - successes + 1))


def certify(counts: Tensor, sigma: float, alpha: float = 0.001, selection: Tensor | None = None) -> Certificate:
    """Certify predictions from votes, as CERTIFY does; each one is wrong with a chance of at most `alpha`.

    Args:
        counts: (..., C) votes per choice.
        sigma: standard deviation of the gaussian noise per coordinate, in embedding space.
        alpha: chance of a wrong certificate, between 0 and 1.
        selection: (..., C) votes of other draws, which choose the label; the paper takes 100 draws for this. Without
            them the label comes from `counts`, and the chance holds only for a label chosen beforehand.

    Returns:
        Label and radius of shape (...).

    Raises:
        ValueError: `counts` are not counts, or `alpha` or `sigma` is out of range.
    """
    if counts.is_floating_point() or bool((counts < 0).any()):
        raise ValueError("`counts` are numbers of votes: whole and 0 or more.")
    counts = counts.cpu()
    label = (counts if selection is None else selection.cpu()).argmax(dim=-1)
    votes, trials = counts.gather(-1, label.unsqueeze(-1)).squeeze(-1), counts.sum(dim=-1)
    pairs = zip(votes.flatten().tolist(), trials.flatten().tolist(), strict=True)
    bounds = [probability_lower_bound(successes, total, alpha) for successes, total in pairs]
    lower = torch.tensor(bounds, dtype=torch.float64).reshape(votes.shape)
    radius = certified_radius(lower, 1 - lower, sigma)
    return Certificate(torch.where(radius > 0, label, ABSTAIN), radius)
