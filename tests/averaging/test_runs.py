"""`--average` in runs: what is saved where, resuming, records and cards."""

import json
import os
import signal

import pytest
import torch
from contexts import LORA, make_context
from safetensors.torch import load_file
from tiny import same_weights, save_encoder, write_data
from transformers import AutoModelForSequenceClassification, TrainerCallback

import hf_xlt.training.phases as phases_module
from hf_xlt.adapters import merged
from hf_xlt.averaging.arguments import AverageArguments
from hf_xlt.averaging.callback import CheckpointAveragingCallback
from hf_xlt.averaging.parameters import named_weights
from hf_xlt.averaging.state_file import STATE_NAME
from hf_xlt.averaging.summary import describe
from hf_xlt.cli.main import main
from hf_xlt.errors import RunError
from hf_xlt.hub.files import collect
from hf_xlt.model_cards.card import render
from hf_xlt.parsing import parse_arguments
from hf_xlt.record import RunRecord
from hf_xlt.registry import Strategy, get_strategy
from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer
from hf_xlt.training.phases import Ledger, RunPhase, run_phases

FINETUNE = get_strategy("finetune")


class Recorder(TrainerCallback):
    """Keeps the trained weights after every update, and the folder of the phase."""

    kept: dict = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        values = {name: value.detach().clone() for name, value in named_weights(model).items() if value.requires_grad}
        self.kept[os.path.basename(args.output_dir), state.global_step] = values


def run(folder, strategy=FINETUNE, resume=False, average=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    context = make_context(strategy, folder, **changes)
    context.averaging = AverageArguments(average=True, **(average or {}))
    recorder = Recorder()
    recorder.kept = {}
    context.extra_callbacks = lambda: [recorder]
    trainer, ledger = run_phases(context, folder, resume=resume)
    return trainer, ledger, recorder.kept


def mean(snapshots):
    return {name: torch.stack([value[name].double() for value in snapshots]).mean(0).float() for name in snapshots[0]}


def assert_close(weights, expected):
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-7)


def test_the_output_is_the_mean_and_the_last_weights_lie_beside(tmp_path):
    trainer, ledger, kept = run(tmp_path, average={"average_every": "2"})
    output = load_file(tmp_path / "model.safetensors")
    assert_close(output, mean([kept[tmp_path.name, step] for step in (2, 4, 6)]))
    assert same_weights(output, trainer.bare_model())
    last = load_file(tmp_path / "last" / "model.safetensors")
    assert same_weights(last, kept[tmp_path.name, 6]) and not same_weights(last, output)
    assert ledger.done[0]["averaging"] == {
        "mode": "uniform",
        "every": 2,
        "snapshots": 3,
        "steps": [2, 4, 6],
        "beside": "last",
    }
    for folder in (tmp_path, tmp_path / "last"):
        _, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
    # The state lies in the sealed state of checkpoints, and nowhere else.
    assert not list(tmp_path.rglob(STATE_NAME)) and not (tmp_path / "averaged").exists()


def test_without_averaging_nothing_is_added(tmp_path):
    context = make_context(FINETUNE, tmp_path)
    context.averaging = AverageArguments()
    _, ledger = run_phases(context, tmp_path, resume=False)
    assert "averaging" not in ledger.done[0] and not (tmp_path / "last").exists()


def test_averaging_does_not_change_the_training(tmp_path):
    # An evaluation itself moves the random numbers on, so both have them.
    evaluations = {"eval_strategy": "steps", "eval_steps": 2}
    trainer, _ = run_phases(make_context(FINETUNE, tmp_path, **evaluations), tmp_path, resume=False)
    _, _, kept = run(tmp_path / "averaged", average={"average_evaluate": True}, **evaluations)
    assert same_weights(dict(trainer.bare_model().named_parameters()), kept["averaged", 6])


def test_the_selected_weights_lie_beside_in_best(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    settings |= {"metric_for_best_model": "eval_avg_loss", "greater_is_better": False, "learning_rate": 0.3}
    trainer, ledger, kept = run(tmp_path, average={"average_every": "2"}, save_total_limit=1, **settings)
    best = ledger.done[0]["selected_checkpoint"]
    assert same_weights(load_file(tmp_path / "best" / "model.safetensors"), kept[tmp_path.name, best])
    assert_close(load_file(tmp_path / "model.safetensors"), mean([kept[tmp_path.name, step] for step in (2, 4, 6)]))
    assert ledger.done[0]["averaging"]["beside"] == "best" and not (tmp_path / "last").exists()


def two_phases(config):
    def build(steps):
        def make(context, folder, previous):
            changed = context.config_for(folder, max_steps=steps)
            return context.build_trainer(FinetuneTrainer, changed, context.load_model(previous))

        return make

    return [RunPhase("donor", build(3)), RunPhase("main", build(4))]


TWO = Strategy("two", "Two phases", FinetuneConfig, FinetuneTrainer, "For tests.", phases=two_phases)


def test_of_several_phases_the_last_is_averaged(tmp_path):
    _, ledger, kept = run(tmp_path, TWO, average={"average_every": "2"})
    assert [entry.get("averaging", {}).get("steps") for entry in ledger.done] == [None, [2, 4]]
    donor = load_file(tmp_path / "phase-0-donor" / "final" / "model.safetensors")
    assert same_weights(donor, kept["phase-0-donor", 3])
    expected = mean([kept["phase-1-main", step] for step in (2, 4)])
    for folder in (tmp_path, tmp_path / "phase-1-main" / "final"):
        assert_close(load_file(folder / "model.safetensors"), expected)
    assert same_weights(load_file(tmp_path / "last" / "model.safetensors"), kept["phase-1-main", 4])


def test_factors_of_adapters_are_averaged_one_by_one_and_merged(tmp_path):
    trainer, _, kept = run(tmp_path, average={"average_every": "2"}, peft=LORA)
    expected = mean([kept[tmp_path.name, step] for step in (2, 4, 6)])
    weights = named_weights(trainer.bare_model())
    assert {name for name, value in weights.items() if value.requires_grad} == expected.keys()
    assert_close(weights, expected)
    assert same_weights(load_file(tmp_path / "model.safetensors"), merged(trainer.bare_model()))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "last" / "adapter" / "adapter_model.safetensors").is_file()
    assert set(load_file(tmp_path / "checkpoint-2" / "xlt_state.safetensors")) == {
        f"averaging/{name}" for name in expected
    }


def test_the_last_weights_are_kept_when_there_is_no_average(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    context = make_context(FINETUNE, tmp_path)
    context.averaging = AverageArguments(average=True, average_mode="last_k", average_last_k=1)
    context.extra_callbacks = lambda: [Stop()]
    with pytest.raises(RunError, match="before the first of the last 1 snapshots"):
        run_phases(context, tmp_path, resume=False)
    assert (tmp_path / "last" / "model.safetensors").is_file() and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("place", ["in the constructor", "afterwards"])
def test_a_trainer_of_ours_keeps_the_state_wherever_the_callback_stands(tmp_path, place):
    def train(folder, checkpoint=None):
        callback, context = CheckpointAveragingCallback(every=1), make_context(FINETUNE, folder)
        given = {"callbacks": [callback]} if place == "in the constructor" else {}
        trainer = context.build_trainer(FinetuneTrainer, context.config, context.load_model(None), **given)
        if not given:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=checkpoint)
        assert callback.steps == (1, 2, 3, 4, 5, 6)
        return load_file(folder / "averaged" / "model.safetensors")

    whole = train(tmp_path / "whole")
    resumed = train(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-4"))
    assert same_weights(whole, resumed)
    assert not list(tmp_path.rglob(STATE_NAME))


def test_a_checkpoint_of_a_run_without_averaging_is_refused(tmp_path):
    run_phases(make_context(FINETUNE, tmp_path), tmp_path, resume=False)
    for name in ("phases.json", "model.safetensors"):
        (tmp_path / name).unlink()
    with pytest.raises(RunError, match="so the average of the updates before is lost"):
        run(tmp_path, resume=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("saves", [1, 2], ids=["within the last weights", "between them and the average"])
def test_killed_while_the_results_are_saved(tmp_path, saves):
    whole = tmp_path / "whole"
    run(whole)
    child = os.fork()
    if child == 0:
        original, calls = phases_module.save_final, []

        def deadly(*args, **kwargs):
            calls.append(1)
            if len(calls) == saves:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        phases_module.save_final = deadly
        try:
            run(tmp_path / "cut")
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    cut = tmp_path / "cut"
    assert (cut / "last" / "model.safetensors").exists() == (saves == 2)
    assert not (cut / "model.safetensors").exists() and Ledger.read(cut).done == []
    run(cut, resume=True)
    for name in ("model.safetensors", "last/model.safetensors"):
        assert same_weights(load_file(whole / name), load_file(cut / name))


# ---- The command


LINE = "--model encoder --dataset data/{split}.{lang}.jsonl --max-steps 6 --per-device-train-batch-size 8 "
LINE += "--learning-rate 1e-3 --disable-tqdm --threads 1 --target-languages de,sw"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    save_encoder(root / "encoder")
    write_data(root / "data", train=24)
    return root


@pytest.fixture
def go(world, monkeypatch, capsys):
    monkeypatch.chdir(world)

    def start(out, line):
        code = main(["run", *LINE.split(), "--output-dir", str(world / out), *line.split()])
        captured = capsys.readouterr()
        return code, world / out, captured.out, captured.err

    return start


def test_the_recipe_from_the_command_to_the_card(go):
    code, folder, out, err = go("recipe", "--strategy averaging --average-start 0.5")
    assert code == 0, err
    assert "uniform mean of the snapshots that were taken at every 0.1 of the updates of this run: 4" in out
    assert "Those without averaging are in last/." in out
    record = RunRecord.read(folder)
    assert record.arguments["average"] is True and record.settings["average_start"] == 0.5
    assert record.phases[0]["averaging"]["steps"] == [3, 4, 5, 6]
    card = (folder / "README.md").read_text()
    assert "of this run: 4, after updates 3, 4, 5, 6." in card
    assert "| Checkpoint | none; an average of 4 snapshots of the run |" in card
    assert "no published number is reproduced" in card and "2023.acl-long.314" in card
    names = {upload.name for upload in collect(folder, record, "user/name")[0]}
    assert "model.safetensors" in names and not any("last" in name for name in names)
    # What is scored is the average that was saved.
    scores = json.loads((folder / "results.json").read_text())["languages"]
    assert (
        main(["evaluate", str(folder), "--dataset", "data/{split}.{lang}.jsonl", "--target-languages", "de,sw"]) == 0
    )
    again = json.loads((folder / "evaluations" / "data" / "results.json").read_text())["languages"]
    assert {name: entry["metrics"] for name, entry in scores.items()} == {
        name: pytest.approx(entry["metrics"], rel=1e-5) for name, entry in again.items()
    }


def test_a_finished_run_resumes_to_nothing_and_another_average_is_refused(go):
    line = "--average --average-every 3"
    code, folder, _, err = go("finished", line)
    assert code == 0, err
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, _, out, _ = go("finished", f"{line} --resume")
    assert code == 0 and "is finished; nothing to resume" in out and "Those without averaging" in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    record = json.loads((folder / "xlt_run.json").read_text())
    (folder / "xlt_run.json").write_text(json.dumps({**record, "status": "running"}))
    code, _, _, err = go("finished", "--average --average-every 2 --resume")
    assert code == 2 and "was started with `average_every` '3', not '2'" in err


def test_runs_without_averaging_record_none_of_its_settings():
    arguments = parse_arguments(["--model", "m", "--dataset", "d.{lang}.csv"])
    from hf_xlt.bookkeeping import resolved

    assert not [name for name in resolved(arguments) if name.startswith("average_") and "tokens" not in name]
    averaged = parse_arguments(["--model", "m", "--dataset", "d.{lang}.csv", "--average"])
    assert {"average", "average_every", "average_mode", "average_start"} <= resolved(averaged).keys()


def test_adapters_and_robust_training_average_by_one_flag(go):
    code, folder, out, err = go("robust", "--strategy robust --average --average-every 3 --peft lora")
    assert code == 0, err
    card = render(RunRecord.read(folder))
    assert "Each factor of the adapters was averaged by itself and merged then" in card
    assert "| `average_every` | 3 |" in card


def test_the_plan_names_the_average(go):
    for line, words in (
        ("--average", "uniform mean of the snapshots taken at every 0.1 of the updates; the last weights go to last/"),
        ("--average --average-mode last_k --average-last-k 3", "uniform mean of the last 3 snapshots"),
        ("--average --average-mode ema --average-ema-decay 0.9 --average-every epoch", "at the end of every epoch"),
    ):
        code, folder, out, _ = go("plan", f"{line} --dry-run")
        assert code == 0 and words in out and not folder.exists()


def test_a_note_says_when_the_first_snapshot_came_too_early(go):
    _, _, _, err = go("slow", "--average --warmup-steps 4")
    assert "Note: the snapshot of step 1 lies in the warm-up" in err and "with `--average-start 0.2`." in err


def test_what_the_record_says_in_words():
    facts = {"mode": "ema", "every": "epoch", "ema_decay": 0.9, "snapshots": 30, "steps": list(range(10, 301, 10))}
    assert describe(facts) == (
        "The weights are the exponential mean (decay 0.9 per snapshot) of the snapshots that were taken at the end of "
        "every epoch of this run: 30, after updates 10, 20, 30, ..., 300."
    )
    assert describe({"snapshots": 0, "steps": []}).startswith("Training ended before the first snapshot")
