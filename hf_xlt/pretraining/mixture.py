"""Which language comes when: temperature sampling (Chi et al. 2021) by counter.

The language of row i is a pure function of (key, i), and so is the number of rows of each language before it. So a
run can be resumed, or split over any number of processes and workers, with one integer of state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hf_xlt.errors import ConfigError
from hf_xlt.languages import find_same
from hf_xlt.randomness import derive_seed

_CHUNK = 1024


def temperature_distribution(
    sizes: Mapping[str, float], alpha: float, floors: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the share of each language: q_l = p_l^alpha / sum_k p_k^alpha, with p_l = n_l / sum n.

    Args:
        sizes: n_l, size of each language's text in any one unit.
        alpha: 1 follows the data, 0 is uniform; above 1 favours large languages.
        floors: least share of single languages (the replay floor); the others share what is left in proportion.

    Returns:
        Shares in the order of `sizes`, summing to 1.

    Raises:
        ConfigError: no language, a negative or infinite alpha, a language without text, an unknown language with a
            floor, or floors that sum to more than 1.
    """
    if not sizes:
        raise ConfigError("there is no language to sample: give at least one with text.")
    if not (np.isfinite(alpha) and alpha >= 0):
        raise ConfigError(f"`alpha` is {alpha}; it must be a finite number of 0 or more, usually in [0, 1].")
    empty = [language for language, size in sizes.items() if not size > 0]
    if empty:
        raise ConfigError(f"language {', '.join(f'`{code}`' for code in empty)} has no text; leave it out.")
    floors = {find_same(code, sizes) or code: share for code, share in (floors or {}).items()}
    unknown = sorted(set(floors) - set(sizes))
    if unknown:
        raise ConfigError(f"a least share is asked for `{unknown[0]}`, which has no text in this phase.")
    logs = alpha * (np.log(np.array(list(sizes.values()), dtype=np.float64)) - np.log(sum(sizes.values())))
    weights = np.exp(logs - logs.max())
    shares = dict(zip(sizes, (weights / weights.sum()).tolist(), strict=True))
    return _raise_to_floors(shares, floors)


def _raise_to_floors(shares: dict[str, float], floors: dict[str, float]) -> dict[str, float]:
    if sum(floors.values()) > 1 or any(not 0 <= floor <= 1 for floor in floors.values()):
        raise ConfigError(f"least shares {floors} must lie in [0, 1] and sum to at most 1.")
    held: dict[str, float] = {}
    while True:
        free = {language: share for language, share in shares.items() if language not in held}
        rest = 1.0 - sum(held.values())
        scale = rest / sum(free.values()) if free else 0.0
        below = {code: floors[code] for code in free if code in floors and free[code] * scale < floors[code]}
        if not below:
            return {code: held.get(code, free.get(code, 0.0) * scale) for code in shares}
        held |= below


def effective_epochs(shares: Mapping[str, float], sizes: Mapping[str, float], drawn: float) -> dict[str, float]:
    """Return how often each language's text is read: S q_l / n_l.

    Args:
        shares: q_l.
        sizes: n_l.
        drawn: S, total drawn in the unit of `sizes`.
    """
    return {language: drawn * shares[language] / sizes[language] for language in shares}


class LanguageSampler:
    """The language of every row of an endless stream, drawn independently, by counter."""

    def __init__(self, shares: Mapping[str, float], *key: int | str) -> None:
        """Sample from `shares`; equal keys give equal streams."""
        self.languages = list(shares)
        self._edges = np.cumsum(np.array(list(shares.values()), dtype=np.float64))
        self._seed = derive_seed(*key, "languages")
        self._chunks: dict[int, np.ndarray] = {}
        self._counted: list[np.ndarray] = [np.zeros(len(self.languages), dtype=np.int64)]

    def _chunk(self, number: int) -> np.ndarray:
        if number not in self._chunks:
            if len(self._chunks) > 8:
                self._chunks.clear()
            # The last word of Philox's counter: streams of different chunks cannot meet.
            draws = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, 0, number])).random(_CHUNK)
            edge = np.searchsorted(self._edges, draws * self._edges[-1], side="right")
            self._chunks[number] = np.minimum(edge, len(self.languages) - 1)
        return self._chunks[number]

    def draw(self, start: int, count: int) -> np.ndarray:
        """Return the language indices of rows `start`, ..., `start + count - 1`: (count,) int64."""
        first, last = start // _CHUNK, (start + max(count, 1) - 1) // _CHUNK
        joined = np.concatenate([self._chunk(number) for number in range(first, last + 1)])
        return joined[start - first * _CHUNK :][:count]

    def counts_before(self, row: int) -> np.ndarray:
        """Return how many of the rows before `row` are of each language: (K,) int64."""
        number, offset = divmod(row, _CHUNK)
        while len(self._counted) <= number:
            chunk = self._chunk(len(self._counted) - 1)
            self._counted.append(self._counted[-1] + np.bincount(chunk, minlength=len(self.languages)))
        return self._counted[number] + np.bincount(self._chunk(number)[:offset], minlength=len(self.languages))

    def places(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return language index and position within the language's own stream for each row.

        Returns:
            Two (count,) int64 arrays; the position counts that language's earlier rows.
        """
        languages = self.draw(start, count)
        taken = self.counts_before(start)
        positions = np.empty(count, dtype=np.int64)
        for index in np.unique(languages):
            mine = languages == index
            positions[mine] = taken[index] + np.arange(mine.sum())
        return languages, positions
