"""Rows are checked before anything is trained, those of test sets too."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_xlt.cli.main import main
from hf_xlt.data.sources import make_source


@pytest.fixture
def dry(tmp_path, capsys):
    """Write files, plan a run on them; return the exit code, and what was printed."""

    def go(files, *more, task="text-classification", suffix="jsonl"):
        for name, rows in files.items():
            text = rows if isinstance(rows, str) else "".join(f"{json.dumps(row)}\n" for row in rows)
            (tmp_path / f"{name}.{suffix}").write_text(text)
        line = f"run --model embedded-phrases --task {task} --dataset {tmp_path}/{{split}}.{{lang}}.{suffix}"
        code = main([*line.split(), "--output-dir", str(tmp_path / "out"), "--dry-run", *more])
        printed = capsys.readouterr()
        assert not (tmp_path / "out").exists()
        return code, printed.out + printed.err

    return go


def texts(*pairs):
    return [{"text": text, "label": label} for text, label in pairs]


GOOD = texts(("fine", "good"), ("foul", "bad"))
SENTENCES = [{"tokens": ["Anna", "sings"], "tags": ["B-PER", "O"]}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (texts(("a", "good"), (None, "bad")), "(de, test), row 1: column `text` holds None, not a text."),
        (texts((1, "good")), "(de, test), row 0: column `text` holds 1, not a text."),
        (texts(("", "good"), (" ", "bad")), "(de, test): column `text` holds no text; every row of it is empty."),
        (texts(("a", "good"), ("b", "gut")), "(de, test), row 1: label 'gut' is not in the inventory bad, good."),
        (texts(("a", None), ("b", "bad")), "(de, test), row 0: label None is neither"),
        (texts(("a", 1), ("b", 0)), "(de, test), row 0: label 1 is a bare number, and the classes have names"),
    ],
)
def test_a_bad_row_of_a_test_set_is_one_line_before_training(dry, rows, message):
    code, printed = dry({"train.en": GOOD, "test.en": GOOD, "test.de": rows})
    assert code == 2 and message in printed and printed.count("\n") == 1


def test_texts_that_are_empty_are_told_and_used(dry):
    code, printed = dry(
        {"train.en": GOOD, "test.en": GOOD, "test.de": texts(("", "good"), ("a", "bad"), (" ", "bad"))}
    )
    assert code == 0 and "(de, test): column `text` is empty in 2 of 3 rows, such as row 0" in printed
    assert printed.count("is empty in") == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": [], "tags": []}, "row 1: column `tokens` must hold a list of words; got []."),
        ({"tokens": None, "tags": None}, "row 1: column `tokens` must hold a list of words; got None."),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "row 1: 2 words in `tokens`, but `tags` holds 1 tags."),
        ({"tokens": ["a"], "tags": ["B-ORG"]}, "row 1, word 0: label 'B-ORG' is not in the inventory B-PER, O."),
    ],
)
def test_a_bad_sentence_of_a_test_set_is_one_line_before_training(dry, row, message):
    files = {"train.en": SENTENCES, "test.en": SENTENCES, "test.de": [*SENTENCES, row]}
    code, printed = dry(files, task="token-classification")
    assert code == 2 and f"(de, test), {message}" in printed


def test_a_file_whose_marks_are_text_is_told_once_for_all_languages(dry):
    rows = 'text\tlabel\n"fine\tgood\nfoul\tbad\n'
    code, printed = dry(dict.fromkeys(("train.en", "test.en", "test.de"), rows), suffix="tsv")
    assert code == 0 and printed.count("quotation marks are taken as text") == 1 and "and 2 more" in printed


def test_compressed_and_column_files_are_found_by_patterns(tmp_path):
    import gzip

    (tmp_path / "train.en.tsv.gz").write_bytes(gzip.compress(b"text\tlabel\nfine\tgood\n"))
    (tmp_path / "en_ewt-ud-test.conllu").write_text("1\tAnna\tAnna\tPROPN\t_\t_\t0\troot\t_\t_\n")
    source = make_source(f"{tmp_path}/{{split}}.{{lang}}.tsv.gz", None, None)
    assert source.languages("train") == ["en"] and source.read("en", "train").to_list() == texts(("fine", "good"))
    source = make_source(f"{tmp_path}/{{lang}}_ewt-ud-{{split}}.conllu", None, None)
    assert source.languages("test") == ["en"] and source.read("en", "test")["tags"][:] == [["PROPN"]]


def test_a_run_and_its_evaluation_match_classes_by_name(tmp_path, capsys):
    """A target, a second source and `--labels` in orders of their own: one score everywhere."""
    orders = {"en": ["bad", "good"], "fr": ["good", "bad"], "es": ["good", "bad"]}
    words = {"bad": ["awful", "nasty", "broken"], "good": ["great", "lovely", "superb"]}
    for language, names in orders.items():
        rows = [
            {"text": f"{words[name][i % 3]} {words[name][i // 3 % 3]}", "label": names.index(name)}
            for i in range(40)
            for name in ("good", "bad")
        ]
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        for split in ("train", "test"):
            table = Dataset.from_list(rows, features=features)
            # The test's texts are not those of training.
            table = table.map(lambda row, mark=split: {"text": f"{row['text']} {mark}"})
            table.to_parquet(tmp_path / f"{split}.{language}.parquet")
    line = f"--dataset {tmp_path}/{{split}}.{{lang}}.parquet --source-languages en,fr --target-languages es --json "
    train = f"run --model embedded-phrases {line} --labels good,bad --max-steps 40 --learning-rate 2e-3"
    assert main([*train.split(), "--output-dir", str(tmp_path / "out")]) == 0
    results = json.loads(capsys.readouterr().out)["results"]["languages"]
    accuracies = {code: row["metrics"]["accuracy"] for code, row in results.items()}
    assert accuracies == dict.fromkeys(("en", "fr", "es"), 1.0)
    evaluate = f"evaluate {tmp_path}/out {line} --output-dir {tmp_path}/scores"
    assert main(evaluate.split()) == 0
    assert json.loads(capsys.readouterr().out)["languages"] == results
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "good", "1": "bad"}
