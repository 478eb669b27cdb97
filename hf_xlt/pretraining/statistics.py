"""How much text each language has, in rows, bytes and tokens: the manifest `languages.json`.

Rows and bytes are counted. Tokens are counted up to a number of documents; above it a sample is counted and
multiplied by bytes, and the figure is marked as estimated. Streams are not read.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, setting
from hf_xlt.pretraining.texts import LanguageText, utf8_size
from hf_xlt.randomness import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 1
SAMPLED_DOCUMENTS = 10_000
WARNED_SHARE = 0.05
_BATCH = 1000


@dataclass(frozen=True)
class LanguageStatistics:
    """Size of one language's text and how a tokenizer deals with it.

    Attributes:
        language: its code.
        sources: shareable names of where the text comes from.
        rows: number of documents that are not empty.
        bytes: size in UTF-8.
        tokens: number of tokens without special ones; the true one, or multiplied from a sample.
        unknown_share: share of the counted tokens that stand for unknown text, in [0, 1].
        byte_share: share of the counted tokens that are single bytes (`<0x41>`) for want of a piece, in [0, 1].
        estimated: whether `tokens` is multiplied from a sample.
    """

    language: str
    sources: tuple[str, ...]
    rows: int
    bytes: int
    tokens: int
    unknown_share: float
    byte_share: float
    estimated: bool

    @property
    def tokens_per_byte(self) -> float:
        """Tokens per byte of UTF-8; lower is a better fit, at equal script."""
        return self.tokens / self.bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return {
            "code": self.language,
            "source": ", ".join(self.sources),
            "rows": self.rows,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "tokens_per_byte": round(self.tokens_per_byte, 6),
            "unknown_share": round(self.unknown_share, 6),
            "byte_share": round(self.byte_share, 6),
            "estimated": self.estimated,
        }


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of what a fast tokenizer does with text.

    It is the hash of the backend tokenizer's JSON without truncation and padding, which calls leave behind in it.

    Raises:
        ConfigError: it is not a fast tokenizer.
    """
    if not tokenizer.is_fast:
        raise ConfigError(f"`{type(tokenizer).__name__}` is no fast tokenizer; convert it (`tokenizer.json`).")
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    text = json.dumps(state, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def measure(
    text: LanguageText, tokenizer: PreTrainedTokenizerBase, documents: int = SAMPLED_DOCUMENTS, seed: int = 0
) -> LanguageStatistics:
    """Measure one language's text.

    Args:
        text: the language's documents.
        tokenizer: fast tokenizer.
        documents: number of documents up to which tokens are counted exactly, and the size of the sample above it.
        seed: chooses the sample.

    Raises:
        ConfigError: `documents` is less than 1.
    """
    if documents < 1:
        raise ConfigError(f"{setting('sample_documents')} is {documents}; it must be 1 or more.")
    counted = text.documents
    estimated = len(counted) > documents
    if estimated:
        counted = random.Random(derive_seed(seed, "statistics", text.language)).sample(counted, documents)
    tokens, unknown, single_bytes = _count(counted, tokenizer)
    size = sum(map(utf8_size, counted)) if estimated else text.size
    return LanguageStatistics(
        language=text.language,
        sources=text.sources,
        rows=len(text.documents),
        bytes=text.size,
        tokens=round(tokens * text.size / size) if estimated else tokens,
        unknown_share=unknown / tokens if tokens else 0.0,
        byte_share=single_bytes / tokens if tokens else 0.0,
        estimated=estimated,
    )


def _count(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Count tokens, unknown tokens, and tokens that are single bytes."""
    import numpy as np

    documents = list(documents)
    vocabulary = tokenizer.get_vocab()
    single = [vocabulary[piece] for piece in (f"<0x{value:02X}>" for value in range(256)) if piece in vocabulary]
    counts = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for start in range(0, len(documents), _BATCH):
        # Documents are longer than the model's input by design; the tokenizer would warn of each.
        batch = tokenizer(documents[start : start + _BATCH], add_special_tokens=False, verbose=False)["input_ids"]
        counts += np.bincount([index for ids in batch for index in ids], minlength=len(counts)).astype(np.int64)
    unknown = 0 if tokenizer.unk_token_id is None else int(counts[tokenizer.unk_token_id])
    return int(counts.sum()), unknown, int(counts[single].sum())


def manifest(
    statistics: Mapping[str, LanguageStatistics], tokenizer: PreTrainedTokenizerBase, tokenizer_name: str
) -> dict[str, Any]:
    """Return the content of `languages.json`.

    Args:
        statistics: figures by language.
        tokenizer: the tokenizer they were made with.
        tokenizer_name: how to call it; never a local path.
    """
    return {
        "format_version": FORMAT_VERSION,
        "tokenizer": {"name": tokenizer_name, "hash": tokenizer_hash(tokenizer)},
        "languages": [entry.to_dict() for entry in statistics.values()],
    }


def warnings(statistics: Mapping[str, LanguageStatistics]) -> list[str]:
    """Return one line for each language that the tokenizer does not fit."""
    lines = []
    for code, entry in statistics.items():
        if entry.unknown_share > WARNED_SHARE:
            lines.append(
                f"language `{code}`: {entry.unknown_share:.1%} of its tokens are unknown (more than "
                f"{WARNED_SHARE:.0%}); the model cannot learn from them. Choose a tokenizer that covers its script."
            )
        if entry.byte_share > WARNED_SHARE:
            lines.append(
                f"language `{code}`: {entry.byte_share:.1%} of its tokens are single bytes (more than "
                f"{WARNED_SHARE:.0%}); its script is hardly covered. Train with more of its text (a lower alpha), a "
                "larger vocabulary, or a higher character coverage."
            )
    return lines


def statistics_table(statistics: Mapping[str, LanguageStatistics], shares: Mapping[str, float]) -> list[str]:
    """Lay out one line per language; `~` marks estimated token counts.

    Args:
        statistics: figures by language.
        shares: q_l.
    """
    lines = [
        f"{'language':<10}{'rows':>12}{'bytes':>15}{'tokens':>15}{'tok/byte':>10}{'share':>8}{'unk':>7}{'bytes':>7}"
    ]
    for code, entry in statistics.items():
        tokens = f"{'~' if entry.estimated else ''}{entry.tokens:,}"
        lines.append(
            f"{code:<10}{entry.rows:>12,}{entry.bytes:>15,}{tokens:>15}{entry.tokens_per_byte:>10.3f}"
            f"{shares[code]:>8.2%}{entry.unknown_share:>7.1%}{entry.byte_share:>7.1%}"
        )
    return lines
