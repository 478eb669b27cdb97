"""Tokenising many pairs of the same sentences: each sentence once, then put together pair by pair.

N languages have N sentences on either side of an example and N x N pairs of them; tokenising is most of the work of
encoding a pair. Truncation, special tokens and segment ids are the tokenizer's own: its backend puts pairs together
with the call that also ends the encoding of a whole pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Sentences kept; one of 30 tokens takes about 3 KB.
KEPT = 200_000
# Of a length at which every pair is cut.
_SHORT = 6


class PairTokenizer:
    """Stands in for a fast tokenizer where pairs of texts are encoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use `tokenizer`, whose settings are those of its last call."""
        self.tokenizer = tokenizer
        self._encoded: dict[str, Any] = {}

    def __call__(
        self, first: Sequence[str], second: Sequence[str], *, truncation: bool, max_length: int
    ) -> dict[str, list[list[int]]]:
        """Encode pairs as the tokenizer would.

        Args:
            first: B texts.
            second: B texts.
            truncation: True; the longer text of a pair is cut first.
            max_length: longest pair in tokens, special ones included.

        Returns:
            The model's inputs by name, B lists each.
        """
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        if len(self._encoded) > KEPT:
            self._encoded.clear()
        new = [text for text in dict.fromkeys((*first, *second)) if text not in self._encoded]
        self._encoded.update(zip(new, backend.encode_batch(new, add_special_tokens=False), strict=True))
        if truncation:
            backend.enable_truncation(max_length, strategy="longest_first", direction=self.tokenizer.truncation_side)
        encoded = [
            backend.post_process(self._encoded[one], self._encoded[two])
            for one, two in zip(first, second, strict=True)
        ]
        parts = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}
        names = [name for name in parts if name == "input_ids" or name in self.tokenizer.model_input_names]
        return {name: [getattr(entry, parts[name]) for entry in encoded] for name in names}


def fastest_tokenizer(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str], max_length: int
) -> PreTrainedTokenizerBase | PairTokenizer:
    """Return a `PairTokenizer` if it gives exactly what the tokenizer gives on some pairs, else the tokenizer itself.

    Args:
        tokenizer: a fast tokenizer.
        first: B texts to try it on.
        second: B texts.
        max_length: longest pair in tokens; a length at which all are cut is tried, too.
    """
    quick = PairTokenizer(tokenizer)
    for length in {max_length, min(_SHORT, max_length)}:
        expected = dict(tokenizer(list(first), list(second), truncation=True, max_length=length))
        if quick(first, second, truncation=True, max_length=length) != expected:
            return tokenizer
    return quick
