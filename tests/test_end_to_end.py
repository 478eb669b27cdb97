"""The whole job through the commands a user types: run, push, and use from another machine."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import save_encoder, write_data

from hf_xlt.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
RUN = (
    "run --strategy robust --model encoder --dataset data/{split}.{lang}.jsonl --target-languages de,sw "
    "--per-device-train-batch-size 8 --learning-rate 1e-3 --threads 1"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("end")
    save_encoder(root / "encoder")
    write_data(root / "data")
    return root


def command(line, cwd, **environment):
    """Start `hf-xlt` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "hf_xlt.cli.main", *line.split()],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_run_push_and_evaluate_from_the_hub_on_another_machine(world, hub_env, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    assert main([*RUN.split(), "--max-steps", "6", "--output-dir", "out"]) == 0
    pushed = command("push out user/demo-topic --private --json", world, **hub_env)
    out, err = pushed.communicate(timeout=200)
    assert pushed.returncode == 0, err
    assert json.loads(out)["repo_id"] == "user/demo-topic" and "hf_good" not in out + err
    fresh = {**hub_env, "HF_HOME": str(tmp_path / "another-home")}
    scored = command(
        "evaluate user/demo-topic --dataset data/{split}.{lang}.jsonl --target-languages de,sw --json", world, **fresh
    )
    out, err = scored.communicate(timeout=200)
    assert scored.returncode == 0, err
    assert json.loads(out)["languages"] == json.loads((world / "out" / "results.json").read_text())["languages"]
    (cached,) = (tmp_path / "another-home").rglob("model.safetensors")
    assert cached.read_bytes() == (world / "out" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_exits_with_130_and_says_how_to_resume(world, tmp_path, number):
    line = f"{RUN} --max-steps 4000 --save-steps 4000 --save-total-limit 1 --output-dir {tmp_path / 'cut'}"
    process = command(line, world)
    for text in iter(process.stdout.readline, ""):
        if text.startswith("Strategy robust"):
            break
    time.sleep(3)
    process.send_signal(number)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("interrupted: stopped after update ")
    assert shlex.split(last.split("To resume: ")[1]) == ["hf-xlt", *line.split(), "--resume"]
    assert "Traceback" not in err
    stopped = int(last.split("stopped after update ")[1].split()[0])
    assert (tmp_path / "cut" / f"checkpoint-{stopped}" / "complete.json").is_file()
    assert not (tmp_path / "cut" / "model.safetensors").exists()


def test_embedded_run_transfers_and_beats_its_floor(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--strategy", "robust", "--max-steps", "60", "--disable-tqdm"]) == 0
    out = capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    record = json.loads((folder / "xlt_run.json").read_text())
    assert record["demo"] and len(record["results"]["languages"]) == 12
    assert record["results"]["target_average"] > record["floor"]["target_average"] + 0.1
    assert {entry["examples"] for entry in record["results"]["languages"].values()} == {1000}
    for part in ("Floor", "Worst language", "Transfer gap", "say nothing about other tasks"):
        assert part in out
    assert load_file(folder / "model.safetensors")
    assert main(["push", str(folder), "user/demo"]) == 2
    assert "--force" in capsys.readouterr().err


def test_push_at_the_end_of_a_run_is_our_own_push_after_the_run_is_saved(world, hub, hub_env):
    line = f"{RUN} --max-steps 2 --output-dir pushed --push-to-hub --hub-model-id user/auto --hub-private-repo"
    process = command(line, world, **hub_env)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "Pushed to " in out and "user/auto" in out
    record = (world / "pushed" / "xlt_run.json").read_text()
    assert "hf_good" not in record + out + err and '"push_to_hub"' not in record
    from huggingface_hub import HfApi

    info = HfApi(endpoint=hub.url, token="hf_good").model_info("user/auto")
    names = {sibling.rfilename for sibling in info.siblings}
    assert {"model.safetensors", "config.json", "README.md", "xlt_run.json"} <= names and info.private
    assert not any(name.endswith((".bin", ".pt", ".pth")) or name.startswith("checkpoint") for name in names)


def test_a_push_that_fails_at_the_end_of_a_run_loses_nothing_and_resuming_makes_up_for_it(world, hub, hub_env):
    line = f"{RUN} --max-steps 2 --output-dir kept --push-to-hub --hub-model-id user/later"
    failing = command(line, world, **{**hub_env, "HF_ENDPOINT": "http://127.0.0.1:9"})
    _, err = failing.communicate(timeout=200)
    assert failing.returncode == 1
    last = err.strip().splitlines()[-1]
    assert "cannot reach http://127.0.0.1:9" in last and last.endswith("`hf-xlt push kept user/later`")
    saved = (world / "kept" / "model.safetensors").read_bytes()
    assert json.loads((world / "kept" / "xlt_run.json").read_text())["status"] == "finished"
    resumed = command(f"{line} --resume", world, **hub_env)
    out, err = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, err
    assert "nothing to resume" in out and "Pushed to " in out
    assert hub.store.files("user/later")["model.safetensors"] == saved
