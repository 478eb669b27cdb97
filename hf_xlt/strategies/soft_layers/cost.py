"""What a run of soft layer selection costs, from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_xlt.strategies.soft_layers.config import SoftLayerSelectionConfig


def cost(config: SoftLayerSelectionConfig) -> float:
    """Return the cost of a run in plain steps per update of its fine-tuning, by the arithmetic of passes.

    With k inner steps, a query batch as large as an update's: learning takes 1 + 1/k per update, or 4 + 1/k with exact
    gradients over several (a Hessian-vector product with its forward pass is 3 plain steps); the fine-tuning after it
    1. So `trajectory` and `episodic` take 2 + 1/k, `online` 1 + 1/k, known gates 1. Audits, and a learning phase of
    its own length (`gate_updates`), are not counted.
    """
    if not config.learns:
        return 1.0
    return learning_cost(config) if config.mode == "online" else learning_cost(config) + 1


def learning_cost(config: SoftLayerSelectionConfig) -> float:
    """Return the cost of an update while gates are learned, in plain steps."""
    steps = config.inner_steps
    return 1 / steps + (4 if config.meta_gradient == "exact" and steps > 1 else 1)
