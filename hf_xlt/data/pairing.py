"""Pairs of labelled sentences, as many with the same label as with different ones, whose one side tells nothing.

Each sentence stands first, and second, in the same number of pairs of either kind. So neither the sentences nor their
labels on one side are distributed differently in the two kinds, and whoever sees one sentence of a pair is at chance.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hf_xlt.errors import ConfigError, setting

SAME, DIFFERENT = 1, 0
# How often a random matching is begun anew; the first or second begin succeeds unless pairs are almost exhausted.
_BEGINNINGS = 50


@dataclass(frozen=True)
class Pairing:
    """Pairs of sentences.

    Attributes:
        pairs: (first, second, label) with the sentences' numbers and `SAME` or `DIFFERENT`, shuffled.
        used: numbers of the sentences that are used, ascending.
        notes: which sentences were left out and why, in sentences.
    """

    pairs: tuple[tuple[int, int, int], ...]
    used: tuple[int, ...]
    notes: tuple[str, ...]


def pair_sentences(labels: Sequence[str], per_sentence: int, seed: str) -> Pairing:
    """Pair sentences with one of the same and one of another label, and again until each has its number of pairs.

    Args:
        labels: label of each sentence.
        per_sentence: pairs in which each sentence stands first; even, half of them with the same label.
        seed: decides everything that is left to chance.

    Returns:
        `per_sentence` pairs per used sentence; no sentence with itself, no two sentences paired twice in any order.

    Raises:
        ConfigError: the number is odd or below 2, or there are too few sentences or labels for it.
    """
    if per_sentence < 2 or per_sentence % 2:
        raise ConfigError(
            f"{per_sentence} pairs per sentence cannot be half of the same and half of different labels; give an even "
            "number from 2 on."
        )
    chance, rounds = random.Random(seed), per_sentence // 2
    groups, notes = _usable_groups(labels, rounds, chance)
    used = sorted(index for members in groups.values() for index in members)
    pairs = [(first, second, SAME) for first, second in _same_pairs(groups, rounds, chance)]
    taken: set[tuple[int, int]] = set()
    for _ in range(rounds):
        matched = _different_pairs(used, labels, taken, chance)
        taken.update(_unordered(*pair) for pair in matched)
        pairs += [(first, second, DIFFERENT) for first, second in matched]
    chance.shuffle(pairs)
    return Pairing(tuple(pairs), tuple(used), tuple(notes))


def _usable_groups(
    labels: Sequence[str], rounds: int, chance: random.Random
) -> tuple[dict[str, list[int]], list[str]]:
    """Group sentences by label, each group in random order, without those that no balanced pairing can use."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        groups[label].append(index)
    notes = []
    for label in sorted(groups):
        chance.shuffle(groups[label])
        if len(groups[label]) < 3:
            notes.append(f"`{label}` is left out: {len(groups.pop(label))} of its sentences are too few to be paired.")
    if len(groups) < 2:
        raise ConfigError(f"{len(groups)} labels have 3 sentences or more; same and different pairs need two labels.")
    smallest = min(groups, key=lambda label: (len(groups[label]), label))
    # In a circle of n, shifts up to (n - 1) / 2 give different partners to all.
    possible = (len(groups[smallest]) - 1) // 2
    if rounds > possible:
        raise ConfigError(
            f"`{smallest}` has {len(groups[smallest])} sentences, enough for {2 * possible} pairs per sentence and "
            f"not for {2 * rounds}; lower {setting('pairs_per_sentence')}."
        )
    largest = max(groups, key=lambda label: (len(groups[label]), label))
    others = sum(map(len, groups.values())) - len(groups[largest])
    if len(groups[largest]) > others:
        notes.append(
            f"{len(groups[largest]) - others} sentences of `{largest}` are left out: more than half of all would be "
            "of that label, and have no partner of another one."
        )
        groups[largest] = groups[largest][:others]
    return {label: groups[label] for label in sorted(groups)}, notes


def _same_pairs(groups: dict[str, list[int]], rounds: int, chance: random.Random) -> list[tuple[int, int]]:
    """Pair each sentence with those that stand some places further in the circle of its label's sentences."""
    pairs = []
    for members in groups.values():
        size = len(members)
        for shift in chance.sample(range(1, (size - 1) // 2 + 1), rounds):
            pairs += [(members[place], members[(place + shift) % size]) for place in range(size)]
    return pairs


def _different_pairs(
    used: Sequence[int], labels: Sequence[str], taken: set[tuple[int, int]], chance: random.Random
) -> list[tuple[int, int]]:
    """Match all sentences one to one with sentences of other labels, at random, without pairs that are taken."""
    for _ in range(_BEGINNINGS):
        partners = list(used)
        chance.shuffle(partners)
        if _mend(used, partners, labels, taken, chance):
            return list(zip(used, partners, strict=True))
    raise ConfigError(
        f"there are too few sentences for so many different pairs; lower {setting('pairs_per_sentence')}."
    )


def _mend(
    used: Sequence[int],
    partners: list[int],
    labels: Sequence[str],
    taken: set[tuple[int, int]],
    chance: random.Random,
) -> bool:
    """Exchange partners until every pair is allowed; False when one finds no exchange."""
    counts = Counter(map(_unordered, used, partners))

    def allowed(place: int) -> bool:
        pair = _unordered(used[place], partners[place])
        return labels[pair[0]] != labels[pair[1]] and pair not in taken and counts[pair] == 1

    def exchange(place: int, other: int) -> None:
        for each in (place, other):
            counts[_unordered(used[each], partners[each])] -= 1
        partners[place], partners[other] = partners[other], partners[place]
        for each in (place, other):
            counts[_unordered(used[each], partners[each])] += 1

    for place in range(len(used)):
        if allowed(place):
            continue
        for _ in range(10 * len(used)):
            other = chance.randrange(len(used))
            exchange(place, other)
            if allowed(place) and allowed(other):
                break
            exchange(place, other)
        else:
            return False
    return all(map(allowed, range(len(used))))


def _unordered(first: int, second: int) -> tuple[int, int]:
    return (first, second) if first < second else (second, first)
