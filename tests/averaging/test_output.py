"""The output folder: loads, tells what it was made of, replaces nothing by halves, and survives kills."""

import errno
import json
import os
import signal
import threading
import time

import pytest
import torch
from averaging_setup import load_average, make_state, save_states
from records import make_demo_record, make_oracle_record, make_record
from tiny import make_features, make_model, make_tokenizer, same_weights
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_xlt.averaging import average_checkpoints, staging, streaming
from hf_xlt.averaging.trajectory import early_snapshot_note
from hf_xlt.errors import ConfigError, RunError
from hf_xlt.model_cards.card import check, render
from hf_xlt.model_cards.checks import leaks
from hf_xlt.record import RunRecord

SHAPES = {f"layer.{number}": (300, 100) for number in range(8)}


def make_run(folder, steps=(2, 4), seed=0, record=None):
    for step in steps:
        place = folder / f"checkpoint-{step}"
        make_model(seed + step).save_pretrained(place)
        make_tokenizer().save_pretrained(place)
        for name in ("optimizer.pt", "trainer_state.json", "training_args.bin", "scheduler.pt", "rng_state.pth"):
            (place / name).write_text("{}")
        (place / "complete.json").write_text(json.dumps({"files": {}}))
    if record is not None:
        record.write(folder)
    return folder


@pytest.mark.parametrize("shard", [None, "40KB"])
def test_loads_as_the_model_it_is(tmp_path, shard):
    run = make_run(tmp_path / "run")
    report = average_checkpoints([run], tmp_path / "out", max_shard_size=shard)
    assert len(report.files) == (1 if shard is None else 3)
    assert all((tmp_path / "out" / name).stat().st_size == size for name, size in report.files.items())
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    members = [make_model(step).state_dict() for step in (2, 4)]
    for name, tensor in loaded.state_dict().items():
        assert torch.allclose(tensor, (members[0][name] + members[1][name]) / 2, rtol=1e-6, atol=1e-8)
    config = json.loads((run / "checkpoint-4" / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("w1 w2").input_ids == make_tokenizer()("w1 w2").input_ids
    row = make_features(1)[0]
    assert torch.isfinite(loaded(input_ids=torch.tensor([row["input_ids"]])).logits).all()
    resumable = ("optimizer.pt", "trainer_state.json", "training_args.bin", "scheduler.pt", "complete.json")
    assert not any((tmp_path / "out" / name).exists() for name in (*resumable, "rng_state.pth"))


def test_dtype_of_the_config_is_that_of_the_weights(tmp_path):
    run = make_run(tmp_path / "run")
    average_checkpoints([run], tmp_path / "out", dtype="bfloat16")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert average_checkpoints([run], None, check_only=True, dtype="bfloat16").dtypes == ("bfloat16",)


def test_manifest_names_inputs_without_paths(tmp_path):
    run = make_run(tmp_path / "run")
    config = run / "checkpoint-4" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "/home/jane/models/x"}))
    average_checkpoints([run], tmp_path / "out", weights=[1, 3])
    manifest = json.loads((tmp_path / "out" / "averaging.json").read_text())
    assert [(entry["name"], entry["step"], entry["weight"]) for entry in manifest["inputs"]] == [
        ("checkpoint-2", 2, 0.25),
        ("checkpoint-4", 4, 0.75),
    ]
    assert all(len(file["header_sha256"]) == 64 for entry in manifest["inputs"] for file in entry["files"])
    assert manifest["mode"] == "weighted" and "torch" in manifest["versions"]
    for path in (tmp_path / "out").glob("*.json"):
        assert not leaks(path.read_text()) and str(tmp_path) not in path.read_text(), path


def test_record_names_its_parents(tmp_path):
    runs = [make_run(tmp_path / name, record=make_record(seeds={"seed": seed})) for seed, name in enumerate("ab")]
    average_checkpoints([], tmp_path / "out", runs=runs[:1], command="hf-xlt average --run a")
    record = RunRecord.read(tmp_path / "out")
    assert record.strategy["title"] == "Checkpoint averaging" and record.status == "trained"
    assert [parent["seeds"] for parent in record.parents] == [{"seed": 0}]
    assert record.settings["checkpoints"] == ["checkpoint-2", "checkpoint-4"] and record.results is None
    card = render(record)
    assert not check(card) and "a run of `robust`, `seed` 0" in card
    average_checkpoints([], tmp_path / "both", runs=runs, head="average")
    record = RunRecord.read(tmp_path / "both")
    assert record.strategy["title"] == "Run averaging" and len(record.parents) == 2
    assert not leaks((tmp_path / "both" / "xlt_run.json").read_text())
    make_record(labels=["good", "bad", "plain"]).write(runs[1])
    with pytest.raises(ConfigError, match="other labels"):
        average_checkpoints([], tmp_path / "labels", runs=runs, head="average")
    make_record().write(runs[1])
    # An oracle stays one, a demonstration stays one; without a record there is none.
    make_oracle_record().write(runs[0])
    average_checkpoints([], tmp_path / "oracle", runs=runs, head="average")
    assert RunRecord.read(tmp_path / "oracle").selection["oracle"]
    make_demo_record().write(runs[0])
    average_checkpoints([runs[0]], tmp_path / "demo")
    assert RunRecord.read(tmp_path / "demo").demo
    (runs[0] / "xlt_run.json").unlink()
    average_checkpoints([], tmp_path / "none", runs=runs, head="average")
    assert not (tmp_path / "none" / "xlt_run.json").exists()


def test_only_averages_are_replaced_and_only_when_asked(tmp_path):
    places = save_states(tmp_path, [make_state(0), make_state(1)])
    out = tmp_path / "out"
    out.mkdir()
    average_checkpoints(places[:1], out)
    with pytest.raises(ConfigError, match="`overwrite`"):
        average_checkpoints(places, out)
    average_checkpoints(places[1:], out, overwrite=True)
    assert same_weights(load_average(out), make_state(1))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="left alone"):
        average_checkpoints(places, theirs, overwrite=True)
    assert (theirs / "thesis.tex").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c0", "c1", "out", "theirs"]


def test_replacing_without_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    places = save_states(tmp_path, [make_state(0), make_state(1)])
    average_checkpoints(places[:1], tmp_path / "out")
    average_checkpoints(places[1:], tmp_path / "out", overwrite=True)
    assert same_weights(load_average(tmp_path / "out"), make_state(1))
    # Killed between the two renames: the next run brings the old one back.
    os.rename(tmp_path / "out", tmp_path / ".out.0a0a.old")
    with pytest.raises(RunError, match="MiB free"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(staging, "_MARGIN_BYTES", 10**18)
            staging.sweep(tmp_path / "out")
            average_checkpoints(places, tmp_path / "out", overwrite=True)
    assert same_weights(load_average(tmp_path / "out"), make_state(1))


def test_no_space_is_found_before_and_midway(tmp_path, monkeypatch):
    places = save_states(tmp_path, [make_state(seed, shapes=SHAPES) for seed in range(2)])
    average_checkpoints(places[:1], tmp_path / "out")
    before = load_average(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(staging, "_MARGIN_BYTES", 10**18)
        with pytest.raises(RunError, match="MiB free, and the average needs"):
            average_checkpoints(places, tmp_path / "out", overwrite=True)
    write, written = os.pwrite, []

    def full(descriptor, data, position):
        written.append(len(data))
        if sum(written) > 500_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match="no space is left on the disk"):
        average_checkpoints(places, tmp_path / "out", overwrite=True)
    assert len(written) > 1
    assert same_weights(load_average(tmp_path / "out"), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c0", "c1", "out"]


MOMENTS = ("block", "config", "durable", "moved", "after")


def stop_at(moment, action):
    """Let an average in this process do something at one moment."""
    names = {
        "block": (streaming.BlockWorker, "work"),
        "config": (staging, "_make_durable"),
        "durable": (staging, "_move_into_place"),
        "moved": (staging, "_exchange"),
        "after": (staging, "sync_folder"),
    }
    owner, name = names[moment]
    original = getattr(owner, name)

    def stopping(*arguments, **settings):
        if moment == "after":
            original(*arguments, **settings)
            # The folder is synced once while it is made durable, and once after it was moved.
            if arguments[0].name.endswith(".part"):
                return
        action()
        return original(*arguments, **settings)

    setattr(owner, name, stopping)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment(tmp_path, moment, old):
    states = [make_state(seed, shapes=SHAPES) for seed in range(2)]
    places = save_states(tmp_path, states)
    out = tmp_path / "out"
    if old:
        average_checkpoints(places[:1], out)
    if moment == "moved" and not old:
        pytest.skip("nothing is exchanged")
    child = os.fork()
    if child == 0:
        try:
            stop_at(moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
            average_checkpoints(places, out, overwrite=True)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    if moment == "after":
        assert "averaging.json" in os.listdir(out)
        assert not same_weights(load_average(out), states[0])
    elif old:
        assert same_weights(load_average(out), states[0])
    else:
        assert not out.exists()
    average_checkpoints(places, out, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c0", "c1", "out"]


def test_interrupted_by_the_user(tmp_path, monkeypatch):
    # A shell lets what it starts in the background ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    places = save_states(tmp_path, [make_state(seed, shapes=SHAPES) for seed in range(2)])
    work = streaming.BlockWorker.work

    threads, once = threading.active_count(), threading.Lock()

    def interrupted(self, *arguments):
        if once.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        return work(self, *arguments)

    monkeypatch.setattr(streaming.BlockWorker, "work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        average_checkpoints(places, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c0", "c1"]
    assert threading.active_count() <= threads


def test_a_living_writer_keeps_its_folder(tmp_path):
    places = save_states(tmp_path, [make_state(0)])
    with staging.staged(tmp_path / "out") as part:
        (tmp_path / ".out.dead.part").mkdir()
        average_checkpoints(places, tmp_path / "out")
        assert part.is_dir() and not (tmp_path / ".out.dead.part").exists()


def test_early_snapshots_are_warned_of():
    def history(losses, rates):
        rows = zip(losses, rates, strict=True)
        return [{"step": 10 * n, "loss": loss, "learning_rate": rate} for n, (loss, rate) in enumerate(rows, 1)]

    good = history([1.0, 0.9, 0.8, 0.7], [4e-5, 3e-5, 2e-5, 1e-5])
    assert early_snapshot_note(good, 10) is None
    assert "training loss of 1" in early_snapshot_note(history([1.0, 0.9, 0.5, 0.4], [4e-5, 3e-5, 2e-5, 1e-5]), 10)
    assert "warm-up" in early_snapshot_note(history([1.0, 0.9, 0.8, 0.7], [1e-5, 4e-5, 3e-5, 1e-5]), 10)
    assert early_snapshot_note([], 10) is None
    assert early_snapshot_note(good[2:], 10) is None
