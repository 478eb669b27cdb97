"""Settings of robust training: radius, refusals, round trips, the registry entry."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn
from transformers import HfArgumentParser, TrainingArguments

from hf_xlt.errors import ConfigError
from hf_xlt.registry import get_strategy
from hf_xlt.strategies.finetune import FinetuneConfig
from hf_xlt.strategies.robust import STRATEGY, RobustConfig
from hf_xlt.strategies.robust.vocabulary import mean_embedding_norm, special_token_ids


def test_the_relative_radius_refers_to_rows_that_hold_text(kit, perturbations):
    model, batch = kit.model(), kit.collate(kit.examples())
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[[0, 1, 2, 3, 4, 58, 59]] = 100.0
    trainer = kit.trainer(model, tokenizer=kit.tokenizer(), epsilon=0.5)
    expected = weight[5:58].norm(dim=1).mean().item()
    assert mean_embedding_norm(nn.Embedding.from_pretrained(weight), kit.tokenizer()) == pytest.approx(expected)
    assert mean_embedding_norm(nn.Embedding.from_pretrained(weight), None) == pytest.approx(
        weight.norm(dim=1).mean().item()
    )
    assert special_token_ids(kit.tokenizer()) == [0, 1, 2] and special_token_ids(None) == []
    kit.open_window(trainer, batch)
    trainer.compute_loss(model, batch)
    norms = perturbations[-1].norm(dim=2)[batch["attention_mask"].bool()]
    torch.testing.assert_close(norms, torch.full_like(norms, 0.5 * expected), rtol=1e-5, atol=0)


def test_a_small_radius_on_16_bit_weights_warns(kit):
    def train(model, **settings):
        trainer = kit.trainer(model, examples=kit.examples(), eps_mode="absolute", max_steps=1, **settings)
        trainer.train()

    with pytest.warns(UserWarning, match="rounding removes"):
        train(kit.model().bfloat16(), epsilon=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(kit.model().bfloat16(), epsilon=0.1)
        train(kit.model(), epsilon=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"torch_compile": True}, "torch_compile"),
        ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}, "reentrant"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(kit, settings, message):
    config = RobustConfig(output_dir=str(kit.folder), use_cpu=True, **settings)
    with pytest.raises(ConfigError, match=message):
        STRATEGY.check(config, "classification")
    with pytest.raises(ConfigError, match=message):
        kit.trainer(**settings)
    STRATEGY.check(RobustConfig(output_dir=str(kit.folder), use_cpu=True, method="none", **settings), "classification")


def test_plain_training_arguments_are_refused(kit):
    with pytest.raises(ConfigError, match="FinetuneConfig"):
        kit.trainer(config_cls=FinetuneConfig)


def test_sharded_and_data_parallel_settings_are_refused(kit):
    config = RobustConfig(output_dir=str(kit.folder), use_cpu=True)
    for name, value, message in (
        ("deepspeed", {}, None),
        ("deepspeed", {"a": 1}, "DeepSpeed"),
        ("fsdp", True, "FSDP"),
    ):
        changed = copy.copy(config)
        setattr(changed, name, value)
        if message is None:
            STRATEGY.check(changed, "classification")
            continue
        with pytest.raises(ConfigError, match=message):
            STRATEGY.check(changed, "classification")
    config._n_gpu = 2
    with pytest.raises(ConfigError, match="accelerate launch"):
        STRATEGY.check(config, "classification")


INVALID = {
    "method": "sgd",
    "epsilon": -0.1,
    "eps_mode": "mean",
    "norm": "l1",
    "norm_scope": "batch",
    "steps": 0,
    "step_size": 0.0,
    "init": "ones",
    "linf_direction": "max",
    "noise": "laplace",
    "num_samples": 0,
    "clean_weight": 1.5,
    "inner_dropout": "off",
    "start_step": -1,
    "init_scale": 0.0,
    "inner_loss": "ce",
    "consistency": "kl",
    "consistency_weight": -1.0,
    "smooth_predict": "median",
    "smooth_samples": 0,
    "smooth_epsilon": -0.5,
}
# Each is right by itself; the message names what to change.
CONTRADICTIONS = [
    ({"consistency": "symkl", "method": "none"}, "choose adv or rs_rp"),
    ({"consistency": "symkl", "method": "freelb"}, "choose adv or rs_rp"),
    ({"consistency": "symkl", "clean_weight": 0.5}, "clean_weight"),
    ({"inner_loss": "kl", "method": "freelb", "init": "uniform"}, "use adv"),
    ({"inner_loss": "kl"}, "set `init`"),
]


def test_invalid_settings_are_refused_all_at_once(kit):
    with pytest.raises(ConfigError) as error:
        RobustConfig(output_dir=str(kit.folder), use_cpu=True, **INVALID)
    for name, value in INVALID.items():
        assert f"`{name}` is {value!r}" in str(error.value)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="finite"):
            RobustConfig(output_dir=str(kit.folder), use_cpu=True, epsilon=value)


@pytest.mark.parametrize(("settings", "message"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(kit, settings, message):
    with pytest.raises(ConfigError, match=message):
        RobustConfig(output_dir=str(kit.folder), use_cpu=True, **settings)


def test_an_optimizer_that_updates_within_backward_is_refused_where_there_are_several(kit):
    several = ({"method": "freelb", "steps": 2}, {"method": "rs_rp", "num_samples": 2}, {"clean_weight": 0.5})
    one = ({"method": "freelb", "init": "uniform"}, {}, {"method": "rs_rp", "num_samples": 2, "consistency": "symkl"})
    for settings in (*several, *one):
        config = RobustConfig(output_dir=str(kit.folder), use_cpu=True, **settings)
        config.optim = "lomo"
        if settings in several:
            with pytest.raises(ConfigError, match="lomo"):
                STRATEGY.check(config, "classification")
        else:
            STRATEGY.check(config, "classification")


def test_freelb_that_is_plain_training_warns(kit):
    with pytest.warns(UserWarning, match="`steps` to 3"):
        kit.trainer(method="freelb")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kit.trainer(method="freelb", steps=2)
        kit.trainer(method="freelb", init="uniform")


def test_a_config_survives_json_and_the_command_line(kit):
    own = list(RobustConfig.__annotations__)
    settings = {"method": "rs_rp", "epsilon": 0.3, "noise": "l2_ball", "num_samples": 3, "norm_scope": "sentence"} | {
        "consistency": "symkl",
        "perturb_special_tokens": False,
        "start_step": 7,
        "smooth_predict": "vote",
        "smooth_epsilon": 0.5,
        "detach_noised": False,
    }
    config = RobustConfig(output_dir=str(kit.folder), use_cpu=True, **settings)
    saved = {name: value for name, value in json.loads(config.to_json_string()).items() if name in own}
    parser = HfArgumentParser(RobustConfig)
    (loaded,) = parser.parse_dict(saved | {"output_dir": str(kit.folder), "use_cpu": True})
    flags = ["--output_dir", str(kit.folder), "--use_cpu"]
    for name, value in saved.items():
        flags += [] if value is None else [f"--{name}", str(value)]
    (parsed,) = parser.parse_args_into_dataclasses(flags)
    for name in own:
        assert getattr(config, name) == getattr(loaded, name) == getattr(parsed, name), name


def test_the_registry_entry_has_help_costs_and_the_paper(kit):
    fields = RobustConfig.__dataclass_fields__
    assert all(fields[name].metadata["help"] for name in RobustConfig.__annotations__)
    assert not RobustConfig.__annotations__.keys() & TrainingArguments.__dataclass_fields__.keys()
    assert get_strategy("robust") is STRATEGY and "spirit" in STRATEGY.notes and "EMNLP" in STRATEGY.paper.venue
    config = RobustConfig(output_dir=str(kit.folder), use_cpu=True)
    assert (config.method, config.steps, config.epsilon, config.eps_mode) == ("adv", 1, 0.01, "relative")
    assert (config.norm, config.norm_scope, config.clean_weight) == ("l2", "token", 0.0)
    for settings, expected in (
        ({}, 5 / 3),
        ({"steps": 3}, 3.0),
        ({"clean_weight": 0.5}, 2.0),
        ({"clean_weight": 0.5, "init": "uniform"}, 8 / 3),
        ({"method": "rs_rp", "num_samples": 2}, 2.0),
        ({"method": "none"}, 1.0),
        ({"method": "freelb", "steps": 3}, 3.0),
        ({"method": "freelb", "steps": 3, "clean_weight": 0.5}, 4.0),
        ({"method": "rs_rp", "consistency": "symkl"}, 2.0),
        ({"consistency": "symkl"}, 8 / 3),
        ({"consistency": "symkl", "inner_loss": "kl", "init": "gaussian", "steps": 3}, 4.0),
        ({"inner_loss": "kl", "init": "gaussian"}, 2.0),
        ({"consistency": "symkl", "consistency_weight": 0.0}, 1.0),
        ({"activation_checkpointing": True}, 7 / 4),
    ):
        config = RobustConfig(output_dir=str(kit.folder), use_cpu=True, **settings)
        assert STRATEGY.cost(config) == pytest.approx(expected)


class _Scaled(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 8.0


def test_the_relative_radius_is_measured_on_what_a_scaling_embedding_gives():
    plain, scaled = nn.Embedding(60, 64), _Scaled(60, 64)
    scaled.load_state_dict(plain.state_dict())
    assert mean_embedding_norm(scaled, None) == pytest.approx(8 * mean_embedding_norm(plain, None))
    assert scaled.training
