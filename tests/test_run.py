"""The main job from arguments to a scored, recorded, loadable model, in process."""

import json

import pytest
import torch
from item_checks import assert_items
from tiny import CLASSES, make_rows, save_encoder, write_data, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_xlt.cli.main import main
from hf_xlt.data.sources import FileSource
from hf_xlt.parsing import parse_arguments
from hf_xlt.record import FINISHED, RunRecord
from hf_xlt.training import phases
from hf_xlt.training.phases import run_phases

FAST = "--max-steps 4 --per-device-train-batch-size 8 --learning-rate 1e-3 --disable-tqdm --threads 1".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with an encoder and parallel data."""
    root = tmp_path_factory.mktemp("run")
    save_encoder(root / "encoder")
    write_data(root / "data")
    write_data(root / "pairs", pair=True)
    return root


@pytest.fixture
def go(world, tmp_path, monkeypatch, capsys):
    """Run a command from the data's folder; return exit code, output directory, stdout, stderr."""
    monkeypatch.chdir(world)

    def run(line, out="out", fast=True, data="data"):
        folder = tmp_path / out
        where = [] if "--dataset" in line else ["--dataset", f"{data}/{{split}}.{{lang}}.jsonl"]
        argv = ["run", "--model", "encoder", *where, *(FAST if fast else []), "--output-dir", str(folder)]
        code = main([*argv, *line.split()])
        captured = capsys.readouterr()
        return code, folder, captured.out, captured.err

    return run


def test_a_run_ends_with_a_table_and_a_directory_that_anyone_can_load(go):
    code, folder, out, _ = go("--strategy finetune --target-languages de,sw")
    assert code == 0
    for part in ("English", "German", "Swahili", "Target average", "Worst language", "Transfer gap", "hf-xlt push"):
        assert part in out
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "xlt_run.json", "results.json", "README.md"} <= names
    assert not {"training_args.bin", "optimizer.pt"} & names
    assert_items(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == dict(enumerate(CLASSES)) and model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(folder)("w1 w2")["input_ids"][0] == 2
    assert pipeline("text-classification", model=str(folder))("w1 w2")[0]["label"] in CLASSES


def test_the_record_tells_the_run_and_nothing_of_the_machine(go, world, tmp_path):
    _, folder, _, _ = go("--target-languages de,sw --seed 3 --hub-token hf_secretsecret")
    text = (folder / "xlt_run.json").read_text()
    for secret in (str(world), str(tmp_path), "hf_secretsecret", "/tmp"):
        assert secret not in text and secret not in (folder / "config.json").read_text()
        assert secret not in (folder / "README.md").read_text()
    record = RunRecord.read(folder)
    assert record.status == FINISHED and record.strategy["name"] == "finetune"
    assert [entry["name"] for entry in record.languages["target"]] == ["German", "Swahili"]
    assert record.seeds == {"seed": 3} and record.arguments["learning_rate"] == 1e-3
    assert record.model == {
        "name": None,
        "revision": None,
        "parameters": record.model["parameters"],
        "model_type": "bert",
    }
    assert record.selection["protocol"] == "last checkpoint" and not record.selection["oracle"]
    assert record.data["source"]["examples"] == {"en": 48} and record.data["target"]["examples"] == {
        "de": 17,
        "sw": 22,
    }
    assert set(record.data["target"]["fingerprints"]) == {"de", "sw"}
    assert record.scores.of_role("source")[0].examples == 12
    assert record.settings["max_steps"] == 4 and "output_dir" not in record.arguments
    assert record.command.startswith("hf-xlt run --model encoder --dataset 'data/{split}.{lang}.jsonl'")


def test_results_agree_with_a_plain_loop_over_the_saved_model(go, world):
    _, folder, _, _ = go("--target-languages de,zh --max-steps 40")
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    saved = json.loads((folder / "results.json").read_text())
    for language in ("en", "de", "zh"):
        rows = [json.loads(line) for line in open(world / "data" / f"test.{language}.jsonl")]
        hits = 0
        for row in rows:
            with torch.no_grad():
                hits += int(model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax()) == row["label"]
        assert saved["languages"][language]["metrics"]["accuracy"] == pytest.approx(hits / len(rows))
    assert saved["languages"]["en"]["metrics"]["accuracy"] > 0.6
    assert saved["transfer_gap"] == pytest.approx(saved["source_average"] - saved["target_average"])


def test_all_targets_are_the_languages_of_the_data_but_the_source(go):
    _, folder, _, _ = go("")
    record = RunRecord.read(folder)
    assert [entry["code"] for entry in record.languages["target"]] == ["de", "sw", "zh"]


def test_both_spellings_and_yaml_give_the_same_run_and_the_command_line_wins(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "strategy: robust\ntarget_languages: [de, sw]\nlearning_rate: 1.0e-4\nmax-steps: 7\nbf16: false\n"
    )
    base = ["--model", "m", "--dataset", "d/{split}.{lang}.csv"]
    first = parse_arguments([*base, "--config", str(config), "--learning_rate", "2e-5"])
    second = parse_arguments(
        [*base, "--strategy", "robust", "--target-languages", "de,sw", "--learning-rate=2e-5", "--max_steps", "7"]
    )
    assert first.strategy is second.strategy
    assert first.data == second.data
    assert (first.config.learning_rate, first.config.max_steps) == (2e-5, 7)
    assert first.config.learning_rate == second.config.learning_rate


def test_the_embedded_task_brings_its_settings_named_or_not():
    bare = parse_arguments([])
    named = parse_arguments(["--model", "embedded-phrases", "--dataset", "embedded"])
    assert bare.data == named.data and bare.config.max_steps == named.config.max_steps == 180
    assert bare.embedded and bare.run.threads == 1
    assert parse_arguments(["--model", "embedded", "--dataset", "x.{lang}.csv"]).config.max_steps == -1
    # Epochs that were asked for are not lost to the number of updates of the demo.
    assert bare.config.max_steps == 180 and parse_arguments(["--num-train-epochs", "1"]).config.max_steps == -1


def test_a_dry_run_prints_the_plan_and_writes_nothing(go, tmp_path):
    code, folder, out, _ = go("--dry-run --target-languages de,sw --strategy robust --shots 6")
    assert code == 0 and not folder.exists()
    for part in (
        "few-shot",
        "de",
        "48",
        "Labels     3: bad, good, plain",
        "last checkpoint",
        "Updates    4, each of 8 source examples and as many of each of 2 target languages",
        "plain steps",
    ):
        assert part in out
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_read_as_pairs(go):
    code, folder, _, _ = go("--target-languages de", data="pairs")
    assert code == 0
    assert RunRecord.read(folder).status == FINISHED


def test_one_file_with_a_language_column_and_renamed_columns(go, world):
    rows = [
        {"sent": row["text"], "gold": row["label_text"], "tongue": language}
        for language in ("en", "de")
        for row in make_rows(language, 24, 0)
    ]
    write_rows(world / "train.all.jsonl", rows)
    write_rows(world / "test.all.jsonl", rows[::-1])
    code, folder, _, _ = go(
        "--dataset train.all.jsonl --target-dataset test.all.jsonl --text-column sent --label-column gold "
        "--language-column tongue"
    )
    assert code == 0
    record = RunRecord.read(folder)
    assert record.labels == sorted(CLASSES) and record.data["source"]["examples"] == {"en": 24}
    assert record.scores.of_role("source")[0].examples == 24


def test_targets_from_several_folders(go, world):
    write_data(world / "other", languages=("yo", "wo"))
    code, folder, _, _ = go(
        "--target-dataset de=data/{split}.{lang}.jsonl --target-dataset other/{split}.{lang}.jsonl"
    )
    assert code == 0
    assert [entry["code"] for entry in RunRecord.read(folder).languages["target"]] == ["de", "wo", "yo"]


@pytest.mark.parametrize("mode", ["joint", "concat"])
def test_few_shots_are_recorded_and_change_the_run(go, mode):
    line = "--target-languages de,sw --shots 9 --shot-seed 2 --few-shot-mode"
    _, folder, _, _ = go(f"{line} {mode}")
    record = RunRecord.read(folder)
    assert record.few_shot == {"shots": 9, "shot_seed": 2, "mode": mode}
    assert record.data["few-shot"]["examples"] == {"de": 9, "sw": 9}
    _, plain, _, _ = go("--target-languages de,sw", out="plain")
    assert (plain / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


SELECT = "--eval-strategy steps --eval-steps 2 --save-steps 2 --load-best-model-at-end --target-languages de,sw"


def test_selection_by_source_validation_reads_no_target_validation(go, monkeypatch):
    read = []
    original = FileSource.read
    monkeypatch.setattr(
        FileSource, "read", lambda self, lang, split: read.append((lang, split)) or original(self, lang, split)
    )
    _, folder, out, _ = go(SELECT)
    assert RunRecord.read(folder).selection == {
        "protocol": "source-language validation",
        "metric": "avg_accuracy",
        "languages": ["en"],
        "oracle": False,
    }
    assert {entry for entry in read if entry[0] != "en"} == {("de", "test"), ("sw", "test")}
    assert "Oracle" not in out


def test_target_test_rows_are_checked_before_training_and_encoded_only_after_it(go, monkeypatch):
    """Whether every row can be scored is looked at before hours are spent; what a model is given comes after."""
    from hf_xlt import evaluation
    from hf_xlt.training.trainer import XLTTrainer

    events = []
    original, train = evaluation.encode, XLTTrainer.train

    def encoded(entry, *rest):
        events.append((entry.language, entry.split))
        return original(entry, *rest)

    monkeypatch.setattr(evaluation, "encode", encoded)

    def trained(self, *args, **kwargs):
        result = train(self, *args, **kwargs)
        events.append("trained")
        return result

    monkeypatch.setattr(XLTTrainer, "train", trained)
    go("--target-languages de,sw")
    assert events[0] == "trained" and {("de", "test"), ("sw", "test")} <= set(events[1:])


def test_an_oracle_is_named_in_output_record_and_card(go):
    _, folder, out, _ = go(f"{SELECT} --select-on-target-validation")
    record = RunRecord.read(folder)
    assert record.selection["oracle"] and record.selection["metric"] == "target_avg_accuracy"
    assert "Oracle" in out and "oracle" in (folder / "README.md").read_text().lower()


def test_a_run_cannot_land_on_another_and_overwrite_replaces_it(go):
    go("--target-languages de --seed 1")
    code, folder, _, err = go("--target-languages de --seed 2")
    assert code == 2 and "holds a run already" in err
    code, folder, _, _ = go("--target-languages de --seed 2 --overwrite")
    assert code == 0 and RunRecord.read(folder).seeds["seed"] == 2


def test_resuming_a_finished_run_prints_its_table_again(go):
    _, folder, first, _ = go("--target-languages de")
    before = (folder / "xlt_run.json").read_bytes()
    code, _, again, _ = go("--target-languages de --resume")
    assert code == 0 and "finished; nothing to resume" in again
    assert "German" in again and (folder / "xlt_run.json").read_bytes() == before


def test_resume_refuses_other_settings_and_other_data(go, world):
    _, folder, _, _ = go("--target-languages de")
    record = RunRecord.read(folder)
    record.status = "interrupted"
    record.write(folder)
    code, _, _, err = go("--target-languages de --resume --learning-rate 2e-3")
    assert code == 2 and "started with `learning_rate` 0.001, not 0.002" in err
    record.data["source"]["fingerprints"]["en"] = "0"
    record.write(folder)
    code, _, _, err = go("--target-languages de --resume")
    assert code == 2 and "data have changed" in err


def test_resume_takes_what_changes_no_result_and_the_record_says_so(go):
    """Troubleshooting advises a smaller evaluation batch where memory ran out, which is when one resumes."""
    _, folder, _, _ = go("--target-languages de")
    record = RunRecord.read(folder)
    record.status = "trained"
    record.write(folder)
    code, _, out, _ = go("--target-languages de --resume --per-device-eval-batch-size 3 --save-steps 2")
    after = RunRecord.read(folder)
    assert code == 0 and "German" in out and after.results == record.results
    assert after.arguments["per_device_eval_batch_size"] == after.settings["per_device_eval_batch_size"] == 3


def test_when_a_run_looks_is_fixed_once_it_selects_by_what_it_sees(go):
    _, folder, _, _ = go(f"{SELECT} --target-languages de")
    record = RunRecord.read(folder)
    record.status = "trained"
    record.write(folder)
    code, _, _, err = go(f"{SELECT} --target-languages de --resume --eval-delay 1")
    assert code == 2 and "started with `eval_delay`" in err
    code, _, out, _ = go(f"{SELECT} --target-languages de --resume --per-device-eval-batch-size 3")
    assert code == 0 and "German" in out


def test_a_bad_test_label_is_told_before_training_and_one_of_later_costs_the_scoring_alone(go, world, monkeypatch):
    write_data(world / "latebad")
    test = world / "latebad" / "test.de.jsonl"
    good = test.read_text()
    write_rows(test, [{"text": "w1", "label": 9}])
    code, folder, _, err = go("--target-languages de", data="latebad")
    assert code == 2 and "label 9 is a bare number" in err and not folder.exists()
    bad = test.read_text()
    test.write_text(good)

    def train_and_spoil(*args, **kwargs):
        # As when somebody writes the file anew while the model is trained.
        trained = run_phases(*args, **kwargs)
        test.write_text(bad)
        return trained

    with monkeypatch.context() as patch:
        patch.setattr(phases, "run_phases", train_and_spoil)
        code, folder, _, err = go("--target-languages de", data="latebad")
    assert code == 2 and "label 9 is a bare number" in err and "`--resume`, which only scores" in err
    weights = (folder / "model.safetensors").read_bytes()
    test.write_text(good)
    code, _, out, _ = go("--target-languages de --resume", data="latebad")
    assert code == 0 and "German" in out and (folder / "model.safetensors").read_bytes() == weights


def test_evaluate_gives_the_scores_of_the_run(go, tmp_path, capsys):
    _, folder, _, _ = go("--target-languages de,sw")
    expected = json.loads((folder / "results.json").read_text())
    line = f"evaluate {folder} --dataset data/{{split}}.{{lang}}.jsonl --target-languages de,sw --json"
    assert main([*line.split(), "--output-dir", str(tmp_path / "scores")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["languages"] == expected["languages"]
    assert {path.name for path in (tmp_path / "scores").iterdir()} >= {"results.json", "results.md"}
    assert main([*line.split(), "--output-dir", str(tmp_path / "scores")]) == 2
    assert "holds results already" in capsys.readouterr().err


def test_evaluate_refuses_a_model_without_a_trained_head(world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    assert main("evaluate encoder --dataset data/{split}.{lang}.jsonl --labels x".split()[:4]) == 2
    assert "has no trained head for text-classification" in capsys.readouterr().err


def test_a_plot_has_one_bar_per_language(tmp_path):
    pytest.importorskip("matplotlib", reason="the `plot` extra is not installed")
    from hf_xlt.evaluation import plot
    from hf_xlt.results import LanguageScore, Results

    scores = tuple(
        LanguageScore(code, "source" if code == "en" else "target", 10, {"accuracy": value})
        for code, value in (("en", 0.8), ("de", 0.7), ("sw", 0.2))
    )
    assert plot(tmp_path / "a.png", Results("accuracy", scores)) and plot(
        tmp_path / "b.png", Results("accuracy", scores)
    )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
