"""Few shots: nested, stratified, seeded."""

from collections import Counter

import pytest

from hf_xlt.data.shots import shot_order

LABELS = [0] * 70 + [1] * 20 + [2] * 10


def test_the_order_is_a_permutation_and_a_function_of_seed_and_language():
    order = shot_order(LABELS, 100, seed=1, language="de")
    assert sorted(order) == list(range(100))
    assert order == shot_order(LABELS, 100, seed=1, language="de")
    assert order != shot_order(LABELS, 100, seed=2, language="de")
    assert order != shot_order(LABELS, 100, seed=1, language="sw")


@pytest.mark.parametrize("budget", [10, 20, 50, 80])
def test_every_budget_has_the_classes_shares(budget):
    for seed in range(5):
        taken = Counter(LABELS[index] for index in shot_order(LABELS, 100, seed=seed, language="de")[:budget])
        for label, share in ((0, 0.7), (1, 0.2), (2, 0.1)):
            assert abs(taken[label] - share * budget) <= 1


def test_without_classes_the_order_is_a_plain_permutation():
    assert sorted(shot_order(None, 30, seed=0, language="de")) == list(range(30))
