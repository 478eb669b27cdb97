"""FreeLB, and several training passes per update in general: gradients, memory, dropout, precision."""

import weakref

import pytest
import torch

SEVERAL = {
    "freelb": {"method": "freelb", "steps": 3, "init": "uniform"},
    "freelb, clean loss": {"method": "freelb", "steps": 2, "clean_weight": 0.3, "init": "gaussian", "norm": "linf"},
    "three draws": {"method": "rs_rp", "num_samples": 3},
    "clean pass reused": {"method": "adv", "steps": 2, "clean_weight": 0.4},
}
EAGER = {"attn_implementation": "eager"}


@pytest.fixture(params=SEVERAL.values(), ids=SEVERAL)
def several(request) -> dict:
    return {"epsilon": 0.2} | request.param


def close(got, expected, **tolerance):
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, **{"rtol": 1e-4, "atol": 1e-6} | tolerance, msg=name)


def test_the_gradients_are_those_of_the_algorithm_written_out(kit):
    model, batch = kit.model(), kit.collate(kit.examples())
    radius, steps, step_size = 0.4, 3, 0.15
    settings = {"eps_mode": "absolute", "norm_scope": "sentence", "epsilon": radius, "step_size": step_size}
    got = kit.update_gradients(kit.trainer(model, method="freelb", steps=steps, **settings), batch)
    model.zero_grad()
    delta = torch.zeros(*batch["input_ids"].shape, kit.width)
    for _ in range(steps):
        delta.requires_grad_()
        embeds = model.get_input_embeddings()(batch["input_ids"]) + delta
        loss = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
        (loss / steps).backward()
        gradient = delta.grad * batch["attention_mask"][..., None]
        delta = delta.detach() + step_size * gradient / gradient.norm(dim=(1, 2), keepdim=True)
        norms = delta.norm(dim=(1, 2), keepdim=True)
        delta = torch.where(norms > radius, delta * radius / norms, delta)
    close(got, kit.gradients(model))


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_passes_by_themselves_give_the_gradients_and_the_loss_of_their_sum(kit, several, bf16):
    model, batch = kit.model(dropout=True, **EAGER), kit.collate(kit.examples())

    def trainer():
        torch.manual_seed(1)
        made = kit.trainer(model, bf16=bf16, **several)
        model.zero_grad()
        return made, *kit.open_window(made, batch)

    lean, batches, units = trainer()
    loss = lean.training_step(model, batches[0], units)
    got = kit.gradients(model)
    summed, batches, units = trainer()
    whole = summed.compute_loss(model, batches[0], num_items_in_batch=units)
    assert not kit.gradients(model)
    whole.backward()
    close(got, kit.gradients(model), **({"rtol": 0.05, "atol": 5e-3} if bf16 else {}))
    assert not loss.requires_grad and loss.item() == pytest.approx(whole.item(), rel=1e-2 if bf16 else 1e-5)


def test_a_pass_keeps_no_activations_of_the_one_before(kit, several):
    model, batch = kit.model(), kit.collate(kit.examples())

    class Saved:
        def __init__(self, value):
            self.value = value

    alive, at_start = weakref.WeakSet(), []

    def pack(value):
        saved = Saved(value)
        alive.add(saved)
        return saved

    model.register_forward_pre_hook(lambda *args: at_start.append(len(alive)))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.value):
        kit.update_gradients(kit.trainer(model, **several), batch)
        passes = len(at_start)
        assert passes >= 3 and at_start == [0] * passes
        trainer = kit.trainer(model, **several)
        kit.open_window(trainer, batch)
        loss = trainer.compute_loss(model, batch)
    # Without backward passes of their own the activations pile up, so the count above can tell.
    assert loss.requires_grad and at_start[-1] > 0


@pytest.mark.parametrize("dropout", ["shared", "train"])
def test_shared_dropout_is_one_mask_for_all_passes(kit, dropout):
    model, batch = kit.model(dropout=True, hidden_dropout_prob=0.5), kit.collate(kit.examples())
    masks = []
    model.dropout.register_forward_hook(lambda module, args, output: masks.append(output.ne(0)))
    kit.update_gradients(kit.trainer(model, method="freelb", steps=3, inner_dropout=dropout), batch)
    assert len(masks) == 3
    for mask in masks[1:]:
        assert torch.equal(mask, masks[0]) == (dropout == "shared")
    # A pass that trains weights keeps its dropout.
    assert all(not mask.all() for mask in masks)


def test_shared_masks_are_those_of_plain_training(kit):
    batch, masks = kit.collate(kit.examples()), []
    for settings in ({"method": "freelb", "steps": 2, "inner_dropout": "shared"}, {"method": "none"}):
        model = kit.model(dropout=True)
        trainer = kit.trainer(model, **settings)
        model.dropout.register_forward_hook(lambda module, args, output: masks.append(output.ne(0)))
        torch.manual_seed(4)
        kit.update_gradients(trainer, batch)
    assert len(masks) == 3 and torch.equal(masks[0], masks[2]) and torch.equal(masks[1], masks[2])


class Scaler:
    """Stands in for a gradient scaler."""

    def scale(self, loss):
        return loss * 2.0**10


def test_a_loss_scale_reaches_all_passes_and_leaves_the_perturbations_bit_equal(kit, perturbations, several):
    model, batch = kit.model(), kit.collate(kit.examples(6))
    plain = kit.update_gradients(kit.trainer(model, **several), batch)
    expected = list(perturbations)
    perturbations.clear()
    trainer = kit.trainer(model, **several)
    trainer.accelerator.scaler = Scaler()
    scaled = kit.update_gradients(trainer, batch)
    assert len(expected) == len(perturbations)
    assert all(torch.equal(one, other) for one, other in zip(expected, perturbations, strict=True))
    close({name: gradient / 2.0**10 for name, gradient in scaled.items()}, plain)


def test_an_overflow_in_a_training_pass_skips_its_row_only(kit, perturbations, monkeypatch):
    model, batch = kit.model(), kit.collate(kit.examples(4))
    settings = {"method": "freelb", "steps": 2}
    kit.update_gradients(kit.trainer(model, **settings), batch)
    plain = perturbations[-1]

    def blow_up(gradient):
        gradient = gradient.clone()
        gradient[2, 0, 0] = float("inf")
        return gradient

    perturbations.clear()
    trainer = kit.trainer(model, **settings)
    start = trainer._next_perturbation

    def watched(place):
        delta = start(place).requires_grad_()
        delta.register_hook(blow_up)
        return delta

    monkeypatch.setattr(trainer, "_next_perturbation", watched)
    kit.update_gradients(trainer, batch)
    assert perturbations[-1][2].eq(0).all() and torch.equal(perturbations[-1][[0, 1, 3]], plain[[0, 1, 3]])
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["robust_skipped_rows"] == 1


def test_the_ascent_does_not_depend_on_the_size_of_the_training_loss(kit, perturbations):
    model, batch = kit.model(), kit.collate(kit.examples(4))
    deltas = []
    for units in (4.0, 4e15):
        trainer = kit.trainer(model, method="freelb", steps=2, epsilon=0.2)
        batches, _ = kit.open_window(trainer, batch)
        trainer.training_step(model, batches[0], torch.tensor([units]))
        deltas.append(perturbations[-1])
    assert deltas[0].abs().sum() > 0
    torch.testing.assert_close(deltas[1], deltas[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient_of_freelb(kit, reentrant):
    batch, gradients = kit.collate(kit.examples()), []
    for checkpointing in (False, True):
        model = kit.model(dropout=True, **EAGER)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(3)
        trainer = kit.trainer(model, epsilon=0.2, **SEVERAL["freelb"])
        gradients.append(kit.update_gradients(trainer, batch))
    close(gradients[1], gradients[0])


def test_the_log_tells_freelbs_clean_loss(kit):
    def logged(**settings):
        options = {"examples": kit.examples(48), "max_steps": 2, "learning_rate": 0.0, "logging_steps": 2}
        trainer = kit.trainer(**options, gradient_accumulation_steps=2, **settings)
        trainer.train()
        return next(entry for entry in trainer.state.log_history if "loss" in entry)

    entry, plain = logged(method="freelb", steps=3, epsilon=0.3), logged(method="none")
    assert entry["robust_clean_loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert entry["robust_perturbed_loss"] == pytest.approx(entry["loss"], rel=1e-5)
    assert entry["robust_clean_loss"] < entry["robust_perturbed_loss"] and entry["robust_skipped_rows"] == 0
    assert 0 < entry["robust_norm_ratio"] <= 1 + 1e-5
    mixed = logged(epsilon=0.3, clean_weight=0.25, steps=2)
    parts = 0.25 * mixed["robust_clean_loss"] + 0.75 * mixed["robust_perturbed_loss"]
    assert mixed["loss"] == pytest.approx(parts, rel=1e-5)
    assert mixed["robust_clean_loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_a_reused_clean_pass_finds_the_perturbation_of_a_pass_of_its_own(kit, perturbations, monkeypatch):
    batch, found = kit.collate(kit.examples()), []
    for reuses in (True, False):
        model = kit.model(dropout=True)
        trainer = kit.trainer(model, steps=2, clean_weight=0.3, inner_dropout="shared", epsilon=0.2)
        monkeypatch.setattr(trainer, "_reuses_clean_pass", lambda reuses=reuses: reuses)
        torch.manual_seed(2)
        kit.update_gradients(trainer, batch)
        found.append(perturbations[-1])
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
