"""What a trainer built in Python refuses: oracles, ignored settings, arguments of another class."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_config, make_features, make_model, make_tokenizer, same_weights
from transformers import (
    BertForQuestionAnswering,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    T5Config,
    T5ForSequenceClassification,
    TrainingArguments,
)

import hf_xlt
from hf_xlt.errors import ConfigError
from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer
from hf_xlt.strategies.metaxl import MetaXLConfig, MetaXLTrainer
from hf_xlt.strategies.robust import RobustConfig, RobustTrainer
from hf_xlt.strategies.soft_layers import SoftLayerSelectionConfig, SoftLayerSelectionTrainer
from hf_xlt.strategies.xmaml import XMAMLConfig, XMAMLTrainer
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.trainer import XLTTrainer

SETTINGS = {
    "per_device_train_batch_size": 8,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
SELECTS = {**EVALUATES, "load_best_model_at_end": True}
LANGUAGES = {"en": make_features(9), "de": make_features(9, seed=1), "sw": make_features(9, seed=2)}
POOLS = {"de": make_features(12, seed=3, language="de"), "sw": make_features(12, seed=4, language="sw")}


def accuracy(prediction):
    return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}


def build(folder, changes=None, cls=FinetuneTrainer, config_cls=FinetuneConfig, model=None, **arguments):
    return cls(
        model=make_model() if model is None else model,
        args=config_cls(str(folder), **{**SETTINGS, **(changes or {})}),
        **{
            "train_dataset": make_features(24),
            "data_collator": DataCollatorWithPadding(make_tokenizer()),
            "processing_class": make_tokenizer(),
            **arguments,
        },
    )


# ---- Arguments of another class


@pytest.mark.parametrize(
    ("cls", "wanted"),
    [
        (XLTTrainer, "XLTConfig"),
        (FinetuneTrainer, "XLTConfig"),
        (RobustTrainer, "RobustConfig"),
        (MetaXLTrainer, "MetaXLConfig"),
        (SoftLayerSelectionTrainer, "SoftLayerSelectionConfig"),
        (XMAMLTrainer, "XMAMLConfig"),
    ],
)
@pytest.mark.parametrize("given", [TrainingArguments, XLTConfig, None])
def test_arguments_of_another_class_are_one_clear_line(tmp_path, cls, wanted, given):
    if given is not None and wanted == given.__name__:
        return
    args = given(str(tmp_path), use_cpu=True) if given else None
    got = given.__name__ if given else "nothing"
    with pytest.raises(ConfigError, match=f"`{cls.__name__}` takes `args` of the class `{wanted}`.*{got}") as error:
        cls(model=make_model(), args=args, train_dataset=make_features(8))
    assert "\n" not in str(error.value)


# ---- Oracles


def test_several_languages_without_sources_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds 3 languages \(en, de, sw\).*`source_languages=\['en'\]`"):
        build(tmp_path, eval_dataset=LANGUAGES)
    with pytest.raises(ConfigError, match="holds 3 languages"):
        build(tmp_path).evaluate(LANGUAGES)


def test_one_language_is_the_source_also_of_what_is_evaluated_later(tmp_path):
    trainer = build(tmp_path, eval_dataset={"en": LANGUAGES["en"]}, compute_metrics=accuracy)
    assert trainer.source_languages == ("en",)
    metrics = trainer.evaluate(LANGUAGES)
    assert metrics["eval_avg_accuracy"] == metrics["eval_en_accuracy"]
    assert metrics["eval_target_avg_accuracy"] == (metrics["eval_de_accuracy"] + metrics["eval_sw_accuracy"]) / 2


def test_targets_alone_have_no_average_of_sources(tmp_path):
    metrics = build(tmp_path, source_languages=["en"]).evaluate({"de": LANGUAGES["de"], "sw": LANGUAGES["sw"]})
    assert "eval_target_avg_loss" in metrics and "eval_avg_loss" not in metrics


@pytest.mark.parametrize("metric", ["eval_sw_accuracy", "sw_loss", "target_avg_accuracy", "eval_target_avg_loss"])
@pytest.mark.parametrize(
    "use",
    [
        SELECTS,
        {**EVALUATES, "save_strategy": "best"},
        {**EVALUATES, "lr_scheduler_type": "reduce_lr_on_plateau"},
        EVALUATES,
    ],
)
def test_target_labels_select_only_by_name(tmp_path, metric, use):
    changes = {**use, "metric_for_best_model": metric, "greater_is_better": not metric.endswith("loss")}
    arguments = {"eval_dataset": LANGUAGES, "source_languages": ["en"], "compute_metrics": accuracy}
    arguments["callbacks"] = [EarlyStoppingCallback(2)]
    with pytest.raises(ConfigError, match="target-language labels decide.*`select_on_target_validation=True`"):
        build(tmp_path, changes, **arguments)
    allowed = build(tmp_path, changes, **arguments, select_on_target_validation=True)
    allowed.train()
    assert allowed.state.best_metric is not None


def test_a_metric_that_is_changed_later_is_looked_at_before_training(tmp_path):
    trainer = build(
        tmp_path, {**SELECTS, "metric_for_best_model": "avg_loss"}, eval_dataset=LANGUAGES, source_languages=["en"]
    )
    trainer.args.metric_for_best_model = "sw_loss"
    with pytest.raises(ConfigError, match="target-language labels decide"):
        trainer.train()


def test_sources_that_are_not_evaluated_cannot_select(tmp_path):
    targets = {"de": LANGUAGES["de"], "sw": LANGUAGES["sw"]}
    with pytest.raises(ConfigError, match=r"none of the source languages \(en\) is in `eval_dataset` \(de, sw\)"):
        build(tmp_path, SELECTS, eval_dataset=targets, source_languages=["en"])


@pytest.mark.parametrize("use", [SELECTS, {**EVALUATES, "lr_scheduler_type": "reduce_lr_on_plateau"}])
def test_the_stock_default_selects_by_the_loss_on_sources(tmp_path, use):
    trainer = build(tmp_path, use, eval_dataset=LANGUAGES, source_languages=["en"])
    assert trainer.args.metric_for_best_model == "loss"
    trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert len(logs) == 2
    assert all(log["eval_loss"] == log["eval_avg_loss"] == log["eval_en_loss"] for log in logs)
    assert trainer.state.best_metric == min(log["eval_loss"] for log in logs)


def test_a_plain_name_is_the_mean_over_sources(tmp_path):
    changes = {**SELECTS, "metric_for_best_model": "accuracy"}
    trainer = build(tmp_path, changes, eval_dataset=LANGUAGES, source_languages=["en", "de"], compute_metrics=accuracy)
    trainer.train()
    assert trainer.state.best_metric == max(log.get("eval_avg_accuracy", -1) for log in trainer.state.log_history)


def test_a_metric_that_evaluation_does_not_give_is_one_clear_line(tmp_path):
    changes = {**SELECTS, "metric_for_best_model": "f1"}
    with pytest.raises(ConfigError, match="without `compute_metrics` the loss is the only metric"):
        build(tmp_path, changes, eval_dataset=LANGUAGES, source_languages=["en"])
    trainer = build(tmp_path, changes, eval_dataset=LANGUAGES, source_languages=["en"], compute_metrics=accuracy)
    with pytest.raises(ConfigError, match="'f1', and evaluation gives .*avg_accuracy"):
        trainer.train()


def test_an_encoder_decoder_gives_a_loss_to_select_by(tmp_path):
    config = T5Config(
        vocab_size=65,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        num_labels=3,
        pad_token_id=0,
        eos_token_id=3,
    )
    config.decoder_start_token_id = 0
    torch.manual_seed(0)
    trainer = build(
        tmp_path,
        SELECTS,
        model=T5ForSequenceClassification(config),
        train_dataset=_with_end(make_features(24)),
        eval_dataset={"en": _with_end(make_features(9)), "sw": _with_end(make_features(9, seed=1))},
        source_languages=["en"],
    )
    trainer.train()
    assert trainer.state.best_metric == min(
        log["eval_en_loss"] for log in trainer.state.log_history if "eval_en_loss" in log
    )


def _with_end(features):
    # One end of sequence each, as its head wants; 3 stands at the end of the tiny tokenizer's inputs.
    return [{**feature, "input_ids": [*feature["input_ids"][:-1], 3]} for feature in features]


# ---- Settings that a trainer alone would ignore

XMAML = {"fine_tune_first": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta_steps": 5}, "`meta_steps` is 5.*set `max_steps`"),
        ({"meta_learning_rate": 0.5}, "`meta_learning_rate` is 0.5.*set `learning_rate`"),
        ({"meta_optimizer": "sgd"}, "set `optim`"),
        ({"meta_max_grad_norm": 1.0}, "set `max_grad_norm`"),
        ({"few_shot_steps": 2}, "with a `FinetuneTrainer`"),
        ({"few_shot_learning_rate": 1e-3}, "a stage which the trainer does not make"),
        ({"gradient_accumulation_steps": 2}, "the same meta-gradient"),
        ({"max_steps": -1}, "the number of meta-updates"),
        ({"fine_tune_first": True}, "Fine-tune on the source with a `FinetuneTrainer` before"),
        ({"fp16": True}, "fp16 scales losses"),
    ],
)
def test_xmaml_alone_refuses_what_it_would_ignore(tmp_path, changes, message):
    roles = {"role_datasets": {"auxiliary": POOLS}}
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, {**XMAML, **changes}, XMAMLTrainer, XMAMLConfig, **roles)
    build(tmp_path, XMAML, XMAMLTrainer, XMAMLConfig, **roles).train()


def test_xmaml_alone_refuses_joint_data(tmp_path):
    with pytest.raises(ConfigError, match="`joint_datasets` would be ignored"):
        build(tmp_path, XMAML, XMAMLTrainer, XMAMLConfig, role_datasets={"auxiliary": POOLS}, joint_datasets=POOLS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "`mode` trajectory learns gates and then fine-tunes again"),
        ({"mode": "episodic"}, "`mode` episodic"),
        ({"mode": "online", "gate_updates": 3}, "`gate_updates` is 3.*set `max_steps`"),
        ({"mode": "online", "fp16": True}, "fp16 scales gradients"),
    ],
)
def test_soft_layers_alone_refuse_what_they_would_ignore(tmp_path, changes, message):
    roles = {"role_datasets": {"auxiliary": POOLS}}
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, changes, SoftLayerSelectionTrainer, SoftLayerSelectionConfig, **roles)
    online = build(tmp_path, {"mode": "online"}, SoftLayerSelectionTrainer, SoftLayerSelectionConfig, **roles)
    online.train()
    known = {"gate_values": '{"layer_0": 0.5}'}
    build(tmp_path, known, SoftLayerSelectionTrainer, SoftLayerSelectionConfig).train()


@pytest.mark.parametrize(
    "changes",
    [
        {"augmenter": "characters"},
        {"copies": 5},
        {"augmentation": "online"},
        {"character_rate": 0.5},
        {"lookup": "casefold"},
    ],
)
def test_robust_training_alone_refuses_augmentation(tmp_path, changes):
    name = next(iter(changes))
    with pytest.raises(ConfigError, match=f"`{name}` is .*augmented before it is encoded"):
        build(tmp_path, changes, RobustTrainer, RobustConfig)


def test_metaxl_in_python_refuses_what_the_command_line_does(tmp_path):
    roles = {"role_datasets": {"target": POOLS}}
    for changes, message in (
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is not supported"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` is not supported"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(tmp_path, changes, MetaXLTrainer, MetaXLConfig, **roles)


# ---- Label smoothing


def test_label_smoothing_reaches_the_joint_loss(tmp_path):
    """With the same data in every language the joint loss is that of one language."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ends = {}
    for name, factor, joint in (("plain", 0.0, True), ("joint", 0.3, True), ("alone", 0.3, False)):
        trainer = build(
            tmp_path / name,
            {"label_smoothing_factor": factor, "optim": "sgd", "max_steps": 1, "per_device_train_batch_size": 24},
            model=make_model(**still),
            joint_datasets={"de": make_features(24)} if joint else None,
        )
        trainer.train()
        ends[name] = trainer.model
    assert not same_weights(ends["plain"], ends["joint"])
    for one, two in zip(ends["joint"].parameters(), ends["alone"].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (
            lambda: BertForQuestionAnswering(make_config(num_labels=2)),
            "question",
        ),
        (lambda: make_model(num_labels=1), "regression"),
        (lambda: make_model(problem_type="regression"), "regression"),
        (lambda: make_model(problem_type="multi_label_classification"), "several labels"),
    ],
)
def test_label_smoothing_is_refused_without_classes(tmp_path, model, what):
    with pytest.raises(ConfigError, match=f"`label_smoothing_factor` does not go with {what}"):
        build(tmp_path, {"label_smoothing_factor": 0.1}, model=model())


# ---- Words of the library

_COMMANDS = {"phases.py", "carry.py", "averaged.py"}
_LAUNCHERS = ("accelerate launch", "hf-xlt run", "torchrun")


def test_errors_of_trainers_name_fields_and_no_flags():
    """Modules that only the command line runs may name flags, and so may the helps of settings."""
    root = Path(hf_xlt.__file__).parent
    found = []
    for file in [*root.glob("training/*.py"), *root.glob("strategies/**/*.py")]:
        if file.name in _COMMANDS:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        told = {id(part) for node in ast.walk(tree) if _is_help(node) for part in ast.walk(node)}
        for node in ast.walk(tree):
            if _is_text(node) and id(node) not in told:
                words = node.value
                for launcher in _LAUNCHERS:
                    words = words.replace(f"{launcher} --", launcher)
                if "`--" in words:
                    found.append(f"{file.name}: {words}")
    assert not found


def _is_help(node):
    """Docstrings, and the metadata of fields."""
    bare = isinstance(node, ast.Expr) and _is_text(node.value)
    return bare or (isinstance(node, ast.keyword) and node.arg == "metadata")


def _is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
