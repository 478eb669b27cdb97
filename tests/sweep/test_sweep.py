"""Sweeps from the command to the table: a donor's head, runs that share it, means over 1, 2, ... runs, resuming."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_encoder, write_data
from transformers import AutoModelForSequenceClassification

from hf_xlt.cli.main import main
from hf_xlt.model_cards.checks import check
from hf_xlt.record import RunRecord

HEAD = {"classifier.weight", "classifier.bias"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    save_encoder(root / "encoder")
    write_data(root / "data", train=24)
    return root


def command(world, folder, line, steps=4):
    data = ["--dataset", str(world / "data" / "{split}.{lang}.jsonl"), "--target-languages", "de,sw"]
    fast = f"--max-steps {steps} --per-device-train-batch-size 8 --learning-rate 3e-3 --disable-tqdm --threads 1"
    return ["run", "--model", str(world / "encoder"), *data, *fast.split(), "--output-dir", str(folder), *line.split()]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A sweep with a donor, two runs and snapshots."""
    folder = tmp_path_factory.mktemp("finished") / "sweep"
    assert main(command(world, folder, "--seeds 2 --share-head --average --average-every 2")) == 0
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_runs_hold_the_head_of_the_donors_last_weights_bit_for_bit(finished):
    donor = weights(finished / "donor" / "last")
    averaged_donor = weights(finished / "donor")
    for run in ("run-1", "run-2", "run-1/last", "averaged"):
        state = weights(finished / run)
        assert all(torch.equal(state[name], donor[name]) for name in HEAD)
        assert not torch.equal(
            state["bert.encoder.layer.0.output.dense.weight"], donor["bert.encoder.layer.0.output.dense.weight"]
        )
    assert not torch.equal(averaged_donor["classifier.weight"], donor["classifier.weight"])


def test_the_average_is_the_mean_of_what_the_runs_saved(finished):
    first, second, average = (weights(finished / name) for name in ("run-1", "run-2", "averaged"))
    for name, value in average.items():
        mean = (first[name].double() + second[name].double()) / 2
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-8)
    assert not torch.equal(
        first["bert.embeddings.word_embeddings.weight"], second["bert.embeddings.word_embeddings.weight"]
    )
    _, report = AutoModelForSequenceClassification.from_pretrained(finished / "averaged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_the_table_holds_the_scores_of_the_means(finished, world, tmp_path, capsys):
    values = json.loads((finished / "sweep_results.json").read_text())
    kept = values["accumulated"]["means"]
    assert list(kept) == ["averaged", "last"] and all(len(rows) == 2 for rows in kept.values())
    data = ["--dataset", str(world / "data" / "{split}.{lang}.jsonl"), "--target-languages", "de,sw", "--json"]

    def scored(folder, out):
        assert main(["evaluate", str(folder), *data, "--output-dir", str(tmp_path / out)]) == 0
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])["target_average"]

    assert kept["averaged"][0]["target_average"] == scored(finished / "run-1", "a")
    assert kept["averaged"][1]["target_average"] == scored(finished / "averaged", "b")
    assert kept["last"][0]["target_average"] == scored(finished / "run-1" / "last", "c")
    inputs = [str(finished / run / "last") for run in ("run-1", "run-2")]
    assert main(["average", *inputs, "-o", str(tmp_path / "mean")]) == 0
    capsys.readouterr()
    assert kept["last"][1]["target_average"] == scored(tmp_path / "mean", "d")
    assert "| mean ± deviation |" in (finished / "sweep_results.md").read_text()
    assert not (finished / ".accumulating").exists() and not os.path.exists("evaluations/.accumulating")


def test_record_and_card_of_the_average_tell_what_it_is(finished):
    record = RunRecord.read(finished / "averaged")
    assert record.status == "finished" and record.results and len(record.parents) == 2
    card = (finished / "averaged" / "README.md").read_text()
    assert not check(card)
    assert "The mean of 2 checkpoints of 2 runs, each of which is the mean of 2 snapshots." in card
    assert "checkpoints `run-1/model.safetensors`, `run-2/model.safetensors`, each with weight 0.5" in card
    assert "--seeds 2 --share-head --average" in card and str(finished) not in card
    run = RunRecord.read(finished / "run-1")
    assert run.settings["shared_head"].startswith("of `donor`, frozen")
    assert str(finished) not in json.dumps(run.to_dict())


def test_a_finished_sweep_resumes_to_its_table_and_trains_nothing(finished, world, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("model.safetensors")}
    assert main(command(world, finished, "--seeds 2 --share-head --average --average-every 2 --resume")) == 0
    out = capsys.readouterr().out
    assert out.count("is finished.") == 3 and "runs averaged" in out
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("model.safetensors")}


def test_another_sweep_is_not_continued_nor_overwritten_unasked(finished, world, tmp_path, capsys):
    for line, message in [
        ("--seeds 3 --share-head --resume", "has other runs than this command"),
        ("--seeds 2 --share-head", "holds a sweep already"),
    ]:
        assert main(command(world, finished, line)) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert main(command(world, tmp_path, "--seeds 2 --overwrite")) == 2
    assert "is left alone" in capsys.readouterr().err and (tmp_path / "notes.txt").is_file()


def test_runs_without_a_shared_head_are_tabled_and_not_averaged(world, tmp_path, capfd):
    assert main(command(world, tmp_path / "s", "--seeds 2 --parallel-runs 2")) == 0
    out = capfd.readouterr().out
    assert "mean ± deviation" in out and "runs averaged" not in out
    assert not (tmp_path / "s" / "averaged").exists()
    # Several at a time do not mix their output.
    assert "Target average" in (tmp_path / "s" / "logs" / "run-1.txt").read_text()
    assert "Worst language" not in out
    assert {RunRecord.read(tmp_path / "s" / name).seeds["seed"] for name in ("run-1", "run-2")} == {42, 43}


def test_a_run_that_fails_is_named_and_the_finished_ones_are_kept(world, tmp_path, capfd):
    line = "--seeds 2 --vary learning_rate=1e-3,1e30"
    assert main(command(world, tmp_path / "s", line)) in (1, 2)
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "failed with exit code" in error and "--resume" in error


def test_a_sweep_that_was_stopped_goes_on_where_it_was(finished, world, tmp_path):
    """Interrupted in the middle of a run; the average is bit for bit that of the sweep that was not."""
    folder = tmp_path / "sweep"
    shutil.copytree(finished, folder)
    for name in ("run-2", "averaged"):
        shutil.rmtree(folder / name)
    (folder / "accumulated.json").unlink()
    line = "--seeds 2 --share-head --average --average-every 2 --resume"
    slow = tmp_path / "slow"
    slow.mkdir()
    # Each update waits, so that the signal falls between two of them.
    (slow / "sitecustomize.py").write_text(
        "import time, transformers.trainer_callback as t\n"
        "original = t.DefaultFlowCallback.on_step_end\n"
        "def wait(self, *a, **k):\n    time.sleep(2)\n    return original(self, *a, **k)\n"
        "t.DefaultFlowCallback.on_step_end = wait\n"
    )
    argv = command(world, folder, line)
    environment = {**os.environ, "PYTHONPATH": f"{slow}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_xlt.run", *argv[1:]],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "run-2" / "xlt_run.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "To resume: hf-xlt run" in error and not (folder / "averaged").exists()
    assert main(argv) == 0
    ours, theirs = weights(folder / "averaged"), weights(finished / "averaged")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_one_run_takes_the_head_of_a_donor(finished, world, tmp_path, capsys):
    donor = weights(finished / "donor" / "last")
    assert main(command(world, tmp_path / "one", f"--share-head {finished / 'donor'} --seed 9")) == 0
    state = weights(tmp_path / "one")
    assert all(torch.equal(state[name], donor[name]) for name in HEAD)
    # A resumed run must have the same donor.
    argv = command(world, tmp_path / "one", f"--share-head {finished / 'run-1'} --seed 9 --resume")
    shutil.copytree(finished / "donor", tmp_path / "donor")
    record = RunRecord.read(tmp_path / "one")
    record.status = "trained"
    record.write(tmp_path / "one")
    argv[argv.index("--share-head") + 1] = str(tmp_path / "one" / "none")
    assert main(argv) == 2
    assert "is missing" in capsys.readouterr().err
    head = finished / "donor"
    argv[argv.index("--share-head") + 1] = str(head)
    assert main(argv) == 0


def test_adapters_leave_a_shared_head_alone(finished, world, tmp_path):
    donor = weights(finished / "donor" / "last")
    assert main(command(world, tmp_path / "lora", f"--share-head {finished / 'donor'} --peft lora")) == 0
    state = weights(tmp_path / "lora")
    assert all(torch.equal(state[name], donor[name]) for name in HEAD)
    assert "classifier" not in " ".join(load_file(tmp_path / "lora" / "adapter" / "adapter_model.safetensors"))


def test_scoring_an_average_completes_its_record(finished, world, tmp_path, capsys):
    files = [str(finished / run / "model.safetensors") for run in ("run-1", "run-2")]
    assert main(["average", *files, "-o", str(tmp_path / "mean")]) == 0
    assert RunRecord.read(tmp_path / "mean").status == "trained"
    data = ["--dataset", str(world / "data" / "{split}.{lang}.jsonl"), "--target-languages", "de,zh"]
    assert main(["evaluate", str(tmp_path / "mean"), *data]) == 0
    capsys.readouterr()
    record = RunRecord.read(tmp_path / "mean")
    assert record.status == "finished" and [score.language for score in record.scores.scores] == ["en", "de", "zh"]
    assert [language["code"] for language in record.languages["target"]] == ["de", "zh"]
    assert set(record.data["target"]["fingerprints"]) == {"de", "zh"}
    card = (tmp_path / "mean" / "README.md").read_text()
    assert not check(card) and "| Chinese | zh |" in card and "Swahili" not in card
    # Scored again, it is like any other run: its own figures stay.
    assert main(["evaluate", str(tmp_path / "mean"), *data]) == 0
    assert (tmp_path / "mean" / "evaluations").is_dir()
