"""The two trainers of the `tokenizers` library, on words with their counts.

Byte-pair merges are the same in every process. The library's Unigram trainer adds numbers in the order of a randomly
seeded hash table and so gives slightly other pieces each time, from equal text too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hf_xlt.streams import shows_progress

if TYPE_CHECKING:
    from tokenizers.models import BPE, Unigram

MAXIMUM_PIECE_LENGTH = 16


def train_bpe(words: Mapping[str, int], alphabet: Sequence[str], size: int) -> BPE:
    """Train byte-pair merges.

    Args:
        words: words with their counts, which are merged one by one.
        alphabet: characters that are pieces whether they occur or not.
        size: number of pieces at most.
    """
    from tokenizers import Tokenizer, models, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, initial_alphabet=list(alphabet), show_progress=shows_progress()
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(_repeated(words), trainer)
    return tokenizer.model


def train_unigram(words: Mapping[str, int], alphabet: Sequence[str], size: int) -> Unigram:
    """Train the pieces of a Unigram model (Kudo, "Subword Regularization", ACL 2018).

    Args:
        words: words with their counts, made of characters of `alphabet` only; they are segmented one by one.
        alphabet: characters that each become a piece.
        size: number of pieces, at least that of the alphabet.

    Returns:
        A model of at most `size` pieces with their log-probabilities; none of them is unknown.
    """
    from tokenizers import Tokenizer, models, trainers

    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        initial_alphabet=list(alphabet),
        max_piece_length=MAXIMUM_PIECE_LENGTH,
        show_progress=shows_progress(),
    )
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.train_from_iterator(_repeated(words), trainer)
    return tokenizer.model


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
    # One order for one set of words: ties between merges must not depend on where a word occurs first.
    return (word for word in sorted(words) for _ in range(words[word]))
