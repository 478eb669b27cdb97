"""What a piece of a vocabulary stands for, whichever way the tokenizer writes it.

A piece is (starts a word, bytes of its text). Tokenizers write the first as `▁` (SentencePiece), `Ġ` (byte-level
BPE, where every byte is a letter), or the absence of `##` (WordPiece); word-level ones have whole words only.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Piece = tuple[bool, bytes]

# A role that a tokenizer lacks is played by the second.
_ROLES = {"pad": None, "unk": None, "mask": None, "cls": "bos", "sep": "eos", "bos": "cls", "eos": "sep"}
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA")


@dataclass(frozen=True)
class Notation:
    """How a tokenizer writes its pieces.

    Attributes:
        model: kind of the backend's model, such as `BPE`.
        byte_level: whether letters stand for bytes.
        byte_pieces: whether `<0x41>` stands for a byte.
        continuation: prefix of pieces inside a word, or nothing.
        word_end: suffix of pieces that end a word, or nothing.
        added: tokens that are written as they are.
    """

    model: str
    byte_level: bool
    byte_pieces: bool
    continuation: str
    word_end: str
    added: frozenset[str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Notation:
        """Read it off a fast tokenizer."""
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        model = state["model"]
        kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
        return cls(
            model=kind,
            byte_level="ByteLevel" in {*_types(state["pre_tokenizer"]), *_types(state["decoder"])},
            byte_pieces=bool(model.get("byte_fallback")),
            continuation=(model.get("continuing_subword_prefix") or "") if kind in ("WordPiece", "BPE") else "",
            word_end=model.get("end_of_word_suffix") or "",
            added=frozenset(token["content"] for token in state["added_tokens"]),
        )

    def read(self, piece: str) -> Piece:
        """Return what a piece stands for."""
        if piece in self.added:
            return piece.startswith(" "), piece.removeprefix(" ").encode()
        if self.byte_pieces and (match := BYTE_PIECE.fullmatch(piece)):
            value = int(match[1], 16)
            # Text never spells ASCII in bytes where the character has a piece; such pieces match each other only.
            return False, piece.encode() if value < 128 else bytes([value])
        if self.byte_level:
            # A letter outside the table can only come from a foreign tokenizer; it is kept as it is.
            text = b"".join(byte_letters().get(letter, letter.encode()) for letter in piece)
            return text.startswith(b" "), text.removeprefix(b" ")
        if self.continuation:
            return not piece.startswith(self.continuation), piece.removeprefix(self.continuation).encode()
        if self.model == "WordLevel":
            return True, piece.encode()
        return piece.startswith("▁"), piece.removeprefix("▁").replace("▁", " ").encode()


def shared_rows(
    old_tokenizer: PreTrainedTokenizerBase, new_tokenizer: PreTrainedTokenizerBase, *, strict: bool = True
) -> dict[int, int]:
    """Match two vocabularies: new id to old id of the same piece.

    Special tokens are matched by role (padding, unknown, mask, first, last), never by how they are written. WordPiece
    writes punctuation and ideographs without telling whether a space came before, so there that is disregarded.

    Args:
        old_tokenizer: fast tokenizer.
        new_tokenizer: fast tokenizer.
        strict: whether a vocabulary without word starts is an error; otherwise only special tokens are matched.

    Raises:
        ConfigError: a vocabulary marks where words end (`</w>`) instead of where they start.
    """
    rows = _special_rows(old_tokenizer, new_tokenizer)
    old, new = Notation.of(old_tokenizer), Notation.of(new_tokenizer)
    if old.word_end or new.word_end:
        if not strict:
            return rows
        raise ConfigError(
            f"a vocabulary marks where words end (`{old.word_end or new.word_end}`), so its pieces cannot be matched; "
            f"use {setting('init', 'random')} or a function of your own."
        )
    known: dict[Piece, int] = {}
    for piece, index in _plain_pieces(old_tokenizer, old):
        known.setdefault(piece, index)
    loose = "WordPiece" in (old.model, new.model)
    for piece, index in _plain_pieces(new_tokenizer, new):
        match = known.get(piece)
        if match is None and loose and _starts_are_unmarked(piece[1]):
            match = known.get((not piece[0], piece[1]))
        if match is not None:
            rows.setdefault(index, match)
    return rows


def _special_rows(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> dict[int, int]:
    rows: dict[int, int] = {}
    for role, stand_in in _ROLES.items():
        source, target = getattr(old, f"{role}_token_id"), getattr(new, f"{role}_token_id")
        if source is None and stand_in:
            source = getattr(old, f"{stand_in}_token_id")
        if source is not None and target is not None:
            rows.setdefault(target, source)
    return rows


def _plain_pieces(tokenizer: PreTrainedTokenizerBase, notation: Notation) -> Iterator[tuple[Piece, int]]:
    """Yield the pieces that are not special, in the order of their ids."""
    special = set(tokenizer.all_special_ids)
    for piece, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if index not in special:
            yield notation.read(piece), index


def _starts_are_unmarked(text: bytes) -> bool:
    letters = text.decode(errors="replace")
    return bool(letters) and all(
        unicodedata.category(letter)[0] in "PS" or unicodedata.name(letter, "").startswith(_UNSPACED)
        for letter in letters
    )


def script_of(notation: Notation, piece: str) -> str:
    """Return the script of a piece's first letter, such as `latin`; `bytes` or `other` where it has none."""
    try:
        text = notation.read(piece)[1].decode()
    except UnicodeDecodeError:
        return "bytes"
    if notation.byte_pieces and BYTE_PIECE.fullmatch(piece):
        return "bytes"
    letter = next((letter for letter in text if letter.isalpha()), None)
    return unicodedata.name(letter, "other").split()[0].lower() if letter else "other"


@functools.cache
def byte_letters() -> dict[str, bytes]:
    """Return the byte that each letter of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    table = {chr(value): bytes([value]) for value in printable}
    return table | {chr(256 + place): bytes([value]) for place, value in enumerate(others)}


def _types(part: Any) -> Iterator[str]:
    """Yield the kinds of all steps inside a part of a tokenizer's JSON."""
    if isinstance(part, dict):
        yield str(part.get("type"))
        for value in part.values():
            yield from _types(value)
    elif isinstance(part, list):
        for value in part:
            yield from _types(value)
