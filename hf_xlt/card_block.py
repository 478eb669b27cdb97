"""What a strategy adds to the card of a run: a heading, a few sentences, a table, a picture.

A strategy returns it among the facts of a phase; the record keeps it, and the card shows it as it stands. So neither
the record nor the card knows any strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

KEY = "card"


def card_block(
    heading: str,
    text: str = "",
    table: Sequence[Sequence[str]] = (),
    notes: Sequence[str] = (),
    plot: str | None = None,
) -> dict[str, Any]:
    """Return a block as an entry of a phase's facts.

    Args:
        heading: what it is about; of several phases with one heading the last one is shown.
        text: sentences above the table.
        table: rows of text, header first; columns after the first are figures.
        notes: sentences below the table, one per point.
        plot: name of a picture beside the model, shown where it was drawn.

    Returns:
        `{"card": block}`, JSON-able.
    """
    rows = [list(row) for row in table]
    return {KEY: {"heading": heading, "text": text, "table": rows, "notes": list(notes), "plot": plot}}


def card_blocks(phases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the blocks of all phases, one per heading, in the order in which the headings first appear."""
    found = [phase[KEY] for phase in phases if phase.get(KEY)]
    return list({block["heading"]: block for block in found}.values())
