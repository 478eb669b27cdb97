"""The update: order, learning rates, what reaches which gradient, baselines, logs, failures."""

import copy
import math

import pytest
import torch
from metaxl_setup import relative_error
from tiny import make_features, make_tokenizer, same_weights

from hf_xlt.errors import ConfigError
from hf_xlt.randomness import keyed_generator
from hf_xlt.strategies.metaxl import MetaXLTrainer
from hf_xlt.strategies.metaxl.passes import Passes


def gradients(trainer):
    named = trainer.model.named_parameters()
    return {name: value.grad.clone() for name, value in named if value.grad is not None}


def joint_gradient(trainer):
    """∇θ of L_S + L_G with the RTN as it is now, by a plain backward pass."""
    model = copy.deepcopy(trainer.model)
    injection = copy.copy(trainer.passes.injection)
    injection.model = model
    injection.__post_init__()
    passes = Passes(model, injection)
    window = trainer.target_window
    loss = 0.0
    for source, train in zip(trainer._sources, window.trains, strict=True):
        loss = loss + passes.source(source, trainer._units[0]) + passes.target(train, window.units[0])
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def same_gradients(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **(tolerance or {"rtol": 1e-4, "atol": 1e-6}))


@pytest.mark.parametrize("hypergrad", ["exact", "finite_difference", "evograd"])
def test_the_models_gradient_is_that_of_the_new_rtn_and_nothing_else(kit, hypergrad):
    """Sequential order; a rate so large that old and new RTN are told apart."""
    trainer = kit.ready(hypergrad=hypergrad, rtn_lr=0.1, inner_lr=0.1)
    old = copy.deepcopy(trainer.rtn.state_dict())
    kit.update(trainer)
    found = gradients(trainer)
    same_gradients(found, joint_gradient(trainer))
    assert all(parameter.grad is None for parameter in trainer.rtn.parameters())
    trainer.rtn.load_state_dict(old)
    stale = joint_gradient(trainer)
    assert relative_error(list(found.values()), [stale[name] for name in found]) > 1e-2


@pytest.mark.parametrize("hypergrad", ["exact", "finite_difference"])
def test_reuse_takes_the_gradient_of_the_old_rtn(kit, hypergrad):
    trainer = kit.ready(hypergrad=hypergrad, rtn_lr=0.1, inner_lr=0.1, update_order="reuse")
    old = copy.deepcopy(trainer.rtn.state_dict())
    loss = kit.update(trainer)
    found, new = gradients(trainer), copy.deepcopy(trainer.rtn.state_dict())
    assert any(not torch.equal(old[name], new[name]) for name in old)
    trainer.rtn.load_state_dict(old)
    same_gradients(found, joint_gradient(trainer))
    trainer.rtn.load_state_dict(new)
    fresh = joint_gradient(trainer)
    assert relative_error(list(found.values()), [fresh[name] for name in found]) > 1e-2
    trainer.rtn.load_state_dict(old)
    window = trainer.target_window
    expected = trainer.passes.source(trainer._sources[0], trainer._units[0])
    expected = expected + trainer.passes.target(window.trains[0], window.units[0])
    torch.testing.assert_close(loss, expected.detach())


def test_both_orders_agree_at_a_vanishing_rate_of_the_rtn(kit):
    ends = []
    for order in ("sequential", "reuse"):
        trainer = kit.trainer(rtn_lr=0.0, update_order=order, optim="sgd", learning_rate=0.05)
        trainer.train()
        ends.append(trainer.model)
    for one, two in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_zero_init_and_a_frozen_rtn_is_joint_training(kit):
    """With dropout: the main pass draws what joint training draws, whatever the meta passes draw."""
    ends = []
    for settings in (
        {"method": "joint"},
        {"hypergrad": "none", "rtn_init": "zero_out", "rtn_lr": 0.0},
        {"hypergrad": "exact", "rtn_init": "zero_out", "rtn_lr": 0.0},
        {"hypergrad": "finite_difference", "rtn_init": "zero_out", "rtn_lr": 0.0},
        {"hypergrad": "exact", "rtn_init": "zero_out", "rtn_lr": 0.0, "update_order": "reuse"},
    ):
        trainer = kit.trainer(kit.model(dropout=0.2), **settings)
        trainer.train()
        ends.append((trainer.model, torch.get_rng_state()))
    for model, state in ends[1:]:
        assert torch.equal(state, ends[0][1])
        for one, two in zip(ends[0][0].parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)
    assert all(same_weights(ends[0][0], model) for model, _ in ends[1:4])


def test_the_meta_part_moves_no_weight_of_the_model(kit):
    trainer = kit.trainer(learning_rate=0.0, inner_lr=0.1, rtn_lr=1e-2, max_steps=20)
    before = copy.deepcopy(trainer.model.state_dict())
    rtn = copy.deepcopy(trainer.rtn.state_dict())
    trainer.train()
    assert same_weights(before, trainer.model.state_dict())
    assert all(not torch.equal(value, rtn[name]) for name, value in trainer.rtn.state_dict().items())


def test_the_virtual_step_follows_the_schedule_and_a_step_of_no_length_leaves_the_rtn(kit):
    rates, kept = [], []
    trainer = kit.trainer(max_steps=6, warmup_steps=2, rtn_lr=1e-2)
    original = trainer.meta_gradient

    def spy(rate):
        rates.append(rate)
        return original(rate)

    step = trainer.training_step

    def keep(*args):
        result = step(*args)
        kept.append(copy.deepcopy(trainer.rtn.state_dict()))
        return result

    before = copy.deepcopy(trainer.rtn.state_dict())
    trainer.meta_gradient, trainer.training_step = spy, keep
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    # The log has the rate of the update that it follows.
    assert rates == pytest.approx([rate for rate in logged if rate > 0]) and len(rates) == 5
    assert len(set(rates)) > 3
    assert same_weights(before, kept[0]) and not same_weights(kept[0], kept[1])


def test_the_meta_gradient_scales_with_the_virtual_step_unless_asked_otherwise(kit):
    seen = {}
    for scale in ("eta", "unit"):
        trainer = kit.ready(inner_lr=0.01, meta_grad_scale=scale)
        trainer._step_rtn = lambda found, scale=scale: seen.setdefault(scale, found) and None
        kit.update(trainer)
    assert relative_error(seen["eta"], [0.01 * value for value in seen["unit"]]) < 1e-6


def test_accumulation_gives_both_gradients_of_the_whole_batch(kit):
    target = {"de": make_features(16, seed=3)}
    found = {}
    for size, batches in ((8, 1), (2, 4)):
        for hypergrad in ("exact", "finite_difference", "evograd"):
            # In float64: a small shift of weights, or a difference of candidates, loses digits.
            trainer = kit.ready(
                kit.model().double(),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=batches,
                hypergrad=hypergrad,
                inner_lr=0.05,
                rtn_lr=0.01,
                rtn_gate="none",
                rtn_activation="gelu",
                target=target,
            )
            trainer._step_rtn = lambda value, key=(hypergrad, size): found.setdefault(key, value) and None
            kit.update(trainer, batches)
            found[hypergrad, size, "model"] = list(gradients(trainer).values())
    for hypergrad in ("exact", "finite_difference", "evograd"):
        assert relative_error(found[hypergrad, 2], found[hypergrad, 8]) < 1e-5
        assert relative_error(found[hypergrad, 2, "model"], found[hypergrad, 8, "model"]) < 1e-5


def test_a_meta_loss_that_is_not_finite_is_skipped_and_counted(kit):
    trainer = kit.trainer(max_steps=4, inner_lr=1e-2, rtn_lr=1e-2)
    gradient, target, kept = trainer.meta_gradient, trainer.passes.target, []

    def keep(rate):
        kept.append(copy.deepcopy(trainer.rtn.state_dict()))
        return gradient(rate)

    def sometimes_infinite(batch, units, model=None):
        broken = trainer.state.global_step == 1 and batch is trainer.target_window.metas[0]
        return target(batch, units, model) * (math.inf if broken else 1.0)

    trainer.meta_gradient, trainer.passes.target = keep, sometimes_infinite
    trainer.train()
    assert trainer.state.global_step == 4
    assert same_weights(kept[1], kept[2]) and not same_weights(kept[2], kept[3])
    assert [entry["metaxl_skipped"] for entry in trainer.state.log_history if "metaxl_skipped" in entry][-1] == 1
    assert trainer.phase_facts()["metaxl"]["rtn_skipped"] == 1


def test_meta_every_updates_the_rtn_now_and_then(kit):
    trainer = kit.trainer(max_steps=6, meta_every=3, rtn_lr=1e-2)
    trainer.train()
    assert trainer.rtn_optimizer.steps == 2


def test_evaluation_does_not_see_the_rtn_and_no_hook_is_left(kit):
    trainer = kit.trainer(rtn_lr=1e-2)
    trainer.train()
    one = trainer.predict(trainer.train_dataset).predictions
    trainer.rtn.load_state_dict({name: value + 1 for name, value in trainer.rtn.state_dict().items()})
    two = trainer.predict(trainer.train_dataset).predictions
    assert (one == two).all()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trainer.model.modules())


def test_an_exception_in_training_leaves_no_hook_and_no_foreign_weight(kit, monkeypatch):
    trainer = kit.trainer(rtn_lr=1e-2)
    before = copy.deepcopy(trainer.model.state_dict())

    def broken(*args, **kwargs):
        raise RuntimeError("out of luck")

    # Inside the virtual weights' pass.
    monkeypatch.setattr("hf_xlt.strategies.metaxl.meta_step.maths.add_gradients", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.train()
    assert same_weights(before, trainer.model.state_dict())
    assert not any(module._forward_hooks for module in trainer.model.modules())
    assert not any(parameter.requires_grad for parameter in trainer.rtn.parameters())


def test_the_log_tells_losses_gate_and_sizes(kit):
    trainer = kit.trainer(rtn_lr=1e-3)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "metaxl_loss_meta" in entry]
    assert len(entries) == 4
    for entry in entries:
        for name in ("loss_source", "loss_target_train", "gradient_norm", "change_ratio", "rtn_lr", "decay_ratio"):
            assert entry[f"metaxl_{name}"] > 0
        assert 0 < entry["metaxl_gate"] < 1
        # Logged values are those of the passes before the RTN's step, which moves little here.
        assert entry["loss"] == pytest.approx(
            entry["metaxl_loss_source"] + entry["metaxl_loss_target_train"], rel=0.05
        )


# ---- Baselines


def test_matched_joint_training_trains_on_the_batches_of_metaxl(kit):
    window = {}
    for name, settings in {"metaxl": {}, "joint": {"method": "joint"}, "only": {"method": "target_only"}}.items():
        trainer = kit.ready(**settings)
        kit.update(trainer)
        window[name] = trainer.target_window
    for name in ("joint", "only"):
        for key, value in window["metaxl"].trains[0].items():
            assert torch.equal(value, window[name].trains[0][key])
    assert window["metaxl"].trains[0]["labels"].shape == (2,)


def test_joint_training_is_the_sum_of_both_losses(kit):
    trainer = kit.ready(method="joint")
    loss = kit.update(trainer)
    source = trainer.model(**trainer._sources[0]).loss
    target = trainer.model(**trainer.target_window.trains[0]).loss
    torch.testing.assert_close(loss, (source + target).detach())
    trainer.model.zero_grad()
    trainer = kit.ready(method="joint", baseline="published")
    loss = kit.update(trainer)
    assert trainer.target_window.trains[0]["labels"].shape == (4,) and trainer.args.max_grad_norm == 0
    target = trainer.model(**trainer.target_window.trains[0]).loss
    source = trainer.model(**trainer._sources[0]).loss
    torch.testing.assert_close(loss, ((source + target) / 2).detach())
    assert trainer.rtn is None and trainer.strategy_state() == ({}, {})


def test_target_only_trains_on_the_target_alone(kit):
    ends = []
    for seed in (0, 7):
        trainer = kit.trainer(method="target_only", source=make_features(24, seed=seed))
        trainer.train()
        ends.append(trainer.model)
    assert same_weights(*ends)
    published = kit.trainer(method="target_only", baseline="published", max_steps=-1, num_train_epochs=2)
    published.train()
    # 11 examples in batches of 4, twice.
    assert published.state.global_step == 6 and published.args.max_grad_norm == 0


def test_joint_training_with_rtn_trains_it_with_the_model(kit):
    trainer = kit.trainer(hypergrad="none", rtn_lr=1e-3)
    before = copy.deepcopy(trainer.rtn.state_dict())
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in trainer.rtn.state_dict().items())
    assert trainer.rtn_optimizer.steps == 4


def test_reduction_and_paper_style_inner_loss(kit):
    for settings in ({"loss_reduction": "mean"}, {"inner_target_loss": False}):
        trainer = kit.ready(rtn_lr=0.0, inner_lr=0.1, **settings)
        loss = kit.update(trainer)
        source = trainer.passes.source(trainer._sources[0], trainer._units[0])
        if "loss_reduction" in settings:
            target = trainer.passes.target(trainer.target_window.trains[0], trainer.target_window.units[0])
            torch.testing.assert_close(loss, ((source + target) / 2).detach())
        else:
            assert trainer.target_window.trains == [None]
            assert trainer.target_window.metas[0]["labels"].shape == (4,)
            torch.testing.assert_close(loss, source.detach())


# ---- Precision, adapters, refusals


def test_bf16_gives_nearly_the_meta_gradient_of_float32(kit):
    found = {}
    for hypergrad in ("exact", "finite_difference"):
        for bf16 in (False, True):
            trainer = kit.ready(bf16=bf16, inner_lr=0.05, hypergrad=hypergrad)
            trainer._step_rtn = lambda value, key=(hypergrad, bf16): found.setdefault(key, value) and None
            kit.update(trainer)
        one, two = (torch.cat([v.flatten() for v in found[hypergrad, bf16]]) for bf16 in (False, True))
        assert two.dtype == torch.float32
        assert torch.cosine_similarity(one, two, dim=0) > 0.99
        assert "forward" in trainer.model.__dict__


def test_with_adapters_the_meta_gradient_is_through_them_alone(kit):
    from contexts import LORA

    from hf_xlt.adapters import wrap
    from hf_xlt.tasks import get_task

    model = wrap(kit.model().double(), LORA, get_task("text-classification"), 0).double().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    trainer = kit.ready(model, inner_lr=0.5, rtn_activation="gelu", optim="sgd")
    model.eval()
    trainer.model_wrapped.train = lambda mode=True: model
    kit.update(trainer)
    window = trainer.target_window
    found = trainer.meta_gradient(0.5)
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert found.inner.keys() == trainable.keys() and len(trainable) < len(list(model.parameters()))
    from metaxl_setup import central_difference

    def value():
        loss = trainer.passes.source(trainer._sources[0], trainer._units[0])
        loss = loss + trainer.passes.target(window.trains[0], window.units[0])
        gradient = torch.autograd.grad(loss, list(trainable.values()))
        with torch.no_grad():
            for parameter, change in zip(trainable.values(), gradient, strict=True):
                parameter -= 0.5 * change
            result = trainer.passes.target(window.metas[0], window.units[1]).item()
            for parameter, change in zip(trainable.values(), gradient, strict=True):
                parameter += 0.5 * change
        return result

    generator = keyed_generator("direction")
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in trainer.rtn.parameters()]
    slope = central_difference(trainer.rtn, value, direction, 1e-3)
    ours = 0.5 * sum((one * two).sum() for one, two in zip(found.phi, direction, strict=True))
    assert float(ours) == pytest.approx(slope, rel=1e-6)


def test_attention_that_cannot_be_differentiated_twice_is_refused(kit):
    model = kit.model()
    model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(ConfigError, match="attention `flex_attention` cannot be differentiated twice.*finite_diff"):
        kit.trainer(model)
    kit.trainer(model, hypergrad="finite_difference")


def test_without_target_examples_there_is_nothing_to_learn_from(kit):
    with pytest.raises(ConfigError, match="needs labelled target-language examples"):
        MetaXLTrainer(kit.model(), kit.config(), train_dataset=kit.source, processing_class=make_tokenizer())
