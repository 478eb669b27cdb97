"""The arithmetic of an average: against float64, byte by byte, in every format."""

import numpy as np
import pytest
import torch
from averaging_setup import load_average, make_state, rounded, save_state, save_states, weighted_mean

from hf_xlt.averaging import average_checkpoints
from hf_xlt.averaging.blocks import ELEMENTS
from hf_xlt.averaging.dtypes import narrow, widen
from hf_xlt.averaging.running import add_to_ema, add_to_mean
from hf_xlt.averaging.weights import as_fractions, ema_weights, snapshot_weights, summation
from hf_xlt.errors import ConfigError

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("count", [2, 5, 50])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_mean_is_the_float64_mean_rounded_once(tmp_path, dtype, count):
    states = [make_state(seed, dtype) for seed in range(count)]
    average_checkpoints(save_states(tmp_path, states), tmp_path / "out")
    found = load_average(tmp_path / "out")
    assert found.keys() == states[0].keys()
    for name, tensor in found.items():
        reference = weighted_mean(states, name, [1] * count)
        assert tensor.dtype == dtype
        if dtype == torch.float64:
            np.testing.assert_allclose(tensor.numpy(), reference, rtol=1e-13, atol=1e-17)
        else:
            # Half precision is summed in 32 bits, whose last bit can decide a tie; nothing else may differ.
            wrong = (tensor != rounded(reference, dtype)).double().mean()
            assert wrong <= (0.01 if dtype != torch.float32 else 0.0), name


@pytest.mark.parametrize("accumulate", ["auto", "float32", "float64"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 3, 7])
def test_copies_give_back_the_same_bytes(tmp_path, dtype, accumulate, count):
    state = make_state(3, dtype)
    average_checkpoints(save_states(tmp_path, [state] * count), tmp_path / "out", accumulate=accumulate)
    found = load_average(tmp_path / "out")
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_copies_with_uneven_weights_and_ema_give_back_the_same_bytes(tmp_path):
    places = save_states(tmp_path, [make_state(3)] * 4)
    for number, settings in enumerate(({"weights": [0.1, 0.7, 0.15, 0.3]}, {"ema_decay": 0.9}, {"ema_decay": 0.37})):
        for accumulate in ("float32", "float64"):
            output = tmp_path / f"out-{number}-{accumulate}"
            average_checkpoints(places, output, accumulate=accumulate, **settings)
            assert all(torch.equal(tensor, make_state(3)[name]) for name, tensor in load_average(output).items())


def test_order_and_repetition_change_nothing_beyond_rounding(tmp_path):
    places = save_states(tmp_path, [make_state(seed) for seed in range(5)])
    for name, order in (("one", places), ("two", places[::-1]), ("three", places)):
        average_checkpoints(order, tmp_path / name)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three")]
    assert files[0] == files[2]
    one, two = load_average(tmp_path / "one"), load_average(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], rtol=1e-6) for name in one)


def test_weights(tmp_path):
    states = [make_state(seed) for seed in range(3)]
    places = save_states(tmp_path, states)

    def average(name, weights, inputs=places, **settings):
        average_checkpoints(inputs, tmp_path / name, weights=weights, **settings)
        return load_average(tmp_path / name)

    assert all(torch.equal(tensor, states[0][name]) for name, tensor in average("first", (1, 0, 0)).items())
    plain = average("plain", (1, 2, 1))
    for name, weights in (("scaled", (3, 6, 3)), ("decimals", ("0.1", "0.2", "0.1")), ("floats", (0.3, 0.6, 0.3))):
        assert all(torch.equal(tensor, plain[key]) for key, tensor in average(name, weights).items()), name
    copies = [*places[:2], save_state(tmp_path / "copy", states[1]), places[2]]
    repeated = average("repeated", None, copies)
    assert all(torch.equal(tensor, repeated[name]) for name, tensor in plain.items())
    for name, tensor in average("fractions", (0.5, 1.25, 3.1)).items():
        reference = weighted_mean(states, name, (0.5, 1.25, 3.1))
        assert torch.equal(tensor, rounded(reference, torch.float32))
    with pytest.raises(ConfigError, match="sum to 0"):
        average("zero", (0, 0, 0))
    with pytest.raises(ConfigError, match="negative"):
        average("negative", (1, -1, 3))
    for name, tensor in average("allowed", (1, -1, 3), allow_negative=True).items():
        assert torch.equal(tensor, rounded(weighted_mean(states, name, (1, -1, 3)), torch.float32))
    with pytest.raises(ConfigError, match="2 weights for 3"):
        average("few", (1, 2))
    with pytest.raises(ConfigError, match="finite"):
        average("nan", (1, float("nan"), 2))
    assert not (tmp_path / "zero").exists()


def test_ema_is_its_recurrence(tmp_path):
    states = [make_state(seed) for seed in range(4)]
    places = save_states(tmp_path, states)
    average_checkpoints(places, tmp_path / "out", ema_decay=0.7)
    for name, tensor in load_average(tmp_path / "out").items():
        mean = states[0][name].double()
        for state in states[1:]:
            mean = 0.7 * mean + 0.3 * state[name].double()
        assert torch.allclose(tensor.double(), mean, rtol=1e-7, atol=1e-9)
    average_checkpoints(places, tmp_path / "last", ema_decay=0)
    assert all(torch.equal(tensor, states[-1][name]) for name, tensor in load_average(tmp_path / "last").items())
    average_checkpoints(places[:1], tmp_path / "one", ema_decay=0.9)
    assert all(torch.equal(tensor, states[0][name]) for name, tensor in load_average(tmp_path / "one").items())
    for decay in (-0.1, 1, 1.5):
        with pytest.raises(ConfigError, match="at least 0 and below 1"):
            average_checkpoints(places, tmp_path / "bad", ema_decay=decay)
    assert sum(ema_weights(5, as_fractions(["0.9"])[0])) == 1


def test_per_run_weights():
    weights = snapshot_weights(["a", "a", "a", "b"], per_run=True)
    assert [float(weight) for weight in weights] == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert summation(weights) == ([1.0, 1.0, 1.0, 3.0], 6.0)
    assert summation(snapshot_weights(["a"] * 5)) == ([1.0] * 5, 5.0)


def test_running_mean_equals_the_mean_on_disk(tmp_path):
    states = [make_state(seed) for seed in range(6)]
    weights = [1.0, 2.0, 0.5, 1.0, 3.0, 1.0]
    average_checkpoints(save_states(tmp_path, states), tmp_path / "out", weights=weights)
    average_checkpoints([tmp_path / f"c{n}" for n in range(6)], tmp_path / "ema", ema_decay=0.8)
    for name, tensor in load_average(tmp_path / "out").items():
        mean, ema, total = torch.full_like(tensor, 7.0), torch.full_like(tensor, 7.0), 0.0
        for number, (state, weight) in enumerate(zip(states, weights, strict=True)):
            total += weight
            add_to_mean(mean, state[name], weight, total)
            add_to_ema(ema, state[name], 0.8, first=number == 0)
        assert torch.allclose(mean, tensor, rtol=1e-6, atol=1e-8)
        assert torch.allclose(ema, load_average(tmp_path / "ema")[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("out", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("accumulate", ["auto", "float32"])
def test_output_format(tmp_path, out, accumulate):
    states = [make_state(0), make_state(1, torch.bfloat16), make_state(2, torch.float16)]
    places = save_states(tmp_path, states)
    with pytest.raises(ConfigError, match="BF16.*`dtype"):
        average_checkpoints(places, tmp_path / "out")
    average_checkpoints(places, tmp_path / "out", dtype=out, accumulate=accumulate)
    for name, tensor in load_average(tmp_path / "out").items():
        reference = weighted_mean(states, name, [1, 1, 1])
        assert tensor.dtype == getattr(torch, out)
        if accumulate == "auto" and out != "float64":
            assert torch.equal(tensor, rounded(reference, tensor.dtype)), name
        else:
            tolerance = {"bfloat16": 8e-3, "float16": 2e-3}.get(out, 2e-6)
            np.testing.assert_allclose(tensor.double().numpy(), reference, rtol=tolerance, atol=1e-7)
    with pytest.raises(ConfigError, match="int8"):
        average_checkpoints(places, tmp_path / "other", dtype="int8")


def test_many_blocks_and_all_threads(tmp_path):
    shapes = {"a": (3 * ELEMENTS + 17,), "b": (5,), "c": (ELEMENTS,), "d": (2, 3)}
    states = [make_state(seed, shapes=shapes) for seed in range(3)]
    average_checkpoints(save_states(tmp_path, states), tmp_path / "out")
    for name, tensor in load_average(tmp_path / "out").items():
        assert torch.equal(tensor, rounded(weighted_mean(states, name, [1, 1, 1]), torch.float32))


def test_whole_numbers_are_copied_and_counters_are_the_last(tmp_path):
    def state(step, **changes):
        return {
            **make_state(step),
            "ids": torch.arange(9),
            "mask": torch.tensor([True, False, True]),
            "empty": torch.zeros(0, 4),
            "norm.num_batches_tracked": torch.tensor(step),
            "norm.running_mean": torch.full((4,), float(step)),
            **changes,
        }

    places = save_states(tmp_path, [state(1), state(2), state(13)])
    report = average_checkpoints(places, tmp_path / "out")
    found = load_average(tmp_path / "out")
    assert found.keys() == state(0).keys()
    assert torch.equal(found["ids"], torch.arange(9)) and found["mask"].tolist() == [True, False, True]
    assert found["norm.num_batches_tracked"].item() == 13 and found["norm.running_mean"].tolist() == [13.0] * 4
    assert found["empty"].shape == (0, 4)
    assert report.tensors == {"averaged": 5, "copied": 4}
    assert any("recalibrate" in note for note in report.notes)
    for name, value in (("ids", torch.arange(1, 10)), ("mask", torch.tensor([True, True, True]))):
        save_state(tmp_path / "c2", state(13, **{name: value}))
        with pytest.raises(ConfigError, match=f"`{name}` differs between .*c0.* and .*c2"):
            average_checkpoints(places, tmp_path / "differs")
        assert not (tmp_path / "differs").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_not_finite_numbers_are_named(tmp_path, value, dtype):
    states = [make_state(seed, dtype) for seed in range(3)]
    states[1]["body.weight"][2, 3] = value
    states[1]["body.weight"][5, 3] = value
    places = save_states(tmp_path, states)
    with pytest.raises(ConfigError, match="c1/model.safetensors.* holds 2 numbers in `body.weight`"):
        average_checkpoints(places, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    average_checkpoints(places, tmp_path / "out", allow_non_finite=True)
    assert not torch.isfinite(load_average(tmp_path / "out")["body.weight"][2, 3])


def test_copied_numbers_are_finite_too(tmp_path):
    state = {**make_state(0), "norm.running_var": torch.tensor([1.0, float("nan")])}
    with pytest.raises(ConfigError, match="holds 1 numbers in `norm.running_var`"):
        average_checkpoints(save_states(tmp_path, [state, state]), tmp_path / "out")


def test_a_mean_too_large_for_its_format_is_refused(tmp_path):
    places = save_states(tmp_path, [{"weight": torch.tensor([70000.0])}] * 2)
    with pytest.raises(ConfigError, match="too large"):
        average_checkpoints(places, tmp_path / "out", dtype="float16")
    average_checkpoints(places, tmp_path / "out", dtype="bfloat16")


def test_narrowing_to_bfloat16_is_that_of_torch():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    out = np.empty(len(numbers), np.uint16)
    with np.errstate(all="ignore"):
        narrow(numbers, "BF16", out)
    found = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
    wanted = torch.from_numpy(numbers.copy()).to(torch.bfloat16)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found[~found.isnan()], wanted[~wanted.isnan()])
    # A tie of the second rounding that the first one made: 1 + 2^-8 and a little more goes up, exactly it goes down.
    ties = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8, 1 + 2**-8 - 2**-40, -(1 + 2**-8 + 2**-40)])
    out = np.empty(4, np.uint16)
    narrow(ties, "BF16", out)
    found = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16).double().tolist()
    assert found == [1 + 2**-7, 1.0, 1.0, -(1 + 2**-7)]


@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_widening_is_exact_for_every_half(wide):
    bits = np.arange(65536, dtype=np.uint16)
    for dtype, view in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        source = bits.view(np.float16) if dtype == "F16" else bits
        out = widen(source, dtype, np.empty(65536, wide))
        wanted = torch.from_numpy(bits.view(np.int16)).view(view).to(torch.float64).numpy()
        np.testing.assert_array_equal(out.astype(np.float64), wanted)
