"""What X-MAML costs, from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_xlt.strategies.xmaml.config import XMAMLConfig


def cost(config: XMAMLConfig) -> float:
    """Return the cost of an update of the first stage: plain fine-tuning, or a meta-update for one language."""
    return 1.0 if config.fine_tune_first else meta_cost(config)


def meta_cost(config: XMAMLConfig) -> float:
    """Return the cost of a meta-update per auxiliary language, in plain steps of as many examples.

    With s the share of the support and k inner steps: a support or query gradient costs its share of a plain step, and
    going back through an inner step twice the support's share (a double backward pass is about two forward-backward
    passes of which one is there already). So `plain` 1, `first` k s + 1 - s, `second` 3 k s + 1 - s, `reptile` k.
    """
    share, steps = config.support_share, config.inner_steps
    return {
        "plain": 1.0,
        "first": steps * share + 1 - share,
        "second": 3 * steps * share + 1 - share,
        "reptile": float(steps),
    }[config.order]
