"""Runs on questions about a text, from end to end."""

import json
import re

import numpy as np
import pytest
import torch
from item_checks import assert_items
from safetensors.torch import load_file
from tiny import make_config, make_tokenizer, save_encoder, write_rows
from transformers import BertForQuestionAnswering, set_seed

from hf_xlt.cli.main import main
from hf_xlt.errors import RunError
from hf_xlt.record import RunRecord
from hf_xlt.tasks import Encoding, get_task
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.trainer import XLTTrainer

TASK = get_task("question-answering")
FAST = "--task question-answering --per-device-train-batch-size 16 --learning-rate 1e-2 --disable-tqdm --threads 1"
SELECTING = "--eval-strategy steps --eval-steps 20 --save-steps 20 --load-best-model-at-end"


def make_questions(count, seed):
    """The answer is one of `w40` to `w49` and one of `w50` to `w59`; texts of up to three windows hold no others."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        filler = [f"w{index}" for index in rng.integers(0, 40, rng.integers(4, 45))]
        answer = f"w{rng.integers(40, 50)} w{rng.integers(50, 60)}"
        place = rng.integers(0, len(filler) + 1)
        before = "".join(f"{word} " for word in filler[:place])
        answers = {"text": [answer], "answer_start": [len(before)]}
        context = f"{before}{answer} {' '.join(filler[place:])}"
        rows.append({"id": str(number), "question": "w1 w2", "context": context, "answers": answers})
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("questions")
    save_encoder(root / "encoder")
    (root / "data").mkdir()
    for number, language in enumerate(("en", "de", "zh")):
        for seed, (split, count) in enumerate({"train": 96, "validation": 12, "test": 20 + number}.items()):
            rows = make_questions(count, [seed, number])
            write_rows(root / "data" / f"{split}.{language}.jsonl", [{**row, "lang": language} for row in rows])
    return root


@pytest.fixture
def go(world, tmp_path, monkeypatch):
    """Run a command from the data's folder, which ends as it should; return the output folder."""
    monkeypatch.chdir(world)

    def run(line, out="out", code=0):
        argv = f"run --model encoder --dataset data/{{split}}.{{lang}}.jsonl {FAST} {line}".split()
        assert main([*argv, "--output-dir", str(tmp_path / out)]) == code
        return tmp_path / out

    return run


def results(folder):
    return json.loads((folder / "results.json").read_text())["languages"]


def test_a_run_learns_to_answer_and_evaluate_repeats_its_scores(go, tmp_path):
    out = go(f"--max-steps 40 --window-overlap 3 {SELECTING}")
    assert_items(out)
    scores, record = results(out), RunRecord.read(out)
    assert {language: entry["examples"] for language, entry in scores.items()} == {"en": 20, "de": 21, "zh": 22}
    assert scores["en"]["metrics"]["f1"] > 0.9 and scores["de"]["metrics"]["squad_exact_match"] > 0.9
    assert set(scores["zh"]["metrics"]) == {*TASK.metrics, "loss"}
    assert record.labels == [] and record.scores.metric == "f1" and record.selection["metric"] == "avg_f1"
    assert record.data["source"]["examples"] == {"en": 96} and record.arguments["max_length"] == 32
    again = ["evaluate", str(out), "--dataset", "data/{split}.{lang}.jsonl", "--output-dir", str(tmp_path / "again")]
    # Other batches than in the run, so that others are padded.
    assert main([*again, "--batch-size", "3"]) == 0
    for language, entry in results(tmp_path / "again").items():
        assert entry["examples"] == scores[language]["examples"]
        assert entry["metrics"] == pytest.approx(scores[language]["metrics"], rel=1e-5)


@pytest.mark.parametrize(("method", "mode"), [("adv", "joint"), ("rs_rp", "concat")])
def test_robust_training_and_few_shots_take_the_task(go, method, mode):
    line = f"--strategy robust --method {method} --epsilon 0.05 --shots 6 --few-shot-mode {mode} --max-steps 60"
    out = go(f"{line} --target-languages de")
    assert RunRecord.read(out).few_shot["shots"] == 6 and results(out)["de"]["metrics"]["f1"] > 0.8


def test_a_resumed_run_ends_as_one_that_was_not_stopped(go, monkeypatch):
    line = "--max-steps 6 --save-steps 2 --target-languages de --shots 6"
    whole = go(line, "whole")
    step = XLTTrainer.training_step

    def failing(trainer, *args, **kwargs):
        if trainer.state.global_step == 3:
            raise RunError("stopped by the test")
        return step(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(XLTTrainer, "training_step", failing)
        go(line, "stopped", code=1)
    stopped = go(f"{line} --resume", "stopped")
    assert results(stopped) == results(whole)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_dry_run_counts_questions(go, capsys):
    go("--dry-run --target-languages de")
    out = capsys.readouterr().out
    assert re.search(r"source +en +train +96 ", out) and "Labels" not in out


def test_the_code_on_the_card_answers(go, monkeypatch, capsys):
    out = go("--max-steps 2 --target-languages de")
    card = (out / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card and "type: exact_match" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    code = re.sub(r"question, context = .*", "question, context = 'w1', 'w2 w41 w42 w3 ' * 40", code)
    capsys.readouterr()
    monkeypatch.chdir(out)
    # With logits that are known: the best pair is the third and fourth token of the text, after `[CLS] w1 [SEP]`.
    forward = BertForQuestionAnswering.forward

    def known(model, *args, **kwargs):
        output = forward(model, *args, **kwargs)
        output.start_logits = torch.zeros_like(output.start_logits)
        output.end_logits = torch.zeros_like(output.end_logits)
        output.start_logits[0, [1, 5]], output.end_logits[0, [4, 6]] = (
            torch.tensor([9.0, 3.0]),
            torch.tensor([4.0, 3.0]),
        )
        return output

    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
    monkeypatch.setattr(BertForQuestionAnswering, "forward", known)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "w42 w3"


def test_columns_that_only_scoring_reads_may_stay_in_the_features(tmp_path):
    from datasets import Dataset

    columns = {name: name for name in ("question", "context", "answers")}
    tokenizer = make_tokenizer()
    table = Dataset.from_list(make_questions(10, 0))
    features = TASK.encode(table, Encoding(tokenizer, columns, None, 20, "qa", "en", 8))
    scores = {}
    for removes in (True, False):
        set_seed(0)
        trainer = XLTTrainer(
            BertForQuestionAnswering(make_config(num_labels=2)),
            XLTConfig(
                str(tmp_path / str(removes)), remove_unused_columns=removes, max_steps=2, use_cpu=True, report_to=[]
            ),
            TASK.collator(tokenizer),
            features,
            {"en": features},
            tokenizer,
            compute_metrics=TASK.compute_metrics(None),
        )
        trainer.train()
        metrics = trainer.evaluate()
        scores[removes] = {name: metrics[f"eval_en_{name}"] for name in (*TASK.metrics, "loss")}
    assert scores[True] == scores[False]
