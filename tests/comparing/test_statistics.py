"""Intervals and tests against scipy and against planted data."""

import itertools

import numpy as np
import pytest
from scipy import stats

from hf_xlt.comparing.statistics import (
    PairedItems,
    average_differences,
    bootstrap_interval,
    bootstrap_runs,
    holm,
    item_test,
    sign_flip_test,
)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [0.1, -0.2, 0.3, 0.4, 0.05], [0.0, 0.0], [1.0, -1.0, 1.0]])
def test_sign_flips_are_those_of_scipy(values):
    expected = stats.permutation_test(
        (np.array(values),), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    ).pvalue
    by_hand = np.mean(
        [
            abs(np.dot(signs, values)) >= abs(sum(values)) - 1e-12
            for signs in itertools.product((-1, 1), repeat=len(values))
        ]
    )
    assert sign_flip_test(values) == by_hand == pytest.approx(expected)


def listed_flips(values):
    """The share of all sign flips as far from 0 as the values, counted one by one in whole numbers."""
    observed = abs(sum(values))
    flips = itertools.product((-1, 1), repeat=len(values))
    return sum(abs(np.dot(signs, values)) >= observed for signs in flips) / 2 ** len(values)


def test_p_values_are_those_of_flips_counted_one_by_one():
    generator = np.random.default_rng(7)
    for _ in range(40):
        whole = generator.integers(-6, 7, generator.integers(1, 10))
        assert sign_flip_test((whole / 10).tolist()) == listed_flips(whole.tolist())
    assert sign_flip_test([0.3]) == 1.0
    # As found before the library did it.
    assert sign_flip_test([0.45, 1.12, 0.63, -0.1, 1.21, 0.75, -0.24, 0.88, 0.66, 0.59, 0.33, 0.85]) == 0.00244140625


def test_five_runs_cannot_reach_five_percent():
    assert sign_flip_test([1.0, 1.1, 0.9, 1.2, 1.3]) == 2 / 2**5
    assert sign_flip_test([1.0] * 6) == 2 / 2**6
    assert sign_flip_test([]) == 1.0


def test_rounding_does_not_tell_equal_means_apart():
    # 0.1 + 0.2 is not 0.3 in floating point; the flip that gives 0.3 - 0.1 - 0.2 must count as 0.
    assert sign_flip_test([0.1, 0.2, -0.3]) == 1.0


def test_many_differences_are_drawn_and_agree_with_the_normal_law():
    values = np.random.default_rng(0).normal(0.3, 1.0, 60)
    expected = stats.ttest_1samp(values, 0).pvalue
    assert sign_flip_test(values) == pytest.approx(expected, abs=0.01)
    assert sign_flip_test(values) == sign_flip_test(values)
    assert sign_flip_test(np.full(40, 1.0), draws=999) == 1 / 1000


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    assert holm([0.2]) == [0.2]


def accuracy_items(generator, runs, count, ours, theirs):
    sides = [(generator.random((runs, count)) < share).astype(float) for share in (ours, theirs)]
    return PairedItems(*(np.stack([side, np.ones_like(side)], axis=-1) for side in sides))


def test_differences_are_those_of_the_metrics():
    generator = np.random.default_rng(1)
    items = {code: accuracy_items(generator, 3, size, 0.6, 0.5) for code, size in (("de", 40), ("sw", 70))}
    expected = np.mean([entry.ours[..., 0].mean(1) - entry.theirs[..., 0].mean(1) for entry in items.values()], axis=0)
    np.testing.assert_allclose(average_differences(items), expected)
    # F1 over spans is a ratio of sums, not a mean of ratios.
    ours = np.array([[[2.0, 4.0], [0.0, 2.0]]])
    theirs = np.array([[[0.0, 0.0], [2.0, 2.0]]])
    assert average_differences({"de": PairedItems(ours, theirs)}) == pytest.approx([2 / 6 - 1.0])


def test_one_run_and_one_language_give_the_bootstrap_of_scipy():
    items = accuracy_items(np.random.default_rng(2), 1, 300, 0.6, 0.5)
    gaps = items.ours[0, :, 0] - items.theirs[0, :, 0]
    expected = stats.bootstrap((gaps,), np.mean, method="percentile", n_resamples=4000, random_state=0)
    low, high = bootstrap_interval({"de": items}, draws=4000)
    interval = expected.confidence_interval
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.01)


def test_runs_alone_give_the_bootstrap_of_scipy():
    values = [1.0, 2.0, -0.5, 0.7, 1.1]
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, random_state=0)
    assert bootstrap_runs(values) == pytest.approx(tuple(expected.confidence_interval), abs=0.05)


def test_the_interval_covers_both_sources_of_noise():
    """Seeds that differ widen it, and so do few items."""
    generator = np.random.default_rng(3)
    steady = accuracy_items(generator, 4, 400, 0.6, 0.5)
    shifted = steady.ours.copy()
    shifted[0, :, 0], shifted[1, :, 0] = 1.0, 0.2
    widths = [
        np.diff(bootstrap_interval({"de": entry}))[0]
        for entry in (
            steady,
            PairedItems(shifted, steady.theirs),
            PairedItems(steady.ours[:, :40], steady.theirs[:, :40]),
        )
    ]
    assert widths[1] > 3 * widths[0] and widths[2] > 2 * widths[0]


def test_parallel_languages_are_not_counted_as_independent():
    items = accuracy_items(np.random.default_rng(4), 1, 200, 0.6, 0.5)
    one = np.diff(bootstrap_interval({"de": items}))[0]
    four = np.diff(bootstrap_interval(dict.fromkeys(("de", "sw", "zh", "ar"), items)))[0]
    assert four == pytest.approx(one)
    assert item_test(dict.fromkeys(("de", "sw"), items)) == pytest.approx(item_test({"de": items}), abs=0.02)


def test_items_of_one_run_give_the_sign_flips_over_items():
    items = accuracy_items(np.random.default_rng(5), 1, 12, 0.8, 0.3)
    exact = sign_flip_test(items.ours[0, :, 0] - items.theirs[0, :, 0])
    assert item_test({"de": items}) == pytest.approx(exact, abs=0.02)


def test_the_item_test_keeps_its_level_and_finds_planted_differences():
    generator = np.random.default_rng(6)
    nothing = [item_test({"de": accuracy_items(generator, 2, 100, 0.5, 0.5)}, draws=400) for _ in range(200)]
    assert 0.01 < np.mean(np.array(nothing) < 0.05) < 0.10
    assert item_test({"de": accuracy_items(generator, 2, 300, 0.7, 0.5)}) < 0.01
