"""What robust training does to an update: parity with plain training, cost, accumulation, resume, effect."""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer

from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer
from hf_xlt.strategies.robust import STRATEGY, RobustConfig, RobustTrainer
from hf_xlt.strategies.robust import trainer as trainer_module

INACTIVE = {
    "adv at radius 0": {"method": "adv", "epsilon": 0.0, "steps": 3, "init": "uniform"},
    "rs_rp at radius 0": {"method": "rs_rp", "epsilon": 0.0, "num_samples": 3},
    "none": {"method": "none"},
    "before start_step": {"method": "adv", "epsilon": 0.1, "start_step": 3},
    "clean loss alone": {"method": "adv", "epsilon": 0.1, "clean_weight": 1.0},
    "freelb at radius 0": {"method": "freelb", "epsilon": 0.0, "steps": 3, "init": "uniform"},
    "freelb, one step from zero": {"method": "freelb", "epsilon": 0.1, "steps": 1, "init": "zero"},
    "consistency of weight 0": {"method": "rs_rp", "epsilon": 0.1, "consistency": "symkl", "consistency_weight": 0.0},
    "consistency at radius 0": {"method": "rs_rp", "epsilon": 0.0, "consistency": "symkl"},
}


def trained(trainer):
    torch.manual_seed(5)
    trainer.train()
    return {
        "weights": copy.deepcopy(trainer.model.state_dict()),
        "optimizer": copy.deepcopy(trainer.optimizer.state_dict()["state"]),
        "rng": torch.get_rng_state(),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def assert_equal(one, other):
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name
    for number, state in one["optimizer"].items():
        assert all(
            torch.equal(torch.as_tensor(state[key]), torch.as_tensor(other["optimizer"][number][key])) for key in state
        )
    assert torch.equal(one["rng"], other["rng"]) and one["losses"] == other["losses"]


@pytest.fixture(scope="module")
def plain_training(request, tmp_path_factory):
    """Three plain updates with dropout: by the stock Trainer, and by ours with two micro-batches each."""
    cache = {}

    def run(kit, accumulation):
        if accumulation not in cache:
            kinds = {} if accumulation > 1 else {"cls": Trainer}
            options = {"cls": FinetuneTrainer, "config_cls": FinetuneConfig} | kinds
            model = kit.model(dropout=True)
            trainer = kit.trainer(
                model, **options, examples=kit.examples(48), gradient_accumulation_steps=accumulation
            )
            cache[accumulation] = trained(trainer)
        return cache[accumulation]

    return run


@pytest.mark.filterwarnings("ignore:.*from a zero start is plain fine-tuning")
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("settings", INACTIVE.values(), ids=INACTIVE)
def test_inactive_is_plain_training_bit_for_bit(kit, plain_training, settings, accumulation):
    options = {"examples": kit.examples(48), "gradient_accumulation_steps": accumulation}
    trainer = kit.trainer(kit.model(dropout=True), **options, **settings)
    assert_equal(plain_training(kit, accumulation), trained(trainer))


@pytest.mark.parametrize("dropout", ["train", "shared", "eval"])
def test_active_training_leaves_the_global_generators_as_plain_training_does(kit, plain_training, settings, dropout):
    several = any(name in settings for name in ("num_samples", "consistency", "clean_weight"))
    if settings["method"] != "adv" and (dropout == "eval" or (settings["method"] == "rs_rp" and not several)):
        dropout = "train"
    trainer = kit.trainer(kit.model(dropout=True), examples=kit.examples(48), inner_dropout=dropout, **settings)
    result, plain = trained(trainer), plain_training(kit, 1)
    assert torch.equal(result["rng"], plain["rng"])
    assert not torch.equal(result["weights"]["classifier.weight"], plain["weights"]["classifier.weight"])


def test_the_training_pass_draws_the_dropout_masks_of_plain_training(kit, plain_training):
    tiny = {"epsilon": 1e-9, "eps_mode": "absolute", "steps": 2}
    result = trained(kit.trainer(kit.model(dropout=True), examples=kit.examples(48), **tiny))
    assert result["losses"] == pytest.approx(plain_training(kit, 1)["losses"], rel=1e-3)


def test_updates_before_start_step_are_plain_and_later_ones_are_not(kit, plain_training):
    result = trained(kit.trainer(kit.model(dropout=True), examples=kit.examples(48), epsilon=0.3, start_step=2))
    plain = plain_training(kit, 1)
    assert result["losses"][:2] == plain["losses"][:2] and result["losses"][2] != plain["losses"][2]


def test_evaluation_is_never_perturbed(kit):
    model, batch = kit.model(), kit.collate(kit.examples())
    trainer = kit.trainer(model, epsilon=0.5)
    kit.open_window(trainer, batch)
    perturbed = trainer.compute_loss(model, batch)
    model.eval()
    plain = model(**batch).loss
    torch.testing.assert_close(trainer.compute_loss(model, batch), plain)
    assert perturbed > plain * 1.01
    metrics = trainer.evaluate(kit.examples())
    assert metrics["eval_loss"] == pytest.approx(plain.item(), rel=1e-5)


def test_the_weights_get_the_gradient_at_a_constant_perturbation(kit, perturbations):
    model, batch = kit.model(), kit.collate(kit.examples())
    got = kit.update_gradients(kit.trainer(model, epsilon=0.3, steps=2, eps_mode="absolute"), batch)
    model.zero_grad()
    embeds = model.get_input_embeddings()(batch["input_ids"]) + perturbations[-1]
    model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"]).loss.backward()
    expected = kit.gradients(model)
    assert got.keys() == expected.keys() and got["bert.embeddings.word_embeddings.weight"].abs().sum() > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"steps": 1}, 2),
        ({"steps": 3}, 4),
        ({"steps": 2, "clean_weight": 0.5}, 3),
        ({"steps": 2, "clean_weight": 0.5, "inner_dropout": "eval"}, 4),
        ({"steps": 2, "clean_weight": 0.5, "label_smoothing_factor": 0.1}, 4),
        ({"method": "rs_rp"}, 1),
        ({"method": "rs_rp", "num_samples": 3}, 3),
        ({"epsilon": 0.0, "steps": 3}, 1),
        ({"steps": 2, "inner_loss": "kl", "init": "uniform"}, 4),
        ({"method": "freelb", "steps": 3}, 3),
        ({"method": "freelb", "steps": 3, "clean_weight": 0.5}, 4),
        ({"method": "rs_rp", "consistency": "symkl"}, 2),
        ({"method": "rs_rp", "consistency": "symkl", "num_samples": 2}, 3),
        ({"consistency": "symkl", "steps": 2}, 4),
        ({"consistency": "symkl", "steps": 2, "inner_loss": "kl", "init": "gaussian"}, 4),
    ],
)
def test_a_step_runs_the_model_no_more_often_than_it_must(kit, settings, passes):
    model, batch, calls = kit.model(), kit.collate(kit.examples()), []
    model.register_forward_hook(lambda *args: calls.append(1))
    kit.update_gradients(kit.trainer(model, **settings), batch)
    assert len(calls) == passes


def test_flops_are_those_of_the_arithmetic(kit):
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 4}
    model = kit.model(attn_implementation="eager", **shape)
    batch = kit.collate(kit.examples(4, lengths=[16] * 4))

    def flops(**settings):
        trainer = kit.trainer(model, **settings)
        with FlopCounterMode(display=False) as counter:
            kit.update_gradients(trainer, batch)
        return counter.get_total_flops()

    plain = flops(method="none")
    for settings in (
        {"steps": 1},
        {"steps": 3},
        {"method": "rs_rp"},
        {"steps": 2, "clean_weight": 0.5},
        {"steps": 2, "clean_weight": 0.5, "init": "uniform"},
        {"method": "freelb", "steps": 3},
        {"method": "rs_rp", "consistency": "symkl"},
        {"steps": 2, "consistency": "symkl", "inner_loss": "kl", "init": "gaussian"},
        {"steps": 2, "inner_loss": "kl", "init": "gaussian"},
    ):
        config = RobustConfig(output_dir=str(kit.folder), use_cpu=True, **settings)
        assert flops(**settings) / plain == pytest.approx(STRATEGY.cost(config), rel=0.05)
    inner = flops(steps=2) - flops(steps=1)
    assert inner / plain < 0.69 and flops(steps=3) == flops(steps=1) + 2 * inner


@pytest.mark.parametrize("token_labels", [False, True], ids=["sentence labels", "token labels"])
def test_gradients_do_not_depend_on_how_a_batch_is_split(kit, settings, token_labels):
    examples = kit.examples(8, token_labels=token_labels)
    model = token_classifier(kit) if token_labels else kit.model()
    whole = kit.update_gradients(kit.trainer(model, **settings), kit.collate(examples))
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    parts = [kit.collate(examples[start : start + 2]) for start in range(0, 8, 2)]
    got = kit.update_gradients(kit.trainer(model, **settings, **split), *parts)
    for name, gradient in whole.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=2e-6, msg=name)


def token_classifier(kit):
    from transformers import BertForTokenClassification

    torch.manual_seed(0)
    return BertForTokenClassification(kit.model().config)


def test_the_log_tells_losses_norms_and_skipped_rows(kit):
    trainer = kit.trainer(examples=kit.examples(48), epsilon=0.1, gradient_accumulation_steps=2, logging_steps=2)
    trainer.args.max_steps = 2
    trainer.args.learning_rate = 0.0
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "robust_norm_ratio" in entry]
    assert entry["robust_norm_ratio"] == pytest.approx(1.0, rel=1e-5) and entry["robust_skipped_rows"] == 0
    assert entry["robust_perturbed_loss"] == pytest.approx(entry["loss"], rel=1e-5)
    assert entry["robust_clean_loss"] < entry["robust_perturbed_loss"]
    plain = kit.trainer(examples=kit.examples(48), method="none", gradient_accumulation_steps=2, logging_steps=2)
    plain.args.max_steps, plain.args.learning_rate = 2, 0.0
    plain.train()
    assert entry["robust_clean_loss"] == pytest.approx(plain.state.log_history[0]["loss"], rel=1e-5)
    assert not any(name.startswith("robust") for name in plain.state.log_history[0])


def test_a_clean_weight_mixes_the_two_losses(kit, perturbations):
    model, batch = kit.model(), kit.collate(kit.examples())

    def loss(**settings):
        trainer = kit.trainer(model, **settings)
        kit.open_window(trainer, batch)
        return trainer.compute_loss(model, batch).item()

    clean, perturbed = loss(method="none"), loss(epsilon=0.2)
    assert loss(epsilon=0.2, clean_weight=0.25) == pytest.approx(0.25 * clean + 0.75 * perturbed, rel=1e-5)


def test_several_draws_are_averaged_and_fresh_at_every_update(kit, perturbations):
    trainer, batch = kit.trainer(method="rs_rp", num_samples=3, epsilon=0.2), kit.collate(kit.examples())

    def run(update):
        kit.open_window(trainer, batch, update=update)
        perturbations.clear()
        loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        return loss, outputs, list(perturbations)

    loss, outputs, first = run(0)
    assert len(first) == 3 and outputs["logits"].shape == (8, 3)
    again, later = run(0)[2], run(1)[2]
    for one, same in zip(first, again, strict=True):
        assert torch.equal(one, same)
    drawn = first + later
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(drawn, 2))
    embeds = trainer.model.get_input_embeddings()(batch["input_ids"])
    rest = {"attention_mask": batch["attention_mask"], "labels": batch["labels"]}
    single = [trainer.model(inputs_embeds=embeds + delta, **rest).loss.item() for delta in first]
    assert loss.item() == pytest.approx(sum(single) / 3, rel=1e-5)


def test_a_resumed_run_ends_at_the_weights_of_an_uninterrupted_one(kit, settings):
    options = {"examples": kit.examples(48), "max_steps": 4, "save_strategy": "steps", "save_steps": 2, **settings}
    whole = kit.trainer(kit.model(dropout=True), **options)
    whole.train()
    resumed = kit.trainer(kit.model(dropout=True, seed=9), **options)
    resumed.train(resume_from_checkpoint=str(kit.folder / "checkpoint-2"))
    # The radius refers to the embeddings at the start of the first run, not to those at its checkpoint.
    assert resumed._reference_norm == whole._reference_norm
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


class Linear(nn.Module):
    """Mean of frozen embeddings, then a linear layer; counts as a model for the trainer."""

    def __init__(self, embeddings):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(embeddings, freeze=True)
        self.head = nn.Linear(embeddings.shape[1], 2, bias=False)
        self.config = SimpleNamespace(num_labels=2, problem_type=None, pad_token_id=None)
        nn.init.zeros_(self.head.weight)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"logits": self.head(self.embedding(input_ids).mean(dim=1))}


@pytest.mark.parametrize("seed", range(5))
def test_adversarial_training_withstands_an_attack_that_breaks_plain_training(kit, seed):
    # One direction tells the label with a wide margin, rightly for 90 %; fifteen together tell it always, with a
    # margin that the attack closes.
    generator = torch.Generator().manual_seed(seed)
    count, radius = 200, 0.6
    labels = torch.arange(count) % 2
    sign = (labels * 2 - 1).float()
    wide = torch.where(torch.arange(count) % 20 < 18, sign, -sign)
    embeddings = torch.cat([wide[:, None], 0.12 * sign[:, None].expand(-1, 15)], dim=1)
    embeddings = embeddings + 0.02 * torch.randn(count, 16, generator=generator)
    batch = {"input_ids": torch.arange(count)[:, None].expand(-1, 4), "labels": labels}

    def robust_accuracy(**settings):
        model = Linear(embeddings)
        trainer = kit.trainer(model, **settings)
        optimizer = torch.optim.SGD(model.head.parameters(), lr=1.0)
        for update in range(300):
            kit.update_gradients(trainer, batch)
            trainer.state.global_step = update
            optimizer.step()
        weights = (model.head.weight[1] - model.head.weight[0]).detach()
        # The worst case of a linear model in closed form: the margin less radius * norm of the weights.
        margin = sign * (embeddings @ weights) - radius * weights.norm()
        return (margin > 0).float().mean().item()

    plain, robust = robust_accuracy(method="none"), robust_accuracy(epsilon=radius, eps_mode="absolute")
    assert robust > plain + 0.1 and robust >= 0.85


def test_training_moves_every_weight_and_the_module_is_importable_from_the_package(kit):
    import hf_xlt

    assert hf_xlt.RobustTrainer is RobustTrainer and trainer_module.RobustTrainer is RobustTrainer
    model = kit.model(dropout=True)
    before = copy.deepcopy(model.state_dict())
    result = kit.trainer(model, examples=kit.examples(48)).train()
    assert result.training_loss < 10
    unmoved = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    # A softmax does not feel a constant added to all keys' scores.
    assert all("key.bias" in name for name in unmoved)
