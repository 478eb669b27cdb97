"""Target batches and their split, source sampling, the transformation network and its settings."""

import dataclasses
from collections import Counter

import pytest
import torch
from tiny import make_features

from hf_xlt.errors import ConfigError
from hf_xlt.randomness import keyed_generator
from hf_xlt.strategies.metaxl import STRATEGY, MetaXLConfig
from hf_xlt.strategies.metaxl.rtn import RepresentationTransformation
from hf_xlt.strategies.metaxl.source_sampling import SourceSampler
from hf_xlt.strategies.metaxl.target_batches import TargetDraw, select_rows, target_pools, train_rows


def config(**changes):
    return MetaXLConfig(output_dir="unused", use_cpu=True, report_to="none", **changes)


# ---- The split of a target batch


@pytest.mark.parametrize(
    ("size", "portion", "first", "count"),
    [(10, 2, [0, 1, 2, 3, 4], 5), (5, 2, [0, 1], 2), (7, 3, [0, 1], 2), (9, 4, [0, 1], 2), (4, 4, [0], 1)],
)
def test_the_first_part_trains_as_in_the_published_code(size, portion, first, count):
    flags = train_rows(size, portion, "first")
    assert [place for place, flag in enumerate(flags) if flag] == first and sum(flags) == count


@pytest.mark.parametrize("portion", [2, 3, 4])
def test_every_portion_th_example_trains_for_any_number_of_processes(portion):
    whole = train_rows(4 * portion, portion, "position")
    assert whole == train_rows(2 * portion, portion, "position") * 2 == train_rows(portion, portion, "position") * 4
    assert sum(whole) == 4 and whole[0] and not whole[1]


def test_a_batch_too_small_or_uneven_is_refused():
    with pytest.raises(ConfigError, match="a target batch of 2 cannot be split with `portion` 3"):
        train_rows(2, 3, "first")
    with pytest.raises(ConfigError, match="5 is no multiple of `portion` 2.*`batch_split` to first"):
        train_rows(5, 2, "position")


def test_parts_are_disjoint_and_whole():
    batch = {"input_ids": torch.arange(6)[:, None], "labels": torch.arange(6)}
    draw = TargetDraw(lambda pool, start, count: batch, 6, 3, "position", True)
    train, meta = draw.batch(0)
    assert train["labels"].tolist() == [0, 3] and meta["labels"].tolist() == [1, 2, 4, 5]
    assert select_rows(batch, [False] * 5 + [True])["input_ids"].tolist() == [[5]]


def test_without_a_new_split_an_example_is_for_ever_in_one_part(kit):
    seen = {}
    for resplit in (True, False):
        trainer = kit.trainer(target_resplit=resplit, per_device_train_batch_size=4)
        parts = [Counter(), Counter()]
        for slot in range(12):
            for counter, part in zip(parts, trainer.targets.batch(slot), strict=True):
                counter.update(tuple(token for token in row if token) for row in part["input_ids"].tolist())
        seen[resplit] = parts
    assert set(seen[True][0]) & set(seen[True][1])
    assert not set(seen[False][0]) & set(seen[False][1])
    # Both have seen every example.
    assert len(set(seen[False][0]) | set(seen[False][1])) == len(set(seen[True][0]) | set(seen[True][1]))


@pytest.mark.parametrize("resplit", [True, False])
def test_the_record_names_the_target_languages(kit, resplit):
    target = {code: make_features(count, seed=3, language=code) for code, count in (("de", 7), ("sw", 4))}
    facts = kit.trainer(target=target, target_resplit=resplit).phase_facts()["metaxl"]
    assert facts["target_examples"] == {"de": 7, "sw": 4}
    assert facts.get("target_parts") == (None if resplit else {"train": 6, "meta": 5})


def test_pools_join_languages_and_need_both_parts():
    assert len(target_pools({"de": [1, 2], "sw": [3]}, None)["pool"]) == 3
    with pytest.raises(ConfigError, match="1 target examples cannot be parted"):
        target_pools({"de": [1]}, 2)


# ---- Source sampling


SIZES = {"en": 100, "de": 900, "fr": 400}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("proportional", [1 / 14, 9 / 14, 4 / 14]),
        ("temperature", [1 / 6, 3 / 6, 2 / 6]),
        ("exp3", [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_probabilities_follow_the_rule_and_draws_follow_them(rule, expected):
    sampler = SourceSampler(SIZES, rule, seed=0, temperature=2.0)
    assert sampler.probabilities().tolist() == pytest.approx(expected)
    starts = {language: [] for language in SIZES}
    for update in range(3000):
        language, start = sampler.draw(update, 7)
        starts[language].append(start)
    shares = [sampler.updates[language] / 3000 for language in SIZES]
    assert shares == pytest.approx(expected, abs=0.03)
    # Each language's stream is read without gaps.
    assert all(places == list(range(0, 7 * len(places), 7)) for places in starts.values())


def test_the_bandit_follows_its_formula_and_does_not_overflow():
    sampler, gamma = SourceSampler(SIZES, "exp3", seed=0, exploration=0.1), 0.1
    weights = [1.0, 1.0, 1.0]
    for language, loss in (("de", 1.0), ("de", 2.0), ("fr", 9.0), ("en", 0.0)):
        place, total = list(SIZES).index(language), sum(weights)
        probability = (1 - gamma) * weights[place] / total + gamma / 3
        weights[place] *= torch.tensor(gamma * min(loss / 2.5, 1.0) / probability / 3).exp().item()
        sampler.reward(language, loss)
    expected = [(1 - gamma) * weight / sum(weights) + gamma / 3 for weight in weights]
    assert sampler.probabilities().tolist() == pytest.approx(expected, rel=1e-6)
    for _ in range(20_000):
        sampler.reward("de", 2.0)
    assert torch.isfinite(sampler.probabilities()).all() and sampler.probabilities()[0] > 0.03
    kept = sampler.log_weights.clone()
    sampler.reward("de", float("nan"))
    assert torch.equal(kept, sampler.log_weights)


def test_an_update_trains_on_one_language_and_the_bandit_learns(kit):
    # `en` and `de` have inputs of different words, so a batch tells its language.
    rows = make_features(40)
    sources = {"en": [row for row in rows if row["labels"] == 0], "de": [row for row in rows if row["labels"] == 2]}
    trainer = kit.trainer(source=rows, sources=sources, source_sampling="exp3", inner_lr=0.1, max_steps=8)
    seen, original = [], trainer.meta_gradient

    def spy(rate):
        seen.append((trainer.update_language, set(trainer._sources[0]["labels"].tolist())))
        return original(rate)

    trainer.meta_gradient = spy
    trainer.train()
    assert {language for language, _ in seen} == {"en", "de"}
    assert all(labels == ({0} if language == "en" else {2}) for language, labels in seen)
    assert trainer.sampler.log_weights.ne(0).any()
    assert sum(trainer.phase_facts()["metaxl"]["updates_by_source"].values()) == 8


def test_sampling_needs_several_languages(kit):
    with pytest.raises(ConfigError, match="`source_sampling` uniform draws among source languages, and there are 0"):
        kit.trainer(source_sampling="uniform")


# ---- The network


@pytest.mark.parametrize(("bottleneck", "size"), [(192, 296_065), (384, 591_361)])
def test_the_tied_network_has_two_layers_and_one_more_output(bottleneck, size):
    assert size == (768 * bottleneck + bottleneck) + (769 * bottleneck + 769)
    rtn = RepresentationTransformation(768, 1, bottleneck=bottleneck, generator=keyed_generator(0))
    assert sum(parameter.numel() for parameter in rtn.parameters()) == size


@pytest.mark.parametrize("gate", ["tied", "separate", "none"])
def test_zero_out_starts_as_no_change_and_can_learn(gate):
    rtn = RepresentationTransformation(8, 1, bottleneck=4, gate=gate, init="zero_out", generator=keyed_generator(0))
    change, value = rtn.slots[0](torch.randn(2, 3, 8))
    assert not change.any() and (value is None) == (gate == "none")
    assert gate != "tied" or value.eq(0.5).all()
    fresh, _ = rtn.slots[0](torch.randn(2, 3, 8))
    (fresh - 1).pow(2).sum().backward()
    assert rtn.slots[0].up.weight.grad.abs().sum() > 0 and rtn.slots[0].up.bias.grad.abs().sum() > 0
    drawn = RepresentationTransformation(8, 1, bottleneck=4, gate=gate, generator=keyed_generator(0))
    assert drawn.slots[0](torch.randn(2, 3, 8))[0].abs().sum() > 0


def test_the_networks_weights_are_a_function_of_the_seed_alone(kit):
    one, two = (kit.trainer(kit.model(), seed=1).rtn.state_dict() for _ in range(2))
    other = kit.trainer(kit.model(), seed=2).rtn.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["slots.0.down.weight"], other["slots.0.down.weight"])
    state = torch.get_rng_state()
    RepresentationTransformation(8, 2, gate="separate", bottleneck=4, generator=keyed_generator(0))
    assert torch.equal(state, torch.get_rng_state())


# ---- Settings


def test_wrong_values_are_listed_at_once():
    with pytest.raises(ConfigError) as error:
        config(portion=1, meta_every=0, rtn_lr=-1.0, hypergrad="exactly", fd_scale=0.0, rtn_layers=[])
    for name in ("portion", "meta_every", "rtn_lr", "hypergrad", "fd_scale", "rtn_layers"):
        assert f"`{name}`" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hypergrad": "none", "update_order": "reuse"}, "reuse does not go with hypergrad none"),
        ({"hypergrad": "none", "source_sampling": "exp3"}, "exp3 learns from the meta loss"),
        ({"method": "joint", "inner_target_loss": False}, "leaves method joint without its target loss"),
        ({"hypergrad": "finite_difference", "rtn_detach_input": False}, "steps over the kinks of relu"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fsdp": "full_shard"}, "FSDP and DeepSpeed shard the weights"),
        ({"torch_compile": True}, "`torch_compile` is not supported"),
        ({"fp16": True}, "fp16 scales losses"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is not supported"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` is not supported"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "reentrant activation checkpointing",
        ),
        ({"optim": "lomo"}, "update weights within a backward pass"),
    ],
)
def test_what_does_not_go_with_the_method_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        made = config()
        for name, value in settings.items():
            setattr(made, name, value)
        STRATEGY.check(made, "text-classification")


def test_the_config_survives_json():
    made = config(rtn_layers=[1, -1], hypergrad="finite_difference")
    again = MetaXLConfig(
        **{k: v for k, v in made.to_dict().items() if k in {f.name for f in dataclasses.fields(made)}}
    )
    assert again.rtn_layers == [1, -1] and again.hypergrad == "finite_difference"


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 12.5 / 3),
        ({"update_order": "reuse"}, 8 / 3),
        ({"hypergrad": "none"}, 1.5),
        ({"method": "joint"}, 1.5),
        ({"method": "joint", "baseline": "published"}, 2.0),
        ({"method": "target_only", "baseline": "published"}, 1.0),
        ({"method": "target_only"}, 0.5),
        ({"meta_every": 4}, (4.5 + 8 / 4) / 3),
        ({"hypergrad": "evograd"}, (4.5 + 3.5) / 3),
    ],
)
def test_the_cost_is_that_of_the_passes(settings, steps):
    assert STRATEGY.cost(config(**settings)) == pytest.approx(steps)
