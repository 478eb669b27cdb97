"""One tag per word: windows, labels, scores, and a run from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from item_checks import assert_items
from sklearn.metrics import f1_score
from tiny import make_tokenizer, save_encoder, write_rows
from transformers import EvalPrediction

from hf_xlt.data.labels import LabelInventory
from hf_xlt.errors import ConfigError
from hf_xlt.run import main
from hf_xlt.tasks import Encoding, get_task
from hf_xlt.tasks.tagging import tags_per_sentence

TASK = get_task("token-classification")
POS = LabelInventory(("NOUN", "VERB", "X"))
IOB2 = LabelInventory(("B-LOC", "I-LOC", "O"))
COLUMNS = {"tokens": "tokens", "tags": "tags"}


def encoding(inventory=POS, max_length=32, tokenizer=None):
    return Encoding(tokenizer or make_tokenizer(), COLUMNS, inventory, max_length, "pos (en, test)")


def table(*sentences):
    return Dataset.from_list([{"tokens": words.split(), "tags": tags.split()} for words, tags in sentences])


def perfect(features, classes):
    """Logits that are right at every labelled position."""
    width = max(features["length"])
    labels = np.full((len(features), width), -100)
    for row, values in enumerate(features["labels"]):
        labels[row, : len(values)] = values
    logits = np.where(labels[..., None] == np.arange(classes), 5.0, 0.0)
    return EvalPrediction(logits, labels, inputs=features)


def test_the_first_piece_of_a_word_carries_its_tag():
    # The pre-tokeniser splits `w2.w3` into three pieces.
    features = TASK.encode(table(("w1 w2.w3 w4", "NOUN VERB X")), encoding())
    assert features[0]["input_ids"] == [2, 6, 7, 1, 8, 9, 3]
    assert features[0]["labels"] == [-100, 0, 1, -100, -100, 2, -100]
    assert features[0]["words"] == [0, 1, 2] and features[0]["tags"] == [0, 1, 2] and features[0]["length"] == 7


def test_long_sentences_are_split_so_that_every_word_is_tagged_once():
    words = [f"w{i % 50}.w{i % 7}" if i % 3 == 0 else f"w{i % 50}" for i in range(40)]
    tags = [POS.names[i % 3] for i in range(40)]
    rows = table((" ".join(words), " ".join(tags)), ("w1 w2", "X X"), (" ".join(words[:20]), " ".join(tags[:20])))
    features = TASK.encode(rows, encoding(max_length=9))
    assert len(features) > 3 and max(features["length"]) <= 9 and TASK.count_examples(features) == 3
    for sentence, row in enumerate(rows):
        windows = [entry for entry in features if entry["sentence"] == sentence]
        assert [place for entry in windows for place in entry["words"]] == list(range(len(row["tokens"])))
        assert windows[0]["tags"] == [POS.label2id[tag] for tag in row["tags"]]
        assert all(entry["tags"] == [] for entry in windows[1:])
    gold, predicted = tags_per_sentence(perfect(features, 3))
    assert all(np.array_equal(*pair) for pair in zip(gold, predicted, strict=True))
    assert [len(tags) for tags in gold] == [40, 2, 20]


def test_a_word_of_which_the_tokenizer_leaves_nothing_counts_as_wrong():
    rows = Dataset.from_list([{"tokens": ["w1", " ", "w3"], "tags": ["NOUN", "VERB", "NOUN"]}])
    features = TASK.encode(rows, encoding())
    assert features[0]["words"] == [0, 2]
    prediction = perfect(features, 3)
    gold, predicted = tags_per_sentence(prediction)
    assert gold[0].tolist() == [0, 1, 0] and predicted[0].tolist() == [0, -1, 0]
    scores = TASK.compute_metrics(POS)(prediction)
    assert scores == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx(0.5)}


def test_accuracy_and_macro_f1_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    sentences = [
        (" ".join(f"w{w}" for w in rng.integers(0, 60, n)), " ".join(rng.choice(POS.names, n)))
        for n in rng.integers(1, 20, 30)
    ]
    features = TASK.encode(table(*sentences), encoding(max_length=12))
    prediction = perfect(features, 3)
    prediction.predictions = prediction.predictions + rng.normal(size=prediction.predictions.shape) * 4
    gold, predicted = (np.concatenate(side) for side in tags_per_sentence(prediction))
    assert len(gold) == sum(len(words.split()) for words, _ in sentences)
    scores = TASK.compute_metrics(POS)(prediction)
    assert 0.4 < scores["accuracy"] < 0.99
    assert scores["accuracy"] == pytest.approx(np.mean(gold == predicted))
    assert scores["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro"))


def test_iob2_tags_are_scored_by_exact_spans():
    task = TASK.given_labels(IOB2)
    assert task.metric == "f1" and TASK.given_labels(POS).metric == "accuracy" and TASK.metric == "accuracy"
    features = task.encode(table(("w1 w2 w3", "B-LOC I-LOC O"), ("w4", "B-LOC")), encoding(IOB2))
    prediction = perfect(features, 3)
    assert task.compute_metrics(IOB2)(prediction) == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "accuracy": 1.0}
    # The second word of the first span is called O: the span is wrong, the other one right.
    prediction.predictions[0, 2] = [0, 0, 9]
    scores = task.compute_metrics(IOB2)(prediction)
    assert scores == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.75}


def test_tags_are_read_off_names_indices_and_features():
    named = [table(("w1 w2", "VERB X")), table(("w1", "NOUN"))]
    assert TASK.find_labels(named, COLUMNS, None).names == ("NOUN", "VERB", "X")
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-X"]))})
    indices = [Dataset.from_dict({"tokens": [["w1", "w2"]], "tags": [[0, 1]]}, features)]
    assert TASK.find_labels(indices, COLUMNS, None).names == ("O", "B-X")
    plain = [Dataset.from_dict({"tokens": [["w1", "w2"]], "tags": [[0, 2]]})]
    assert TASK.find_labels(plain, COLUMNS, None).names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert TASK.find_labels(plain, COLUMNS, ["a", "b", "c"]).names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["w1", "w2"], "tags": ["X"]}, "row 0: 2 words in `tokens`, but `tags` holds 1 tags"),
        ({"tokens": [], "tags": []}, "row 0: column `tokens` must hold a list of words; got []"),
        ({"tokens": "w1 w2", "tags": ["X"]}, "column `tokens` must hold a list of words; got 'w1 w2'"),
        ({"tokens": ["w1"], "tags": ["ADJ"]}, "row 0, row 0: label 'ADJ' is not in the inventory"),
        ({"tokens": ["w1", None], "tags": ["X", "X"]}, "must hold a list of words; got ['w1', None]"),
    ],
)
def test_rows_that_cannot_be_used_are_named(row, message):
    with pytest.raises(ConfigError) as error:
        TASK.encode(Dataset.from_list([row]), encoding())
    assert message.replace("row 0, row 0", "row 0, word 0") in str(error.value)


def test_features_of_a_large_set_come_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_xlt.tasks.base.CACHED_ROWS", 3)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    rows = table(*[("w1 w2 w3 w4", "X X NOUN VERB")] * 3, ("w5", "X"))
    first = TASK.encode(rows, encoding(max_length=4))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")}
    assert len(files) == 1
    again = TASK.encode(rows, encoding(max_length=4))
    assert again[:] == first[:] and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")} == files
    assert first["sentence"] == [0, 0, 1, 1, 2, 2, 3]
    TASK.encode(rows, encoding(max_length=5))
    assert len(list(tmp_path.rglob("*.arrow"))) == 2


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("hf_xlt.tasks.base.CACHED_ROWS", 3)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    rows = table(*[("w1 w2 w3 w4", "X X NOUN VERB")] * 3, ("w5", "X"))
    found = TASK.encode(rows, encoding(max_length=4))
    assert found["sentence"] == [0, 0, 1, 1, 2, 2, 3] and "made in memory" in caplog.text


def write_tagged(folder, iob2=False):
    folder.mkdir()
    for seed, language in enumerate(("en", "de")):
        rng = np.random.default_rng(seed)
        for split, count in (("train", 48), ("validation", 9), ("test", 12)):
            rows = []
            for number in range(count):
                ids = rng.integers(0, 60, rng.integers(1, 50))
                tags = [("O", "B-LOC", "I-LOC")[i // 20] if iob2 else POS.names[i // 20] for i in ids]
                rows.append({"id": str(number), "lang": language, "tokens": [f"w{i}" for i in ids], "tags": tags})
            write_rows(folder / f"{split}.{language}.jsonl", rows)
    return str(folder / "{split}.{lang}.jsonl")


@pytest.mark.parametrize("strategy", ["finetune", "robust"])
def test_a_run_scores_all_words_of_every_language(tmp_path, capsys, strategy):
    model, data = save_encoder(tmp_path / "model"), write_tagged(tmp_path / "data")
    out = tmp_path / "out"
    arguments = ["--task", "token-classification", "--dataset", data, "--model", str(model), "--strategy", strategy]
    arguments += ["--max-steps", "40", "--learning-rate", "1e-2", "--disable-tqdm", "--output-dir", str(out)]
    arguments += ["--eval-strategy", "steps", "--eval-steps", "20", "--save-steps", "20", "--load-best-model-at-end"]
    assert main(arguments) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["metric"] == "accuracy" and results["languages"]["de"]["examples"] == 12
    assert results["languages"]["en"]["metrics"]["accuracy"] > 0.9
    assert set(results["languages"]["de"]["metrics"]) == {"accuracy", "macro_f1", "loss"}
    from hf_xlt.cli.main import main as command

    assert command(["evaluate", str(out), "--dataset", data, "--output-dir", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["languages"]["de"]["metrics"]["accuracy"] == results["languages"]["de"]["metrics"]["accuracy"]
    assert "AutoModelForTokenClassification" in (out / "README.md").read_text()
    assert_items(out)
    assert_items(tmp_path / "again")


def test_a_run_on_iob2_tags_is_selected_and_scored_by_span_f1(tmp_path):
    model, data = save_encoder(tmp_path / "model"), write_tagged(tmp_path / "data", iob2=True)
    out = tmp_path / "out"
    arguments = ["--task", "token-classification", "--dataset", data, "--model", str(model), "--shots", "6"]
    arguments += ["--max-steps", "40", "--learning-rate", "1e-2", "--disable-tqdm", "--output-dir", str(out)]
    arguments += ["--eval-strategy", "steps", "--eval-steps", "20", "--save-steps", "20", "--load-best-model-at-end"]
    assert main(arguments) == 0
    results = json.loads((out / "results.json").read_text())
    record = json.loads((out / "xlt_run.json").read_text())
    assert results["metric"] == "f1" and record["selection"]["metric"] == "avg_f1"
    assert results["languages"]["de"]["metrics"]["f1"] > 0.5
    assert_items(out)


def test_a_column_of_another_task_is_refused(tmp_path, capsys):
    model, data = save_encoder(tmp_path / "model"), write_tagged(tmp_path / "data")
    arguments = ["--task", "token-classification", "--dataset", data, "--model", str(model), "--text-column", "tokens"]
    assert main([*arguments, "--output-dir", str(tmp_path / "out")]) == 2
    assert "task `token-classification` has no `--text-column`; it takes `--tokens-column`" in capsys.readouterr().err


DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not there")
def test_every_word_of_real_treebanks_is_tagged_once():
    import pyarrow.parquet as pq

    from hf_xlt.embedded import encoder_directory
    from hf_xlt.models import load_tokenizer

    tokenizer = load_tokenizer(str(encoder_directory()))
    for name in ("pos_pud/test.ja", "pos_pud/test.hi", "pos_pud/test.zh", "ner_uner/test.ru"):
        rows = Dataset(pq.read_table(DATA / f"{name}.parquet"))
        inventory = TASK.find_labels([rows], COLUMNS, None)
        features = TASK.encode(rows, encoding(inventory, 48, tokenizer))
        assert TASK.count_examples(features) == len(rows)
        gold, predicted = tags_per_sentence(perfect(features, len(inventory)))
        assert [len(tags) for tags in gold] == [len(words) for words in rows["tokens"]]
        # Words of which nothing is left are rare.
        assert np.mean(np.concatenate(gold) == np.concatenate(predicted)) > 0.999
