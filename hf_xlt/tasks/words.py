"""Sentences given as words: every word after the first gets the pieces that it has in running text.

Tokenizers that write the blank before a word into its first piece (byte-level BPE such as RoBERTa, GPT-2, ModernBERT,
Llama 3 and Qwen; SentencePiece BPE without a dummy prefix such as Gemma) see no blank where each word comes alone.
Words are taken as separated by one blank, also in scripts that write none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from hf_xlt.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AS_THEY_ARE, WITH_BLANKS = "as they are", "with blanks before them"
_FIRST = "a"
_PROBE = "Anna sings today in Paris , don't 12 Straße Привет мир नमस्ते 我 w1 x".split()
_FROM_VOCABULARY = 48
# How pieces write a blank before the word, or that they go on with one.
_MARKS = "▁Ġ#"
_fitted: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Let a tokenizer split words as it splits running text; a plain byte-level one is set to `add_prefix_space`.

    Several ways are compared on single words behind another one: with the words as they are, with the tokenizer's own
    blank before each text, and with blanks put before all words but the first. The first of the best ways is taken: a
    vocabulary with pieces over several words agrees with none of them everywhere.

    Args:
        tokenizer: a fast tokenizer; it is changed in place, and saved so. It is looked at once.

    Returns:
        How words are to be given to it: `AS_THEY_ARE` or `WITH_BLANKS`.

    Raises:
        ConfigError: no way gives the pieces of running text.
    """
    if tokenizer not in _fitted:
        _fitted[tokenizer] = _find_way(tokenizer)
    return _fitted[tokenizer]


def _find_way(tokenizer: PreTrainedTokenizerBase) -> str:
    words = _probe_words(tokenizer)
    best, way = _agreement(tokenizer, words, AS_THEY_ARE), AS_THEY_ARE
    level = _plain_byte_level(tokenizer)
    if best < 1 and level is not None and not level.add_prefix_space:
        _set_prefix_space(tokenizer, True)
        agreement = _agreement(tokenizer, words, AS_THEY_ARE)
        if agreement > best:
            best = agreement
        else:
            _set_prefix_space(tokenizer, False)
    if best < 1:
        agreement = _agreement(tokenizer, words, WITH_BLANKS)
        if agreement > best:
            best, way = agreement, WITH_BLANKS
    if best < 0.5:
        raise ConfigError(
            f"the tokenizer ({type(tokenizer).__name__}) splits single words otherwise than running text, "
            "with and without `add_prefix_space`; choose a model with another tokenizer for tasks on words."
        )
    return way


def spaced(words: Sequence[str], way: str) -> list[str]:
    """Return a sentence's words as the tokenizer is to be given them; `way` is that of `fit_tokenizer`."""
    if way == AS_THEY_ARE:
        return list(words)
    return [f" {word}" if place and word[:1].strip() else word for place, word in enumerate(words)]


def _probe_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return words in several scripts, and some from the vocabulary: others may be unknown to a small one."""
    places = range(0, len(tokenizer), max(len(tokenizer) // (4 * _FROM_VOCABULARY), 1))
    special = set(tokenizer.all_special_tokens)
    pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(list(places))]
    known = dict.fromkeys(piece.strip(_MARKS) for piece in pieces if piece not in special)
    return _PROBE + [piece for piece in known if piece.isalnum()][:_FROM_VOCABULARY]


def _agreement(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], way: str) -> float:
    """Return the share of words that get the same pieces behind another word and in running text."""
    given = [spaced((_FIRST, word), way) for word in words]
    split = tokenizer(given, is_split_into_words=True, add_special_tokens=False)
    texts = tokenizer([f"{_FIRST} {word}" for word in words], add_special_tokens=False)["input_ids"]
    equal = []
    for number, text in enumerate(texts):
        owners = split.word_ids(number)
        pieces = [piece for piece, owner in zip(split["input_ids"][number], owners, strict=True) if owner == 1]
        if pieces:
            equal.append(text[-len(pieces) :] == pieces and len(text) - len(pieces) <= owners.count(0))
    return sum(equal) / len(equal) if equal else 1.0


def _plain_byte_level(tokenizer: PreTrainedTokenizerBase) -> Any:
    from tokenizers import pre_tokenizers

    level = tokenizer.backend_tokenizer.pre_tokenizer
    return level if isinstance(level, pre_tokenizers.ByteLevel) else None


def _set_prefix_space(tokenizer: PreTrainedTokenizerBase, value: bool) -> None:
    """Set `add_prefix_space` wherever a byte-level tokenizer holds it, so that it is saved and read again."""
    from tokenizers import processors

    backend = tokenizer.backend_tokenizer
    level = backend.pre_tokenizer
    level.add_prefix_space = value
    backend.pre_tokenizer = level
    # The post-processor takes the blank off the first word's offsets.
    after = backend.post_processor
    if isinstance(after, processors.RobertaProcessing):
        state = json.loads(after.__getstate__())
        backend.post_processor = processors.RobertaProcessing(
            tuple(state["sep"]), tuple(state["cls"]), state["trim_offsets"], value
        )
    elif after is not None:
        with contextlib.suppress(AttributeError):
            after.add_prefix_space = value
            backend.post_processor = after
    tokenizer.add_prefix_space = value
    tokenizer.init_kwargs["add_prefix_space"] = value
