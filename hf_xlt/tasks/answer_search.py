"""Finding answers in the logits of windows: the best spans of a question's text, over all its windows.

As in the usual recipes for SQuAD, a span's score is the sum of its first token's start logit and its last token's end
logit, a span has at most 30 tokens, and "no answer" scores the lowest sum at the first token over all windows (Devlin
et al. 2019, section 4.3). Departure: all spans are compared, not those of the 20 best starts and ends alone.
Shapes: N windows, T tokens, K longest span in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Columns of the features that scoring reads and the model does not. Their names are none of the data's: `datasets`
# would cast a column to the type of the one it was mapped from.
EXAMPLE, STARTS, ENDS = "example_number", "token_starts", "token_ends"
CONTEXT, GOLD, LANGUAGE, QUESTION_ID = "answer_context", "gold_answers", "answer_language", "question_id"


@dataclass(frozen=True)
class Answer:
    """One answer to a question.

    Attributes:
        text: the answer; empty for "no answer".
        start: place of its first character in the text; -1 for "no answer".
        end: place after its last character; -1 for "no answer".
        score: sum of its two logits.
        probability: its share among the answers listed with it, in (0, 1]: softmax over their scores.
    """

    text: str
    start: int
    end: int
    score: float
    probability: float


def find_answers(
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    features: Any,
    *,
    n_best: int = 20,
    longest: int = 30,
    with_no_answer: bool = False,
) -> list[list[Answer]]:
    """Find the best answers to every question.

    Args:
        start_logits: (N, T), padded on the right.
        end_logits: (N, T), the same.
        features: the N windows as `encode_questions` makes them: a data set, or columns by name.
        n_best: number of answers to return, 1 or more; fewer where a text has no more spans.
        longest: longest answer in tokens, 1 or more.
        with_no_answer: whether "no answer" is among the answers.

    Returns:
        For each question in the order of the features its answers, best first, no span twice. "No answer" is always
        the answer to a text without a word.
    """
    first = np.asarray(start_logits, dtype=np.float32)
    last = np.asarray(end_logits, dtype=np.float32)
    starts, ends = (_padded(features, name, first.shape[1]) for name in (STARTS, ENDS))
    _, seen, owners = np.unique(np.asarray(features[EXAMPLE][:]), return_index=True, return_inverse=True)
    # Questions are numbered as they come.
    owners = np.argsort(np.argsort(seen))[owners]
    contexts = [context for context in features[CONTEXT][:] if context is not None]
    no_answer = np.full(len(contexts), np.inf, dtype=np.float32)
    np.minimum.at(no_answer, owners, first[:, 0] + last[:, 0])

    outside = starts < 0
    spans = best_spans(np.where(outside, -np.inf, first), np.where(outside, -np.inf, last), n_best, longest)
    windows, begins, finishes, scores = spans
    order = np.lexsort((-scores, owners[windows]))
    windows, begins, finishes, scores = (column[order] for column in spans)
    bounds = np.searchsorted(owners[windows], np.arange(len(contexts) + 1))
    places = np.stack([starts[windows, begins], ends[windows, finishes]], axis=1).tolist()
    values = scores.tolist()
    found = []
    for question, context in enumerate(contexts):
        chosen: dict[tuple[int, int], float] = {}
        for rank in range(bounds[question], bounds[question + 1]):
            # Neighbouring windows share spans; the better score comes first.
            chosen.setdefault(tuple(places[rank]), values[rank])
        found.append(_ranked(chosen, context, float(no_answer[question]), n_best, with_no_answer))
    return found


def _padded(features: Any, name: str, width: int) -> np.ndarray:
    """Return a column of lists as (N, T) int32, -1 after the end of each."""
    rows = features.with_format("numpy")[name][:] if hasattr(features, "with_format") else features[name]
    padded = np.full((len(rows), width), -1, dtype=np.int32)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return padded


def best_spans(
    first: np.ndarray, last: np.ndarray, count: int, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the best spans of each window among all that begin and end at an allowed token.

    Args:
        first: (N, T) score of each token as a span's first one; -inf where none may begin.
        last: (N, T) score of each token as a span's last one; -inf where none may end.
        count: number of spans per window.
        longest: K.

    Returns:
        Window, first token, last token and score of M spans, M at most N times `count`, windows in order.
    """
    longest = min(longest, first.shape[1])
    padded = np.pad(last, ((0, 0), (0, longest - 1)), constant_values=-np.inf)
    # (N, T, K): entry [n, t, k] is the last token of the span of k + 1 tokens that begins at token t.
    reach = np.lib.stride_tricks.sliding_window_view(padded, longest, axis=1)
    # The `count` best spans begin at `count` first tokens at most: those whose own best span is best.
    begins = _highest(first + _sliding_maximum(padded, longest), count)
    windows = np.arange(len(first))[:, None]
    sums = (first[windows, begins][:, :, None] + reach[windows, begins]).reshape(len(first), -1)
    chosen = _highest(sums, count)
    scores = np.take_along_axis(sums, chosen, axis=1)
    rows, columns = np.nonzero(np.isfinite(scores))
    numbers, lengths = np.divmod(chosen[rows, columns], longest)
    tokens = begins[rows, numbers]
    return rows, tokens, tokens + lengths, scores[rows, columns]


def _sliding_maximum(values: np.ndarray, width: int) -> np.ndarray:
    """Return the maximum of every `width` neighbours in a row: (N, T + width - 1) to (N, T)."""
    reached = 1
    while reached < width:
        step = min(reached, width - reached)
        values = np.maximum(values[:, step:], values[:, :-step])
        reached += step
    return values


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the columns of the `count` highest values of each row, in no order."""
    if count == 1:
        return values.argmax(axis=1)[:, None]
    count = min(count, values.shape[1])
    return np.argpartition(-values, count - 1, axis=1)[:, :count]


def _ranked(
    chosen: dict[tuple[int, int], float], context: str, no_answer: float, n_best: int, with_no_answer: bool
) -> list[Answer]:
    ranked: Sequence[tuple[tuple[int, int], float]] = list(chosen.items())[:n_best]
    if with_no_answer or not ranked:
        ranked = sorted([*ranked, ((-1, -1), no_answer)], key=lambda entry: -entry[1])[:n_best]
    shares = np.exp(np.asarray([score for _, score in ranked], dtype=np.float64) - ranked[0][1])
    return [
        Answer(context[start:end] if start >= 0 else "", start, end, score, float(share))
        for ((start, end), score), share in zip(ranked, shares / shares.sum(), strict=True)
    ]
