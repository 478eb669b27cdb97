"""Two processes by the command that really starts two, and the launches that do not."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contexts import STILL
from safetensors.torch import load_file
from tiny import make_rows, save_encoder, write_data, write_rows

from hf_xlt.errors import ConfigError
from hf_xlt.launch import check_launch, set_threads
from hf_xlt.registry import PROCESSES, STRATEGIES, get_strategy

ROOT = Path(__file__).resolve().parent.parent


def launch(arguments, cwd, *, launcher, cpu=True, module="hf_xlt.run"):
    """Run a module under a launcher; return the finished process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    command = [*accelerate, *launcher, *fixed, "-m", module, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An encoder without dropout, and languages of uneven test sizes."""
    root = tmp_path_factory.mktemp("processes")
    save_encoder(root / "encoder", **STILL)
    # The last batch of an epoch is not full: Accelerate repeats examples there, which must not count.
    write_data(root / "data", train=45)
    return root


def arguments(strategy, out, batch):
    """A command line; `<strategy>-lora` trains adapters."""
    strategy, lora = strategy.removesuffix("-lora"), strategy.endswith("-lora")
    line = (
        f"--strategy {strategy} --model encoder --dataset data/{{split}}.{{lang}}.jsonl --output-dir {out} "
        f"--per-device-train-batch-size {batch} --per-device-eval-batch-size 8 --max-steps 9 --optim sgd "
        "--learning-rate 0.05 --disable-tqdm --save-steps 4 --threads 1 --shots 7 --few-shot-mode joint"
    )
    if "text" in get_strategy(strategy).roles:
        line += (
            " --text-dataset data/{split}.{lang}.jsonl --total-steps 6 --meta-learning-rate 0.05 --row-length 16 "
            f"--pretraining-batch-size {batch}"
        )
    if "auxiliary" in get_strategy(strategy).roles:
        line += " --auxiliary-dataset data/{split}.{lang}.jsonl --auxiliary-languages sw"
    if strategy == "xmaml":
        line += " --meta-steps 4 --meta-learning-rate 0.01 --inner-learning-rate 0.1 --task-batch-size 8"
        line += " --meta-optimizer sgd"
    if get_strategy(strategy).averages:
        line += " --average-evaluate --eval-strategy steps --eval-steps 3"
    if lora:
        line += " --peft lora --lora-rank 4 --lora-alpha 16 "
        if strategy == "robust":
            line += "--clean-weight 0.5"
        elif strategy != "metaxl":
            # Searching for unused parameters, which the Trainer does for adapters, would fail here.
            line += '--activation-checkpointing --activation-checkpointing-kwargs {"use_reentrant":true}'
    return line.split()


SPLIT = [name for name in STRATEGIES if PROCESSES in get_strategy(name).invariances]
# Whether the average is of adapters or of all weights makes no difference between processes.
SPLIT += [f"{name}-lora" for name in SPLIT if get_strategy(name).peft and not get_strategy(name).averages]


@pytest.mark.parametrize("strategy", SPLIT)
def test_two_processes_give_the_result_of_one(world, strategy):
    done = launch(arguments(strategy, f"two-{strategy}", 4), world, launcher=["--multi_gpu", "--num_processes", "2"])
    assert done.returncode == 0, done.stderr[-3000:]
    from hf_xlt.cli.main import main

    previous = os.getcwd()
    os.chdir(world)
    try:
        assert main(["run", *arguments(strategy, f"one-{strategy}", 8)]) == 0
    finally:
        os.chdir(previous)
    one, two = (load_file(world / f"{count}-{strategy}" / "model.safetensors") for count in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(weights, two[name], rtol=1e-4, atol=1e-5)
    scores = [json.loads((world / f"{count}-{strategy}" / "results.json").read_text()) for count in ("one", "two")]
    for language, entry in scores[0]["languages"].items():
        other = scores[1]["languages"][language]
        assert entry["examples"] == other["examples"]
        assert entry["metrics"]["loss"] == pytest.approx(other["metrics"]["loss"], rel=1e-3)
    assert done.stdout.count("Target average") == 1
    if get_strategy(strategy.removesuffix("-lora")).averages:
        last, output = (load_file(world / f"two-{strategy}" / place / "model.safetensors") for place in ("last", "."))
        assert all(not torch.equal(last[name], output[name]) for name in output)
        ledger = json.loads((world / f"two-{strategy}" / "phases.json").read_text())
        assert ledger["phases"][0]["averaging"]["steps"] == list(range(1, 10))
    assert json.loads((world / f"two-{strategy}" / "xlt_run.json").read_text())["hardware"]["processes"] == 2


def test_two_processes_score_pairs_of_languages_as_one_does(world):
    """The number of examples fits neither the processes nor the batches."""
    rows = {language: make_rows(language, 13, seed, pair=True) for seed, language in enumerate(("en", "de", "sw"))}
    # Weights so large that texts differ in their losses.
    save_encoder(world / "wide", initializer_range=0.5, **STILL)
    (world / "pairs").mkdir()
    write_rows(world / "pairs" / "train.en.jsonl", rows["en"])
    for language, entries in rows.items():
        write_rows(world / "pairs" / f"test.{language}.jsonl", entries)
    line = (
        "--model wide --dataset pairs/{split}.{lang}.jsonl --per-device-train-batch-size %d --max-steps 2 "
        "--optim sgd --per-device-eval-batch-size 4 --disable-tqdm --threads 1 --save-strategy no --generalized "
        "--output-dir %s"
    )
    launcher = ["--multi_gpu", "--num_processes", "2"]
    done = launch((line % (4, "two-pairs")).split(), world, launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Generalized setting") == 1
    from hf_xlt.cli.main import main

    previous = os.getcwd()
    os.chdir(world)
    try:
        assert main(["run", *(line % (8, "one-pairs")).split()]) == 0
    finally:
        os.chdir(previous)
    one, two = (json.loads((world / f"{count}-pairs" / "generalized.json").read_text()) for count in ("one", "two"))
    assert one["examples"] == two["examples"] == 13 and one["pairs"] == two["pairs"]
    for left, right in zip(one["matrix"]["loss"], two["matrix"]["loss"], strict=True):
        assert left == pytest.approx(right, rel=1e-3)
    # They differ from pair to pair, so that exchanged ones would show.
    assert len({round(loss, 5) for row in one["matrix"]["loss"] for loss in row}) == 9


def test_two_processes_pretrain_as_one_does(world):
    """Masked objectives do not depend on the split; the negatives of the contrastive one do."""
    import yaml
    from pretraining_setup import TOKENIZER
    from tiny import make_rows, write_rows

    TOKENIZER.save_pretrained(world / "tokenizer")
    (world / "text").mkdir()
    for seed, language in enumerate(("en", "de", "sw")):
        write_rows(world / "text" / f"{language}.jsonl", make_rows(language, 40, seed))
    shape = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **STILL}
    for name, batch in (("one", 8), ("two", 4)):
        training = {"per_device_train_batch_size": batch, "row_length": 16, "optim": "sgd", "learning_rate": 0.05}
        plan = {
            "model": {**shape, "intermediate_size": 64, "max_position_embeddings": 40},
            "tokenizer": "tokenizer",
            "output_dir": f"pretrained-{name}",
            "threads": 1,
            "sources": ["text/{lang}.jsonl"],
            "training": {**training, "disable_tqdm": True, "save_steps": 2},
            "phases": [{"name": "meta", "steps": 3}, {"name": "cross", "steps": 3, "objectives": ["mlm", "tlm"]}],
        }
        (world / f"{name}.yaml").write_text(yaml.safe_dump(plan))
    done = launch(
        ["pretrain", "--config", "two.yaml"],
        world,
        launcher=["--multi_gpu", "--num_processes", "2"],
        module="hf_xlt.cli.main",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Saved in pretrained-two") == 1
    from hf_xlt.cli.main import main

    previous = os.getcwd()
    os.chdir(world)
    try:
        assert main(["pretrain", "--config", "one.yaml"]) == 0
    finally:
        os.chdir(previous)
    one, two = (load_file(world / f"pretrained-{name}" / "model.safetensors") for name in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(weights, two[name], rtol=1e-4, atol=1e-5)


def test_an_error_in_two_processes_is_said_once(world):
    bad = [*arguments("finetune", "bad", 4), "--target-languages", "xx"]
    done = launch(bad, world, launcher=["--multi_gpu", "--num_processes", "2"])
    assert done.returncode == 1
    assert done.stderr.count("error: target language `xx` has no `test` split") == 1
    assert not (world / "bad").exists()


class Config:
    world_size = 1


def test_processes_that_would_each_train_alone_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="started 2 processes, but each would train alone.*--multi_gpu"):
        check_launch(Config)


def test_one_process_where_several_were_asked_for_is_explained(world):
    done = launch(
        [*arguments("finetune", "alone", 8), "--max-steps", "1"], world, launcher=["--cpu", "--num_processes", "2"]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "asked for several processes and started one" in done.stderr
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2" in done.stderr


def test_a_plain_start_is_silent(monkeypatch, capsys):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    check_launch(Config)
    assert capsys.readouterr() == ("", "")


def test_threads_are_set_when_asked_and_left_alone_otherwise(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    torch.set_num_threads(1)
    assert set_threads(None, 1) == 1
    assert set_threads(2, 1) == 2 == torch.get_num_threads()
