"""The audit: first-order against exact gate gradients, on the run's own model and data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LOGGER = logging.getLogger(__name__)
# Below these a first-order gradient points elsewhere often enough to matter.
LEAST_COSINE, LEAST_AGREEMENT = 0.9, 0.8


def compare(first_order: Tensor, exact: Tensor, names: Sequence[str], update: int) -> dict[str, Any]:
    """Compare the gradients of one episode.

    Args:
        first_order: (L,) without curvature.
        exact: (L,).
        names: the groups.
        update: number of the run's updates so far.

    Returns:
        `update`, `cosine`, `relative_error` (norm of the difference over that of the exact one), `agreement` (share of
        gates with equal signs), and `disagreeing` (their groups).
    """
    norms = first_order.norm() * exact.norm()
    cosine = float(first_order @ exact / norms) if norms > 0 else (1.0 if bool((first_order == exact).all()) else 0.0)
    equal = torch.sign(first_order) == torch.sign(exact)
    size = float(exact.norm())
    return {
        "update": update,
        "cosine": cosine,
        "relative_error": float((first_order - exact).norm()) / size if size > 0 else 0.0,
        "agreement": float(equal.double().mean()),
        "disagreeing": [name for name, same in zip(names, equal.tolist(), strict=True) if not same],
    }


def warn(result: dict[str, Any], inner_steps: int) -> bool:
    """Warn where first-order gradients are not to be trusted; return whether it did."""
    if result["cosine"] >= LEAST_COSINE and result["agreement"] >= LEAST_AGREEMENT:
        return False
    LOGGER.warning(
        "Audit after update %d: first-order gate gradients over %d steps have cosine %.2f with the exact ones and the "
        "same sign for %.0f %% of the gates (not: %s). Use fewer inner steps, a lower learning rate, or "
        "`meta_gradient` exact.",
        result["update"],
        inner_steps,
        result["cosine"],
        100 * result["agreement"],
        ", ".join(result["disagreeing"]) or "none",
    )
    return True


def audited(episode: int, episodes: int, audits: int) -> bool:
    """Say whether an episode is one of `audits`, evenly spaced from the first on."""
    if audits == 0 or episodes == 0:
        return False
    audits = min(audits, episodes)
    return episode in {number * episodes // audits for number in range(audits)}
