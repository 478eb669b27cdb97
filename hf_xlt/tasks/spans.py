"""Spans in IOB2 tags, and F1 over exactly matching spans.

The same as seqeval with `mode="strict", scheme=IOB2`: a span begins with `B-X` and goes on over `I-X`; an `I-X` that
follows nothing of type X belongs to no span. A span counts when type, start and end agree.
seqeval itself can no longer be installed by a plain `pip install`; the tests compare with it where it is.
"""

from __future__ import annotations

from collections.abc import Sequence

OUTSIDE, BEGIN, INSIDE = "O", "B-", "I-"


def spans_of(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the spans of one sequence of tags as (type, first position, position after the last)."""
    found, start, kind = set(), 0, None
    for place, tag in enumerate([*tags, OUTSIDE]):
        if kind is not None and tag != INSIDE + kind:
            found.add((kind, start, place))
            kind = None
        if tag.startswith(BEGIN):
            start, kind = place, tag[len(BEGIN) :]
    return found


def span_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return micro-averaged `f1`, `precision` and `recall` over exactly matching spans, in [0, 1].

    Args:
        gold: tags of each sequence.
        predicted: the same, of equal lengths.

    Returns:
        0 where a ratio has no denominator, as in seqeval.

    Raises:
        ValueError: numbers or lengths of sequences differ.
    """
    matching = of_gold = of_predicted = 0
    for right, chosen in zip(gold, predicted, strict=True):
        if len(right) != len(chosen):
            raise ValueError(f"{len(right)} gold tags, {len(chosen)} predicted ones.")
        ours, theirs = spans_of(right), spans_of(chosen)
        matching, of_gold, of_predicted = (
            matching + len(ours & theirs),
            of_gold + len(ours),
            of_predicted + len(theirs),
        )
    precision = matching / of_predicted if of_predicted else 0.0
    recall = matching / of_gold if of_gold else 0.0
    f1 = 2 * precision * recall / (precision + recall) if matching else 0.0
    return {"f1": f1, "precision": precision, "recall": recall}
