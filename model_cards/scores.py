"""The figures of a card: scores per language, averages, the weakest languages, what stands beside them."""

from __future__ import annotations

from typing import Any

from hf_xlt.languages import english_name
from hf_xlt.model_cards.metadata import metric_words
from hf_xlt.model_cards.text import listed, table_cell
from hf_xlt.record import RunRecord
from hf_xlt.results import BESIDE, TARGET, Results, markdown, percent

# Of more languages the card holds the averages, and `generalized.md` the matrix.
_MATRIX_LANGUAGES = 8
# At most so many languages are named as the weakest, and at most half of them.
_WEAKEST = 3
_PLOT, _MATRIX_PLOT = "results.png", "generalized.png"


def results(record: RunRecord) -> dict[str, Any] | None:
    """Return table, averages and plot; None for a model that was not scored."""
    scores, beside = record.scores, record.scores_beside
    if scores is None:
        return None
    summary = [" ".join(line.split()) for line in scores.summary_lines(beside) if not line.startswith("Worst ")]
    weakest = weakest_languages(scores)
    if weakest:
        summary.insert(1, f"Weakest: {listed(weakest)}")
    return {
        "table": markdown([[table_cell(cell) for cell in row] for row in _with_gaps(scores, scores.table(beside))]),
        "summary": summary,
        "metric": metric_words(scores.metric),
        "has_gaps": scores.transfer_gap is not None,
        "beside": [(name, BESIDE[name]) for name in beside],
        "plot": _PLOT if _PLOT in record.plots else None,
    }


def weakest_languages(scores: Results) -> list[str]:
    """Name the target languages with the lowest scores, the lowest first; none where there is only one."""
    targets = sorted(scores.of_role(TARGET), key=lambda score: score.metrics[scores.metric])
    count = min(_WEAKEST, len(targets) // 2)
    return [
        f"{english_name(score.language)} ({score.language}) {percent(score.metrics[scores.metric])}"
        for score in targets[:count]
    ]


def _with_gaps(scores: Results, rows: list[list[str]]) -> list[list[str]]:
    """Add, after the main metric, how far each target language lies below the source average."""
    if scores.transfer_gap is None:
        return rows
    place, (header, *body) = 5, rows
    gaps = [
        percent(scores.source_average - score.metrics[scores.metric]) if score.role == TARGET else ""
        for score in scores.scores
    ]
    body = [[*row[:place], gap, *row[place:]] for row, gap in zip(body, gaps, strict=True)]
    return [[*header[:place], "gap", *header[place:]], *body]


def comparators(record: RunRecord) -> dict[str, Any] | None:
    """Return what the average is compared with, as a table."""
    compared = record.comparator_scores
    if compared is None:
        return None
    table = [[table_cell(cell) for cell in row] for row in compared.table()]
    return {"heading": compared.heading(), "table": markdown(table, left=2), "notes": compared.notes()}


def generalized(record: RunRecord) -> dict[str, Any] | None:
    """Return the averages over pairs of languages, and of few languages the matrix, as tables."""
    scores = record.generalized_scores
    if scores is None:
        return None
    small = len(scores.languages) <= _MATRIX_LANGUAGES
    matrix = [[table_cell(cell) for cell in row] for row in scores.matrix_table()]
    return {
        "heading": scores.heading(),
        "averages": markdown(scores.averages_table(), left=1),
        "matrix": markdown(matrix, left=1) if small else "",
        "plot": _MATRIX_PLOT if _MATRIX_PLOT in record.plots else None,
    }
