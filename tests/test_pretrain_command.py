"""`hf-xlt pretrain`: plans, phases one after the other, resumption, and clear refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from pretraining_setup import SHAPE, TOKENIZER, TRAINING, make_plan, make_world
from safetensors.torch import load_file
from tiny import same_weights, write_rows
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from hf_xlt.cli.main import main
from hf_xlt.pretrain import Pretraining, Request
from hf_xlt.pretraining.plan_file import read_plan

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("pretraining"))


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_two_phases_make_an_encoder_that_plain_classes_load(world, tmp_path, capsys):
    assert main(["pretrain", "--config", make_plan(world, tmp_path)]) == 0
    out = tmp_path / "out"
    ledger = json.loads((out / "phases.json").read_text())["phases"]
    assert [(entry["name"], entry["updates"]) for entry in ledger] == [("meta", 4), ("cross", 6)]
    model, report = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    AutoModel.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out)("w1")["input_ids"] == TOKENIZER("w1")["input_ids"]
    record = json.loads((out / "xlt_run.json").read_text())
    assert record["status"] == "finished" and record["strategy"]["name"] == "meta-pretrain"
    assert set(record["data"]["cross"]["shares"]) == {"en", "de", "sw"}
    assert str(tmp_path) not in json.dumps(record) and str(world) not in json.dumps(record)
    printed = capsys.readouterr().out
    assert "Phase meta: 4 updates" in printed and "epochs" in printed
    # The second phase started from the first one's weights, with an optimizer of its own.
    first = out / "phase-0-meta"
    assert (first / "final" / "model.safetensors").is_file()
    state = json.loads((out / "phase-1-cross" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2 and state["max_steps"] == 6 and state["log_history"][0]["total_step"] == 6
    optimizer = torch.load(out / "phase-1-cross/checkpoint-2/optimizer.pt", weights_only=True)
    assert {int(entry["step"]) for entry in optimizer["state"].values()} == {2}


def test_the_second_phase_begins_with_the_weights_of_the_first(world, tmp_path):
    run = Pretraining(read_plan(make_plan(world, tmp_path)), Request(only="meta"))
    run.go()
    final = tmp_path / "out" / "phase-0-meta" / "final"
    assert same_weights(run.load_model(final), AutoModelForMaskedLM.from_pretrained(final))
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "xlt_run.json").read_text())["status"] == "running"


def test_fraction_zero_is_a_plain_single_phase_run(world, tmp_path):
    (tmp_path / "split").mkdir()
    (tmp_path / "plain").mkdir()
    plan = make_plan(world, tmp_path / "split")
    assert main(["pretrain", "--config", plan, "--total-steps", "6", "--meta-fraction", "0"]) == 0
    single = [{"name": "cross", "steps": 6, "objectives": ["mlm", "tlm", "contrastive"], "pairs": 4, "alpha": 0.5}]
    assert main(["pretrain", "--config", make_plan(world, tmp_path / "plain", phases=single)]) == 0
    assert same_weights(weights(tmp_path / "split" / "out"), weights(tmp_path / "plain" / "out"))


@pytest.mark.parametrize("fraction", ["0.25", "0.5", "1"])
def test_a_budget_is_split_exactly(world, tmp_path, fraction):
    plan = make_plan(world, tmp_path)
    assert main(["pretrain", "--config", plan, "--total-steps", "4", "--meta-fraction", fraction]) == 0
    ledger = json.loads((tmp_path / "out" / "phases.json").read_text())["phases"]
    assert sum(entry["updates"] for entry in ledger) == 4
    assert sum(entry["updates"] for entry in ledger if entry["name"] == "meta") == round(4 * float(fraction))


def test_phases_can_be_trained_one_by_one(world, tmp_path, capsys):
    plan = make_plan(world, tmp_path)
    assert main(["pretrain", "--config", plan, "--output-dir", str(tmp_path / "whole")]) == 0
    assert main(["pretrain", "--config", plan, "--phase", "cross"]) == 2
    assert "phase `cross` continues from `meta`, which is not done" in capsys.readouterr().err
    assert main(["pretrain", "--config", plan, "--phase", "meta", "--resume"]) == 0
    assert "To go on: hf-xlt pretrain" in capsys.readouterr().out
    assert main(["pretrain", "--config", plan, "--phase", "cross", "--resume"]) == 0
    assert same_weights(weights(tmp_path / "whole"), weights(tmp_path / "out"))
    capsys.readouterr()
    assert main(["pretrain", "--config", plan, "--resume", "--json"]) == 0
    printed = capsys.readouterr()
    assert "is finished; nothing to resume" in printed.err
    told = json.loads(printed.out)
    assert told["status"] == "finished" and [phase["name"] for phase in told["phases"]] == ["meta", "cross"]
    assert main(["pretrain", "--config", plan, "--dry-run", "--json"]) == 2


def start(plan, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "hf_xlt.cli.main", "pretrain", "--config", plan, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, child, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end and child.poll() is None:
        time.sleep(0.02)


def test_killed_and_interrupted_runs_resume_bit_for_bit(world, tmp_path):
    longer = [
        {"name": "meta", "steps": 30, "sources": [{"text": str(world / "text/{lang}.jsonl"), "languages": "en"}]},
        {"name": "cross", "steps": 40, "objectives": ["mlm", "tlm", "contrastive"], "pairs": 4},
    ]
    plan = make_plan(world, tmp_path, phases=longer, training={**TRAINING, "disable_tqdm": True, "save_steps": 5})
    assert main(["pretrain", "--config", plan, "--output-dir", str(tmp_path / "whole")]) == 0
    out = tmp_path / "out"
    child = start(plan)
    wait_for(lambda: (out / "phase-0-meta" / "checkpoint-10" / "complete.json").exists(), child)
    child.send_signal(signal.SIGINT)
    text = child.communicate(timeout=120)[0]
    assert child.returncode == 130 and "--resume" in text.strip().splitlines()[-1], text
    # Killed at the boundary: the first phase's model is there, the ledger may or may not say so.
    child = start(plan, "--resume")
    wait_for(lambda: (out / "phase-0-meta" / "final" / "model.safetensors").exists(), child)
    child.kill()
    child.communicate()
    child = start(plan, "--resume")
    wait_for(lambda: (out / "phase-1-cross" / "checkpoint-15").exists(), child)
    child.kill()
    child.communicate()
    assert main(["pretrain", "--config", plan, "--resume"]) == 0
    assert same_weights(weights(tmp_path / "whole"), weights(out))


def test_a_changed_definition_is_refused(world, tmp_path, capsys):
    plan = make_plan(world, tmp_path)
    assert main(["pretrain", "--config", plan, "--phase", "meta"]) == 0
    values = yaml.safe_load(Path(plan).read_text())
    values["phases"][1]["alpha"] = 0.9
    Path(plan).write_text(yaml.safe_dump(values))
    assert main(["pretrain", "--config", plan, "--resume"]) == 0
    values["phases"][0]["alpha"] = 0.9
    Path(plan).write_text(yaml.safe_dump(values))
    (tmp_path / "out" / "xlt_run.json").write_text(
        (tmp_path / "out" / "xlt_run.json").read_text().replace('"finished"', '"running"')
    )
    capsys.readouterr()
    assert main(["pretrain", "--config", plan, "--resume"]) == 2
    assert "phase `meta` is finished, and its definition has changed since" in capsys.readouterr().err


def test_dry_run_prints_the_plan_and_writes_nothing(world, tmp_path, capsys):
    assert main(["pretrain", "--config", make_plan(world, tmp_path), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "Phase meta: 4 updates",
        "Phase cross: 6 updates",
        "share",
        "epochs",
        "logits:",
        "pair_input_ids (8,",
    ):
        assert part in printed
    assert not (tmp_path / "out").exists()


def test_too_many_epochs_are_warned_of(world, tmp_path, capsys):
    training = {**TRAINING, "epoch_limit": 0.01}
    assert main(["pretrain", "--config", make_plan(world, tmp_path, training=training), "--dry-run"]) == 0
    assert "would be read more than 0.01 times (en" in capsys.readouterr().out


def test_unknown_tokens_are_warned_of(world, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    write_rows(tmp_path / "other" / "ti.jsonl", [{"id": "1", "text": "w1 what are these words"}] * 5)
    sources = [str(tmp_path / "other" / "{lang}.jsonl")]
    phases = [{"name": "one", "steps": 2}]
    assert main(["pretrain", "--config", make_plan(world, tmp_path, sources=sources, phases=phases), "--dry-run"]) == 0
    assert "80.0% of the tokens of `ti` are unknown to the tokenizer" in capsys.readouterr().out


def test_pretraining_continues_from_an_encoder(world, tmp_path):
    assert main(["pretrain", "--config", make_plan(world, tmp_path)]) == 0
    (tmp_path / "next").mkdir()
    phases = [
        {"name": "adapt", "steps": 2, "sources": [{"text": str(world / "text/{lang}.jsonl"), "languages": ["sw"]}]}
    ]
    plan = make_plan(world, tmp_path / "next", model=str(tmp_path / "out"), tokenizer=None, phases=phases)
    assert main(["pretrain", "--config", plan]) == 0
    assert not same_weights(weights(tmp_path / "out"), weights(tmp_path / "next" / "out"))


def test_a_phase_may_change_the_tokenizer(world, tmp_path):
    from tokenizers import Tokenizer

    spec = json.loads((world / "tokenizer" / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    words = sorted(word for word in vocabulary if word.startswith("w"))
    spec["model"]["vocab"] = {
        **{word: number for word, number in vocabulary.items() if not word.startswith("w")},
        **{word: 5 + number for number, word in enumerate(reversed(["x1", *words]))},
    }
    new = type(TOKENIZER)(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        **TOKENIZER.special_tokens_map,
    )
    new.save_pretrained(tmp_path / "new")
    phases = [
        {"name": "one", "steps": 2},
        {"name": "two", "steps": 2, "tokenizer": str(tmp_path / "new"), "embedding_init": "overlap"},
    ]
    assert main(["pretrain", "--config", make_plan(world, tmp_path, phases=phases)]) == 0
    out = tmp_path / "out"
    assert len(AutoTokenizer.from_pretrained(out)) == len(TOKENIZER) + 1
    assert AutoModelForMaskedLM.from_pretrained(out).config.vocab_size == len(TOKENIZER) + 1


def refused(capsys, arguments):
    code = main(["pretrain", *arguments])
    return code, capsys.readouterr().err


BAD_PLANS = {
    "unknown key": ({"sourcs": []}, r"unknown key 'sourcs'. Did you mean .sources"),
    "no model": ({"model": None}, "`model` is missing"),
    "no model type": ({"model": {"hidden_size": 32}}, "a new `model` needs `model_type`"),
    "unknown model type": ({"model": {**SHAPE, "model_type": "brt"}}, "brt"),
    "unknown model field": ({"model": {**SHAPE, "hiden_size": 3}}, "has no field 'hiden_size'"),
    "no tokenizer": ({"tokenizer": None}, "a new `model` needs a `tokenizer`"),
    "missing tokenizer": ({"tokenizer": "./nowhere"}, "nowhere"),
    "phases no list": ({"phases": {"name": "x"}}, "`phases` must be a list"),
    "no steps": ({"phases": [{"name": "x"}]}, "`steps` is missing"),
    "zero steps": ({"phases": [{"name": "x", "steps": 0}]}, "a phase needs 1 update or more"),
    "two of a name": ({"phases": [{"name": "x", "steps": 1}] * 2}, "two phases are called `x`"),
    "unknown objective": ({"phases": [{"name": "x", "steps": 1, "objectives": ["clm"]}]}, "unknown objective 'clm'"),
    "negative alpha": ({"phases": [{"name": "x", "steps": 1, "alpha": -1}]}, "`alpha` is -1"),
    "unknown phase key": (
        {"phases": [{"name": "x", "steps": 1, "apha": 1}]},
        "unknown key 'apha'. Did you mean .alpha",
    ),
    "no text": ({"sources": [], "phases": [{"name": "x", "steps": 1}]}, "has no text: give `sources`"),
    "missing text": ({"sources": ["./no/{lang}.jsonl"]}, "no text fits|no file fits"),
    "unknown training key": ({"training": {"learning_rat": 1}}, "unknown key 'learning_rat'"),
    "steps in training": ({"training": {"max_steps": 3}}, "`max_steps` is not taken"),
    "bad training value": ({"training": {"row_length": 2}}, "`row_length` is 2"),
    "phase key in training": ({"training": {"alpha": 0.3}}, "`alpha` is not taken here; it is set in each phase"),
    "rows too long": ({"training": {**TRAINING, "row_length": 64}}, "position table ends at 40"),
    "compiled": ({"training": {"torch_compile": True}}, "`torch_compile` is not supported"),
}


@pytest.mark.parametrize("case", BAD_PLANS)
def test_a_bad_plan_ends_in_one_line(case, world, tmp_path, capsys):
    import re

    changes, message = BAD_PLANS[case]
    changes = dict(changes)
    if changes.get("phases") and isinstance(changes["phases"], list):
        changes["phases"] = [{**phase} for phase in changes["phases"]]
    code, text = refused(capsys, ["--config", make_plan(world, tmp_path, **changes)])
    assert code == 2 and len(text.strip().splitlines()) == 1, text
    assert re.search(message, text), text
    assert not (tmp_path / "out").exists()


def phase_case(world, **changes):
    text = str(world / "text" / "{lang}.jsonl")
    return [{"name": "x", "steps": 2, "sources": [{"text": text, **changes.pop("source", {})}], **changes}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": {"languages": ["fr"]}}, "has no language `fr`.* Languages there: de, en, sw"),
        ({"source": {"text_column": "body"}}, "must contain a `body` column"),
        ({"source": {"id_column": "nothing"}, "objectives": ["tlm"]}, "there is no parallel text"),
        ({"source": {"streaming": True}, "objectives": ["tlm"]}, "need text that is not streamed"),
        ({"floors": {"fr": 0.2}}, "a least share is asked for `fr`"),
        ({"source": {"languages": ["en"]}, "objectives": ["contrastive"]}, "there is no parallel text"),
    ],
)
def test_text_that_does_not_serve_ends_in_one_line(changes, message, world, tmp_path, capsys):
    import re

    plan = make_plan(world, tmp_path, phases=phase_case(world, **changes))
    code, text = refused(capsys, ["--config", plan])
    assert code == 2 and len(text.strip().splitlines()) == 1, text
    assert re.search(message, text), text
    assert not (tmp_path / "out").exists()


def test_command_line_mistakes_end_in_one_line(world, tmp_path, capsys):
    plan = make_plan(world, tmp_path)
    for arguments, message in (
        (["--config", "nowhere.yaml"], "config file `nowhere.yaml` is missing"),
        (["--config", plan, "--phase", "crss"], "there is no phase `crss`. Did you mean"),
        (["--config", plan, "--resume", "--overwrite"], "give one of them"),
        (["--config", plan, "--total-steps", "0", "--meta-fraction", "0.5"], "`--total-steps` is 0"),
        (["--config", plan, "--meta-fraction", "1.5"], "`--meta-fraction` 1.5"),
    ):
        code, text = refused(capsys, arguments)
        assert code == 2 and message in text and len(text.strip().splitlines()) == 1, text
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    code, text = refused(capsys, ["--config", plan])
    assert code == 2 and "is not empty and holds no run" in text
    assert (tmp_path / "out" / "diary.txt").read_text() == "mine"


def test_streamed_phases_train_and_resume(world, tmp_path):
    phases = phase_case(world, source={"streaming": True}, alpha=0.3)
    phases[0]["steps"] = 6
    plan = make_plan(world, tmp_path, phases=phases)
    assert main(["pretrain", "--config", plan, "--output-dir", str(tmp_path / "whole")]) == 0
    assert main(["pretrain", "--config", plan]) == 0
    out = tmp_path / "out"
    for name in ("model.safetensors", "phases.json", "checkpoint-6/complete.json"):
        (out / name).unlink()
    record = json.loads((out / "xlt_run.json").read_text())
    (out / "xlt_run.json").write_text(json.dumps({**record, "status": "running"}))
    assert main(["pretrain", "--config", plan, "--resume"]) == 0
    assert json.loads((out / "phases.json").read_text())["phases"][0]["resumed_from"] == 4
    assert same_weights(weights(tmp_path / "whole"), weights(out))


def test_a_manifest_gives_the_sizes_of_streamed_text(world, tmp_path, capsys):
    arguments = ["--text", str(world / "text" / "{lang}.jsonl"), "--tokenizer", str(world / "tokenizer")]
    assert main(["lang-stats", *arguments, "-o", str(tmp_path / "languages.json")]) == 0
    entries = json.loads((tmp_path / "languages.json").read_text())["languages"]
    phases = phase_case(world, source={"streaming": True}, alpha=1.0)
    plan = make_plan(world, tmp_path, phases=phases, manifest=str(tmp_path / "languages.json"))
    capsys.readouterr()
    assert main(["pretrain", "--config", plan, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for entry in entries:
        assert f"~{entry['tokens']:,}" in printed
    plan = make_plan(world, tmp_path, phases=phases, manifest="nowhere.json")
    assert refused(capsys, ["--config", plan])[1].startswith("error: manifest `nowhere.json` is missing")


def test_a_finished_pretraining_can_be_given_another_phase(world, tmp_path, capsys):
    plan = make_plan(world, tmp_path)
    assert main(["pretrain", "--config", plan]) == 0
    before = weights(tmp_path / "out")
    values = yaml.safe_load(Path(plan).read_text())
    values["phases"].append({"name": "longer", "steps": 2})
    Path(plan).write_text(yaml.safe_dump(values))
    assert main(["pretrain", "--config", plan, "--resume"]) == 0
    ledger = json.loads((tmp_path / "out" / "phases.json").read_text())["phases"]
    assert [entry["name"] for entry in ledger] == ["meta", "cross", "longer"]
    assert not same_weights(before, weights(tmp_path / "out"))
    assert same_weights(before, weights(tmp_path / "out" / "phase-1-cross" / "final"))
    record = json.loads((tmp_path / "out" / "xlt_run.json").read_text())
    assert len(record["settings"]["phases"]) == 3 and "longer" in record["data"]


def test_resuming_with_other_arguments_is_refused(world, tmp_path, capsys):
    plan = make_plan(world, tmp_path)
    assert main(["pretrain", "--config", plan, "--phase", "meta"]) == 0
    capsys.readouterr()
    code, text = refused(capsys, ["--config", plan, "--resume", "--seed", "5"])
    assert code == 2 and "was started with `seed` None, not 5" in text
    training = {**TRAINING, "per_device_train_batch_size": 8}
    code, text = refused(capsys, ["--config", make_plan(world, tmp_path, training=training), "--resume"])
    assert code == 2 and "`disable_tqdm`" not in text and "`per_device_train_batch_size` 4, not 8" in text


def test_held_out_losses_are_recorded(world, tmp_path):
    training = {**TRAINING, "disable_tqdm": True, "held_out_share": 0.3}
    assert main(["pretrain", "--config", make_plan(world, tmp_path, training=training)]) == 0
    phases = json.loads((tmp_path / "out" / "xlt_run.json").read_text())["phases"]
    assert set(phases[0]["held_out_loss"]) == {"en"} and set(phases[1]["held_out_loss"]) == {"en", "de", "sw"}
    assert all(0 < loss < 10 for phase in phases for loss in phase["held_out_loss"].values())


def test_evaluation_while_training_works(world, tmp_path):
    training = {**TRAINING, "disable_tqdm": True, "held_out_share": 0.3, "eval_strategy": "steps", "eval_steps": 2}
    assert main(["pretrain", "--config", make_plan(world, tmp_path, training=training)]) == 0
    state = json.loads((tmp_path / "out/phase-1-cross/checkpoint-6/trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_avg_loss" in entry] == [2, 4, 6]


def test_what_to_do_next_does_not_repeat_the_phase(world, tmp_path, capsys, monkeypatch):
    plan = make_plan(world, tmp_path)
    monkeypatch.setattr(sys, "argv", ["hf-xlt", "pretrain", "--config", plan, "--phase", "meta", "--overwrite"])
    assert main() == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "To go on" in line)
    assert line.endswith(f"hf-xlt pretrain --config {plan} --resume")


def test_a_finished_pretraining_with_a_changed_phase_is_refused(world, tmp_path, capsys):
    plan = make_plan(world, tmp_path)
    assert main(["pretrain", "--config", plan]) == 0
    values = yaml.safe_load(Path(plan).read_text())
    values["phases"][1]["alpha"] = 0.9
    Path(plan).write_text(yaml.safe_dump(values))
    code, text = refused(capsys, ["--config", plan, "--resume"])
    assert code == 2 and "phase `cross` is finished, and its definition has changed since" in text


def test_a_manifest_of_another_tokenizer_is_refused(world, tmp_path, capsys):
    entries = {"tokenizer": {"name": "x", "hash": "0"}, "languages": []}
    (tmp_path / "languages.json").write_text(json.dumps(entries))
    plan = make_plan(world, tmp_path, manifest=str(tmp_path / "languages.json"))
    assert "was made with another tokenizer" in refused(capsys, ["--config", plan])[1]


@pytest.mark.parametrize(
    ("name", "keep", "problem"),
    [
        ("model.safetensors", 1000, "its weights are damaged or cut off"),
        ("model.safetensors", 0, ""),
        ("config.json", 20, ""),
        ("tokenizer.json", 30, ""),
    ],
)
def test_a_damaged_model_of_a_finished_phase_is_told_with_the_way_out(name, keep, problem, world, tmp_path, capsys):
    plan = make_plan(world, tmp_path)
    assert main(["pretrain", "--config", plan, "--phase", "meta"]) == 0
    final = tmp_path / "out" / "phase-0-meta" / "final"
    (final / name).write_bytes((final / name).read_bytes()[:keep])
    capsys.readouterr()
    code, text = refused(capsys, ["--config", plan, "--resume"])
    assert code == 1 and len(text.strip().splitlines()) == 1, text
    assert f"the model that the phase before `cross` left in `{final}` cannot be" in text and problem in text
    assert f"Delete `{tmp_path / 'out'}`, or start anew with `--overwrite`." in text and "Copy or download" not in text
    assert main(["pretrain", "--config", plan, "--overwrite"]) == 0


def test_a_damaged_encoder_to_start_from_is_to_be_copied_again(world, tmp_path, capsys):
    assert main(["pretrain", "--config", make_plan(world, tmp_path)]) == 0
    path = tmp_path / "out" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    (tmp_path / "next").mkdir()
    plan = make_plan(world, tmp_path / "next", model=str(tmp_path / "out"), tokenizer=None)
    capsys.readouterr()
    code, text = refused(capsys, ["--config", plan])
    assert code == 2 and "damaged or cut off" in text and text.rstrip().endswith("Copy or download it again.")
