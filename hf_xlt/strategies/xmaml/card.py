"""What the card says of meta-learning: on how much, and how far it was from plain training."""

from __future__ import annotations

from typing import Any

from hf_xlt.card_block import card_block
from hf_xlt.languages import english_name

SECOND, FIRST, REPTILE, PLAIN = "second", "first", "reptile", "plain"
_ORDERS = {
    SECOND: "the exact second-order gradient",
    FIRST: "first-order gradients",
    REPTILE: "Reptile",
    PLAIN: "plain gradients, without any inner step (the baseline)",
}


def block(phase: dict[str, Any]) -> dict[str, Any] | None:
    """Return the block of the card; None for the phases before and after meta-learning.

    Args:
        phase: of the record, with what the trainer says of itself.
    """
    facts = phase.get("xmaml")
    if facts is None:
        return None
    languages = ", ".join(map(english_name, facts["auxiliary_languages"]))
    text = (
        f"Each meta-update took {facts['task_size']:,} labelled examples of every auxiliary language ({languages}), "
        f"with {_ORDERS[facts['order']]}."
    )
    cosine, notes = facts["mean_cosine_with_plain_gradient"], []
    if cosine is not None:
        notes.append(
            f"Mean cosine between the meta-gradient and the plain gradient of the same examples: {cosine:.4f}. At 1 "
            "the two point the same way, and the meta-update is the one of plain training on the auxiliary languages."
        )
    return card_block("What meta-learning did", text, notes=notes)
