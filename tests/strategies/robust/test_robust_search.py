"""How a perturbation is found: where it lies, what it depends on, and that finding it leaves no trace."""

import copy
import itertools

import pytest
import torch

from hf_xlt.errors import ConfigError
from hf_xlt.strategies.robust import RobustConfig, RobustTrainer
from hf_xlt.strategies.robust.dropout import side_pass
from hf_xlt.strategies.robust.perturbation import perturbation_norms

BALLS = list(itertools.product(("l2", "linf"), ("token", "sentence"), ("zero", "uniform", "gaussian"), (1, 3)))


@pytest.mark.parametrize(("norm", "scope", "init", "steps"), BALLS)
def test_the_model_trains_inside_the_ball_of_every_example(kit, perturbations, norm, scope, init, steps):
    trainer = kit.trainer(norm=norm, norm_scope=scope, init=init, steps=steps, epsilon=0.2, eps_mode="absolute")
    batch = kit.collate(kit.examples(lengths=[2, 20, 3, 11]))
    kit.open_window(trainer, batch)
    trainer.compute_loss(trainer.model, batch)
    (delta,) = perturbations
    mask = batch["attention_mask"].bool()
    assert delta.dtype == torch.float32 and torch.equal(delta[~mask], torch.zeros_like(delta[~mask]))
    norms = perturbation_norms(delta, norm, scope)
    assert norms.max() <= 0.2 * (1 + 1e-6)
    if init == "zero" and steps == 1:
        # One step of the radius's length reaches the radius for every example, short or long.
        assert norms.amax(dim=1).min().item() == pytest.approx(0.2, rel=1e-5)


def test_a_perturbation_does_not_depend_on_the_batch_or_on_padding(kit, perturbations, settings):
    examples = kit.examples(lengths=[2, 20, 3, 11])
    trainer = kit.trainer(**settings)
    batch = kit.collate(examples)

    def run(batch, rows):
        kit.open_window(trainer, batch)
        trainer.window.rows = [torch.tensor(rows)]
        perturbations.clear()
        trainer.compute_loss(trainer.model, batch)
        return perturbations[-1]

    together, wide = run(batch, [0, 1, 2, 3]), run(kit.collate(examples, width=31), [0, 1, 2, 3])
    torch.testing.assert_close(wide[:, :20], together, rtol=1e-3, atol=1e-5)
    assert wide[:, 20:].eq(0).all()
    for row in range(4):
        alone = run(kit.collate(examples[row : row + 1]), [row])
        torch.testing.assert_close(alone[0], together[row, : alone.shape[1]], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["adv", "rs_rp"])
def test_special_tokens_are_left_out_iff_asked(kit, perturbations, method):
    batch = kit.collate(kit.examples())
    special = torch.isin(batch["input_ids"], torch.tensor([0, 2]))
    for flag in (True, False):
        trainer = kit.trainer(method=method, perturb_special_tokens=flag, tokenizer=kit.tokenizer())
        kit.open_window(trainer, batch)
        trainer.compute_loss(trainer.model, batch)
        delta = perturbations[-1]
        assert delta[special].ne(0).any() == flag and delta[batch["attention_mask"].bool() & ~special].ne(0).any()
    with pytest.raises(ConfigError, match="processing_class"):
        kit.trainer(method=method, perturb_special_tokens=False)


@pytest.fixture(scope="module")
def fitted():
    """A model fitted for a few steps and a batch, so that its loss has a direction to rise in."""
    from_state = {}

    def build(kit):
        model, batch = kit.model(initializer_range=0.1), kit.collate(kit.examples(32, seed=3))
        if not from_state:
            optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
            for _ in range(25):
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            from_state.update(model.state_dict())
        model.load_state_dict(from_state)
        return model, batch

    return build


@pytest.mark.parametrize(("norm", "scope"), list(itertools.product(("l2", "linf"), ("token", "sentence"))))
def test_ascent_raises_the_loss_more_than_noise_and_descent_lowers_it(kit, fitted, monkeypatch, norm, scope):
    model, batch = fitted(kit)
    radius = {"token": 0.1, "sentence": 0.3}[scope] * (0.25 if norm == "linf" else 1.0)
    settings = {"epsilon": radius, "eps_mode": "absolute"}
    ascent = {"norm": norm, "norm_scope": scope}
    noise = {"noise": "uniform"} if norm == "linf" else {"noise": "l2_sphere", "norm_scope": scope}

    def loss(**options):
        trainer = kit.trainer(model, **settings | (ascent if "method" not in options else {}) | options)
        kit.open_window(trainer, batch)
        return trainer.compute_loss(model, batch).item()

    clean, one_step, three_steps = loss(epsilon=0.0), loss(), loss(steps=3)
    random = sum(loss(method="rs_rp", **noise) for _ in range(3)) / 3
    monkeypatch.setattr(RobustConfig, "ascent_length", property(lambda config: -config.epsilon))
    assert loss() < clean < one_step
    assert one_step - clean > 3 * abs(random - clean)
    assert three_steps > one_step - 1e-3


def test_the_inner_gradient_agrees_with_finite_differences(kit):
    model, batch = kit.model().double(), kit.collate(kit.examples(3))
    trainer = kit.trainer(model)
    kit.open_window(trainer, batch)
    delta = torch.randn(*batch["input_ids"].shape, kit.width, dtype=torch.float64) * 0.1
    gradient, losses = trainer._inner_gradient(model, batch, delta)
    assert gradient.dtype == torch.float64 and losses.shape == (3,)
    direction = torch.randn_like(delta)
    step = 1e-6

    def total(shift):
        return trainer._inner_gradient(model, batch, delta + shift)[1].sum()

    numeric = (total(step * direction) - total(-step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-6)
    assert gradient[~batch["attention_mask"].bool()].abs().max() < 1e-12


def fingerprint(model, batch):
    return {
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "flags": [p.requires_grad for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "rng": torch.get_rng_state(),
        "inputs": {name: value.clone() for name, value in batch.items()},
    }


def assert_same_fingerprint(one, other):
    for name, value in one["gradients"].items():
        assert (value is None) == (other["gradients"][name] is None)
        assert value is None or torch.equal(value, other["gradients"][name])
    assert all(one[key] == other[key] for key in ("flags", "training", "hooks"))
    assert torch.equal(one["rng"], other["rng"]) and one["inputs"].keys() == other["inputs"].keys()
    assert all(torch.equal(value, other["inputs"][name]) for name, value in one["inputs"].items())


@pytest.mark.parametrize("fails", [False, True], ids=["finishes", "raises"])
@pytest.mark.parametrize("dropout", ["train", "shared", "eval"])
def test_the_search_has_no_side_effects(kit, dropout, fails):
    model, batch = kit.model(dropout=True), kit.collate(kit.examples())
    trainer = kit.trainer(model, steps=2, inner_dropout=dropout, init="uniform")
    _, units = kit.open_window(trainer, batch)
    model.bert.embeddings.dropout.eval()
    model.bert.embeddings.token_type_embeddings.weight.requires_grad_(False)
    model(**batch).loss.backward()
    for parameter in list(model.parameters())[::2]:
        parameter.grad = None
    before = fingerprint(model, batch)
    if fails:
        calls = iter(range(2))

        def broken(*args):
            if next(calls) == 1:
                raise OSError("the model broke")

        handle = model.classifier.register_forward_hook(broken)
        with pytest.raises(OSError, match="broke"):
            trainer.compute_loss(model, batch, num_items_in_batch=units)
        handle.remove()
    else:
        trainer._ascend(model, batch, trainer._place(model, batch), units=units)
    assert_same_fingerprint(before, fingerprint(model, batch))


def test_inner_dropout_modes_differ_as_named(kit):
    model, batch = kit.model(dropout=True, hidden_dropout_prob=0.5), kit.collate(kit.examples())
    model.train()

    def outputs(mode, seed=1):
        with side_pass(model, torch.device("cpu"), mode, seed):
            return model(**batch).logits.detach()

    torch.manual_seed(0)
    shared, own, without = outputs("shared"), outputs("train"), outputs("eval")
    main = model(**batch).logits.detach()
    assert torch.equal(shared, main) and not torch.equal(own, main) and not torch.equal(without, main)
    assert torch.equal(own, outputs("train")) and not torch.equal(own, outputs("train", seed=2))
    assert torch.equal(without, outputs("eval")) and model.training


def test_bf16_autocast_keeps_the_perturbation_in_float32(kit, perturbations):
    model, batch = kit.model(), kit.collate(kit.examples())
    exact = kit.update_gradients(kit.trainer(model), batch)
    rounded_trainer = kit.trainer(model, bf16=True, steps=2, init="uniform")
    rounded_trainer.model_wrapped = rounded_trainer.accelerator.prepare_model(model)
    seen = []
    model.bert.encoder.register_forward_hook(lambda module, args, output: seen.append(output[0].requires_grad))
    dtypes = []
    query = model.bert.encoder.layer[0].attention.self.query
    query.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    rounded = kit.update_gradients(rounded_trainer, batch)
    assert dtypes == [torch.bfloat16] * 3 and all(seen)
    assert all(delta.dtype == torch.float32 for delta in perturbations)
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in rounded.values())
    assert rounded.keys() == exact.keys()


class Scaler:
    """Stands in for a gradient scaler; anything but `scale` would be an error."""

    def __init__(self, factor):
        self.factor, self.calls = factor, 0

    def scale(self, loss):
        self.calls += 1
        return loss * self.factor


def searched(kit, perturbations, trainer, batch):
    kit.open_window(trainer, batch)
    trainer.compute_loss(trainer.model, batch)
    return perturbations[-1]


def test_a_loss_scale_leaves_the_perturbation_bit_equal(kit, perturbations):
    model, batch = kit.model(), kit.collate(kit.examples(6))
    plain = searched(kit, perturbations, kit.trainer(model, steps=2), batch)
    trainer = kit.trainer(model, steps=2)
    trainer.accelerator.scaler = Scaler(2.0**12)
    assert torch.equal(searched(kit, perturbations, trainer, batch), plain) and trainer.accelerator.scaler.calls == 2


def test_an_overflow_skips_its_row_only_and_is_counted(kit, monkeypatch, perturbations):
    model, batch = kit.model(), kit.collate(kit.examples(6))
    plain = searched(kit, perturbations, kit.trainer(model, steps=2), batch)
    trainer = kit.trainer(model, steps=2)
    trainer.accelerator.scaler = Scaler(2.0**12)
    healthy = RobustTrainer.losses_per_example
    blow_up = torch.ones(6)
    blow_up[4] = 1e38
    monkeypatch.setattr(trainer, "losses_per_example", lambda *args: healthy(trainer, *args) * blow_up)
    delta = searched(kit, perturbations, trainer, batch)
    assert torch.equal(delta[4], torch.zeros_like(delta[4]))
    rest = [0, 1, 2, 3, 5]
    assert torch.equal(delta[rest], plain[rest])
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["robust_skipped_rows"] == 2


def test_frozen_embeddings_are_perturbed_all_the_same(kit, perturbations):
    model, batch = kit.model(), kit.collate(kit.examples())
    model.get_input_embeddings().weight.requires_grad_(False)
    got = kit.update_gradients(kit.trainer(model), batch)
    assert perturbations[-1].abs().sum() > 0 and "bert.embeddings.word_embeddings.weight" not in got


def test_question_answering_and_multi_label_batches_are_perturbed(kit, perturbations):
    from transformers import BertForQuestionAnswering

    batch = kit.collate(kit.examples())
    del batch["labels"]
    spans = batch | {"start_positions": torch.full((8,), 1), "end_positions": torch.full((8,), 2)}
    model = kit.model()
    multi = batch | {"labels": torch.rand(8, 3).round()}
    config = copy.deepcopy(model.config)
    config.num_labels = 2
    for network, inputs in ((BertForQuestionAnswering(config), spans), (model, multi)):
        network.config.problem_type = "multi_label_classification" if network is model else None
        got = kit.update_gradients(kit.trainer(network, epsilon=0.2), inputs)
        assert perturbations[-1].abs().sum() > 0 and all(gradient.isfinite().all() for gradient in got.values())
    with pytest.raises(ConfigError, match="labels"):
        trainer = kit.trainer(model)
        kit.open_window(trainer, batch)
        trainer.compute_loss(model, batch)


def test_inputs_embeds_are_perturbed_where_there_are_no_ids(kit, perturbations):
    model, batch = kit.model(), kit.collate(kit.examples())
    trainer = kit.trainer(model, steps=2, epsilon=0.2)
    kit.open_window(trainer, batch)
    by_ids = trainer.compute_loss(model, batch)
    embeds = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    torch.testing.assert_close(trainer.compute_loss(model, batch | {"inputs_embeds": embeds}), by_ids)


def test_an_embedding_looked_up_twice_or_in_another_shape_is_refused(kit):
    model, batch = kit.model(), kit.collate(kit.examples())
    trainer = kit.trainer(model)
    kit.open_window(trainer, batch)
    embedding = model.get_input_embeddings()
    handle = model.classifier.register_forward_hook(lambda *args: embedding(batch["input_ids"]).sum() and None)
    with pytest.raises(ConfigError, match="more than once"):
        trainer.compute_loss(model, batch)
    handle.remove()
    handle = embedding.register_forward_hook(lambda module, args, output: output.flatten(0, 1))
    with pytest.raises(ConfigError, match="sdpa"):
        trainer.compute_loss(model, batch)
    handle.remove()
    assert not embedding._forward_hooks
