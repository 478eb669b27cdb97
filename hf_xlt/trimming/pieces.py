"""Which tokens a text needs, so that it is still cut into the same pieces when all others are gone.

What is left out must not change how the rest is cut, and that depends on the kind of the tokenizer's model:

- Unigram takes the best path through all pieces. The best path stays the best among fewer, if the score of an unknown
  character stays: it hangs on the lowest score of the vocabulary, so one piece with that score is kept.
- BPE does the merge of lowest rank first. A text is merged as before if all merges are kept that are done on the way,
  with what they make. They are found by doing them.
- WordPiece takes the longest piece that fits, one after the other. A word that ends in nothing that fits is unknown;
  it stays so if the pieces on the way there are kept.
- WordLevel looks words up.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.pieces import BYTE_PIECE, Notation, byte_letters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("Unigram", "BPE", "WordPiece", "WordLevel")
Merge = tuple[str, str]
# Values of `--keep-characters` that are no characters themselves.
_BATCH = 1000
_BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
NO_CHARACTERS, TEXT_CHARACTERS, ALL_CHARACTERS = "none", "text", "all"


@dataclass(frozen=True)
class Selection:
    """What is kept of a vocabulary.

    Attributes:
        ids: kept ids in their order.
        merges: kept merges of BPE, or None with another kind.
        reasons: how many ids are kept for the first of these reasons that holds: `special` (with bytes), `text`,
            `characters`, `pieces` (without which others would be cut in another way).
    """

    ids: tuple[int, ...]
    merges: frozenset[Merge] | None
    reasons: dict[str, int]

    @cached_property
    def new_ids(self) -> dict[int, int]:
        """New id by old id."""
        return {old: new for new, old in enumerate(self.ids)}


class Vocabulary:
    """A fast tokenizer's model, and how it cuts words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read a tokenizer.

        Raises:
            ConfigError: its model is of a kind that cannot be cut down, or draws merges at random.
        """
        self.tokenizer, self.backend = tokenizer, tokenizer.backend_tokenizer
        self.state = json.loads(self.backend.to_str())
        self.model: dict[str, Any] = self.state["model"]
        self.notation = Notation.of(tokenizer)
        self.kind = self.notation.model
        self.ids: dict[str, int] = tokenizer.get_vocab()
        if self.kind not in KINDS:
            raise ConfigError(f"the tokenizer is of the kind `{self.kind}`; it must be {', '.join(KINDS)}.")
        if self.model.get("dropout"):
            raise ConfigError(
                f"the tokenizer leaves out merges by chance (dropout {self.model['dropout']}), so no text is cut the "
                "same way twice. Save it without dropout."
            )

    def always(self) -> set[int]:
        """Return the ids that are kept whatever the text: special and added tokens, unknown, bytes."""
        pieces = [token["content"] for token in self.state["added_tokens"]]
        if self.kind == "Unigram":
            found = {self.model["unk_id"]} if self.model.get("unk_id") is not None else set()
        else:
            found, pieces = set(), [*pieces, self.model.get("unk_token")]
        if self.notation.byte_pieces:
            pieces += [piece for piece in self.ids if BYTE_PIECE.fullmatch(piece)]
        if self.notation.byte_level:
            pieces += byte_letters()
        return {*found, *self.tokenizer.all_special_ids, *(self.ids[piece] for piece in pieces if piece in self.ids)}

    def all_words(self, documents: Sequence[str]) -> set[str]:
        """Return the words of texts as the tokenizer's model is given them.

        Text around added tokens is cut off before it is normalised, so words are also put together from tokens.
        """
        found: set[str] = set()
        for start in range(0, len(documents), _BATCH):
            batch = documents[start : start + _BATCH]
            for encoding in self.backend.encode_batch(list(batch), add_special_tokens=False):
                found.update(self._spelt(encoding))
            for text in batch:
                found.update(self._words(text))
        return found

    def _words(self, text: str) -> list[str]:
        normalizer, splitter = self.backend.normalizer, self.backend.pre_tokenizer
        normal = normalizer.normalize_str(text) if normalizer else text
        return [word for word, _ in splitter.pre_tokenize_str(normal)] if splitter else [normal]

    def _spelt(self, encoding: Any) -> Iterator[str]:
        """Yield the words that tokens spell; unknown ones spell nothing."""
        prefix, suffix = self.notation.continuation, self.notation.word_end
        pairs = zip(encoding.word_ids, encoding.tokens, strict=True)
        for number, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            if number is None:
                continue
            symbols = [token.removeprefix(prefix) for _, token in group]
            word = "".join(symbols)
            if self.notation.byte_pieces:
                word = _BYTES.sub(_decoded, word)
            yield word.removesuffix(suffix)

    def characters(self, documents: Iterable[str]) -> set[str]:
        """Return the characters of texts as the tokenizer's normalizer leaves them."""
        normalizer = self.backend.normalizer
        return set().union(*(normalizer.normalize_str(text) if normalizer else text for text in documents))

    def pieces_of_characters(self, wanted: Collection[str] | None) -> list[str]:
        """Return the pieces that stand for one character of those wanted, or for a space; None wants all."""
        found = []
        for piece in self.ids:
            start, content = self.notation.read(piece.removesuffix(self.notation.word_end))
            try:
                letters = content.decode()
            except UnicodeDecodeError:
                continue
            space = start and not letters and self.kind in ("Unigram", "BPE")
            if space or (len(letters) == 1 and (wanted is None or letters in wanted)):
                found.append(piece)
        return found


class Merger:
    """Does the merges of a BPE model and tells which they were."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        """Read the model of a tokenizer's JSON."""
        self.vocabulary: Mapping[str, int] = model["vocab"]
        self.prefix: str = model.get("continuing_subword_prefix") or ""
        self.suffix: str = model.get("end_of_word_suffix") or ""
        self.falls_back, self.whole_words = bool(model.get("byte_fallback")), bool(model.get("ignore_merges"))
        self.unknown: str | None = model.get("unk_token")
        self.pairs = [merge_of(entry) for entry in model["merges"]]
        # Of a merge that is listed twice the last one counts.
        self.ranks = {pair: rank for rank, pair in enumerate(self.pairs)}

    def product(self, pair: Merge) -> str:
        """Return what a merge makes."""
        return pair[0] + pair[1][len(self.prefix) :]

    def start(self, word: str) -> list[str]:
        """Return the symbols that a word consists of before the first merge."""
        symbols = []
        for number, character in enumerate(word):
            symbol = character if number == 0 else self.prefix + character
            symbol += self.suffix if number == len(word) - 1 else ""
            spelt = [f"<0x{value:02X}>" for value in symbol.encode()]
            if symbol in self.vocabulary:
                symbols.append(symbol)
            elif self.falls_back and all(piece in self.vocabulary for piece in spelt):
                symbols += spelt
            elif self.unknown is not None:
                symbols.append(self.unknown)
        return symbols

    def merge(self, word: str) -> tuple[list[str], list[str], list[Merge]]:
        """Cut a word.

        Returns:
            The symbols at the start, those at the end, and the merges between in their order.
        """
        if self.whole_words and word in self.vocabulary:
            return [word], [word], []
        first = self.start(word)
        symbols: list[str | None] = list(first)
        before, after = list(range(-1, len(symbols) - 1)), [*range(1, len(symbols)), -1]
        queue: list[tuple[int, int, Merge]] = []

        def offer(left: int) -> None:
            if left >= 0 and after[left] >= 0:
                pair = (symbols[left], symbols[after[left]])
                if pair in self.ranks:
                    heapq.heappush(queue, (self.ranks[pair], left, pair))

        for place in range(len(symbols)):
            offer(place)
        done = []
        while queue:
            _, left, pair = heapq.heappop(queue)
            right = after[left]
            # What was queued may have been merged away since; a pair that makes the same is as good.
            if symbols[left] is None or right < 0:
                continue
            now = (symbols[left], symbols[right])
            if now not in self.ranks or self.product(now) != self.product(pair):
                continue
            done.append(now)
            symbols[left], symbols[right], after[left] = self.product(now), None, after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left])
            offer(left)
        return first, [symbol for symbol in symbols if symbol is not None], done


def _decoded(match: re.Match[str]) -> str:
    """Return the characters that a row of byte pieces spells, or the row itself."""
    try:
        return bytes(int(value, 16) for value in re.findall(r"0x(..)", match[0])).decode()
    except UnicodeDecodeError:
        return match[0]


def merge_of(entry: str | Sequence[str]) -> Merge:
    """Return a merge of a tokenizer's JSON, where it stands as a list or as text with a space."""
    left, right = entry.split(" ", 1) if isinstance(entry, str) else entry
    return left, right


def select(
    vocabulary: Vocabulary,
    counts: Counter[int],
    documents: Sequence[str],
    *,
    limit: int | None = None,
    characters: str = TEXT_CHARACTERS,
    required: Collection[int] = (),
) -> Selection:
    """Choose what to keep.

    Args:
        vocabulary: the tokenizer's.
        counts: how often the documents have each id.
        documents: the text.
        limit: keep so many of the text's tokens, the most frequent; None keeps all.
        characters: `none`, `text` (those of the documents), `all`, or characters: their pieces are kept as well.
        required: further ids to keep, such as those that a model's config names.
    """
    special = vocabulary.always() | set(required)
    seen = sorted((index for index in counts if index not in special), key=lambda index: (-counts[index], index))
    text = set(seen[:limit])
    asked = _asked_characters(vocabulary, documents, characters)
    merges = None
    if vocabulary.kind == "BPE":
        asked, pieces, merges = _merged(vocabulary, documents, special | text, asked, limit is not None)
    elif vocabulary.kind == "WordPiece":
        pieces = set() if limit is not None else _ways_to_unknown(vocabulary, documents)
    else:
        pieces = _lowest(vocabulary, special | text | asked) if vocabulary.kind == "Unigram" else set()
    reasons, kept = {}, set()
    for name, ids in (("special", special), ("text", text), ("characters", asked), ("pieces", pieces)):
        reasons[name] = len(ids - kept)
        kept |= ids
    return Selection(tuple(sorted(kept)), merges, reasons)


def _asked_characters(vocabulary: Vocabulary, documents: Sequence[str], characters: str) -> set[int]:
    if characters == NO_CHARACTERS:
        return set()
    wanted = None
    if characters != ALL_CHARACTERS:
        wanted = vocabulary.characters(documents if characters == TEXT_CHARACTERS else [characters, *characters])
    return {vocabulary.ids[piece] for piece in vocabulary.pieces_of_characters(wanted)}


def _lowest(vocabulary: Vocabulary, kept: Collection[int]) -> set[int]:
    """Return the id of a piece with the lowest score, from which that of an unknown character is reckoned."""
    scores = [score for _, score in vocabulary.model["vocab"]]
    least = min(scores)
    lowest = [index for index, score in enumerate(scores) if score == least]
    return set() if any(index in kept for index in lowest) else {lowest[0]}


def _ways_to_unknown(vocabulary: Vocabulary, documents: Sequence[str]) -> set[int]:
    """Return the WordPiece pieces that unknown words begin with, before nothing fits."""
    model, found = vocabulary.model, set()
    known, prefix = model["vocab"], model["continuing_subword_prefix"]
    longest = max(map(len, known))
    for word in vocabulary.all_words(documents):
        start, way = 0, []
        while start < len(word) <= model["max_input_chars_per_word"]:
            ends = range(min(len(word), start + longest), start, -1)
            pieces = ((end, word[start:end] if start == 0 else prefix + word[start:end]) for end in ends)
            end, piece = next(((end, piece) for end, piece in pieces if piece in known), (None, None))
            if piece is None:
                found.update(way)
                break
            way.append(known[piece])
            start = end
    return found


def _merged(
    vocabulary: Vocabulary, documents: Sequence[str], wanted: set[int], asked: set[int], limited: bool
) -> tuple[set[int], set[int], frozenset[Merge]]:
    """Find the merges that make the wanted and asked tokens.

    Returns:
        The asked characters that are ever made, the ids of all that merges take and make, and the merges.
    """
    merger = Merger(vocabulary.model)
    starts: set[str] = set()
    makers: dict[str, set[Merge]] = {}
    for word in vocabulary.all_words(documents):
        first, _, done = merger.merge(word)
        starts.update(first)
        for pair in done:
            makers.setdefault(merger.product(pair), set()).add(pair)
    piece_of = {index: piece for piece, index in vocabulary.ids.items()}
    reachable = set()
    for index in asked:
        piece = piece_of[index]
        word = piece.removeprefix(merger.prefix).removesuffix(merger.suffix)
        _, last, done = merger.merge(word)
        if last == [piece] or len(word) == 1:
            reachable.add(index)
            for pair in done if last == [piece] else ():
                makers.setdefault(merger.product(pair), set()).add(pair)
    # Without a limit every merge of the text is needed; with one, only those on the way to what is kept.
    open_pieces = {piece_of[index] for index in wanted | reachable} | (set() if limited else starts | set(makers))
    needed, merges = set(), set()
    while open_pieces:
        piece = open_pieces.pop()
        needed.add(piece)
        merges |= makers.get(piece, set())
        open_pieces |= {part for pair in makers.get(piece, ()) for part in pair} - needed
    return reachable, {vocabulary.ids[piece] for piece in needed if piece in vocabulary.ids}, frozenset(merges)
