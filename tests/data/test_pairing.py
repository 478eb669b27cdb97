"""Pairs of sentences: balanced, without repetition, and such that one side tells nothing."""

import random
from collections import Counter

import pytest

from hf_xlt.data.pairing import SAME, pair_sentences
from hf_xlt.errors import ConfigError

CASES = {
    "uneven": ([51, 16, 20, 30, 40, 25, 22], 2),
    "many pairs": ([51, 17, 20, 30, 40, 25, 22], 8),
    "two labels": ([20, 20], 4),
    "smallest": ([3, 3], 2),
    "largest has half": ([30, 20, 10], 2),
}


def labels_of(sizes):
    labels = [f"topic{number}" for number, size in enumerate(sizes) for _ in range(size)]
    random.Random(1).shuffle(labels)
    return labels


@pytest.mark.parametrize("name", CASES)
def test_every_sentence_stands_on_either_side_in_as_many_pairs_of_either_kind(name):
    sizes, number = CASES[name]
    labels = labels_of(sizes)
    pairing = pair_sentences(labels, number, "0")
    sides = Counter((side, index, kind) for *pair, kind in pairing.pairs for side, index in enumerate(pair))
    assert sides == dict.fromkeys(
        [(side, index, kind) for side in (0, 1) for index in range(len(labels)) for kind in (0, 1)], number // 2
    )
    assert pairing.used == tuple(range(len(labels))) and not pairing.notes


@pytest.mark.parametrize("name", CASES)
def test_labels_are_right_and_no_pair_comes_twice(name):
    sizes, number = CASES[name]
    labels = labels_of(sizes)
    pairs = pair_sentences(labels, number, "0").pairs
    assert all((labels[one] == labels[two]) == (kind == SAME) for one, two, kind in pairs)
    assert all(one != two for one, two, _ in pairs)
    assert len({frozenset(pair[:2]) for pair in pairs}) == len(pairs) == number * len(labels)


def test_different_pairs_spread_over_all_pairs_of_labels():
    labels = labels_of([51, 16, 20, 30, 40, 25, 22])
    met = Counter(
        (labels[one], labels[two]) for one, two, kind in pair_sentences(labels, 8, "0").pairs if kind != SAME
    )
    assert len(met) == 7 * 6
    # About as often as labels would meet by chance, other labels given.
    for (one, two), count in met.items():
        expected = 4 * labels.count(one) * labels.count(two) / (204 - labels.count(one))
        assert 0.3 * expected - 4 < count < 2 * expected + 4


def test_the_seed_decides_and_nothing_else():
    labels = labels_of([9, 8, 7])
    first = pair_sentences(labels, 2, "0")
    assert first == pair_sentences(labels, 2, "0") and first.pairs != pair_sentences(labels, 2, "1").pairs
    # Both kinds are mixed, so that a part of the rows is no one-sided sample.
    assert 0.2 < sum(kind for *_, kind in first.pairs[:24]) / 24 < 0.8


def test_what_has_no_partner_is_left_out_and_said():
    pairing = pair_sentences(labels_of([2, 9, 30]), 2, "0")
    assert len(pairing.used) == 18 and len(pairing.notes) == 2
    assert "`topic0` is left out" in pairing.notes[0] and "21 sentences of `topic2`" in pairing.notes[1]


@pytest.mark.parametrize(
    ("sizes", "number", "expected"),
    [
        ([9, 9], 3, "give an even number"),
        ([9, 9], 0, "give an even number"),
        ([9, 2], 2, "same and different pairs need two labels"),
        ([9, 5], 6, "`topic1` has 5 sentences, enough for 4 pairs"),
    ],
)
def test_impossible_numbers_are_refused(sizes, number, expected):
    with pytest.raises(ConfigError, match=expected):
        pair_sentences(labels_of(sizes), number, "0")
