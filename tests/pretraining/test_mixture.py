"""The mixture of languages: its distribution, its draws, and that both are functions of a position alone."""

import numpy as np
import pytest

from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.mixture import LanguageSampler, effective_epochs, temperature_distribution

SIZES = {"a": 300, "b": 10, "c": 1, "d": 0.1}


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (1, (0.9643, 0.0321, 0.0032, 0.0003)),
        (0.7, (0.8972, 0.0830, 0.0166, 0.0033)),
        (0.5, (0.7946, 0.1451, 0.0459, 0.0145)),
        (0.3, (0.6129, 0.2209, 0.1107, 0.0555)),
        (0, (0.25, 0.25, 0.25, 0.25)),
    ],
)
def test_the_distribution_is_that_of_the_table(alpha, expected):
    shares = temperature_distribution(SIZES, alpha)
    assert [round(share, 4) for share in shares.values()] == list(expected)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-12)


def test_the_unit_of_the_sizes_does_not_matter():
    one, other = (temperature_distribution({k: v * scale for k, v in SIZES.items()}, 0.7) for scale in (1, 1e9))
    assert list(one.values()) == pytest.approx(list(other.values()), rel=1e-12)


def test_one_language_has_all():
    assert temperature_distribution({"en": 5}, 0.7) == {"en": 1.0}


def test_floors_hold_and_the_rest_keeps_its_proportions():
    plain = temperature_distribution(SIZES, 0.5)
    shares = temperature_distribution(SIZES, 0.5, {"d": 0.2, "a": 0.1})
    assert shares["d"] == pytest.approx(0.2) and sum(shares.values()) == pytest.approx(1)
    assert shares["a"] / shares["b"] == pytest.approx(plain["a"] / plain["b"])


def test_raising_one_language_may_push_another_below_its_floor():
    shares = temperature_distribution({"a": 50, "b": 30, "c": 20}, 1, {"c": 0.6, "b": 0.25})
    assert shares == pytest.approx({"a": 0.15, "b": 0.25, "c": 0.6})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, 0.5), "no language to sample"),
        (({"en": 1}, -0.1), "`alpha` is -0.1"),
        (({"en": 1}, float("inf")), "`alpha` is inf"),
        (({"en": 1, "sw": 0}, 0), "`sw` has no text"),
        (({"en": 1}, 1, {"fr": 0.1}), "`fr`, which has no text"),
        (({"en": 1, "fr": 1}, 1, {"fr": 0.7, "en": 0.7}), "sum to at most 1"),
    ],
)
def test_what_cannot_be_a_mixture_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        temperature_distribution(*arguments)


def test_effective_epochs():
    assert effective_epochs({"a": 0.25, "b": 0.75}, {"a": 10, "b": 300}, 400) == {"a": 10, "b": 1}


def chi_square(counts, shares):
    expected = np.array(shares) * counts.sum()
    return ((counts - expected) ** 2 / expected).sum()


# 99.9 % quantiles of chi-square with 3 degrees of freedom.
LIMIT = 16.27


@pytest.mark.parametrize("alpha", [1, 0.7, 0.3, 0])
@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_thousand_draws_follow_the_distribution(alpha, seed):
    shares = temperature_distribution({"a": 30, "b": 10, "c": 5, "d": 2}, alpha)
    sampler = LanguageSampler(shares, seed)
    draws = sampler.draw(0, 20_000)
    assert chi_square(np.bincount(draws, minlength=4), list(shares.values())) < LIMIT
    # The rows of each of two processes with two loader workers, 16 rows a batch, follow it too.
    batches = draws.reshape(-1, 16)
    for reader in range(4):
        counts = np.bincount(batches[reader::4].ravel(), minlength=4)
        assert chi_square(counts, list(shares.values())) < LIMIT


def test_successive_draws_are_independent():
    sampler = LanguageSampler({"a": 0.5, "b": 0.5}, 3)
    draws = sampler.draw(0, 20_000)
    pairs = np.bincount(draws[:-1] * 2 + draws[1:], minlength=4)
    assert chi_square(pairs, [0.25] * 4) < LIMIT


def test_a_draw_is_a_function_of_its_position():
    whole = LanguageSampler({"a": 0.3, "b": 0.7}, 1, "x").draw(0, 5000)
    other = LanguageSampler({"a": 0.3, "b": 0.7}, 1, "x")
    for start, count in ((4990, 10), (1020, 10), (0, 1), (2048, 1024), (17, 3000)):
        assert (other.draw(start, count) == whole[start : start + count]).all()
    assert not (LanguageSampler({"a": 0.3, "b": 0.7}, 2, "x").draw(0, 5000) == whole).all()


def test_positions_within_a_language_count_its_earlier_rows():
    sampler = LanguageSampler({"a": 0.3, "b": 0.7}, 1)
    whole, places = sampler.places(0, 3000)
    for index in (0, 1):
        assert (places[whole == index] == np.arange((whole == index).sum())).all()
    languages, later = LanguageSampler({"a": 0.3, "b": 0.7}, 1).places(1500, 1500)
    assert (languages == whole[1500:]).all() and (later == places[1500:]).all()
    assert sampler.counts_before(1500).tolist() == np.bincount(whole[:1500]).tolist()


def test_a_least_share_is_the_languages_under_any_code():
    sizes = {"eng_Latn": 1.0, "de": 9.0}
    assert temperature_distribution(sizes, 1.0, {"en": 0.4}) == pytest.approx({"eng_Latn": 0.4, "de": 0.6})
