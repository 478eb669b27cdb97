"""Divergence between predictions, and what training on it does: R3F, VAT and SMART without its proximal part."""

import copy

import pytest
import torch
import torch.nn.functional as F

from hf_xlt.errors import ConfigError
from hf_xlt.strategies.robust import RobustConfig
from hf_xlt.strategies.robust.predictions import counted_units, divergences, kind_of

R3F = {"method": "rs_rp", "epsilon": 0.3, "consistency": "symkl"}
VAT = {"method": "adv", "epsilon": 0.3, "inner_loss": "kl", "init": "gaussian", "consistency": "symkl"}


def pair(*shape, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator) * scale for _ in range(2))


def kl(first, second):
    return F.kl_div(second.log_softmax(-1), first.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def both(logits, kind, counted, content):
    one, other = logits
    return [divergences(one, other, kind, counted, content, symmetric=symmetric) for symmetric in (True, False)]


def test_the_divergence_of_classes_is_that_of_torch_and_ignores_what_has_no_label():
    one, other = pair(4, 5, 3)
    content = torch.ones(4, 5, dtype=torch.bool)
    labels = torch.zeros(4, 5, dtype=torch.long)
    labels[:, 0] = labels[2] = -100
    counted = counted_units({"labels": labels}, {"logits": one}, content)
    symmetric, single = both(({"logits": one}, {"logits": other}), "class", counted, content)
    kept = labels.ne(-100)
    torch.testing.assert_close(symmetric, ((kl(one, other) + kl(other, one)) * kept).sum(1))
    torch.testing.assert_close(single, (kl(one, other) * kept).sum(1))
    assert symmetric[2] == 0 and (symmetric[[0, 1, 3]] > 0).all()
    sentence = counted_units({"labels": torch.tensor([0, 1, -100, 2])}, {"logits": one[:, 0]}, content)
    assert sentence.tolist() == [True, True, False, True]
    assert torch.equal(counted_units({}, {"logits": one}, content), content)


def test_the_divergence_of_spans_is_the_mean_of_both_ends_without_padding():
    one, other = pair(3, 6)
    lengths = torch.tensor([6, 2, 4])
    content = torch.arange(6) < lengths[:, None]
    first, second = {"start_logits": one, "end_logits": other}, {"start_logits": other, "end_logits": one * 0.5}
    inputs = {"start_positions": torch.tensor([1, 0, -100]), "end_positions": torch.tensor([2, 1, -100])}
    counted = counted_units(inputs, first, content)
    assert counted.tolist() == [True, True, False] and kind_of(first, None) == "span"
    symmetric, single = both((first, second), "span", counted, content)
    for row in range(2):
        ends = [(first[name][row, : lengths[row]], second[name][row, : lengths[row]]) for name in first]
        torch.testing.assert_close(single[row], sum(kl(*end) for end in ends) / 2)
        torch.testing.assert_close(symmetric[row], sum(kl(p, q) + kl(q, p) for p, q in ends) / 2)
    assert symmetric[2] == 0
    wide = {name: value.masked_fill(~content, 77.0) for name, value in first.items()}
    torch.testing.assert_close(both((wide, second), "span", counted, content)[0], symmetric)


def test_the_divergence_of_several_labels_and_of_numbers():
    one, other = pair(4, 3)
    content, counted = torch.ones(4, 5, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    logits = ({"logits": one}, {"logits": other})
    symmetric, single = both(logits, "labels", counted, content)
    p, q = torch.distributions.Bernoulli(logits=one), torch.distributions.Bernoulli(logits=other)
    expected = torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(single, expected.mean(1))
    torch.testing.assert_close(symmetric, (expected + torch.distributions.kl_divergence(q, p)).mean(1))
    numbers = ({"logits": one[:, :1]}, {"logits": other[:, :1]})
    assert kind_of(numbers[0], None) == "number" and kind_of(logits[0], None) == "class"
    assert kind_of(logits[0], None, {"labels": torch.ones(4, 3)}) == "labels"
    torch.testing.assert_close(both(numbers, "number", counted, content)[0], (one - other)[:, 0] ** 2)


def test_huge_logits_give_a_finite_divergence_and_gradient():
    one, other = pair(4, 3, scale=1e4)
    one.requires_grad_()
    content, counted = torch.ones(4, 3, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    for kind, name in (("class", "logits"), ("labels", "logits"), ("span", "start_logits")):
        for value in both(({name: one}, {name: other}), kind, counted, content):
            (gradient,) = torch.autograd.grad(value.sum(), one)
            assert value.isfinite().all() and gradient.isfinite().all() and (value >= 0).all()


@pytest.mark.parametrize("detached", [True, False])
def test_the_gradient_of_r3f_is_that_of_its_formula(kit, perturbations, detached):
    model, batch = kit.model(), kit.collate(kit.examples())
    settings = R3F | {"consistency_weight": 0.7, "detach_noised": detached, "eps_mode": "absolute"}
    trainer = kit.trainer(model, **settings)
    got = kit.update_gradients(trainer, batch)
    model.zero_grad()
    rest = {"attention_mask": batch["attention_mask"]}
    embeds = model.get_input_embeddings()(batch["input_ids"])
    clean = model(inputs_embeds=embeds, **rest).logits
    noised = model(inputs_embeds=(embeds.detach() if detached else embeds) + perturbations[-1], **rest).logits
    divergence = (kl(clean, noised) + kl(noised, clean)).mean()
    (F.cross_entropy(clean, batch["labels"]) + 0.7 * divergence).backward()
    expected = kit.gradients(model)
    assert got.keys() == expected.keys() and divergence > 0.01
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["robust_consistency_loss"] == pytest.approx(divergence.item(), rel=1e-5)
    assert logs["robust_clean_loss"] == pytest.approx(F.cross_entropy(clean, batch["labels"]).item(), rel=1e-5)
    assert "robust_perturbed_loss" not in logs


def test_the_ascent_on_the_divergence_raises_it_and_sees_no_label(kit, perturbations, monkeypatch):
    model, batch = kit.model(initializer_range=0.1), kit.collate(kit.examples(32, seed=3))
    other = batch | {"labels": (batch["labels"] + 1) % 3}

    def divergence(inputs=batch, **settings):
        trainer = kit.trainer(model, **VAT | {"epsilon": 0.1, "eps_mode": "absolute"} | settings)
        kit.open_window(trainer, inputs)
        loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True)
        return (loss - F.cross_entropy(outputs["logits"], inputs["labels"])).item(), perturbations[-1]

    found, delta = divergence()
    assert torch.equal(divergence(other)[1], delta)
    assert not torch.equal(divergence(other, inner_loss="label")[1], divergence(inner_loss="label")[1])
    drawn = {"method": "rs_rp", "noise": "l2_sphere", "inner_loss": "label", "init": "zero"}
    noise = [divergence(**drawn)[0] for _ in range(3)]
    assert found > 2 * max(noise) > 0 and divergence(steps=3)[0] > 0.95 * found
    # One small step up from a start raises the divergence, and one down lowers it.
    step = {"step_size": 0.005, "init_scale": 0.3}
    up = divergence(**step)[0]
    monkeypatch.setattr(RobustConfig, "ascent_length", property(lambda config: 0.0))
    still = divergence(**step)[0]
    monkeypatch.setattr(RobustConfig, "ascent_length", property(lambda config: -config.step_size))
    assert divergence(**step)[0] < still < up


def test_the_scale_of_a_start_scales_it(kit):
    batch, starts = kit.collate(kit.examples()), []
    for scale in (1.0, 0.01):
        trainer = kit.trainer(init="uniform", init_scale=scale, eps_mode="absolute")
        kit.open_window(trainer, batch)
        starts.append(trainer._next_perturbation(trainer._place(trainer.model, batch)))
    torch.testing.assert_close(starts[0] * 0.01, starts[1], rtol=1e-5, atol=0)


def test_batches_without_labels_train_on_the_divergence_alone(kit):
    model, labelled = kit.model(), kit.collate(kit.examples())
    batch = {name: value for name, value in labelled.items() if name != "labels"}
    for settings in (R3F, VAT):
        gradients = kit.update_gradients(kit.trainer(model, **settings), batch)
        assert all(value.isfinite().all() for value in gradients.values())
        assert gradients["classifier.weight"].abs().sum() > 0
        alone = kit.trainer(model, **settings)
        batches, units = kit.open_window(alone, batch)
        with_labels = kit.trainer(model, **settings)
        kit.open_window(with_labels, labelled)
        loss, outputs = with_labels.compute_loss(model, labelled, return_outputs=True)
        expected = (loss - F.cross_entropy(outputs["logits"], labelled["labels"])).item()
        got = alone.compute_loss(model, batches[0], num_items_in_batch=units).item()
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-6)
    trainer = kit.trainer(model, **VAT | {"inner_loss": "label"})
    kit.open_window(trainer, batch)
    with pytest.raises(ConfigError, match="labels"):
        trainer.compute_loss(model, batch)


def test_the_clean_pass_draws_the_dropout_masks_of_plain_training(kit):
    batch = kit.collate(kit.examples())
    for mode in ("train", "shared", "eval"):
        masks, ends = [], []
        # R3F searches nothing, and its passes keep their dropout.
        own = {} if mode == "eval" else {"inner_dropout": mode}
        for settings in ({"method": "none"}, R3F | own, VAT | {"inner_dropout": mode}):
            model = kit.model(dropout=True, hidden_dropout_prob=0.5)
            trainer = kit.trainer(model, **settings)
            model.dropout.register_forward_hook(lambda module, args, out, masks=masks: masks.append(out.ne(0)))
            torch.manual_seed(4)
            kit.update_gradients(trainer, batch)
            ends.append(torch.get_rng_state())
        assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[3])
        assert torch.equal(masks[2], masks[0]) == torch.equal(masks[5], masks[0]) == (mode == "shared")
        assert all(torch.equal(end, ends[0]) for end in ends) and not masks[2].all() and not masks[5].all()


def test_a_failure_leaves_the_generators_as_they_were(kit):
    model, batch = kit.model(dropout=True), kit.collate(kit.examples())
    trainer = kit.trainer(model, **R3F)
    kit.open_window(trainer, batch)
    calls = iter(range(2))

    def broken(*args):
        if next(calls) == 1:
            raise OSError("the model broke")

    model.classifier.register_forward_hook(broken)
    before = torch.get_rng_state()
    with pytest.raises(OSError, match="broke"):
        trainer.compute_loss(model, batch)
    assert torch.equal(torch.get_rng_state(), before) and not model.get_input_embeddings()._forward_hooks


def test_languages_weigh_alike_in_the_divergence_of_joint_training(kit, monkeypatch):
    model = kit.model()
    trainer = kit.trainer(model, **R3F)
    trainer.joint_datasets = {"xx": kit.examples(16, seed=4)}
    batch = kit.collate(kit.examples(3))
    trainer._train_batch_size = 3
    (joined,), units = kit.open_window(trainer, batch)
    assert units.tolist() == [3.0, 3.0]
    # An ignored example makes the languages uneven.
    joined["labels"][0] = -100
    units[0] = 2.0
    seen = []
    original = trainer._divergences
    monkeypatch.setattr(trainer, "_divergences", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1])
    loss = trainer.compute_loss(model, joined, num_items_in_batch=units)
    plain = kit.trainer(model, method="none")
    plain.window = copy.copy(trainer.window)
    clean = plain.compute_loss(model, joined, num_items_in_batch=units)
    expected = (seen[0][:3].sum() / 2 + seen[0][3:].sum() / 3) / 2
    assert seen[0][0] == 0
    torch.testing.assert_close(loss - clean, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [R3F, VAT], ids=["r3f", "vat"])
def test_precision_and_checkpointing_leave_the_gradients_of_consistency(kit, settings):
    batch, found = kit.collate(kit.examples()), []
    for bf16, checkpointing in ((False, False), (False, True), (True, False)):
        model = kit.model(dropout=True, attn_implementation="eager")
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        found.append(kit.update_gradients(kit.trainer(model, bf16=bf16, **settings), batch))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)
        assert found[2][name].dtype == torch.float32 and found[2][name].isfinite().all()
    apart = [torch.cat([(run[name] - found[0][name]).flatten() for name in run]).norm() for run in found]
    size = torch.cat([value.flatten() for value in found[0].values()]).norm()
    assert 0 < apart[2] < 0.2 * size
