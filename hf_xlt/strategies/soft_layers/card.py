"""What the card says of the gates: how far each group of layers could move, and whether anything spoke for it."""

from __future__ import annotations

from typing import Any

from hf_xlt.card_block import card_block
from hf_xlt.languages import english_name

# What the strategy leaves beside the model.
GATES_NAME = "gates.json"
PLOT_NAME = "gates.png"
FILES, PLOTS = (GATES_NAME,), (PLOT_NAME,)

OPEN, CLOSE, NO_EVIDENCE = "open", "close", "no evidence"
# Means further from zero than so many standard errors count as evidence.
ENOUGH = 2.0

_HEADING = "How much each layer could move"
_WORDS = {
    OPEN: "open: moving more helped",
    CLOSE: "close: moving less helped",
    NO_EVIDENCE: "no evidence: undecided",
}


def block(phase: dict[str, Any]) -> dict[str, Any] | None:
    """Return the block of the card; None for a phase without gates.

    Args:
        phase: of the record; `report.describe` has made its `soft_layers`.
    """
    facts = phase.get("soft_layers")
    if facts is None:
        return None
    text = (
        "A gate multiplies every update of a group of layers: with 1 the group moves as in plain fine-tuning, with 0 "
        "it keeps its pre-trained weights."
    )
    verdicts, ratios = facts.get("verdicts"), facts.get("signal_to_noise")
    moving = {name: gate for name, gate in facts["gates"].items() if name not in facts.get("frozen_groups", ())}
    if verdicts is None:
        rows = [["layers", "gate"], *([_words(name), f"{gate:.3f}"] for name, gate in moving.items())]
        text += f" Here the gates were set, not learned (`{facts['profile']}`)."
        return card_block(_HEADING, text, [*rows, *_open_rows(facts, 2)])
    languages = ", ".join(map(english_name, facts.get("auxiliary_languages", ())))
    text += f" The gates were learned over {facts['updates']:,} updates on labelled examples in {languages}."
    rows = [["layers", "final gate", "signal to noise", "verdict"]]
    for name, gate in moving.items():
        ratio = f"{ratios[name]:.1f}" if ratios and name in ratios else ""
        rows.append([_words(name), f"{gate:.3f}", ratio, _WORDS.get(verdicts.get(name), "")])
    rows += _open_rows(facts, 4)
    notes = [
        "Signal to noise is the mean gradient of a gate over its standard error. At most "
        f"{ENOUGH:g} counts as no evidence: such a gate stayed where it was for want of a reason to move, which is "
        "not the same as a layer that was found useful as it is.",
        "A gate that is open or closed says what lowered the loss on the languages named above, not on the target "
        "languages.",
    ]
    if facts.get("movement"):
        rows = _with_movement(rows, facts)
        notes.append("Moved is the length of the way that a group's weights went, in percent of their own length.")
    return card_block(_HEADING, text, rows, notes, PLOT_NAME)


def _with_movement(rows: list[list[str]], facts: dict[str, Any]) -> list[list[str]]:
    """Add how far each group went, after its gate."""
    moved = {_words(name): entry["displacement"] for name, entry in facts["movement"].items()}
    cells = ["moved"]
    for row in rows[1:]:
        share = moved.get(row[0])
        cells.append("" if share is None else f"{100 * share:.3g} %")
    return [[*row[:2], cell, *row[2:]] for row, cell in zip(rows, cells, strict=True)]


def _open_rows(facts: dict[str, Any], width: int) -> list[list[str]]:
    frozen = facts.get("frozen_groups", ())
    rows = [[_words(name), "frozen"] for name in frozen]
    rows += [[_words(name), "none: moves freely"] for name in facts["open_groups"] if name not in frozen]
    return [row + [""] * (width - 2) for row in rows]


def _words(group: str) -> str:
    return group.replace("_", " ")
