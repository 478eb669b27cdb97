"""The trainer of X-MAML: what it trains on, in which stages, and what it refuses."""

import pytest
import torch
from contexts import STILL, make_context
from tiny import make_features, make_model, make_tokenizer, same_weights
from torch.func import functional_call
from transformers import DataCollatorWithPadding

from hf_xlt.errors import ConfigError
from hf_xlt.registry import get_strategy
from hf_xlt.strategies.xmaml import XMAMLConfig, XMAMLTrainer
from hf_xlt.strategies.xmaml.cost import cost, meta_cost
from hf_xlt.training.phases import run_phases

STRATEGY = get_strategy("xmaml")
AUXILIARY = {"de": make_features(20, seed=3, language="de"), "sw": make_features(17, seed=4, language="sw")}


def config_of(folder, **changes):
    settings = {
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "max_grad_norm": 0.0,
        "inner_learning_rate": 0.2,
    }
    if changes.get("order") == "plain":
        del settings["inner_learning_rate"]
    return XMAMLConfig(output_dir=str(folder), **{**settings, **changes})


def trainer_of(folder, model=None, auxiliary=None, **changes):
    return XMAMLTrainer(
        model=make_model(**STILL).double() if model is None else model,
        args=config_of(folder, **changes),
        train_dataset=make_features(44),
        data_collator=DataCollatorWithPadding(make_tokenizer()),
        processing_class=make_tokenizer(),
        role_datasets={"auxiliary": AUXILIARY if auxiliary is None else auxiliary},
        in_phases=True,
    )


def by_hand(trainer, steps, updates, rate=0.2, outer=0.1, size=8, scale=1.0):
    """The documented loop, written out with autograd through everything; returns the weights."""
    model = make_model(**STILL).double()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def loss_on(current, batch):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return torch.nn.functional.cross_entropy(functional_call(model, current, (), inputs).logits, batch["labels"])

    model.set_attn_implementation("eager")
    for update in range(updates):
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        for language in AUXILIARY:
            loader = trainer.endless_loader("auxiliary", language)
            support, query = loader.draw(update * size, size // 2), loader.draw(update * size + size // 2, size // 2)
            leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
            current = leaves
            for _ in range(steps):
                gradients = torch.autograd.grad(loss_on(current, support), list(current.values()), create_graph=True)
                moves = zip(current.items(), gradients, strict=True)
                current = {name: value - rate * gradient for (name, value), gradient in moves}
            found = torch.autograd.grad(loss_on(current, query), list(leaves.values()))
            for name, gradient in zip(leaves, found, strict=True):
                total[name] += gradient
        weights = {name: value - outer * scale * total[name] for name, value in weights.items()}
    return weights


@pytest.mark.parametrize(("steps", "aggregate"), [(1, "sum"), (3, "mean")])
def test_training_is_the_loop_written_by_hand(steps, aggregate, tmp_path):
    trainer = trainer_of(tmp_path, inner_steps=steps, aggregate=aggregate)
    expected = by_hand(trainer, steps, 3, scale=1.0 if aggregate == "sum" else 0.5)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-7, atol=1e-10)


def draws_of(trainer):
    drawn = []
    loader = trainer.endless_loader

    def listen(role, language):
        found = loader(role, language)
        return _Listening(found, role, language, drawn)

    trainer.endless_loader = listen
    return drawn


class _Listening:
    def __init__(self, loader, role, language, drawn):
        self.loader, self.role, self.language, self.drawn = loader, role, language, drawn

    def draw(self, start, count):
        self.drawn.append((self.role, self.language, tuple(self.loader.indices(start, count))))
        return self.loader.draw(start, count)


def test_support_and_query_are_disjoint_and_never_run_dry(tmp_path):
    """More updates than batches: each still trains on new batches, which the published code does not."""
    trainer = trainer_of(tmp_path, max_steps=9)
    drawn = draws_of(trainer)
    trainer.train()
    halves = [rows for _, language, rows in drawn if language == "sw"]
    assert len(halves) == 18
    for support, query in zip(halves[::2], halves[1::2], strict=True):
        # An epoch of 17 examples ends inside a task now and then; within an epoch nothing is drawn twice.
        assert len(support) == len(query) == 4
    whole = [row for rows in halves for row in rows]
    assert all(sorted(whole[17 * epoch : 17 * (epoch + 1)]) == list(range(17)) for epoch in range(4))


def test_cross_language_episodes_adapt_on_the_source(tmp_path):
    trainer = trainer_of(tmp_path, episode="cross_language", max_steps=2)
    drawn = draws_of(trainer)
    trainer.train()
    assert [(role, len(rows)) for role, _, rows in drawn[:4]] == [("support", 4), ("auxiliary", 4)] * 2


def test_the_baseline_sees_the_same_examples(tmp_path):
    seen = {}
    for order in ("second", "plain"):
        trainer = trainer_of(tmp_path / order, order=order, max_steps=2)
        drawn = draws_of(trainer)
        trainer.train()
        seen[order] = sorted((language, row) for _, language, rows in drawn for row in rows)
    assert seen["second"] == seen["plain"]


def test_the_cosine_with_the_plain_gradient_is_logged(tmp_path):
    near = trainer_of(tmp_path / "near", inner_learning_rate=1e-4, cosine_steps=1)
    near.train()
    cosines = [log["meta_cosine"] for log in near.state.log_history if "meta_cosine" in log]
    assert len(cosines) == 3 and all(0.999 < value < 1 for value in cosines)
    assert near.phase_facts()["xmaml"]["mean_cosine_with_plain_gradient"] > 0.999
    far = trainer_of(tmp_path / "far", inner_learning_rate=3.0, cosine_steps=2)
    far.train()
    cosines = [log["meta_cosine"] for log in far.state.log_history if "meta_cosine" in log]
    assert len(cosines) == 2 and min(cosines) < 0.999


def test_fused_attention_is_replaced_for_second_derivatives_and_only_there(tmp_path):
    """Without dropout the fused kernel of the CPU raises in a double backward pass."""
    model = make_model(**STILL)
    assert model.config._attn_implementation == "sdpa"
    trainer = trainer_of(tmp_path, model=model, inner_steps=2)
    trainer.train()
    assert model.config._attn_implementation == "sdpa"
    model = make_model(**STILL)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="no second derivative.*`attn_implementation` sdpa"):
        trainer_of(tmp_path, model=model)


def test_anil_adapts_the_head_and_trains_everything(tmp_path):
    trainer = trainer_of(tmp_path, inner_scope="head")
    assert [name for name, chosen in zip(trainer._names, trainer._scope, strict=True) if chosen] == [
        "classifier.weight",
        "classifier.bias",
    ]
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert all(not torch.equal(before[name], parameter) for name, parameter in trainer.model.named_parameters())
    with pytest.raises(ConfigError, match="names no weight"):
        trainer_of(tmp_path, inner_scope="nothing")


@pytest.mark.parametrize("order", ["second", "first", "reptile", "plain"])
def test_every_order_learns(order, tmp_path):
    rates = {"learning_rate": 3e-3, **({"inner_learning_rate": 0.05} if order != "plain" else {})}
    trainer = trainer_of(tmp_path, order=order, max_steps=25, optim="adamw_torch", task_batch_size=16, **rates)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_stages(tmp_path):
    def stages(folder, joint, **changes):
        folder.mkdir()
        context = make_context(STRATEGY, folder, dropout=False, max_steps=2, meta_steps=3, **changes)
        if joint:
            context.joint = {"de": make_features(6, seed=8, language="de")}
        return run_phases(context, folder, resume=False)

    _, ledger = stages(tmp_path / "two", False)
    assert [(entry["name"], entry["updates"]) for entry in ledger.done] == [("source", 2), ("meta", 3)]
    facts = ledger.done[1]["xmaml"]
    assert facts["auxiliary_languages"] == ["de", "sw"] and facts["task_size"] == 8
    _, ledger = stages(tmp_path / "one", False, fine_tune_first=False)
    assert [entry["name"] for entry in ledger.done] == ["meta"]
    trainer, ledger = stages(tmp_path / "three", True, few_shot_steps=4)
    assert [entry["name"] for entry in ledger.done] == ["source", "meta", "few-shot"]
    assert len(trainer.train_dataset) == 6 and trainer.args.learning_rate == 1e-5
    with pytest.raises(ConfigError, match='add `shots=100` with `few_shot_mode="joint"`'):
        stages(tmp_path / "none", False, few_shot_steps=4)


def test_cost_counts_passes_over_halves_of_a_task(tmp_path):
    def of(**changes):
        return meta_cost(config_of(tmp_path, **changes))

    assert (of(), of(order="first"), of(order="plain"), of(order="reptile", inner_steps=3)) == (2, 1, 1, 3)
    assert of(inner_steps=3) == 5 and of(order="first", inner_steps=3, support_share=0.25) == 1.5
    assert cost(config_of(tmp_path)) == 1 and cost(config_of(tmp_path, fine_tune_first=False)) == 2


def test_without_meta_learning_rate_the_meta_stage_changes_nothing(tmp_path):
    trainer = trainer_of(tmp_path, learning_rate=0.0)
    trainer.train()
    assert same_weights(trainer.model, make_model(**STILL).double())


def test_settings_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="activation checkpointing runs forward passes again"):
        trainer_of(tmp_path, activation_checkpointing=True)
    with pytest.raises(ConfigError, match="no auxiliary languages"):
        trainer_of(tmp_path, auxiliary={})
    with pytest.raises(ConfigError, match="`inner_steps` is 0.*`support_share` is 1"):
        config_of(tmp_path, inner_steps=0, support_share=1)
    with pytest.raises(ConfigError, match="divides by `inner_learning_rate`"):
        config_of(tmp_path, order="reptile", inner_learning_rate=0)
    with pytest.raises(ConfigError, match="choose one of second, first, reptile, plain"):
        config_of(tmp_path, order="third")
    for name in ("fp16", "torch_compile"):
        config = config_of(tmp_path)
        setattr(config, name, True)
        with pytest.raises(ConfigError, match=name):
            STRATEGY.check(config, "text-classification")
