"""The main job on real multilingual data with a real XLM-R-like encoder; skipped where those are absent."""

import os
from pathlib import Path

import pytest

from hf_xlt.cli.main import main
from hf_xlt.record import RunRecord

SHARED = Path(os.environ.get("HF_XLT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
pytestmark = pytest.mark.skipif(
    not (SHARED / "data").is_dir() or not (SHARED / "models" / "xlt-mini").is_dir(),
    reason=f"real data and models are not in {SHARED.name}/ beside the checkout (HF_XLT_SHARED names another place)",
)
FAST = "--max-steps 2 --per-device-train-batch-size 8 --max-length 32 --disable-tqdm --threads 1 --save-strategy no"


def run(tmp_path, folder, *more):
    argv = ["run", "--model", str(SHARED / "models" / "xlt-mini"), "--output-dir", str(tmp_path / "out")]
    data = ["--dataset", str(SHARED / "data" / folder / "{split}.{lang}.parquet")]
    assert main([*argv, *data, *FAST.split(), *more]) == 0
    return RunRecord.read(tmp_path / "out")


def test_sentiment_from_english_with_robust_training(tmp_path):
    record = run(tmp_path, "sentiment_nusax", "--strategy", "robust", "--target-languages", "id,min,bbc")
    assert record.labels == ["negative", "neutral", "positive"]
    assert [score.examples for score in record.scores.scores] == [400] * 4
    assert str(SHARED) not in (tmp_path / "out" / "xlt_run.json").read_text()


def test_every_other_language_is_a_target_by_default(tmp_path, capsys):
    argv = ["run", "--model", str(SHARED / "models" / "xlt-mini"), "--dry-run"]
    assert main([*argv, "--dataset", str(SHARED / "data" / "topic_sib200" / "{split}.{lang}.parquet")]) == 0
    out = capsys.readouterr().out
    assert sum(line.startswith("Data       target") for line in out.splitlines()) == 43
    assert "Labels     7:" in out


def test_pairs_between_languages_without_english(tmp_path):
    record = run(tmp_path, "nli_americas", "--source-languages", "quy", "--target-languages", "gn", "--shots", "9")
    assert record.few_shot["shots"] == 9 and record.labels[0] == "entailment"
