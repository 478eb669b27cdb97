"""What the card says of smoothed prediction: that the scores are not of the model as it is loaded."""

from __future__ import annotations

from typing import Any

from hf_xlt.card_block import card_block


def block(phase: dict[str, Any]) -> dict[str, Any] | None:
    """Return the block of the card; None where the model itself was scored.

    Args:
        phase: of the record, with what the trainer says of itself.
    """
    how = phase.get("smoothed_prediction")
    if how is None:
        return None
    text = (
        f"The scores above are of smoothed predictions: each answer comes from {how['samples']:,} passes with "
        f"{how['noise']} noise of radius {how['radius']:.4g} on the word embeddings (`{how['predict']}`). The "
        "model itself, as it is loaded below, answers from one pass without noise."
    )
    return card_block("How the scores were obtained", text)
