"""Training a Unigram vocabulary so that equal text gives equal pieces.

Source: Kudo, "Subword Regularization" (ACL 2018): start from more pieces than wanted, alternate estimating their
probabilities with dropping those that are missed least. It departs from it in two points. The first pieces come
from byte-pair merges, and probabilities are estimated from the best segmentation of each word, not from all of them.
The trainer of the `tokenizers` library does neither, but takes three times longer on text of many scripts, and
gives other pieces in every process, since it adds numbers in the order of a randomly seeded hash table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers.models import BPE, Unigram

MAXIMUM_PIECE_LENGTH = 16
_SEED_FACTOR = 3
_KEPT_SHARE = 0.6
# The last round of dropping may take a little more, which saves one.
_NEARLY = 1.1
_ESTIMATES_PER_ROUND = 2
_BATCH = 4096
# Count of a piece that no best segmentation uses: possible, and rarer than any that is used.
_UNSEEN = 0.5


def train_bpe(words: Mapping[str, int], alphabet: Sequence[str], size: int, longest: int | None = None) -> BPE:
    """Train byte-pair merges.

    Args:
        words: words with their counts, which are merged one by one.
        alphabet: characters that are pieces whether they occur or not.
        size: number of pieces at most.
        longest: longest piece in characters; None sets no limit.
    """
    from tokenizers import Tokenizer, models, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=list(alphabet),
        max_token_length=longest,
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE())
    repeated = (word for word, count in words.items() for _ in range(count))
    tokenizer.train_from_iterator(repeated, trainer)
    return tokenizer.model


def train_unigram(words: Mapping[str, int], alphabet: Sequence[str], size: int) -> Unigram:
    """Train the pieces of a Unigram model.

    Args:
        words: words with their counts, made of characters of `alphabet` only; they are segmented one by one.
        alphabet: characters that each become a piece.
        size: number of pieces, at least that of the alphabet.

    Returns:
        A model of at most `size` pieces with their log-probabilities, most probable first; none of them is unknown.
    """
    from tokenizers import Tokenizer, models

    # One order for one set of words: merges and sums must not depend on where a word occurs first.
    ordered = sorted(words)
    counts = np.array([words[word] for word in ordered], dtype=np.int64)
    letters = set(alphabet)
    merged = Tokenizer(train_bpe(words, alphabet, _SEED_FACTOR * size, MAXIMUM_PIECE_LENGTH)).get_vocab()
    pieces = sorted(letters | set(merged))
    scores = dict.fromkeys(pieces, -math.log(len(pieces)))
    while True:
        for _ in range(_ESTIMATES_PER_ROUND):
            used = _count_pieces(scores, ordered, counts)
            scores = _log_probabilities(used)
        if len(scores) <= size:
            return models.Unigram(sorted(scores.items(), key=lambda item: (-item[1], item[0])), None, False)
        kept = int(_KEPT_SHARE * len(scores))
        scores = _prune(scores, used, letters, kept if kept > _NEARLY * size else size)


def _count_pieces(scores: Mapping[str, float], words: Sequence[str], counts: np.ndarray) -> dict[str, float]:
    """Count how often the best segmentations use each piece."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.Unigram(list(scores.items()), None, False))
    used = np.zeros(len(scores), dtype=np.int64)
    for start in range(0, len(words), _BATCH):
        encoded = [entry.ids for entry in tokenizer.encode_batch_fast(list(words[start : start + _BATCH]))]
        weights = np.repeat(counts[start : start + _BATCH], [len(ids) for ids in encoded])
        np.add.at(used, np.concatenate(encoded).astype(np.int64), weights)
    return dict(zip(scores, used.tolist(), strict=True))


def _log_probabilities(used: Mapping[str, float]) -> dict[str, float]:
    total = math.log(sum(max(count, _UNSEEN) for count in used.values()))
    return {piece: math.log(max(count, _UNSEEN)) - total for piece, count in used.items()}


def _prune(scores: Mapping[str, float], used: Mapping[str, float], letters: set[str], size: int) -> dict[str, float]:
    """Keep all letters, and the pieces whose loss would lower the text's probability most."""
    losses = {
        piece: count * (scores[piece] - _best_without(piece, scores))
        for piece, count in used.items()
        if piece not in letters
    }
    ranked = sorted(losses, key=lambda piece: (-losses[piece], piece))
    kept = letters | set(ranked[: size - len(letters)])
    return {piece: score for piece, score in scores.items() if piece in kept}


def _best_without(piece: str, scores: Mapping[str, float]) -> float:
    """Return the log-probability of the best segmentation of a piece into two or more others."""
    best = [0.0] + [-math.inf] * len(piece)
    for end in range(1, len(piece) + 1):
        for start in range(end):
            if end - start < len(piece) and best[start] > -math.inf:
                score = scores.get(piece[start:end])
                if score is not None and best[start] + score > best[end]:
                    best[end] = best[start] + score
    return best[-1]
