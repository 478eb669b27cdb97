"""The texts of distillation: which is drawn when, both tokenizers' tokens of it, and the teacher's states where kept.

Text j of a process's stream is a pure function of (key, j), so a run is resumed with one integer, and which texts a
phase will draw, in which order, is known before its first update: these are what the teacher reads.

Shapes: N texts, S tokens of the student, T tokens of the teacher, D width of the targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.mixture import LanguageSampler
from hf_xlt.randomness import derive_seed

if TYPE_CHECKING:
    from hf_xlt.pretraining.corpus import Corpus, Subset
    from hf_xlt.pretraining.teacher import TeacherCache

# Texts of so many batches are sorted by length together, which saves most of the padding.
WINDOW = 16


@dataclass(frozen=True)
class TeacherText:
    """The texts as the teacher's tokenizer cuts them.

    Attributes:
        tokenizer: of the teacher.
        corpora: by language; documents have the same numbers as in the student's corpora.
    """

    tokenizer: Any
    corpora: Mapping[str, Corpus]


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer puts around a single text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        """Find them by encoding a text.

        Raises:
            ConfigError: the tokenizer does more than putting tokens around a text.
        """
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = tokenizer("a")["input_ids"]
        for start in range(len(whole) - len(plain) + 1):
            if plain and whole[start : start + len(plain)] == plain:
                return cls(tuple(whole[:start]), tuple(whole[start + len(plain) :]))
        raise ConfigError("`distill` cannot use this tokenizer: its special tokens do not stand around a text.")

    def put(self, tokens: np.ndarray, longest: int) -> np.ndarray:
        """Return a text of at most `longest` tokens, the special ones included."""
        return np.concatenate([self.before, self.cut(tokens, longest), self.after]).astype(np.int64)

    def cut(self, tokens: np.ndarray, longest: int) -> np.ndarray:
        """Return the tokens of a text that fit between the special ones."""
        return tokens[: max(longest - len(self.before) - len(self.after), 1)]


class TextSampler:
    """Single documents of a language mixture, by number; each language is read in passes, in a new order each time."""

    def __init__(self, corpora: Mapping[str, Subset], shares: Mapping[str, float], *key: int | str) -> None:
        """Draw from documents by language, in shares of texts; equal keys give equal streams."""
        self.corpora, self.key = corpora, key
        self.sampler = LanguageSampler(shares, *key)

    @property
    def languages(self) -> Sequence[str]:
        """Codes, in the order of the indices that `draw` returns."""
        return self.sampler.languages

    def draw(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return language index and document number of texts `start`, ..., `start + count - 1`: two (count,) int64."""
        languages, positions = self.sampler.places(start, count)
        documents = np.empty(count, dtype=np.int64)
        for index in np.unique(languages):
            code = self.languages[index]
            chosen = self.corpora[code].chosen
            mine = np.flatnonzero(languages == index)
            passes, offsets = np.divmod(positions[mine], len(chosen))
            for number in np.unique(passes):
                now = passes == number
                generator = np.random.Generator(np.random.Philox(key=derive_seed(*self.key, code, int(number))))
                documents[mine[now]] = chosen[generator.permutation(len(chosen))[offsets[now]]]
        return languages, documents


class DistillationTexts:
    """Batches of texts to distil on."""

    def __init__(
        self,
        corpora: Mapping[str, Subset],
        shares: Mapping[str, float],
        teacher: TeacherText,
        tokenizer: Any,
        longest: int,
        *key: int | str,
    ) -> None:
        """Prepare.

        Args:
            corpora: the student's, by language.
            shares: share of each language.
            teacher: the same documents as the teacher's tokenizer cuts them.
            tokenizer: of the student.
            longest: tokens of a text at most, special ones included, for both.
            *key: of the random streams.

        Raises:
            ConfigError: a tokenizer does more than putting special tokens around a text, or has no padding token.
        """
        self.teacher, self.tokenizer, self.longest, self.key = teacher, tokenizer, longest, key
        self.sampler = TextSampler(corpora, shares, *key)
        self.corpora = [corpora[code].corpus for code in self.sampler.languages]
        self.teacher_corpora = [teacher.corpora[code] for code in self.sampler.languages]
        self.frame, self.teacher_frame = Frame.of(tokenizer), Frame.of(teacher.tokenizer)
        for name, known in (("student", tokenizer), ("teacher", teacher.tokenizer)):
            if known.pad_token_id is None:
                raise ConfigError(f"the {name}'s tokenizer has no padding token; `distill` needs one.")
        self.cache: TeacherCache | None = None
        self._window: tuple[int, list[tuple[np.ndarray, np.ndarray]]] = (-1, [])

    @cached_property
    def same_piece(self) -> np.ndarray:
        """(V,) by id of the teacher, the student's id of the same piece, or -1."""
        own, other = self.tokenizer.get_vocab(), self.teacher.tokenizer.get_vocab()
        table = np.full(max(other.values()) + 1, -1, dtype=np.int64)
        for piece, index in other.items():
            table[index] = own.get(piece, -1)
        return table

    # ---- Which texts

    def batch_texts(self, slot: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return language index and document number of the `count` texts of batch `slot` of all processes."""
        window, place = divmod(slot, WINDOW)
        if self._window[0] != window:
            languages, documents = self.sampler.draw(window * WINDOW * count, WINDOW * count)
            pairs = zip(languages, documents, strict=True)
            lengths = np.array([self.corpora[code].lengths[document] for code, document in pairs])
            order = np.argsort(lengths, kind="stable")
            generator = np.random.Generator(np.random.Philox(key=derive_seed(*self.key, "window", window)))
            parts = order.reshape(WINDOW, count)[generator.permutation(WINDOW)]
            self._window = (window, [(languages[part], documents[part]) for part in parts])
        return self._window[1][place]

    def all_texts(self, slots: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return language index and document number of all texts of the first `slots` batches, each once.

        They come in the order in which they are drawn first.
        """
        languages, documents = self.sampler.draw(0, -(-slots // WINDOW) * WINDOW * count)
        starts = np.concatenate([[0], np.cumsum([len(corpus) for corpus in self.corpora])])
        _, first = np.unique(starts[languages] + documents, return_index=True)
        first.sort()
        return languages[first], documents[first]

    # ---- Their tokens

    def teacher_tokens(self, language: int, document: int) -> np.ndarray:
        """Return the tokens of a text for the teacher, special ones included."""
        return self.teacher_frame.put(self.teacher_corpora[language].document(document), self.longest)

    def agreeing(self, language: int, document: int) -> np.ndarray | None:
        """Return at which tokens of a text, special ones apart, both tokenizers have the same piece: (n,) bool.

        None where they cut the text into different numbers of tokens, or share no piece of it.
        """
        own, other = self.corpora[language].document(document), self.teacher_corpora[language].document(document)
        if len(own) != len(other):
            return None
        fits = min(len(self.frame.cut(own, self.longest)), len(self.teacher_frame.cut(other, self.longest)))
        same = self.same_piece[other[:fits]] == own[:fits]
        return same if same.any() else None

    # ---- Batches

    def batch(self, slot: int, count: int, with_tokens: bool) -> dict[str, torch.Tensor]:
        """Build one batch.

        Args:
            slot: its number over all processes.
            count: N, its texts.
            with_tokens: whether token states are matched.

        Returns:
            `text_input_ids`, `text_attention_mask` (N, S) for the student; `state_mask` (N, S) bool, the tokens
            whose states are matched; of what the cache holds `teacher_vectors` (N, D) and `teacher_states` (N, S, D)
            float16, zero elsewhere; and, if it lacks some, `missing` (M,), their rows, with `teacher_input_ids`,
            `teacher_attention_mask` (M, T).
        """
        texts = list(zip(*(part.tolist() for part in self.batch_texts(slot, count)), strict=True))
        own = [self.frame.put(self.corpora[code].document(document), self.longest) for code, document in texts]
        ids, mask = pad(own, self.tokenizer.pad_token_id)
        chosen, before = np.zeros(ids.shape, dtype=bool), len(self.frame.before)
        for row, text in enumerate(texts):
            same = self.agreeing(*text) if with_tokens else None
            if same is not None:
                chosen[row, before : before + len(same)] = same
        batch = {"text_input_ids": torch.from_numpy(ids), "text_attention_mask": torch.from_numpy(mask)}
        batch["state_mask"] = torch.from_numpy(chosen)
        missing = list(range(len(texts)))
        if self.cache is not None:
            vectors = np.zeros((len(texts), self.cache.width), dtype=np.float16)
            states = np.zeros((*ids.shape, self.cache.width), dtype=np.float16) if with_tokens else None
            missing = []
            for row, text in enumerate(texts):
                kept = self.cache.read(*text)
                if kept is None:
                    missing.append(row)
                    continue
                vectors[row] = kept[0]
                if states is not None and len(kept[1]):
                    states[row, before : before + len(kept[1])] = kept[1]
            batch["teacher_vectors"] = torch.from_numpy(vectors)
            if states is not None:
                batch["teacher_states"] = torch.from_numpy(states)
        if missing:
            inputs = [self.teacher_tokens(*texts[row]) for row in missing]
            teacher_ids, teacher_mask = pad(inputs, self.teacher.tokenizer.pad_token_id)
            batch["missing"] = torch.tensor(missing)
            batch["teacher_input_ids"] = torch.from_numpy(teacher_ids)
            batch["teacher_attention_mask"] = torch.from_numpy(teacher_mask)
        return batch


def pad(rows: Sequence[np.ndarray], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad token sequences on the right; return ids and mask, (N, longest) int64."""
    ids = np.full((len(rows), max(map(len, rows))), padding, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=np.int64)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return ids, mask
