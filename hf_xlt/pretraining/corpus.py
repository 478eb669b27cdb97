"""Text as token arrays on disk, and endless packed rows of it.

Documents of one language are joined with a separator and cut into rows of equal length; the remainder of a pass is
carried over into the next one, so there is no padding and no token is lost. Row k is a pure function of (key, k):
each pass reads every document once, in an order of its own.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hf_xlt.errors import ConfigError
from hf_xlt.files import sync_file, write_json
from hf_xlt.randomness import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 2000
# Tokens looked at together.
_TOKENS = 2**24


@dataclass(frozen=True)
class Corpus:
    """The tokenised documents of one language.

    Attributes:
        tokens: (N,) token ids without special ones, document after document; memory-mapped.
        starts: (documents + 1,) int64, where each document begins; the last entry is N.
        ids: (documents,) identifiers; equal ids in two languages mark translations. None without such a column.
        bytes: size of the text in UTF-8.
        unknown: how many tokens are the unknown one.
    """

    tokens: np.ndarray
    starts: np.ndarray
    ids: np.ndarray | None
    bytes: int
    unknown: int

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """(documents,) tokens of each document."""
        return np.diff(self.starts)

    def document(self, index: int) -> np.ndarray:
        """Return one document's tokens."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]


def opening_token(tokenizer: Any) -> int:
    """Return the token that opens every row.

    Raises:
        ConfigError: the tokenizer has none.
    """
    token = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    if token is None:
        raise ConfigError("the tokenizer has neither a `cls` nor a `bos` token; pre-training rows begin with one.")
    return token


def separator_token(tokenizer: Any) -> int:
    """Return the token that closes every document.

    Raises:
        ConfigError: the tokenizer has none, or no padding token.
    """
    token = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if token is None or tokenizer.pad_token_id is None:
        raise ConfigError("the tokenizer lacks a `sep` (or `eos`) or a `pad` token; pre-training needs both.")
    return token


def encode_documents(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int | None = None
) -> list[list[int]]:
    """Tokenise documents without special tokens.

    Args:
        texts: documents.
        tokenizer: fast tokenizer.
        limit: longest document in tokens; longer ones are cut. None keeps them whole.

    Returns:
        Token ids per document.
    """
    # Documents are longer than the model's input by design; the tokenizer would warn of each.
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    return [ids[:limit] for ids in encoded] if limit else encoded


def build_corpus(
    rows: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    *,
    text_column: str = "text",
    id_column: str = "id",
    folder: Path | None = None,
    numbered_by: PreTrainedTokenizerBase | None = None,
) -> Corpus:
    """Tokenise one language's rows.

    Args:
        rows: data sets (`datasets.Dataset`) or sequences of dicts, joined in order.
        tokenizer: fast tokenizer.
        where: what the data are, for messages.
        text_column: column of the text.
        id_column: column that marks translations; optional in the data.
        folder: where to keep the arrays; None keeps them in memory. A complete folder is read and not made again.
        numbered_by: another tokenizer, whose corpus of these rows has each document under the same number: those that
            it makes no token of are dropped, and no others. None takes `tokenizer`.

    Returns:
        The corpus. Empty documents are dropped.

    Raises:
        ConfigError: the text column is missing, or there is no text.
    """
    if folder is not None and (folder / "corpus.json").is_file():
        return read_corpus(folder)
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
    pieces, lengths, ids, size = [], [], [], 0
    for table in rows:
        for batch in _batches(table, where, text_column, id_column):
            kept = [(text, key) for text, key in batch if text and text.strip()]
            encoded = encode_documents([text for text, _ in kept], tokenizer) if kept else []
            others = encoded
            if numbered_by is not None and kept:
                others = encode_documents([text for text, _ in kept], numbered_by)
            for (text, key), tokens, other in zip(kept, encoded, others, strict=True):
                if other:
                    pieces.append(np.array(tokens, dtype=dtype))
                    lengths.append(len(tokens))
                    ids.append(key)
                    size += len(text.encode())
    if not pieces:
        raise ConfigError(f"{where} holds no text; give a language that has some, or leave it out.")
    tokens = np.concatenate(pieces)
    unknown = 0 if tokenizer.unk_token_id is None else int((tokens == tokenizer.unk_token_id).sum())
    names = np.array(ids) if all(key is not None for key in ids) else None
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    corpus = Corpus(tokens, starts, names, size, unknown)
    if folder is None:
        return corpus
    write_corpus(corpus, folder)
    return read_corpus(folder)


def _batches(
    table: Any, where: str, text_column: str, id_column: str
) -> Iterator[list[tuple[str | None, str | None]]]:
    columns = getattr(table, "column_names", None) or sorted({key for row in table[:1] for key in row})
    if text_column not in columns:
        raise ConfigError(
            f"{where} must contain a `{text_column}` column; its columns are {', '.join(columns) or 'none'}. "
            "Name the text with `text_column`."
        )
    has_ids = id_column in columns
    for start in range(0, len(table), _BATCH):
        part = table[start : start + _BATCH]
        if isinstance(part, dict):
            texts, keys = part[text_column], part[id_column] if has_ids else [None] * len(part[text_column])
        else:
            texts, keys = [row[text_column] for row in part], [row.get(id_column) for row in part]
        yield [(text, None if key is None else str(key)) for text, key in zip(texts, keys, strict=True)]


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """Write a corpus beside and rename the folder: a reader sees it whole or not at all."""
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir(parents=True)
    arrays = {"tokens": corpus.tokens, "starts": corpus.starts}
    if corpus.ids is not None:
        arrays["ids"] = corpus.ids
    for name, array in arrays.items():
        np.save(part / f"{name}.npy", array, allow_pickle=False)
        sync_file(part / f"{name}.npy")
    write_json(part / "corpus.json", {"bytes": corpus.bytes, "unknown": corpus.unknown, "ids": corpus.ids is not None})
    try:
        os.rename(part, folder)
    except OSError:
        # Another process was first; both made the same.
        shutil.rmtree(part, ignore_errors=True)
        if not (folder / "corpus.json").is_file():
            raise


def read_corpus(folder: Path) -> Corpus:
    """Open a corpus; its arrays are memory-mapped.

    Raises:
        ConfigError: it is damaged.
    """
    import json

    try:
        facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
        starts = np.load(folder / "starts.npy", allow_pickle=False)
        ids = np.load(folder / "ids.npy", allow_pickle=False) if facts["ids"] else None
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the tokenised text in `{folder}` is damaged; delete that folder and repeat.") from error
    return Corpus(tokens, starts, ids, facts["bytes"], facts["unknown"])


class Documents(Protocol):
    """What rows are packed from: numbered token sequences of known length.

    Attributes:
        lengths: (documents,) tokens of each, without the closing separator.
    """

    lengths: np.ndarray

    def document(self, index: int) -> np.ndarray:
        """Return one document's tokens."""


@dataclass(frozen=True)
class Subset:
    """Some of a corpus's documents."""

    corpus: Corpus
    chosen: np.ndarray

    @cached_property
    def lengths(self) -> np.ndarray:
        """(documents,) tokens of each document."""
        return self.corpus.lengths[self.chosen]

    def document(self, index: int) -> np.ndarray:
        """Return one document's tokens."""
        return self.corpus.document(self.chosen[index])

    def pieces(self, rows: int) -> np.ndarray:
        """Return which ids occur: (rows,) bool; `rows` is above every id."""
        held = np.zeros(rows, dtype=bool)
        # Documents that follow each other are read at once.
        breaks = np.flatnonzero(np.diff(self.chosen) != 1) + 1
        for run in np.split(self.chosen, breaks) if len(self.chosen) else []:
            begin, end = int(self.corpus.starts[run[0]]), int(self.corpus.starts[run[-1] + 1])
            for start in range(begin, end, _TOKENS):
                held[self.corpus.tokens[start : min(start + _TOKENS, end)]] = True
        return held


def hold_out(corpus: Corpus, share: float, *key: int | str) -> tuple[Subset, Subset]:
    """Set a share of the documents aside for evaluation, as a function of the key and each document's id.

    Without ids the document's number decides. Equal ids have equal fates, so no translation of a held-out document is
    trained on in another language under the same key.

    Returns:
        What to train on (never empty), and what is held out.
    """
    if not share:
        return Subset(corpus, np.arange(len(corpus))), Subset(corpus, np.arange(0))
    seed = derive_seed(*key, "held out")
    names = range(len(corpus)) if corpus.ids is None else corpus.ids
    digests = [hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=8).digest() for name in names]
    fates = np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)
    held = fates < np.uint64(share * 2**63) * np.uint64(2)
    held[np.argmax(fates)] = False
    return Subset(corpus, np.flatnonzero(~held)), Subset(corpus, np.flatnonzero(held))


class PackedRows:
    """Endless rows of equal length from documents of one language."""

    def __init__(self, documents: Documents, body: int, separator: int, *key: int | str) -> None:
        """Pack `documents` into rows of `body` tokens, each document followed by `separator`."""
        self.documents, self.body, self.separator, self.key = documents, body, separator, key
        self.tokens_per_pass = int(documents.lengths.sum()) + len(documents.lengths)
        self._passes: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _pass(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of documents in one pass and where each ends."""
        if number not in self._passes:
            self._passes = {known: value for known, value in self._passes.items() if known == number - 1}
            generator = np.random.Generator(np.random.Philox(key=derive_seed(*self.key, number)))
            order = generator.permutation(len(self.documents.lengths))
            self._passes[number] = (order, np.cumsum(self.documents.lengths[order] + 1))
        return self._passes[number]

    def row(self, position: int) -> np.ndarray:
        """Return row `position` of the endless stream: (body,) int64."""
        row = np.empty(self.body, dtype=np.int64)
        number, offset = divmod(position * self.body, self.tokens_per_pass)
        filled = 0
        while filled < self.body:
            order, ends = self._pass(number)
            place = int(np.searchsorted(ends, offset, side="right"))
            while filled < self.body and place < len(order):
                tokens = self.documents.document(order[place])
                within = offset - (int(ends[place]) - len(tokens) - 1)
                part = tokens[within : within + self.body - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
                offset += len(part)
                if filled < self.body:
                    row[filled] = self.separator
                    filled += 1
                    offset += 1
                    place += 1
            number, offset = number + 1, 0
        return row
