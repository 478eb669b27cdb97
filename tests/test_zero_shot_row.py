"""Few-shot runs show the model that they started from beside their own scores."""

import json
import shutil

import pytest
from tiny import CLASSES, save_encoder, write_data

from hf_xlt.cli.main import main
from hf_xlt.data.labels import LabelInventory
from hf_xlt.model_cards.card import render
from hf_xlt.models import ModelError, ModelSource
from hf_xlt.record import RunRecord
from hf_xlt.tasks import get_task

FAST = "--per-device-train-batch-size 8 --learning-rate 3e-3 --disable-tqdm --threads 1 --save-strategy no".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("few-shot")
    save_encoder(root / "encoder")
    write_data(root / "data")
    assert go(root, root / "encoder", root / "english", "--max-steps 8") == 0
    return root


def go(world, model, folder, line):
    data = ["--dataset", str(world / "data" / "{split}.{lang}.jsonl"), "--target-languages", "de,sw"]
    return main(["run", "--model", str(model), *data, *FAST, "--output-dir", str(folder), *line.split()])


def test_the_row_holds_the_scores_of_the_model_before(world, tmp_path, capsys):
    assert go(world, world / "english", tmp_path / "few", "--shots 6 --max-steps 6") == 0
    out = capsys.readouterr().out
    before, after = RunRecord.read(world / "english"), RunRecord.read(tmp_path / "few")
    rows = after.scores_beside["zero-shot"]
    assert [(score.language, score.metrics["accuracy"]) for score in rows.scores] == [
        (score.language, score.metrics["accuracy"]) for score in before.scores.scores
    ]
    assert after.scores != before.scores
    assert "zero-shot" in out and "Zero-shot " in out
    assert json.loads((tmp_path / "few" / "results.json").read_text())["zero_shot"]["metric"] == "accuracy"
    card = render(after)
    assert "| zero-shot |" in card and "the model that training started from, without the target examples" in card


def test_there_is_no_such_row_without_shots_or_without_a_trained_head(world, tmp_path):
    assert go(world, world / "english", tmp_path / "zero", "--max-steps 2") == 0
    assert go(world, world / "encoder", tmp_path / "bare", "--shots 6 --max-steps 2") == 0
    assert RunRecord.read(tmp_path / "zero").zero_shot is None
    assert RunRecord.read(tmp_path / "bare").zero_shot is None


def test_a_head_for_other_classes_is_none_of_the_task(world, tmp_path):
    task, inventory = get_task("text-classification"), LabelInventory(CLASSES)
    assert ModelSource.find(str(world / "english")).load_task_model(task, inventory) is not None
    shutil.copytree(world / "english", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["id2label"] = dict(enumerate(reversed(CLASSES)))
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    assert ModelSource.find(str(tmp_path / "other")).load_task_model(task, inventory) is None
    # Weights that are cut off are damaged, not a model without a head.
    weights = tmp_path / "other" / "model.safetensors"
    shutil.copy(world / "english" / "config.json", tmp_path / "other")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged or cut off"):
        ModelSource.find(str(tmp_path / "other")).load_task_model(task, inventory)
