"""Runs of several phases, state beside the model, and second loaders."""

import dataclasses
import json

import pytest
import torch
from contexts import make_context
from safetensors.torch import load_file
from tiny import make_features, make_model, make_tokenizer, same_weights
from transformers import TrainerCallback

from hf_xlt.errors import ConfigError, Interrupted, RunError
from hf_xlt.registry import Strategy
from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.loaders import EndlessLoader
from hf_xlt.training.phases import Ledger, RunPhase, run_phases
from hf_xlt.training.trainer import XLTTrainer


def two_phases(config):
    def build(steps):
        def make(context, folder, previous):
            changed = context.config_for(folder, max_steps=steps)
            return context.build_trainer(FinetuneTrainer, changed, context.load_model(previous))

        return make

    return [RunPhase("donor", build(3)), RunPhase("main", build(4))]


TWO = Strategy("two", "Two phases", FinetuneConfig, FinetuneTrainer, "For tests.", phases=two_phases)


def test_phases_run_in_order_each_from_the_one_before(tmp_path):
    trainer, ledger = run_phases(make_context(TWO, tmp_path), tmp_path, resume=False)
    assert [entry["name"] for entry in ledger.done] == ["donor", "main"]
    assert [entry["updates"] for entry in ledger.done] == [3, 4]
    last = load_file(tmp_path / "phase-1-main" / "final" / "model.safetensors")
    assert same_weights(last, load_file(tmp_path / "model.safetensors"))
    assert not same_weights(last, load_file(tmp_path / "phase-0-donor" / "final" / "model.safetensors"))
    assert (tmp_path / "phase-0-donor" / "checkpoint-2").is_dir()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("stop_at", [(0, 2), (1, 1), (1, 3)])
def test_a_run_cut_in_any_phase_resumes_to_the_same_model(tmp_path, stop_at):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    run_phases(make_context(TWO, whole), whole, resume=False)
    context, built = make_context(TWO, cut), []
    original = context.build_trainer

    def build(*args, **kwargs):
        trainer = original(*args, **kwargs)
        phase, update = len(built), stop_at
        built.append(trainer)
        step = trainer.training_step

        def counted(*step_args):
            context.flag.raised |= (phase, trainer.state.global_step + 1) == update
            return step(*step_args)

        trainer.training_step = counted
        return trainer

    context.build_trainer = build
    with pytest.raises(Interrupted):
        run_phases(context, cut, resume=False)
    assert len(Ledger.read(cut).done) == stop_at[0]
    run_phases(make_context(TWO, cut), cut, resume=True)
    assert same_weights(load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors"))


def test_a_phase_without_its_ledger_entry_is_finished_again_and_not_skipped(tmp_path):
    run_phases(make_context(TWO, tmp_path), tmp_path, resume=False)
    before = load_file(tmp_path / "model.safetensors")
    (tmp_path / "phases.json").write_text(json.dumps({"phases": Ledger.read(tmp_path).done[:1]}))
    trainer, ledger = run_phases(make_context(TWO, tmp_path), tmp_path, resume=True)
    assert [entry["name"] for entry in ledger.done] == ["donor", "main"] and trainer.state.global_step == 4
    assert same_weights(before, load_file(tmp_path / "model.safetensors"))


def test_resuming_says_where_it_goes_on_and_what_was_damaged(tmp_path, capsys):
    run_phases(make_context(TWO_LESS, tmp_path), tmp_path, resume=False)
    for name in ("model.safetensors", "phases.json"):
        (tmp_path / name).unlink()
    weights = tmp_path / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    run_phases(make_context(TWO_LESS, tmp_path), tmp_path, resume=True)
    err = capsys.readouterr().err
    assert "`checkpoint-6` is incomplete or damaged; it was removed" in err
    assert "Resuming after `checkpoint-4`." in err


def test_a_damaged_ledger_is_one_clear_error(tmp_path):
    (tmp_path / "phases.json").write_text('{"phases": [')
    with pytest.raises(RunError, match=r"phases\.json` is damaged"):
        Ledger.read(tmp_path)


@dataclasses.dataclass
class CountingConfig(XLTConfig):
    """For tests."""


class CountingTrainer(XLTTrainer):
    """Keeps a tensor and a number beside the model, and draws from a second loader."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sum, self.draws, self.drawn = torch.zeros(2), 0, []

    def training_step(self, model, inputs, num_items_in_batch=None):
        batch = self.endless_loader("target", "de").draw(self.draws * 4, 4)
        self.drawn.append(batch["labels"].tolist())
        self.draws += 1
        self.sum += torch.tensor([1.0, float(batch["input_ids"].sum())])
        return super().training_step(model, inputs, num_items_in_batch)

    def strategy_state(self):
        return {"sum": self.sum}, {"draws": self.draws}

    def load_strategy_state(self, tensors, values):
        self.sum, self.draws = tensors["sum"], values["draws"]


class Watcher(TrainerCallback):
    """A callback with state."""

    state_name = "watcher"

    def __init__(self):
        self.mean = torch.zeros(1)

    def on_step_end(self, args, state, control, **kwargs):
        self.mean = self.mean * 0.9 + 0.1 * state.global_step

    def strategy_state(self):
        return {"mean": self.mean}, {}

    def load_strategy_state(self, tensors, values):
        self.mean = tensors["mean"]


COUNTING = Strategy("counting", "Counting", CountingConfig, CountingTrainer, "For tests.", roles=("source", "target"))


def test_state_beside_the_model_survives_a_resume(tmp_path):
    watchers = []

    def context(folder, **changes):
        made = make_context(COUNTING, folder, **changes)
        watchers.append(Watcher())
        made.extra_callbacks = lambda: [watchers[-1]]
        return made

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, _ = run_phases(context(tmp_path / "whole"), tmp_path / "whole", resume=False)
    run_phases(context(tmp_path / "cut"), tmp_path / "cut", resume=False)
    for name in ("model.safetensors", "phases.json"):
        (tmp_path / "cut" / name).unlink()
    # Without its seal the last checkpoint does not count, so the run goes on from update 4.
    (tmp_path / "cut" / "checkpoint-6" / "complete.json").unlink()
    resumed, ledger = run_phases(context(tmp_path / "cut"), tmp_path / "cut", resume=True)
    assert ledger.done[0]["resumed_from"] == 4
    assert torch.equal(whole.sum, resumed.sum) and whole.draws == resumed.draws == 6
    assert whole.drawn[4:] == resumed.drawn
    assert torch.equal(watchers[0].mean, watchers[2].mean)
    assert same_weights(whole.bare_model(), resumed.bare_model())


def test_endless_draws_are_a_function_of_position_and_cover_the_data():
    data = make_features(7)
    loader = EndlessLoader(data, lambda rows: rows, seed=1, role="target", language="de")
    stream = loader.indices(0, 21)
    assert [sorted(stream[start : start + 7]) for start in (0, 7, 14)] == [list(range(7))] * 3
    assert stream[:7] != stream[7:14]
    again = EndlessLoader(data, lambda rows: rows, seed=1, role="target", language="de")
    assert again.indices(9, 8) == stream[9:17]
    assert EndlessLoader(data, None, seed=1, role="target", language="sw").indices(0, 21) != stream
    assert EndlessLoader(data, None, seed=2, role="target", language="de").indices(0, 21) != stream
    with pytest.raises(ValueError, match="empty"):
        EndlessLoader([], None, seed=1, role="target", language="de")


def test_early_stopping_patience_survives_a_resume(tmp_path):
    settings = {
        "max_steps": 12,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "learning_rate": 0.0,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_avg_accuracy",
        "greater_is_better": True,
    }

    def context():
        made = make_context(TWO_LESS, tmp_path, **settings)
        made.patience = 3
        return made

    trainer, _ = run_phases(context(), tmp_path, resume=False)
    assert trainer.state.global_step == 8
    for path in [
        tmp_path / "model.safetensors",
        tmp_path / "phases.json",
        tmp_path / "checkpoint-8" / "complete.json",
    ]:
        path.unlink()
    resumed, _ = run_phases(context(), tmp_path, resume=True)
    assert resumed.state.global_step == 8
    # Stopped early is over: killed before the final save, it does not train on.
    for path in [tmp_path / "model.safetensors", tmp_path / "phases.json"]:
        path.unlink()
    again, _ = run_phases(context(), tmp_path, resume=True)
    assert again.state.global_step == 8


TWO_LESS = Strategy("plain", "Plain", FinetuneConfig, FinetuneTrainer, "For tests.")


def test_interrupted_at_an_epochs_end_still_evaluates_that_epoch(tmp_path):
    settings = {
        "max_steps": -1,
        "num_train_epochs": 3,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_avg_loss",
        "greater_is_better": False,
    }
    logs = {}
    for name, stop in (("whole", None), ("end", 6), ("middle", 8)):
        folder = tmp_path / name
        folder.mkdir()
        context = make_context(TWO_LESS, folder, **settings)
        original = context.build_trainer

        built = []

        def build(*args, context=context, original=original, stop=stop, built=built, **kwargs):
            trainer = original(*args, **kwargs)
            built.append(trainer)
            step = trainer.training_step

            def counted(*step_args):
                context.flag.raised |= trainer.state.global_step + 1 == stop
                return step(*step_args)

            trainer.training_step = counted
            return trainer

        context.build_trainer = build
        try:
            trainer, _ = run_phases(context, folder, resume=False)
        except Interrupted:
            evaluated = {log["step"] for log in built[0].state.log_history if "eval_avg_loss" in log}
            assert evaluated == {6}, "an epoch that was cut short is not evaluated"
            trainer, _ = run_phases(make_context(TWO_LESS, folder, **settings), folder, resume=True)
        logs[name] = [
            (log["step"], log["eval_avg_loss"]) for log in trainer.state.log_history if "eval_avg_loss" in log
        ]
        assert trainer.state.global_step == 18
    assert [step for step, _ in logs["whole"]] == [6, 12, 18]
    assert logs["whole"] == logs["end"] == logs["middle"]


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    config = XLTConfig(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setattr(type(config), "n_gpu", 2)
    with pytest.raises(ConfigError, match="one process sees 2 GPUs"):
        XLTTrainer(model=make_model(), args=config, processing_class=make_tokenizer())
