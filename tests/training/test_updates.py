"""How many updates are made: the count against the Trainer's own, and against what a training did."""

import itertools
import json

import pytest
import torch
from tiny import make_features, make_model, make_tokenizer, save_encoder, write_data
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError, RunError
from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer
from hf_xlt.training.updates import count_batches, count_updates

DATA = make_features(24)


def trainer_of(folder, data=DATA, callbacks=(), evaluation=None, **changes):
    settings = {"save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    return FinetuneTrainer(
        model=make_model(),
        args=FinetuneConfig(str(folder), **{"per_device_train_batch_size": 8, **settings, **changes}),
        train_dataset=data,
        eval_dataset=evaluation,
        processing_class=make_tokenizer(),
        callbacks=list(callbacks),
    )


GRID = list(
    itertools.product(
        (1, 7, 16, 24),
        (4, 5),
        (1, 3),
        (True, False),
        ({"max_steps": 5}, {"num_train_epochs": 1}, {"num_train_epochs": 2.4}),
    )
)


@pytest.mark.parametrize("grouped", ["random", "group_by_length"])
def test_the_count_is_that_of_the_stock_trainer(tmp_path, grouped):
    model, compared = make_model(), 0
    for examples, size, accumulation, drop_last, length in GRID:
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            dataloader_drop_last=drop_last,
            train_sampling_strategy=grouped,
            use_cpu=True,
            **length,
        )
        stock = Trainer(model, arguments, train_dataset=DATA[:examples], processing_class=make_tokenizer())
        loader = stock.get_train_dataloader()
        assert count_batches(arguments, examples) == len(loader)
        if len(loader) == 0:
            assert count_updates(arguments, examples) == 0
            continue
        assert count_updates(arguments, examples) == stock.set_initial_training_values(arguments, loader)[-1]
        compared += 1
    assert compared > len(GRID) // 2


@pytest.mark.parametrize(("even", "split"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("drop_last", [True, False])
def test_the_count_over_processes_is_that_of_accelerate(drop_last, even, split):
    from types import SimpleNamespace

    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    for examples, size, processes in itertools.product((1, 9, 16, 50), (2, 6), (2, 3)):
        if split and size % processes:
            continue
        for index in range(processes):
            loader = DataLoader(range(examples), batch_size=size, drop_last=drop_last)
            prepared = prepare_data_loader(
                loader, num_processes=processes, process_index=index, even_batches=even, split_batches=split
            )
            config = SimpleNamespace(
                per_device_train_batch_size=size,
                dataloader_drop_last=drop_last,
                world_size=processes,
                process_index=index,
                accelerator_config=SimpleNamespace(even_batches=even, split_batches=split),
            )
            assert count_batches(config, examples) == len(prepared), (examples, size, processes, index)


@pytest.mark.parametrize("length", [{"max_steps": 3}, {"num_train_epochs": 2}])
def test_a_training_without_a_batch_is_refused_before_it_starts(tmp_path, length):
    trainer = trainer_of(tmp_path, per_device_train_batch_size=64, dataloader_drop_last=True, **length)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ConfigError, match="no update: there are 24 examples.*batch of 64.*`dataloader_drop_last` off"):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    with pytest.raises(ConfigError, match="no update: there are 0 examples"):
        trainer_of(tmp_path, data=[], **length).train()


class Stream(torch.utils.data.IterableDataset):
    """Data without a length, which a second pass finds empty."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows


def test_fewer_updates_than_asked_for_are_a_failure(tmp_path):
    own = {"max_steps": 10, "accelerator_config": {"dispatch_batches": False}}
    with pytest.raises(RunError, match="only 3 of 10 updates were made"):
        trainer_of(tmp_path, data=Stream(make_features(24)), **own).train()
    # Fewer batches per epoch than an update accumulates would go round for ever.
    with pytest.raises(RunError, match="only 0 of 10 updates were made"):
        trainer_of(tmp_path, data=Stream(DATA[:8]), gradient_accumulation_steps=4, **own).train()


class Stop(TrainerCallback):
    def __init__(self, event):
        self.event = event
        setattr(self, event, self.stop)

    def stop(self, args, state, control, **kwargs):
        if state.global_step >= 3:
            control.should_training_stop = True


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end"])
def test_a_callback_may_stop_and_it_is_said(tmp_path, caplog, event):
    trainer = trainer_of(tmp_path, callbacks=[Stop(event)], max_steps=10)
    trainer.train()
    assert trainer.state.global_step == 3
    assert "stopped after update 3 of 10 by a callback" in caplog.text


def test_early_stopping_is_no_failure(tmp_path, caplog):
    changes = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss", "learning_rate": 0.0}
    changes |= {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1}
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = trainer_of(tmp_path, callbacks=[stopping], evaluation={"en": DATA[:8]}, max_steps=10, **changes)
    trainer.train()
    assert trainer.state.global_step < 10 and "by a callback" in caplog.text
    again = trainer_of(tmp_path, evaluation={"en": DATA[:8]}, max_steps=10, **changes)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == trainer.state.global_step


@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [
        ({"max_steps": 4}, {"max_steps": 8}, 8),
        ({"num_train_epochs": 1}, {"num_train_epochs": 2.5}, 8),
        ({"max_steps": 4}, {"num_train_epochs": 2}, 6),
    ],
)
@pytest.mark.parametrize("saves", [{"save_strategy": "steps", "save_steps": 1}, {"save_strategy": "epoch"}])
def test_resuming_with_more_updates_trains_on(tmp_path, first, second, whole, saves):
    trainer_of(tmp_path, **first, **saves).train()
    longer = trainer_of(tmp_path, **second, **saves)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == whole
    same = trainer_of(tmp_path, **second, **saves)
    same.train(resume_from_checkpoint=True)
    assert same.state.global_step == whole


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "encoder")
    write_data(tmp_path / "data", train=20)
    return tmp_path


BASE = (
    "run --model encoder --dataset data/{split}.{lang}.jsonl --target-languages de,sw --save-strategy no --threads 1"
)
AUXILIARY = "--auxiliary-dataset data/{split}.{lang}.jsonl --auxiliary-languages zh"
PLANS = {
    "finetune": "",
    "finetune concat": "--shots 5 --few-shot-mode concat",
    "finetune joint": "--shots 5",
    "finetune accumulation": "--gradient-accumulation-steps 2",
    "robust copies": "--strategy robust --augmenter characters --copies 2",
    "robust equal updates": "--strategy robust --augmenter characters --copies 2 --baseline equal_updates",
    "metaxl": "--strategy metaxl --shots 6",
    "metaxl published": "--strategy metaxl --shots 12 --method target_only --baseline published",
    "soft-layers": f"--strategy soft-layers {AUXILIARY} --gate-updates 2",
    "xmaml": f"--strategy xmaml {AUXILIARY} --meta-steps 2 --shots 12 --few-shot-steps 3",
    "xmaml fine-tuned": f"--strategy xmaml {AUXILIARY} --meta-steps 2 --no-fine-tune-first",
}


@pytest.mark.parametrize("drop", ["", "--dataloader-drop-last"])
@pytest.mark.parametrize("plan", PLANS)
def test_the_plan_is_what_the_run_does(world, capsys, plan, drop):
    # Without the fine-tuning there is no epoch to count.
    epochs = "" if "no-fine-tune-first" in PLANS[plan] else "--num-train-epochs 1.5"
    line = f"{BASE} {PLANS[plan]} {drop} {epochs} --per-device-train-batch-size 8 --output-dir out"
    assert main([*line.split(), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main([*line.split(), "--quiet"]) == 0
    done = json.loads((world / "out" / "phases.json").read_text())["phases"]
    promised = {phase["name"] or "train": phase["updates"] for phase in planned["phases"]}
    assert promised == {phase["name"]: phase["updates"] for phase in done}


@pytest.mark.parametrize(
    "line",
    [
        "--per-device-train-batch-size 64 --max-steps 3",
        "--per-device-train-batch-size 64 --num-train-epochs 2",
        f"--strategy xmaml {AUXILIARY} --shots 2 --few-shot-steps 3 --per-device-train-batch-size 8",
    ],
)
def test_a_plan_without_an_update_is_refused_with_nothing_written(world, capsys, line):
    line = f"{BASE} --dataloader-drop-last {line} --output-dir out"
    for more in ("--dry-run", ""):
        assert main([*line.split(), *more.split()]) == 2
        assert "would make no update" in capsys.readouterr().err
    assert not (world / "out").exists()
