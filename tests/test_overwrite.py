"""`--overwrite` deletes what ours wrote, and nothing else."""

import json

import pytest

from hf_xlt.averaging.staging import MANIFEST_NAME, staged
from hf_xlt.files import write_json
from hf_xlt.output import claim_output
from hf_xlt.record import RECORD_NAME
from hf_xlt.sweep.execute import SWEEP_NAME, _remove_sweep

OURS = (
    "README.md config.json model.safetensors model-00001-of-00002.safetensors tokenizer.json results.json results.png "
    "items.safetensors phases.json gates.json checkpoint-5/optimizer.pt phase-0-one/final/config.json adapter/x "
    "evaluations/t/results.json snapshots/3/model.safetensors .results.json.ab12.part"
).split()
MINE = "notes.txt results-of-mine.xlsx data/train.en.jsonl plots/a.png train.py other/xlt_run.json".split()


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_that_is_overwritten_leaves_what_is_not_its_own(tmp_path):
    fill(tmp_path, [*OURS, *MINE, RECORD_NAME])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoint-7").symlink_to(tmp_path / "elsewhere")
    claim_output(tmp_path, overwrite=True)
    assert files(tmp_path) == sorted(MINE)
    assert (tmp_path / "checkpoint-7").is_symlink()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_sweep_too_and_runs_that_are_not_of_it_stay(tmp_path, damaged):
    fill(tmp_path, [f"run-1/{name}" for name in (*OURS, *MINE, RECORD_NAME)])
    fill(tmp_path, [*MINE, "mine/model.safetensors", "sweep_results.md", "logs/run-1.txt", "comparison/comparison.md"])
    write_json(tmp_path / SWEEP_NAME, {"runs": [] if damaged else [{"name": "run-1"}, {"name": "../x"}]})
    _remove_sweep(tmp_path)
    kept = [f"run-1/{name}" for name in ((*OURS, *MINE, RECORD_NAME) if damaged else MINE)]
    assert files(tmp_path) == sorted([*kept, *MINE, "mine/model.safetensors"])


@pytest.mark.parametrize("one_step", [True, False])
def test_an_average_that_is_replaced_keeps_the_notes_beside_it(tmp_path, monkeypatch, one_step):
    if not one_step:
        monkeypatch.setattr("hf_xlt.averaging.staging._exchange", lambda part, output: False)
    fill(tmp_path / "out", [*MINE, MANIFEST_NAME, "model.safetensors"])
    with staged(tmp_path / "out") as part:
        (part / MANIFEST_NAME).write_text(json.dumps({"new": 1}))
    assert files(tmp_path / "out") == sorted([*MINE, MANIFEST_NAME])
    assert "new" in (tmp_path / "out" / MANIFEST_NAME).read_text()
