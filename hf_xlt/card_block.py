"""What a strategy adds to the card of a run: a heading, a few sentences, a table, a picture.

The record keeps facts; the module `card` of the strategy makes the words of them when a card is rendered (see
`hf_xlt.strategies`). So neither the record nor the card knows any strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_xlt.registry import card_module

# Records of earlier versions hold the finished block.
_FINISHED = "card"


def card_block(
    heading: str,
    text: str = "",
    table: Sequence[Sequence[str]] = (),
    notes: Sequence[str] = (),
    plot: str | None = None,
) -> dict[str, Any]:
    """Return a block.

    Args:
        heading: what it is about; of several phases with one heading the last one is shown.
        text: sentences above the table.
        table: rows of text, header first; columns after the first are figures.
        notes: sentences below the table, one per point.
        plot: name of a picture beside the model, shown where it was drawn.

    Returns:
        `heading`, `text`, `table`, `notes` and `plot`.
    """
    rows = [list(row) for row in table]
    return {"heading": heading, "text": text, "table": rows, "notes": list(notes), "plot": plot}


def card_blocks(strategy: str, phases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the blocks of all phases, one per heading, in the order in which the headings first appear.

    Args:
        strategy: name of the record's strategy; one that is not installed adds nothing.
        phases: of the record.
    """
    module = card_module(strategy)
    found = [phase.get(_FINISHED) or (module.block(phase) if module else None) for phase in phases]
    return list({block["heading"]: block for block in found if block}.values())
