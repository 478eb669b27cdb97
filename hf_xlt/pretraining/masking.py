"""Choosing and replacing tokens for masked language modelling, as a pure function of keyed draws.

Of the eligible tokens a share is chosen; of the chosen ones 80 % become the mask token, 10 % a random ordinary token
and 10 % stay. Rows are masked anew at every sight, because their draws are keyed by the row's
place in the stream.

Whole-word mode is our own rule: transformers finds words from gaps between character offsets,
which makes one word of a whole row of unspaced text, and of any text whose pieces carry their space. Here a word
starts at a piece that begins a word, after a special token, and where spaced and unspaced script meet; a run of pieces
in unspaced script is cut every `max_word_tokens`. A word of spaced script stays whole however long it is. A word is
chosen by the draw of its first token, so every token is chosen with the same probability in both modes.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_xlt.errors import ConfigError

IGNORED = -100
# Scripts whose words are not set apart by spaces. Tibetan sets marks between syllables and spaces between phrases.
_UNSPACED = re.compile(
    "["
    "\u0e00-\u0e7f\u0e80-\u0eff\u0f00-\u0fff"  # Thai, Lao, Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\ua980-\ua9df\u1b00-\u1b7f"  # Javanese, Balinese
    "\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\uff66-\uff9f\U0001b000-\U0001b16f"  # Kana, Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\ua000-\ua4cf"  # Yi
    "]"
)
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class MaskingRule:
    """What is masked, how often and by what.

    Attributes:
        mask_id: id of the mask token.
        ordinary_ids: (N,) int64, all ids of the vocabulary except special ones; random replacements come from here.
        probability: share of eligible tokens chosen, in (0, 1].
        mask_share: share of the chosen tokens that become the mask token.
        random_share: share of the chosen tokens that become a random ordinary token; the rest stays as it is.
        word_starts: (V,) bool, the piece begins a word; None for token mode.
        unspaced: (V,) bool, the piece is in a script written without spaces; None when there is none.
        fragments: (V,) bool, the piece is the inner bytes of a character and so shares the script of the piece
            before it; None when there is none.
        max_word_tokens: longest word of unspaced script, in tokens.
    """

    mask_id: int
    ordinary_ids: np.ndarray
    probability: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    word_starts: np.ndarray | None = None
    unspaced: np.ndarray | None = None
    fragments: np.ndarray | None = None
    max_word_tokens: int = 4

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: a share is out of its range, a word holds no token, or there is no ordinary id.
        """
        if not 0 < self.probability <= 1:
            raise ConfigError(f"the masking probability is {self.probability}; it must lie in (0, 1], usually 0.15.")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1 + 1e-12:
            raise ConfigError(
                f"the shares of mask tokens ({self.mask_share}) and random tokens ({self.random_share}) must be 0 or "
                "more and sum to at most 1."
            )
        if self.max_word_tokens < 1:
            raise ConfigError(f"`max_word_tokens` is {self.max_word_tokens}; it must be 1 or more, usually 4.")
        if not len(self.ordinary_ids):
            raise ConfigError("the tokenizer has special tokens only; there is nothing to mask or to replace with.")

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        probability: float = 0.15,
        whole_words: bool = False,
        max_word_tokens: int = 4,
        mask_share: float = 0.8,
        random_share: float = 0.1,
    ) -> MaskingRule:
        """Read ids, word starts and scripts off a tokenizer.

        Args:
            tokenizer: of transformers, with a mask token.
            probability: share of eligible tokens chosen, in (0, 1].
            whole_words: choose words, not tokens.
            max_word_tokens: longest word of unspaced script, in tokens.
            mask_share: share of the chosen tokens that become the mask token.
            random_share: share of the chosen tokens that become a random ordinary token.

        Raises:
            ConfigError: no mask token, a value out of range, or whole words of a vocabulary that does not mark them.
        """
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise ConfigError(
                f"`{type(tokenizer).__name__}` has no mask token, which masked language modelling needs. Use the "
                'tokenizer of a masked language model, or add one with `add_special_tokens({"mask_token": "<mask>"})`.'
            )
        vocabulary = tokenizer.get_vocab()
        special = special_ids(tokenizer)
        ordinary = np.array(sorted(set(vocabulary.values()) - special), dtype=np.int64)
        words = _word_arrays(tokenizer, vocabulary, special) if whole_words else {}
        return cls(
            mask_id=int(tokenizer.mask_token_id),
            ordinary_ids=ordinary,
            probability=probability,
            mask_share=mask_share,
            random_share=random_share,
            max_word_tokens=max_word_tokens,
            **words,
        )


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids that are never masked and never stand in for another: all special and language tokens."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}


def row_draws(seed: int, rows: np.ndarray, length: int) -> np.ndarray:
    """Return the uniform draws of some rows; each row's are a pure function of (seed, row).

    Args:
        seed: in [0, 2**63), as from `hf_xlt.randomness.derive_seed`.
        rows: (B,) int, 0 or more: place of each row in the stream.
        length: T; a row's first draws do not depend on it.

    Returns:
        (B, T, 3) float64 in [0, 1).
    """
    draws = np.empty((len(rows), length, 3), dtype=np.float64)
    for place, row in enumerate(np.asarray(rows).tolist()):
        # The two low words count the draws of a row, so rows cannot meet.
        generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, row, 1]))
        generator.random(out=draws[place])
    return draws


def mask_rows(
    ids: np.ndarray, eligible: np.ndarray, draws: np.ndarray, rule: MaskingRule
) -> tuple[np.ndarray, np.ndarray]:
    """Choose tokens and replace them.

    Args:
        ids: (B, T) int64; not changed.
        eligible: (B, T) bool; False for special, separator and padding tokens.
        draws: (B, T, 3) in [0, 1): chooses; decides between mask, random and unchanged; picks the replacement.
        rule: what is chosen, and by what it is replaced.

    Returns:
        Inputs (B, T) int64, and labels (B, T) int64: the original id where chosen, -100 elsewhere.
    """
    choose = draws[..., 0]
    if rule.word_starts is not None:
        choose = np.take_along_axis(choose, first_tokens(ids, eligible, rule), axis=1)
    chosen = eligible & (choose < rule.probability)
    labels = np.where(chosen, ids, IGNORED)
    kind = draws[..., 1]
    masked = chosen & (kind < rule.mask_share)
    replaced = chosen & ~masked & (kind < rule.mask_share + rule.random_share)
    inputs = np.where(masked, rule.mask_id, ids)
    # Rounding can carry the product of a draw just below 1 to N itself.
    count = len(rule.ordinary_ids)
    places = np.minimum((draws[..., 2][replaced] * count).astype(np.int64), count - 1)
    inputs[replaced] = rule.ordinary_ids[places]
    return inputs, labels


def first_tokens(ids: np.ndarray, eligible: np.ndarray, rule: MaskingRule) -> np.ndarray:
    """Return for every token the position of the first token of its word.

    Args:
        ids: (B, T) int64.
        eligible: (B, T) bool; a token after one that is not eligible starts a word.
        rule: with `word_starts`.

    Returns:
        (B, T) int64; of no meaning where not eligible.
    """
    position = np.arange(ids.shape[1])
    starts = rule.word_starts[ids]
    starts[:, :1] = True
    starts[:, 1:] |= ~eligible[:, :-1]
    if rule.unspaced is None:
        return np.maximum.accumulate(np.where(starts, position, 0), axis=1)
    unspaced = rule.unspaced[ids]
    if rule.fragments is not None:
        whole = np.where(rule.fragments[ids], 0, position)
        unspaced = np.take_along_axis(unspaced, np.maximum.accumulate(whole, axis=1), axis=1)
    starts[:, 1:] |= unspaced[:, 1:] != unspaced[:, :-1]
    offset = position - np.maximum.accumulate(np.where(starts, position, 0), axis=1)
    starts |= unspaced & (offset % rule.max_word_tokens == 0)
    return np.maximum.accumulate(np.where(starts, position, 0), axis=1)


def _word_arrays(tokenizer: Any, vocabulary: Mapping[str, int], special: set[int]) -> dict[str, np.ndarray]:
    """Return `word_starts`, `unspaced` and `fragments`, each (V,) bool.

    Raises:
        ConfigError: the vocabulary marks neither the beginning nor the inside of words.
    """
    mark = _word_mark(tokenizer, vocabulary)
    arrays = {
        name: np.zeros(max(vocabulary.values()) + 1, dtype=bool) for name in ("word_starts", "unspaced", "fragments")
    }
    for piece, number in vocabulary.items():
        if number in special:
            continue
        data = _piece_bytes(piece, byte_level=mark == "Ġ")
        arrays["word_starts"][number] = _starts_word(piece, mark)
        # The inner bytes of UTF-8 are 10xxxxxx.
        lead = next((place for place, byte in enumerate(data) if byte & 0xC0 != 0x80), None)
        if lead is None:
            arrays["fragments"][number] = True
        elif data[-1] >= 0x80:
            arrays["unspaced"][number] = _UNSPACED.search(_complete(data[lead:])) is not None
    return arrays


def _word_mark(tokenizer: Any, vocabulary: Mapping[str, int]) -> str:
    """Return `▁` or `Ġ` (begins a word), `##` (goes on with one), or nothing when every piece is a word."""
    # Single pieces of another convention occur in every large vocabulary; its own marks a large part of it.
    counts = {mark: sum(piece.startswith(mark) for piece in vocabulary) for mark in ("▁", "Ġ", "##")}
    mark = max(counts, key=counts.get)
    if counts[mark]:
        return mark
    if type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__ == "WordLevel":
        return ""
    raise ConfigError(
        f"the vocabulary of `{type(tokenizer).__name__}` marks no words (`▁`, `Ġ` or `##`), so whole words cannot be "
        "masked. Mask single tokens."
    )


def _starts_word(piece: str, mark: str) -> bool:
    if mark == "##":
        return not piece.startswith(mark)
    # Byte-level vocabularies write line breaks and tabs as Ċ and ĉ.
    return piece.startswith((mark, "Ċ", "ĉ")) if mark == "Ġ" else piece.startswith(mark)


def _byte_alphabet() -> dict[str, int]:
    """Return the characters by which byte-level vocabularies write bytes (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _piece_bytes(piece: str, byte_level: bool) -> bytes:
    if byte_level and all(character in _BYTES for character in piece):
        return bytes(_BYTES[character] for character in piece)
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece.encode("utf-8", errors="replace")


def _complete(data: bytes) -> str:
    """Decode UTF-8 whose last character may be cut; the first bytes tell its script."""
    for missing in range(4):
        try:
            return (data + b"\x80" * missing).decode("utf-8")
        except UnicodeDecodeError:
            continue
    return data.decode("utf-8", errors="ignore")
