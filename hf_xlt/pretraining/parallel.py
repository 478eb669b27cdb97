"""Translations: documents of two languages that share an id, as rows for TLM and as pairs for contrast.

Language pairs are drawn in proportion to q_a q_b, with a set share of draws that have the pivot language on one side.
Within a pair of languages the common documents are read in passes, each in an order of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hf_xlt.errors import ConfigError
from hf_xlt.languages import find_same
from hf_xlt.pretraining.corpus import Subset
from hf_xlt.pretraining.mixture import LanguageSampler
from hf_xlt.randomness import derive_seed


class ParallelText:
    """What is parallel among the corpora of several languages."""

    def __init__(self, corpora: Mapping[str, Subset]) -> None:
        """Index the ids of every corpus that has them; corpora without ids take no part.

        Raises:
            ConfigError: no two languages share an id.
        """
        self.corpora = {code: subset for code, subset in corpora.items() if subset.corpus.ids is not None}
        names = {code: subset.corpus.ids[subset.chosen] for code, subset in self.corpora.items()}
        joined = np.unique(np.concatenate(list(names.values()))) if names else np.array([])
        # One number per id for all languages: pairs are then found by sorting integers, not strings.
        self.numbers: dict[str, np.ndarray] = {}
        self._places: dict[str, np.ndarray] = {}
        for code, own in names.items():
            numbers, places = np.unique(np.searchsorted(joined, own), return_index=True)
            self.numbers[code], self._places[code] = numbers, places
        self.shared = self._count_shared()
        if not self.shared:
            raise ConfigError(
                "there is no parallel text: no `id` occurs in two languages. TLM and the contrastive objective need "
                "rows that share an id; give such data, or leave these objectives out."
            )

    def _count_shared(self) -> dict[tuple[str, str], int]:
        codes, counts = sorted(self.numbers), {}
        for index, first in enumerate(codes):
            for second in codes[index + 1 :]:
                shared = np.intersect1d(self.numbers[first], self.numbers[second], assume_unique=True).size
                if shared:
                    counts[first, second] = shared
        return counts

    def distribution(
        self, shares: Mapping[str, float], pivot: str | None = None, pivot_share: float = 0.0
    ) -> dict[str, float]:
        """Return the share of each pair of languages, keyed `a b`.

        Args:
            shares: q_l.
            pivot: a language that is to be on one side of a set share of the pairs; None for none.
            pivot_share: that share, when both kinds of pairs exist; 0 leaves it to the mixture.

        Raises:
            ConfigError: a share is asked for, and no pair has the pivot.
        """
        weights = {f"{a} {b}": shares[a] * shares[b] for a, b in self.shared}
        asked, pivot = pivot, pivot and find_same(pivot, shares)
        with_pivot = {key for key in weights if pivot in key.split()}
        others = set(weights) - with_pivot
        if pivot_share and not with_pivot:
            raise ConfigError(
                f"`pivot_share` is {pivot_share:g}, and no translation pair has its `pivot` ({asked}): pairs are "
                f"of {', '.join(sorted({code for key in weights for code in key.split()}))}. Name another, or "
                "leave the share at 0."
            )
        if not with_pivot or not others or not pivot_share:
            total = sum(weights.values())
            return {key: weight / total for key, weight in weights.items()}
        sums = {True: sum(weights[key] for key in with_pivot), False: sum(weights[key] for key in others)}
        parts = {True: pivot_share, False: 1.0 - pivot_share}
        scaled = {key: weight / sums[key in with_pivot] * parts[key in with_pivot] for key, weight in weights.items()}
        return {key: weight for key, weight in scaled.items() if weight > 0}

    def common(self, pair: str) -> CommonDocuments:
        """Return the documents that both languages of a pair `a b` have."""
        first, second = pair.split()
        numbers, left, right = np.intersect1d(
            self.numbers[first], self.numbers[second], assume_unique=True, return_indices=True
        )
        return CommonDocuments(
            self.corpora[first], self.corpora[second], self._places[first][left], self._places[second][right], numbers
        )


@dataclass(frozen=True)
class CommonDocuments:
    """Translations between two languages; row i of `left` and `right` is one document.

    Attributes:
        first: corpus of one language.
        second: corpus of the other.
        left: (n,) document numbers in `first`.
        right: (n,) document numbers in `second`.
        numbers: (n,) numbers of the ids, equal in all pairs of languages.
    """

    first: Subset
    second: Subset
    left: np.ndarray
    right: np.ndarray
    numbers: np.ndarray

    def sides(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of both sides of one document."""
        return self.first.document(self.left[index]), self.second.document(self.right[index])


@dataclass(frozen=True)
class JoinedDocuments:
    """Each translation pair as one document for packing: one side, the separator, the other side.

    Which side comes first is a function of the id's number, so both orders occur.
    """

    common: CommonDocuments
    separator: int
    longest: int

    @cached_property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each joined document."""
        left = np.minimum(self.common.first.lengths[self.common.left], self.longest)
        return left + np.minimum(self.common.second.lengths[self.common.right], self.longest) + 1

    def document(self, index: int) -> np.ndarray:
        """Return one joined document's tokens."""
        sides = [side[: self.longest] for side in self.common.sides(index)]
        if self.common.numbers[index] % 2:
            sides.reverse()
        return np.concatenate([sides[0], [self.separator], sides[1]])


class PairSampler:
    """Single translation pairs by number: pair j is a pure function of (key, j)."""

    def __init__(self, text: ParallelText, shares: Mapping[str, float], *key: int | str) -> None:
        """Draw pairs of languages from `shares` (of `ParallelText.distribution`)."""
        self.text, self.key = text, key
        self.sampler = LanguageSampler(shares, *key)
        self._common: dict[str, CommonDocuments] = {}
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def draw(self, start: int, count: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Return pairs `start`, ..., `start + count - 1`: tokens of both sides, and the id's number."""
        pairs = []
        for index, position in zip(*self.sampler.places(start, count), strict=True):
            name = self.sampler.languages[index]
            if name not in self._common:
                self._common[name] = self.text.common(name)
            common = self._common[name]
            number, offset = divmod(int(position), len(common.numbers))
            if self._orders.get(name, (-1, None))[0] != number:
                generator = np.random.Generator(np.random.Philox(key=derive_seed(*self.key, name, number)))
                self._orders[name] = (number, generator.permutation(len(common.numbers)))
            place = int(self._orders[name][1][offset])
            identity = int(common.numbers[place])
            left, right = common.sides(place)
            # The side alternates between passes, so that each language is on either.
            pairs.append((right, left, identity) if (identity + number) % 2 else (left, right, identity))
        return pairs
