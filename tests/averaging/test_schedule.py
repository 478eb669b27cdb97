"""Which updates are averaged, and the arithmetic of the mean."""

import pytest
import torch

from hf_xlt.averaging.growing import GrowingAverage
from hf_xlt.averaging.schedule import Schedule, parse_every
from hf_xlt.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "max_steps", "interval", "expected"),
    [
        ({}, 20, None, (2, 4, 6, 8, 10, 12, 14, 16, 18, 20)),
        ({}, 25, None, (2, 5, 8, 10, 12, 15, 18, 20, 22, 25)),
        ({}, 3, None, (1, 2, 3)),
        ({"every": 0.3}, 10, None, (3, 6, 9, 10)),
        ({"every": 4}, 10, None, (4, 8, 10)),
        ({"every": 5.0}, 10, None, (5, 10)),
        ({"every": 99}, 10, None, (10,)),
        ({"every": "epoch"}, 10, 4, (4, 8, 10)),
        ({"every": "save"}, 9, 3, (3, 6, 9)),
        ({"start": 0.2}, 20, None, (4, 6, 8, 10, 12, 14, 16, 18, 20)),
        ({"start": 1.0}, 20, None, (20,)),
        ({"start": 11}, 20, None, (12, 14, 16, 18, 20)),
        ({"mode": "last_k", "last_k": 3}, 20, None, (16, 18, 20)),
        ({"mode": "last_k", "last_k": 99}, 4, None, (1, 2, 3, 4)),
    ],
)
def test_the_last_update_counts_exactly_once(settings, max_steps, interval, expected):
    schedule = Schedule(**settings)
    schedule.check()
    assert schedule.steps(max_steps, interval) == expected


def test_a_late_start_is_refused():
    with pytest.raises(ConfigError, match="starts at update 21, and training ends after 20"):
        Schedule(start=21).steps(20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "`every` is 0; give a share"),
        ({"every": 1.5}, "`every` is 1.5"),
        ({"every": True}, "`every` is True"),
        ({"every": "week"}, "`every` is 'week'"),
        ({"mode": "median"}, "choose one of uniform, weighted, last_k, ema"),
        ({"start": -0.1}, "`start` is -0.1"),
        ({"mode": "last_k"}, "`mode` last_k needs `last_k`"),
        ({"mode": "last_k", "last_k": 0}, "`last_k` is 0"),
        ({"last_k": 3}, "`last_k` is for `mode` last_k; it is uniform here"),
        ({"mode": "ema", "ema_decay": 1.0}, "`ema_decay` is 1.0"),
        ({"ema_decay": 0.5}, "`ema_decay` is for `mode` ema"),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(**settings).check()


def test_how_often_is_read_from_text():
    assert [parse_every(text) for text in ("0.1", "1", "250", "epoch", "save")] == [0.1, 1, 250, "epoch", "save"]
    with pytest.raises(ConfigError, match='`average_every="often"` is neither'):
        parse_every("often")


def snapshots(count=4):
    generator = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(5, 3, generator=generator)} for _ in range(count)]


def fill(average, values, weights=None):
    for number, value in enumerate(values):
        average.add(value, weights[number] if weights else 1.0, number + 1)
    return average.means["w"]


def test_an_exponential_mean_begins_with_a_copy_and_keeps_what_is_constant():
    values = snapshots()
    assert torch.equal(fill(GrowingAverage("cpu", torch.float32, 0.9), values[:1]), values[0]["w"])
    assert torch.equal(fill(GrowingAverage("cpu", torch.float32, 0.9), [values[0]] * 9), values[0]["w"])
    assert torch.equal(fill(GrowingAverage("cpu", torch.float32, 0.0), values), values[-1]["w"])
    expected = values[0]["w"]
    for value in values[1:]:
        expected = 0.75 * expected + 0.25 * value["w"]
    torch.testing.assert_close(fill(GrowingAverage("cpu", torch.float32, 0.75), values), expected)


def test_a_mean_of_halves_is_kept_above_their_precision():
    values = [{"w": value["w"].to(torch.bfloat16)} for value in snapshots(50)]
    mean = fill(GrowingAverage("cpu", torch.float32), values)
    torch.testing.assert_close(mean, torch.stack([value["w"].float() for value in values]).mean(0), rtol=0, atol=1e-6)


def test_weights_count_by_proportion():
    values = snapshots(3)
    mean = fill(GrowingAverage("cpu", torch.float64), values, [1.0, 2.0, 5.0])
    expected = sum(weight * value["w"].double() for weight, value in zip((1, 2, 5), values, strict=True)) / 8
    torch.testing.assert_close(mean, expected)


def test_a_snapshot_is_no_view_of_the_model():
    average, weights = GrowingAverage("cpu", torch.float32), torch.ones(3)
    average.add({"w": weights}, 1.0, 1)
    weights.zero_()
    assert torch.equal(average.means["w"], torch.ones(3))
