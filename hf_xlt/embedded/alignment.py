"""Finding the paragraphs of two documents that are translations of one another.

A monotone alignment with skips on both sides, scored by length (Gale and Church 1993, "A program for aligning
sentences in bilingual corpora") and by shared anchors: names, numbers, code words. It departs from that paper in two
ways: two paragraphs are never merged into one, and a pair is kept by its posterior probability over all alignments
(forward-backward) rather than for being on the best path, because a wrong pair costs a contrastive loss more than a
missing one.

It does not look at the meaning of ordinary words, so it needs documents that are mostly parallel.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

THRESHOLD = 0.97
MATCH, SKIP = math.log(0.8), math.log(0.1)
# Deviation of the logarithm of the length ratio: of paragraphs at random, and of translations (plus 2.5 / characters).
RANDOM_DEVIATION, TRANSLATION_VARIANCE, SHORT_VARIANCE = 1.2, 0.04, 2.5
ANCHOR_KEPT, ANCHOR_MISSING, ANCHOR_LIMITS = 0.75, -0.8, (-4.0, 9.0)
# Final punctuation: nothing, full stop, question mark, colon; gain where both paragraphs have the same.
ENDINGS = (".。．！!।۔።…॥", "?？؟՞", ":：")
SAME_ENDING, OTHER_ENDING = np.array([0.6, 0.4, 2.0, 1.5]), -1.5

_LETTERS = "0-9A-Za-z_\u00c0-\u024f\u1e00-\u1eff"
_LATIN_LETTER = re.compile("[A-Za-z\u00aa-\u024f\u1e00-\u1eff]")
_TOKEN = re.compile(rf"[{_LETTERS}](?:[{_LETTERS}.@/#+]*[{_LETTERS}])?")
_IDENTIFIER = re.compile(r"[0-9_.@/#]|[a-z][A-Z]|^[A-Z]{2}")
_DIGITS = {ord(zero) + n: str(n) for zero in "٠۰०০௦０" for n in range(10)}


def is_latin(texts: Iterable[str]) -> bool:
    """Say whether most letters of the texts are Latin."""
    joined = "".join(texts)
    letters = sum(map(str.isalpha, joined))
    return 2 * len(_LATIN_LETTER.findall(joined)) > letters


def anchors(text: str, foreign: bool = False) -> dict[str, bool]:
    """Return the words in Latin script or digits, casefolded: True for those that a translator would keep.

    Args:
        text: a paragraph.
        foreign: the paragraph's language has another script, so every Latin word of two letters was kept.
    """
    tokens = _TOKEN.findall(text.translate(_DIGITS))
    return {token.casefold(): bool(_IDENTIFIER.search(token)) or (foreign and len(token) > 1) for token in tokens}


def anchor_rates(paragraphs: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    """Return the share of paragraphs that hold each anchor, smoothed; in (0, 1)."""
    counts = Counter(anchor for paragraph in paragraphs for anchor in paragraph)
    return {anchor: (count + 0.5) / (len(paragraphs) + 1) for anchor, count in counts.items()}


def align(
    english: Sequence[str],
    other: Sequence[str],
    ratio: float,
    rates: Mapping[str, float] | None = None,
    threshold: float = THRESHOLD,
) -> list[tuple[int, int]]:
    """Find the paragraphs of two documents that are translations of one another.

    Args:
        english: M paragraphs, in order.
        other: N paragraphs in another language, in order.
        ratio: usual length of the other language's text over that of the English, in characters.
        rates: how common each anchor is in the other language; None counts in `other`.
        threshold: least posterior probability of a pair, above 0.5: so pairs never cross and no paragraph has two.

    Returns:
        Index pairs (into `english`, into `other`), in order.
    """
    if not (english and other):
        return []
    posterior = np.exp(_log_posterior(_pair_scores(english, other, ratio, rates)))
    return [(int(i), int(j)) for i, j in np.argwhere(posterior > threshold)]


def _pair_scores(
    english: Sequence[str], other: Sequence[str], ratio: float, rates: Mapping[str, float] | None
) -> np.ndarray:
    """Return log p(pair | translations) - log p(pair | unrelated): (M, N)."""
    lengths = [np.array([max(len(text), 1) for text in side], dtype=float) for side in (english, other)]
    difference = np.log(lengths[1] / ratio)[None, :] - np.log(lengths[0])[:, None]
    variance = (TRANSLATION_VARIANCE + SHORT_VARIANCE / lengths[0])[:, None]
    length_score = (
        difference**2 / RANDOM_DEVIATION**2 - difference**2 / variance + np.log(RANDOM_DEVIATION**2 / variance)
    ) / 2
    first, second = ([_ending(text) for text in side] for side in (english, other))
    same = np.equal.outer(first, second)
    return (
        length_score
        + np.where(same, SAME_ENDING[first][:, None], OTHER_ENDING)
        + _anchor_scores(english, other, rates)
    )


def _anchor_scores(english: Sequence[str], other: Sequence[str], rates: Mapping[str, float] | None) -> np.ndarray:
    ours = [anchors(text) for text in english]
    foreign = not is_latin(other)
    theirs = [anchors(text, foreign) for text in other]
    rates = anchor_rates(theirs) if rates is None else rates
    common = {name: k for k, name in enumerate(sorted(set().union(*ours) & set().union(*theirs)))}
    held = [np.zeros((len(side), len(common))) for side in (ours, theirs)]
    for matrix, side in zip(held, (ours, theirs), strict=True):
        for row, names in enumerate(side):
            matrix[row, [common[name] for name in names if name in common]] = 1
    gains = np.array([min(max(math.log(ANCHOR_KEPT / rates.get(name, 0.5)), 0.0), 5.0) for name in common])
    score = (held[0] * gains) @ held[1].T
    for side, axis in ((ours, 1), (theirs, 0)):
        firm = np.array([[names.get(name, False) for name in common] for names in side], dtype=float)
        firm = firm.reshape(len(side), len(common))
        total = np.array([sum(names.values()) for names in side], dtype=float)
        found = firm @ held[1].T if axis == 1 else held[0] @ firm.T
        score += ANCHOR_MISSING * (np.expand_dims(total, axis) - found)
    return np.clip(score, *ANCHOR_LIMITS)


def _ending(text: str) -> int:
    last = text.rstrip(" \"'»”)）」*_")[-1:]
    return next((number for number, signs in enumerate(ENDINGS, 1) if last and last in signs), 0)


def _log_posterior(scores: np.ndarray) -> np.ndarray:
    """Return the log probability, over all monotone alignments, that a pair is matched: (M, N) of (M, N)."""
    scores = scores + MATCH
    before = _log_sums(scores)
    after = _log_sums(scores[::-1, ::-1])[::-1, ::-1]
    return before[:-1, :-1] + scores + after[1:, 1:] - before[-1, -1]


def _log_sums(scores: np.ndarray) -> np.ndarray:
    """Return the log sum over all alignments of the first i and j paragraphs: (M + 1, N + 1).

    Between two matches the skips on one side come before those on the other: each alignment is counted once.
    """
    rows, columns = scores.shape
    slope = SKIP * np.arange(columns + 1)
    total = np.empty((rows + 1, columns + 1))
    total[0] = slope
    matched = np.full(columns + 1, -np.inf)
    matched[0] = 0.0
    for row in range(rows):
        matched = matched + SKIP
        matched[1:] = np.logaddexp(matched[1:], total[row, :-1] + scores[row])
        total[row + 1] = np.logaddexp.accumulate(matched - slope) + slope
    return total
