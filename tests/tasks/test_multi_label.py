"""Several labels per text: how they are read, learnt, scored at a threshold, and run from end to end."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from contexts import LORA, make_context
from datasets import ClassLabel, Dataset, Features, List, Value
from item_checks import assert_items
from sklearn.metrics import f1_score
from strategy_runs import BASE, NEEDS, write_world
from tiny import make_features, make_model, make_tokenizer, same_weights, write_data, write_rows
from transformers import AutoModelForSequenceClassification, EvalPrediction, Trainer, TrainingArguments, pipeline

from hf_xlt.averaging import average_checkpoints
from hf_xlt.cli.main import main as command
from hf_xlt.data.labels import LabelInventory
from hf_xlt.errors import ConfigError
from hf_xlt.parsing import parse_arguments
from hf_xlt.registry import STRATEGIES, get_strategy
from hf_xlt.run import main
from hf_xlt.tasks import Encoding, get_task
from hf_xlt.tasks.multi_label import DEFAULT_THRESHOLD, choose_threshold
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.phases import run_phases
from hf_xlt.training.trainer import XLTTrainer

TASK = get_task("multi-label-classification")
NAMES = ("anger", "fear", "joy")
INVENTORY = LabelInventory(NAMES)
COLUMNS = {"text": "text", "label": "labels"}
# The labels of three texts, in every form.
RIGHT = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
FORMS = {
    "names": [["anger", "joy"], [], ["fear"]],
    "indices": [[0, 2], [], [1]],
    "multi-hot": RIGHT,
    "booleans": [[bool(value) for value in row] for row in RIGHT],
    "floats": [[float(value) for value in row] for row in RIGHT],
}


def table(labels, feature=None):
    features = Features({"text": Value("string"), "labels": feature}) if feature else None
    return Dataset.from_dict({"text": ["w1 w2", "w3", "w4"][: len(labels)], "labels": labels}, features)


def encode(rows, inventory=INVENTORY, columns=COLUMNS):
    return TASK.encode(rows, Encoding(make_tokenizer(), columns, inventory, 32, "x (en, test)"))["labels"]


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_read_in_every_form(form):
    assert encode(table(FORMS[form])) == RIGHT
    found = TASK.find_labels([table(FORMS[form])], COLUMNS, None).names
    assert found == (NAMES if form == "names" else ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert TASK.find_labels([table(FORMS[form])], COLUMNS, list(NAMES)).names == NAMES


def test_names_of_the_data_say_what_its_numbers_mean():
    rows = table([[0, 2], [], [1]], List(ClassLabel(names=["joy", "fear", "anger"])))
    assert encode(rows) == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert TASK.find_labels([rows], COLUMNS, None).names == ("joy", "fear", "anger")


def test_two_labels():
    two, columns = LabelInventory(("no", "yes")), COLUMNS
    hot = table([[0, 1], [1, 1], [0, 1]])
    assert encode(hot, two) == [[0, 1], [1, 1], [0, 1]]
    assert encode(table([[0, 1], [1], []]), two) == [[1, 1], [0, 1], [0, 0]]
    # What the whole data set tells holds for a few rows of it too, such as shots.
    read = TASK.find_reading(hot, columns, None)(hot)
    assert encode(read.select([0]), two) == [[0, 1]] and TASK.find_reading(read, columns, None) is None
    assert TASK.find_labels([hot], columns, None).names == ("LABEL_0", "LABEL_1")
    with pytest.raises(ConfigError, match="which may be two indices or a no and a yes"):
        TASK.find_labels([table([[0, 1], [1, 0]])], columns, None)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["joy", "fear"], "x (en, test), row 0: column `labels` holds 'joy'; give a list of names"),
        ([1, 2], "row 0: column `labels` holds 1; give a list of names"),
        ([["joy"], None], "row 1: column `labels` holds None; give a list of names"),
        ([["joy"], ["Freude"]], "row 1, label 0: label 'Freude' is not in the inventory"),
        ([[0, 3], [1]], "row 0, label 1: label 3 is outside the inventory 0..2"),
        ([[0, 0, 1, 1]], "row 0: [False, False, True, True] is no list of 0 and 1 for 3 labels"),
        ([[0, 0, 1], [2]], "row 0: [0, 0, 1] holds a label twice; a 0 or 1 for each label would be 3 values"),
        ([[0.0, 0.7, 1.0]], "row 0: [0.0, 0.7, 1.0] is no list of 0 and 1"),
    ],
)
def test_rows_that_cannot_be_used_are_named(labels, message):
    with pytest.raises(ConfigError) as error:
        encode(table(labels))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("values", "fits"), [([1, 0], True), (["1", "0"], True), (["True", "false"], True), ([True, False], True)]
)
def test_one_column_per_label(values, fits):
    reading = TASK.read_columns(("joy", "fear"), "both", "x")
    read = reading(Dataset.from_dict({"text": ["w1", "w2"], "joy": values, "fear": values[::-1]}))
    assert read["both"] == [[0], [1]] and read.column_names == ["text", "both"]
    assert encode(read, LabelInventory(("fear", "joy")), {"text": "text", "label": "both"}) == [[0, 1], [1, 0]]


@pytest.mark.parametrize("value", [2, None, "maybe", 0.5])
def test_a_column_that_is_neither_yes_nor_no_is_named(value):
    reading = TASK.read_columns(("joy", "fear"), "both", "x")
    with pytest.raises(ConfigError, match=f"x, row 1: column `fear` holds {value!r}, neither 0 nor 1"):
        reading(
            Dataset.from_dict({"text": ["w1", "w2"], "joy": [0, 1], "fear": [type(value)(0) if value else 1, value]})
        )


def logit(chances):
    chances = np.asarray(chances, dtype=np.float64)
    return np.log(chances / (1 - chances))


def test_scores_are_those_of_scikit_learn_at_the_threshold():
    rng = np.random.default_rng(0)
    chances, gold = rng.uniform(0.01, 0.99, (40, 4)), rng.integers(0, 2, (40, 4)).astype(np.float32)
    prediction = EvalPrediction(logit(chances), gold)
    for threshold in (0.5, 0.31):
        task, said = TASK.at_threshold(TASK, threshold), chances >= threshold
        scores = task.compute_metrics(None)(prediction)
        assert scores["micro_f1"] == pytest.approx(f1_score(gold, said, average="micro"))
        assert scores["macro_f1"] == pytest.approx(f1_score(gold, said, average="macro"))
        right, of = task.item_scores(None)(prediction).sum(axis=0)
        assert right / of == pytest.approx(scores["micro_f1"])
    assert TASK.compute_metrics(None)(prediction) == TASK.at_threshold(TASK, 0.5).compute_metrics(None)(prediction)
    nothing = EvalPrediction(np.full((2, 3), -9.0), np.zeros((2, 3)))
    assert TASK.compute_metrics(None)(nothing) == {"micro_f1": 0.0, "macro_f1": 0.0}


def test_the_threshold_has_the_best_micro_f1_of_all():
    rng = np.random.default_rng(1)
    for number in range(20):
        chances = rng.uniform(0, 1, (12, 3)).round(1 if number % 2 else 6)
        gold = rng.uniform(0, 1, (12, 3)) < chances * 0.6
        chosen = f1_score(gold, chances >= choose_threshold(chances, gold), average="micro", zero_division=0)
        tried = [f1_score(gold, chances >= t, average="micro", zero_division=0) for t in np.linspace(0, 1, 201)]
        assert chosen >= max(tried) - 1e-12
    assert choose_threshold(np.array([[0.9, 0.1]]), np.array([[1, 0]])) == DEFAULT_THRESHOLD
    assert choose_threshold(np.array([[0.9, 0.1]]), np.array([[0, 0]])) == DEFAULT_THRESHOLD
    assert choose_threshold(np.array([[0.4, 0.1, 0.2]]), np.array([[1, 0, 0]])) == 0.3
    assert choose_threshold(np.array([[0.4, 0.1]]), np.array([[1, 1]])) == 0.05


def several(features):
    return [{**row, "labels": [float(index <= row["labels"]) for index in range(3)]} for row in features]


@pytest.mark.parametrize("batch", [8, 7])
def test_training_is_bit_identical_to_the_stock_trainer(tmp_path, batch):
    ends = []
    for cls, config in ((Trainer, TrainingArguments), (XLTTrainer, XLTConfig)):
        model = make_model(problem_type="multi_label_classification")
        arguments = config(
            output_dir=str(tmp_path),
            max_steps=5,
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
            save_strategy="no",
            per_device_train_batch_size=batch,
        )
        more = {"source_languages": ("en",)} if cls is XLTTrainer else {}
        trainer = cls(
            model=model,
            args=arguments,
            train_dataset=several(make_features(40)),
            data_collator=TASK.collator(make_tokenizer()),
            **more,
        )
        trainer.train()
        ends.append(model)
    assert same_weights(*ends)


def several_context(strategy, folder, **changes):
    context = make_context(
        strategy, folder, model={"problem_type": "multi_label_classification"}, dropout=False, **changes
    )
    context.task, context.compute_metrics = TASK, TASK.compute_metrics(INVENTORY)
    context.training = several(context.training)
    context.validation = {language: several(rows) for language, rows in context.validation.items()}
    context.roles = {
        role: sets if role == "text" else {language: several(rows) for language, rows in sets.items()}
        for role, sets in context.roles.items()
    }
    return context


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_learns_with_and_without_accumulation(strategy, tmp_path):
    entry, ends = get_strategy(strategy), []
    for size in (8, 4):
        (tmp_path / str(size)).mkdir()
        context = several_context(
            entry,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            optim="sgd",
            max_steps=2,
            save_strategy="no",
        )
        trainer, _ = run_phases(context, tmp_path / str(size), resume=False)
        assert all(np.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)
        ends.append(trainer.bare_model())
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / str(size))
        assert loaded.config.problem_type == "multi_label_classification"
    for one, two in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def write_several(folder, form="names", columns=False):
    """Texts whose words tell their labels; the same in every language."""
    folder.mkdir(exist_ok=True)
    for seed, language in enumerate(("en", "de", "sw", "zh")):
        for number, (split, count) in enumerate((("train", 48), ("validation", 24), ("test", 20))):
            rng, rows = random.Random(10 * seed + number), []
            for index in range(count):
                held = [label for label in range(3) if rng.random() < 0.4]
                words = [f"w{20 * label + rng.randrange(20)}" for label in held for _ in range(3)] or ["w1"]
                row = {"id": str(index), "text": " ".join(words)}
                if columns:
                    row |= {name: int(label in held) for label, name in enumerate(NAMES)}
                else:
                    row["labels"] = [NAMES[label] for label in held] if form == "names" else held
                rows.append(row)
            write_rows(folder / f"{split}.{language}.jsonl", rows)
    return str(folder / "{split}.{lang}.jsonl")


TASK_FLAGS = "--task multi-label-classification"


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    write_several(tmp_path / "data")
    return tmp_path


def run(strategy, more="", output="out"):
    line = f"{BASE.format(model='encoder')} --strategy {strategy} {NEEDS[strategy]} {TASK_FLAGS} {more}"
    return main([*line.split()[1:], "--output-dir", output])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_of_every_strategy_keeps_its_threshold(strategy, world):
    assert run(strategy) == 0
    record = json.loads((world / "out/xlt_run.json").read_text())
    config = json.loads((world / "out/config.json").read_text())
    assert record["task"]["pipeline_tag"] == "text-classification" and record["task"]["metric"] == "micro_f1"
    assert config["problem_type"] == "multi_label_classification" and record["labels"] == list(NAMES)
    assert config["decision_threshold"] == record["task"]["threshold"]
    assert_items(world / "out")


def test_run_evaluate_and_card_agree(world, capsys):
    assert run("finetune", "--max-steps 80 --learning-rate 1e-2 --shots 4") == 0
    record = json.loads((world / "out/xlt_run.json").read_text())
    threshold, languages = record["task"]["threshold"], record["results"]["languages"]
    assert languages["de"]["metrics"]["micro_f1"] > 0.7 and 0 < threshold < 1
    pattern = "data/{split}.{lang}.jsonl"
    assert command(["evaluate", "out", "--dataset", pattern, "--target-languages", "de,sw"]) == 0
    again = json.loads((world / "out/evaluations/data/results.json").read_text())["languages"]
    assert {code: entry["metrics"] for code, entry in again.items()} == {
        code: entry["metrics"] for code, entry in languages.items()
    }
    card = (world / "out/README.md").read_text()
    assert "top_k=None" in card and f">= {threshold}" in card and "pipeline_tag: text-classification" in card
    code = card.split("```python\n")[1].split("```")[0].replace('name = "."', 'name = "out"')
    exec(compile(code, "card", "exec"), {})
    # The plain pipeline gives the probabilities that the threshold is of.
    classify = pipeline("text-classification", model="out", top_k=None)
    found = classify(["w21 w22 w23 w41 w42"])[0]
    assert sorted(entry["label"] for entry in found if entry["score"] >= threshold) == ["fear", "joy"]
    # A single-label task is no way to score it.
    assert command(["evaluate", "out", "--dataset", pattern, "--task", "text-classification"]) == 2


def test_runs_are_compared_and_averaged_greedily(world, capsys):
    for seed in (1, 2):
        assert run("finetune", f"--max-steps 30 --learning-rate 1e-2 --seed {seed}", f"runs/finetune-{seed}") == 0
        assert run("robust", f"--max-steps 30 --learning-rate 1e-2 --seed {seed}", f"runs/robust-{seed}") == 0
    capsys.readouterr()
    assert command(["compare", "runs", "--baseline", "finetune", "-o", "comparison"]) == 0
    assert "Micro f1 on test data" in capsys.readouterr().out
    greedy = ["average", "runs/finetune-1", "runs/finetune-2", "-o", "soup", "--greedy", "--head", "average"]
    assert command([*greedy, "--task", TASK.name, "--dataset", "data/{split}.{lang}.jsonl"]) == 0


def test_only_source_validation_chooses_the_threshold(world, capsys):
    assert run("finetune", "--max-steps 30 --learning-rate 1e-2", "first") == 0
    for language in ("de", "sw"):
        (world / f"data/validation.{language}.jsonl").unlink()
        rows = [json.loads(line) for line in (world / f"data/test.{language}.jsonl").read_text().splitlines()]
        write_rows(world / f"data/test.{language}.jsonl", [{**row, "labels": []} for row in rows])
    assert run("finetune", "--max-steps 30 --learning-rate 1e-2", "second") == 0
    thresholds = [
        json.loads((world / f"{name}/config.json").read_text())["decision_threshold"] for name in ("first", "second")
    ]
    assert thresholds[0] == thresholds[1]
    (world / "data/validation.en.jsonl").unlink()
    capsys.readouterr()
    assert run("finetune", "--max-steps 30 --learning-rate 1e-2", "third") == 0
    assert "no source validation data to choose a threshold by" in capsys.readouterr().out
    assert json.loads((world / "third/config.json").read_text())["decision_threshold"] == 0.5


def test_one_file_for_all_splits_gives_no_validation_data(world):
    from hf_xlt.arguments import DataArguments
    from hf_xlt.data.roles import VALIDATION, resolve_data

    data = DataArguments(dataset="data/test.{lang}.jsonl", task=TASK.name)
    plan = resolve_data(data, TASK, needs_validation=False, trains=False)
    assert plan.of_role(VALIDATION) == []


def test_columns_indices_lora_and_averages(world, capsys):
    write_several(world / "data", columns=True)
    flags = "--label-columns anger,fear,joy --max-steps 40 --learning-rate 1e-2"
    assert run("finetune", flags, "columns") == 0
    assert json.loads((world / "columns/xlt_run.json").read_text())["labels"] == list(NAMES)
    arguments = ["evaluate", "columns", "--dataset", "data/{split}.{lang}.jsonl", "--label-columns", "joy,fear,anger"]
    assert command([*arguments, "--target-languages", "de,sw", "--output-dir", "scores"]) == 0
    first = json.loads((world / "columns/results.json").read_text())["languages"]["de"]["metrics"]
    assert json.loads((world / "scores/results.json").read_text())["languages"]["de"]["metrics"] == first
    write_several(world / "data", form="indices")
    lora = "--labels anger,fear,joy --peft lora --max-steps 20 --learning-rate 1e-2 --average --average-every 5"
    assert run("finetune", f"{lora} --average-compare last,source_dev", "lora") == 0
    write_several(world / "data")
    assert run("finetune", "--max-steps 20 --learning-rate 1e-2 --seed 1", "other") == 0
    average_checkpoints([world / "columns", world / "other"], world / "mean", head="average")
    config = json.loads((world / "mean/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification" and "decision_threshold" not in config
    capsys.readouterr()
    assert command(["evaluate", "mean", "--dataset", "data/{split}.{lang}.jsonl"]) == 0
    assert "chosen on source validation data" in capsys.readouterr().out
    record, config = (json.loads((world / "mean" / name).read_text()) for name in ("xlt_run.json", "config.json"))
    assert record["task"]["threshold"] == config["decision_threshold"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "--label-smoothing-factor 0.1",
            "`--label-smoothing-factor` does not go with the task `multi-label-classification`",
        ),
        ("--label-columns anger,nothing", "has no column `nothing`, which `--label-columns` names"),
        ("--generalized --text-pair-column text", "has several labels"),
    ],
)
def test_what_does_not_go_with_several_labels_is_refused(world, capsys, more, message):
    if "columns" in more:
        write_several(world / "data", columns=True)
    assert run("finetune", more) == 2
    assert message in capsys.readouterr().err and not (world / "out").exists()


def test_one_label_per_row_is_another_task(world, capsys):
    write_data(world / "data")
    assert run("finetune") == 2
    assert "`--task text-classification` one label per row" in capsys.readouterr().err
    line = "--model encoder --dataset data/{split}.{lang}.jsonl --label-columns a,b --output-dir x"
    assert main(line.split()) == 2
    assert "task `text-classification` has no `--label-columns`" in capsys.readouterr().err


def test_a_dry_run_names_the_labels(world, capsys):
    assert run("finetune", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "Labels     3: anger, fear, joy" in shown and "validation" in shown


def test_a_foreign_model_is_scored_at_its_own_or_the_plain_threshold(world, capsys):
    model = make_model(problem_type="multi_label_classification", id2label=dict(enumerate(NAMES)))
    model.save_pretrained(world / "foreign")
    make_tokenizer().save_pretrained(world / "foreign")
    arguments = ["evaluate", "foreign", "--dataset", "data/{split}.{lang}.jsonl", "--output-dir"]
    assert command([*arguments, "a"]) == 0
    assert "labels count from probability 0.5" in capsys.readouterr().out
    model.config.decision_threshold = 0.01
    model.save_pretrained(world / "foreign")
    assert command([*arguments, "b"]) == 0
    assert "labels count from" not in capsys.readouterr().out
    results = [json.loads((world / f"{name}/results.json").read_text()) for name in "ab"]
    assert results[0]["languages"]["de"]["metrics"] != results[1]["languages"]["de"]["metrics"]
    del model.config.decision_threshold
    model.save_pretrained(world / "foreign")
    assert command([*arguments, "d", "--validation-split", "test"]) == 2
    assert "the same rows would be" in capsys.readouterr().err
    assert command([*arguments, "d", "--validation-split", "nonsense"]) == 2
    assert "for the split `nonsense`" in capsys.readouterr().err
    assert command([*arguments, "d", "--validation-split", "test", "--allow-shared-rows"]) == 0
    capsys.readouterr()
    make_model().save_pretrained(world / "foreign")
    assert command([*arguments, "c", "--task", TASK.name]) == 2
    assert "predicts one class of each text" in capsys.readouterr().err


def test_adapters_learn_several_labels(tmp_path):
    context = several_context(get_strategy("finetune"), tmp_path, peft=dataclasses.replace(LORA, lora_dropout=0.0))
    trainer, _ = run_phases(context, tmp_path, resume=False)
    assert trainer.bare_model().config.problem_type == "multi_label_classification"


def test_label_smoothing_is_for_labels_that_exclude_each_other(tmp_path):
    """Single classes have a kind of problem in their config too, and take it."""
    line = ["--model", "m", "--dataset", "d/{split}.{lang}.csv", "--label-smoothing-factor", "0.3", "--task"]
    for task in ("text-classification", "token-classification"):
        assert parse_arguments([*line, task]).config.label_smoothing_factor == 0.3
    refused = {TASK.name: "its labels exclude no other", "question-answering": "positions of a batch"}
    for task, reason in refused.items():
        with pytest.raises(ConfigError, match=reason):
            parse_arguments([*line, task])
