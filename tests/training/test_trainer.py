"""The base Trainer against the stock one: same bits where promised, exact scaling elsewhere."""

import copy
import math

import numpy as np
import pytest
import torch
from tiny import make_features, make_model, make_tokenizer, same_weights
from transformers import BertForTokenClassification, DataCollatorForTokenClassification, Trainer, TrainingArguments
from transformers import set_seed as seed_all

from hf_xlt.errors import ConfigError, RunError
from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.trainer import XLTTrainer


def settings(folder, **changes):
    values = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return {**values, **changes}


def train(trainer_cls, config_cls, folder, changes=None, **arguments):
    model = arguments.pop("model", None) or make_model()
    config = config_cls(**settings(folder, **(changes or {})))
    data = arguments.pop("train_dataset", None) or make_features()
    trainer = trainer_cls(model=model, args=config, train_dataset=data, processing_class=make_tokenizer(), **arguments)
    trainer.train()
    return trainer


@pytest.mark.parametrize("changes", [{}, {"label_smoothing_factor": 0.1}, {"bf16": True}, {"max_grad_norm": 0.0}])
def test_finetune_is_bit_identical_to_the_stock_trainer(tmp_path, changes):
    stock = train(Trainer, TrainingArguments, tmp_path / "a", changes)
    ours = train(FinetuneTrainer, FinetuneConfig, tmp_path / "b", changes)
    assert same_weights(stock.model, ours.model)
    assert [log.get("loss") for log in stock.state.log_history] == [log.get("loss") for log in ours.state.log_history]


def test_finetune_leaves_the_random_generators_as_the_stock_trainer_does(tmp_path):
    states = []
    for trainer_cls, config_cls in ((Trainer, TrainingArguments), (FinetuneTrainer, FinetuneConfig)):
        train(trainer_cls, config_cls, tmp_path / trainer_cls.__name__)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_accumulation_gives_the_update_of_the_whole_batch(tmp_path):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    runs = [
        train(
            FinetuneTrainer,
            FinetuneConfig,
            tmp_path / str(size),
            {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "optim": "sgd"},
            model=make_model(**still),
        )
        for size in (8, 2)
    ]
    for one, two in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
    logs = [[log["grad_norm"] for log in run.state.log_history if "grad_norm" in log] for run in runs]
    assert np.allclose(*logs, rtol=1e-4)


def test_accumulation_weights_tokens_and_not_batches(tmp_path):
    seed_all(0)
    config = make_model().config
    config.num_labels, config.hidden_dropout_prob, config.attention_probs_dropout_prob = 4, 0.0, 0.0
    start = BertForTokenClassification(config)
    data = [
        {**feature, "labels": [-100] + [token % 4 for token in feature["input_ids"][1:]]}
        for feature in make_features()
    ]
    ends = []
    for size in (8, 2):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "optim": "sgd"}
        ends.append(
            train(
                FinetuneTrainer,
                FinetuneConfig,
                tmp_path / str(size),
                changes,
                model=copy.deepcopy(start),
                train_dataset=data,
                data_collator=DataCollatorForTokenClassification(make_tokenizer()),
            ).model
        )
    for one, two in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_joint_loss_is_the_mean_of_the_losses_per_language(tmp_path):
    model = make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = XLTConfig(**settings(tmp_path, max_steps=1, learning_rate=0.0))
    joint = {"de": make_features(5, seed=7), "sw": make_features(11, seed=8)}
    seen = []

    class Recording(XLTTrainer):
        def get_batch_samples(self, *args):
            batches, units = super().get_batch_samples(*args)
            seen.append((batches[0], self.window.groups[0], units))
            return batches, units

    trainer = Recording(
        model=model,
        args=config,
        train_dataset=make_features(),
        processing_class=make_tokenizer(),
        joint_datasets=joint,
    )
    trainer.train()
    batch, groups, units = seen[0]
    assert groups.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert units.tolist() == [8.0, 8.0, 8.0]
    with torch.no_grad():
        logits = model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits
    losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    expected = torch.stack([losses[groups == group].mean() for group in range(3)]).mean()
    logged = next(log["loss"] for log in trainer.state.log_history if "loss" in log)
    assert math.isclose(logged, expected.item(), rel_tol=1e-5)


def test_joint_training_does_not_depend_on_accumulation(tmp_path):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ends = []
    for size in (8, 4):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "optim": "sgd"}
        joint = {"de": make_features(5, seed=7), "sw": make_features(11, seed=8)}
        ends.append(
            train(
                FinetuneTrainer,
                FinetuneConfig,
                tmp_path / str(size),
                changes,
                model=make_model(**still),
                joint_datasets=joint,
            ).model
        )
    for one, two in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_row_numbers_do_not_depend_on_accumulation(tmp_path):
    rows = {}
    for size in (8, 2):
        seen = []

        class Recording(XLTTrainer):
            def get_batch_samples(self, *args):
                result = super().get_batch_samples(*args)
                self.seen.append(torch.cat(self.window.rows).tolist())
                return result

        Recording.seen = seen
        config = XLTConfig(
            **settings(tmp_path / str(size), per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
        )
        Recording(
            model=make_model(), args=config, train_dataset=make_features(), processing_class=make_tokenizer()
        ).train()
        rows[size] = seen
    assert rows[8] == rows[2] == [list(range(8))] * 6


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="training loss is nan at update 1"):
        train(FinetuneTrainer, FinetuneConfig, tmp_path, model=model)


def test_evaluation_covers_all_languages_in_one_pass_and_averages_sources(tmp_path):
    calls = []

    class Counting(XLTTrainer):
        def evaluation_loop(self, *args, **kwargs):
            calls.append(1)
            return super().evaluation_loop(*args, **kwargs)

    def accuracy(prediction):
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    languages = {"en": make_features(13), "de": make_features(30, seed=1), "sw": make_features(7, seed=2)}
    trainer = Counting(
        model=make_model(),
        args=XLTConfig(**settings(tmp_path, per_device_eval_batch_size=8)),
        eval_dataset=languages,
        processing_class=make_tokenizer(),
        compute_metrics=accuracy,
        source_languages=["en"],
    )
    metrics = trainer.evaluate()
    assert len(calls) == 1
    assert metrics["eval_avg_accuracy"] == metrics["eval_en_accuracy"]
    assert metrics["eval_target_avg_accuracy"] == (metrics["eval_de_accuracy"] + metrics["eval_sw_accuracy"]) / 2
    for language, features in languages.items():
        alone = Trainer(
            model=trainer.model,
            args=TrainingArguments(str(tmp_path), use_cpu=True, per_device_eval_batch_size=1),
            eval_dataset=features,
            processing_class=make_tokenizer(),
            compute_metrics=accuracy,
        ).evaluate()
        assert metrics[f"eval_{language}_accuracy"] == alone["eval_accuracy"]
        assert math.isclose(metrics[f"eval_{language}_loss"], alone["eval_loss"], rel_tol=1e-5)


def test_evaluation_drops_no_example(tmp_path):
    config = XLTConfig(**settings(tmp_path, dataloader_drop_last=True, per_device_eval_batch_size=8))
    trainer = XLTTrainer(model=make_model(), args=config, processing_class=make_tokenizer())
    predictions = trainer.predict_languages({"en": make_features(13), "de": make_features(5, seed=1)})
    assert [len(predictions[language].predictions) for language in ("en", "de")] == [13, 5]
    assert config.dataloader_drop_last


def test_the_average_selects_and_stops_early(tmp_path):
    from transformers import EarlyStoppingCallback

    def fixed(prediction):
        return {"accuracy": 0.5}

    trainer = train(
        FinetuneTrainer,
        FinetuneConfig,
        tmp_path,
        {
            "max_steps": 20,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "avg_accuracy",
            "greater_is_better": True,
        },
        eval_dataset={"en": make_features(9), "de": make_features(9, seed=1)},
        compute_metrics=fixed,
        source_languages=["en"],
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    assert trainer.state.global_step == 6
    assert trainer.state.best_global_step == 2


def test_jit_checkpointing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="enable_jit_checkpoint"):
        XLTConfig(**settings(tmp_path, enable_jit_checkpoint=True))


def test_resuming_with_true_takes_the_newest_complete_checkpoint(tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2}
    whole = train(FinetuneTrainer, FinetuneConfig, tmp_path, changes)
    (tmp_path / "checkpoint-6" / "complete.json").unlink()
    again = FinetuneTrainer(
        model=make_model(1),
        args=FinetuneConfig(**settings(tmp_path, **changes)),
        train_dataset=make_features(),
        processing_class=make_tokenizer(),
    )
    again.train(resume_from_checkpoint=True)
    assert same_weights(whole.model, again.model)
    with pytest.raises(RunError, match="holds no complete checkpoint"):
        train_from = FinetuneConfig(**settings(tmp_path / "none"))
        FinetuneTrainer(
            model=make_model(), args=train_from, train_dataset=make_features(), processing_class=make_tokenizer()
        ).train(resume_from_checkpoint=True)
