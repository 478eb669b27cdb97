"""What the card says of the transformation network: what it was taught with, how large it was, where it is now."""

from __future__ import annotations

from typing import Any

from hf_xlt.card_block import card_block
from hf_xlt.languages import english_name

FIGURE_NAME = "representations.png"
PLOTS = (FIGURE_NAME,)
KEPT = ("rtn/rtn.safetensors", "rtn/rtn_config.json")


def block(phase: dict[str, Any]) -> dict[str, Any] | None:
    """Return the block of the card; None for a phase of another kind.

    Args:
        phase: of the record, with what the trainer says of itself.
    """
    facts = phase.get("metaxl")
    if facts is None:
        return None
    examples = sum(facts["target_examples"].values())
    text = f"{examples:,} labelled target examples took part in training."
    if "rtn_parameters" in facts:
        skipped = f" ({facts['rtn_skipped']:,} more were skipped)" if facts["rtn_skipped"] else ""
        text += (
            f" The transformation network had {facts['rtn_parameters']:,} parameters and was updated "
            f"{facts['rtn_steps']:,} times{skipped}. It served in training only and is no part of this model."
        )
    drawn = facts.get("updates_by_source") or {}
    rows = [["source language", "updates"], *([english_name(code), f"{count:,}"] for code, count in drawn.items())]
    measured = facts.get("diagnostics") or {}
    notes = [
        f"{kind.capitalize()} distance between source and target representations: {measured[f'{kind}_plain']:.4g} as "
        f"they are, {measured[f'{kind}_transformed']:.4g} with the source transformed."
        for kind in ("centroid", "hausdorff")
        if f"{kind}_plain" in measured
    ]
    plot = FIGURE_NAME if measured.get("figure") else None
    return card_block("What the target examples did", text, rows if drawn else (), notes, plot)
