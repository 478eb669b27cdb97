"""What the card says of a phase of pre-training: how well the encoder predicts text that it has not seen."""

from __future__ import annotations

from typing import Any

from hf_xlt.card_block import card_block
from hf_xlt.languages import english_name


def block(phase: dict[str, Any]) -> dict[str, Any] | None:
    """Return the block of the card; None where nothing was held out and nothing skipped.

    Args:
        phase: of the record, with what the trainer says of itself.
    """
    losses, skipped = phase.get("held_out_loss") or {}, phase.get("skipped_shards") or {}
    if not losses and not skipped:
        return None
    rows = [["language", "loss"], *([english_name(code), f"{loss:.3f}"] for code, loss in losses.items())]
    text = "Masked-LM loss on text that was held out of pre-training, in nats per masked token." if losses else ""
    notes = [f"{count:,} shards of text in {english_name(code)} could not be read." for code, count in skipped.items()]
    return card_block("Held-out text" if losses else "Text", text, rows if losses else (), notes)
