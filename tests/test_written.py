"""What runs wrote is told from what lies beside it, and only that is ever deleted."""

import json
import os
from pathlib import Path

import pytest
from averaging_setup import make_state, save_states
from strategy_runs import NEEDS, run_command, write_world
from tiny import save_encoder, write_data

from hf_xlt import comparators, evaluation, generalized, items, make_pairs, record
from hf_xlt.averaging import snapshots, staging, state_file
from hf_xlt.averaging.average import average_checkpoints
from hf_xlt.averaging.model_folder import write_model
from hf_xlt.cli.main import main
from hf_xlt.comparing import report
from hf_xlt.errors import ConfigError
from hf_xlt.pretraining import masked, tokenizers
from hf_xlt.sweep import accumulate, execute
from hf_xlt.sweep import report as sweep_report
from hf_xlt.training import averaged, phases, state
from hf_xlt.training.checkpoints import is_complete, remove_incomplete, rotate, seal, unseal
from hf_xlt.written import carry_over, delete_written, sort_out

LINE = (
    "run --model encoder --dataset data/{split}.{lang}.jsonl --target-languages de --max-steps 2 "
    "--save-strategy steps --save-steps 1 --per-device-train-batch-size 8 --disable-tqdm --threads 1"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    save_encoder(root / "encoder")
    write_data(root / "data", ("en", "de"))
    return root


def put(folder, *names):
    """Write files of the user's; return their paths."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {path.name}")
    return paths


def assert_kept(paths):
    assert [path.read_text() for path in paths] == [f"mine: {path.name}" for path in paths]


MINE = (
    "notes.txt",
    "README.txt",
    "train.py",
    ".hidden",
    "plots/results.png",
    "my-best/model.safetensors",
    "my-best/xlt_run.json",
    "checkpoint-1/notes.txt",
    "checkpoint-1/analysis/model.safetensors",
    "checkpoint-best/model.safetensors",
    "checkpoint-2-copy/complete.json",
    "evaluations/mine/notes.md",
    "evaluations/README.md",
    "runs/notes.txt",
)


def test_overwrite_deletes_the_run_and_nothing_of_the_users(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    out = tmp_path / "out"
    line = [*LINE.split(), "--output-dir", str(out)]
    assert main(line) == 0
    mine = put(out, *MINE)
    (out / "empty").mkdir()
    (out / "link").symlink_to(world / "data")
    old = {path.relative_to(out) for path in out.rglob("*") if path.is_file()} - {Path(name) for name in MINE}
    assert main(["evaluate", str(out), "--dataset", "data/{split}.{lang}.jsonl"]) == 0
    capsys.readouterr()
    assert main([*line, "--max-steps", "1", "--overwrite"]) == 0
    captured = capsys.readouterr()
    assert_kept(mine)
    assert (out / "empty").is_dir() and (out / "link").is_symlink() and any((world / "data").iterdir())
    assert "was not written by a run and stays" in captured.out + captured.err
    there = {path.relative_to(out) for path in out.rglob("*") if path.is_file() and "link" not in path.parts}
    # Of the old run nothing is left: its second checkpoint and the scores that were made of it are gone.
    assert not any(path.parts[0] == "checkpoint-2" for path in there)
    assert not any(path.name == "results.json" and path.parts[0] == "evaluations" for path in there)
    assert {Path("model.safetensors"), Path("checkpoint-1/complete.json")} <= old & there
    assert not (set(json.loads((out / "checkpoint-1" / "complete.json").read_text())["files"]) & set(MINE))
    assert "notes.txt" not in json.loads((out / "checkpoint-1" / "complete.json").read_text())["files"]


def test_an_edited_card_stays_and_a_rendered_one_goes(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    out = tmp_path / "out"
    line = [*LINE.split(), "--output-dir", str(out)]
    assert main(line) == 0
    rendered = (out / "README.md").read_text()
    assert main([*line, "--seed", "5", "--overwrite"]) == 0
    assert (out / "README.md").read_text() != rendered
    (out / "README.md").write_text(rendered + "\nMy words.\n")
    capsys.readouterr()
    assert main([*line, "--seed", "6", "--overwrite"]) == 0
    captured = capsys.readouterr()
    assert (out / "README.md").read_text().endswith("My words.\n")
    assert "README.md was edited by hand and is left alone" in captured.out + captured.err


@pytest.mark.parametrize("strategy", NEEDS)
def test_all_that_a_strategy_writes_is_known(strategy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    out = tmp_path / "out"
    assert main(run_command(strategy, str(out), "--save-strategy steps --save-steps 2")) == 0
    assert sort_out(out).others == ()
    delete_written(out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "more",
    ["--peft lora", "--average --average-every 1 --average-compare last,source_dev"],
)
def test_all_that_a_setting_adds_is_known(more, world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    out = tmp_path / "out"
    assert main([*LINE.split(), *more.split(), "--output-dir", str(out)]) == 0
    assert sort_out(out).others == ()


def test_names_that_other_modules_give_are_known(tmp_path):
    names = [
        *(evaluation.RESULTS_NAME, evaluation.TABLE_NAME, evaluation.PLOT_NAME, items.ITEMS_NAME, record.RECORD_NAME),
        *(generalized.JSON_NAME, generalized.TABLE_NAME, generalized.PLOT_NAME),
        *(comparators.JSON_NAME, comparators.TABLE_NAME, state.TENSORS_NAME, state.VALUES_NAME, phases.LEDGER_NAME),
        *(staging.MANIFEST_NAME, state_file.STATE_NAME, execute.SWEEP_NAME, accumulate.ACCUMULATED_NAME),
        *(sweep_report.JSON_NAME, sweep_report.TABLE_NAME, f"{execute.LOGS_NAME}/run-1.txt"),
        *(f"comparison/{name}" for name in (report.MARKDOWN_NAME, report.JSON_NAME, report.CSV_NAME)),
        *(f"comparison/{name}" for name in (report.HTML_NAME, report.PLOT_NAME)),
        *(f"{name}/model.safetensors" for name in (averaged.LAST_NAME, averaged.BEST_NAME, phases.FINAL_NAME)),
        *(f"{snapshots.SNAPSHOTS_NAME}/step-3/config.json", f"{accumulate.OUTPUT_NAME}/config.json"),
        *(name.replace("*", "-1-of-2") for name in (*masked.FILES, *tokenizers.FILES) if name[-3:] != ".py"),
    ]
    put(tmp_path, *names)
    assert sort_out(tmp_path).others == ()


def test_a_sweep_is_deleted_and_nothing_of_the_users(tmp_path):
    (tmp_path / "sweep.json").write_text('{"runs": [{"name": "run-1"}, {"name": "robust-1"}]}')
    put(tmp_path, "run-1/model.safetensors", "run-1/checkpoint-4/optimizer.pt", "logs/run-1.txt")
    put(tmp_path, "averaged/config.json", "comparison/comparison.md", "sweep_results.json", "robust-1/xlt_run.json")
    mine = put(tmp_path, "notes.txt", "run-1/notes.txt", "run-9/model.safetensors", "logs/mine.md", "averaged/a.ipynb")
    execute._claim(tmp_path, [], False, True)
    assert_kept(mine)
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {path.relative_to(tmp_path).as_posix() for path in mine} | {"sweep.json"}


@pytest.mark.parametrize("damaged", ["{", "[]", '{"runs": 3}'])
def test_a_damaged_sweep_gives_no_names_away(tmp_path, damaged):
    (tmp_path / "sweep.json").write_text(damaged)
    mine = put(tmp_path, "run-1/model.safetensors")
    execute._claim(tmp_path, [], False, True)
    assert_kept(mine)


@pytest.mark.parametrize("exchange", [True, False])
def test_an_average_is_replaced_and_other_files_stay(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    places = save_states(tmp_path, [make_state(0), make_state(1)])
    out = tmp_path / "out"
    average_checkpoints(places[:1], out)
    mine = put(out, "notes.txt", "eval/results.json")
    average_checkpoints(places[1:], out, overwrite=True)
    assert_kept(mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c0", "c1", "out"]
    # Killed before the rest was carried over: the next writer does it.
    os.rename(out, tmp_path / ".out.0a0a.old")
    staging.sweep(out)
    assert_kept(mine)
    os.rename(out, tmp_path / ".out.0b0b.old")
    with staging.staged(out) as part:
        put(part, "averaging.json")
    assert_kept(mine)


def test_files_left_aside_by_a_killed_writer_come_back(tmp_path):
    out, aside = tmp_path / "out", tmp_path / ".out.0a0a.old"
    put(out, "averaging.json", "config.json")
    put(aside, "averaging.json", "model.safetensors", "notes.txt")
    staging.sweep(out)
    assert_kept([out / "notes.txt"])
    assert not aside.exists() and not (out / "model.safetensors").exists()


def test_carried_files_replace_nothing(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    put(old, "notes.txt", "same.txt", "a/b/deep.txt")
    put(new, "same.txt")
    (new / "notes.txt").write_text("other")
    carry_over(old, new)
    assert (new / "notes.txt").read_text() == "other"
    assert (new / "notes.txt.kept-1").read_text() == "mine: notes.txt"
    assert_kept([new / "same.txt", new / "a" / "b" / "deep.txt"])
    assert not (new / "same.txt.kept-1").exists() and not old.exists()


def test_an_averaged_model_replaces_its_folder_and_other_files_stay(tmp_path):
    import torch

    mine = put(tmp_path, "last/notes.txt", ".last.old/earlier.txt")
    put(tmp_path, "last/config.json")
    write_model(torch.nn.Linear(2, 2), None, tmp_path / "last")
    assert_kept([mine[0], tmp_path / "last" / "earlier.txt"])
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == [
        "earlier.txt",
        "model.safetensors",
        "notes.txt",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_snapshots_go_and_other_files_stay(tmp_path):
    put(tmp_path, "snapshots/step-2/model.safetensors", "snapshots/step-4/config.json")
    mine = put(tmp_path, "snapshots/step-4/notes.txt")
    snapshots.discard_snapshots(tmp_path)
    assert_kept(mine)
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step-4"]


def make_checkpoint(folder, step):
    path = folder / f"checkpoint-{step}"
    # Code of a model that comes with its own is known by the seal alone.
    put(path, "model.safetensors", "optimizer.pt", "modeling_own.py", "experts/part.bin")
    seal(path)
    return path


def test_rotation_and_resuming_delete_checkpoints_and_nothing_of_the_users(tmp_path):
    first, second, third = (make_checkpoint(tmp_path, step) for step in (1, 2, 3))
    mine = put(first, "notes.txt")
    rotate(tmp_path, 1, None)
    assert_kept(mine)
    assert [path.name for path in first.iterdir()] == ["notes.txt"] and not second.exists() and is_complete(third)
    mine += put(third, "more.txt")
    (third / "model.safetensors").unlink()
    assert remove_incomplete(tmp_path) == [third]
    assert_kept(mine)
    # What is left is no checkpoint, and is told of once.
    assert remove_incomplete(tmp_path) == []


def test_files_of_the_users_are_no_part_of_a_checkpoint(tmp_path):
    mine = put(tmp_path / "checkpoint-1", "notes.txt", "analysis/a.txt")
    others = unseal(tmp_path / "checkpoint-1")
    put(tmp_path / "checkpoint-1", "model.safetensors")
    seal(tmp_path / "checkpoint-1", others)
    assert list(json.loads((tmp_path / "checkpoint-1" / "complete.json").read_text())["files"]) == [
        "model.safetensors"
    ]
    mine[0].write_text("longer than before")
    assert is_complete(tmp_path / "checkpoint-1")


def test_a_seal_reaches_no_further_than_its_folder(tmp_path):
    put(tmp_path, "checkpoint-1/model.safetensors", "notes.txt", "other/x.txt")
    names = {"../notes.txt": 1, "../other/x.txt": 1, str(tmp_path / "notes.txt"): 1}
    (tmp_path / "checkpoint-1" / "complete.json").write_text(json.dumps({"files": names}))
    delete_written(tmp_path)
    assert (tmp_path / "notes.txt").is_file() and (tmp_path / "other" / "x.txt").is_file()


def test_links_are_not_followed(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    put(elsewhere, "model.safetensors", "checkpoint-1/optimizer.pt")
    put(run, "xlt_run.json")
    (run / "checkpoint-1").symlink_to(elsewhere / "checkpoint-1")
    (run / "last").symlink_to(elsewhere)
    delete_written(run)
    assert_kept([elsewhere / "model.safetensors", elsewhere / "checkpoint-1" / "optimizer.pt"])


def test_the_record_goes_last(tmp_path, monkeypatch):
    put(tmp_path, "xlt_run.json", "model.safetensors", "zz/x", "checkpoint-1/optimizer.pt", "vocab.txt")
    assert sort_out(tmp_path).written[-1] == tmp_path / "xlt_run.json"


def test_pairs_are_replaced_and_other_files_stay(tmp_path):
    old, part = tmp_path / "out", tmp_path / ".out.part"
    put(old, "train.de.parquet", "README.md")
    (old / "pairs.json").write_text(json.dumps({"splits": {"train": {"languages": ["de"]}}}))
    mine = put(old, "notes.txt", "train.fr.parquet")
    put(part, "test.de.parquet", "README.md", "pairs.json")
    make_pairs._replace_folder(part, old)
    assert_kept(mine)
    assert not (old / "train.de.parquet").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_statistics_replace_a_manifest_and_no_other_file(tmp_path):
    from hf_xlt.cli.lang_stats import _output_path

    (path,) = put(tmp_path, "there.json")
    with pytest.raises(ConfigError, match="left alone"):
        _output_path(str(path), True)
    path.write_text('{"format_version": 1, "tokenizer": {}, "languages": []}')
    assert _output_path(str(path), True) == path
