"""The generalized setting: every ordered pair of languages against plain forward passes, the record and the card."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from records import make_record
from sklearn.metrics import f1_score
from tiny import WORDS, make_rows, save_encoder, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_xlt.cli.main import main
from hf_xlt.generalized_results import GeneralizedResults
from hf_xlt.model_cards.card import render
from hf_xlt.record import FINISHED, TRAINED, RunRecord

SHARED = Path(os.environ.get("HF_XLT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SEVEN = ("en", "de", "es", "fr", "ja", "ko", "zh")
FIFTEEN = ("en", "ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
# Of the pairs here, two in three are longer.
LENGTH = 11
FAST = (
    f"--max-steps 2 --per-device-train-batch-size 8 --learning-rate 1e-3 --max-length {LENGTH} "
    "--disable-tqdm --threads 1 --save-strategy no"
).split()


def rows_of(language, count, split):
    """Pairs that differ by language, with words of the class here and there; ids and labels are parallel."""
    rng = random.Random(f"{split} {language}")
    rows = make_rows(language, count, 0)
    for row in rows:
        for side, share in (("text", 0.4), ("text_pair", 0.15)):
            hints = [rng.random() < share for _ in range(rng.randint(2, 9))]
            words = [WORDS[20 * row["label"] + rng.randrange(20)] if hint else rng.choice(WORDS) for hint in hints]
            row[side] = " ".join(words)
    return rows


def write_pairs(folder, languages, count, order=1, changed=None):
    folder.mkdir(exist_ok=True)
    write_rows(folder / "train.en.jsonl", rows_of("en", 48, "train"))
    for language in languages:
        rows = (changed or {}).get(language, rows_of(language, count, "test"))
        write_rows(folder / f"test.{language}.jsonl", rows[::order])
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An encoder, pairs in 7 and 15 languages, and a run that scored 7 in the generalized setting."""
    root = tmp_path_factory.mktemp("generalized")
    # Weights so large that the random head tells texts apart, which training for so few updates would not.
    save_encoder(root / "encoder", initializer_range=0.5)
    write_pairs(root / "seven", SEVEN, 20)
    write_pairs(root / "fifteen", FIFTEEN, 8)
    assert main(run_line(root, "seven", "run").split()) == 0
    return root


def run_line(root, data, out, more="--generalized"):
    return " ".join(
        [f"run --model {root}/encoder --dataset {root}/{data}/{{split}}.{{lang}}.jsonl", *FAST]
        + [f"--output-dir {root}/{out}", more]
    )


def evaluate_line(root, data, out, more="--generalized"):
    pattern = f"{root}/{data}/{{split}}.{{lang}}.jsonl"
    return f"evaluate {root}/run --dataset {pattern} --output-dir {out} --max-length {LENGTH} {more}"


def forward_passes(folder, data, languages, count):
    """Accuracy and macro F1 of every ordered pair by one plain forward pass, joined by id."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = {
        code: {row["id"]: row for row in map(json.loads, (data / f"test.{code}.jsonl").read_text().splitlines())}
        for code in languages
    }
    scores = {}
    for one in languages:
        for two in languages:
            texts = [row["text"] for row in rows[one].values()], [rows[two][code]["text_pair"] for code in rows[one]]
            inputs = tokenizer(*texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
            with torch.no_grad():
                guesses = model(**inputs).logits.argmax(-1).tolist()
            labels = [row["label"] for row in rows[one].values()]
            accuracy = sum(a == b for a, b in zip(guesses, labels, strict=True)) / count
            scores[one, two] = (accuracy, f1_score(labels, guesses, average="macro", zero_division=0))
    return scores


def read(folder):
    return GeneralizedResults.from_dict(json.loads((folder / "generalized.json").read_text()))


def test_all_49_pairs_of_7_languages_are_what_plain_forward_passes_give(world):
    results = read(world / "run")
    expected = forward_passes(world / "run", world / "seven", SEVEN, 20)
    assert len(expected) == results.count("all") == 49 and results.languages == SEVEN and results.examples == 20
    for (one, two), (accuracy, macro_f1) in expected.items():
        assert results.value(one, two) == accuracy, (one, two)
        assert results.value(one, two, "macro_f1") == pytest.approx(macro_f1)
    # The scores differ, so that mixing languages or sides up would show.
    assert len(set(expected.values())) > 10
    assert any(expected[one, two] != expected[two, one] for one in SEVEN for two in SEVEN)


def test_the_diagonal_is_the_standard_score_exactly(world):
    standard = json.loads((world / "run" / "results.json").read_text())["languages"]
    results = read(world / "run")
    assert set(results.matrix) == {"accuracy", "macro_f1", "loss"}
    for code in SEVEN:
        for metric, value in standard[code]["metrics"].items():
            assert results.value(code, code, metric) == value


def test_averages_are_those_of_the_matrix(world):
    results, written = read(world / "run"), json.loads((world / "run" / "generalized.json").read_text())
    cells = {(one, two): results.value(one, two) for one in SEVEN for two in SEVEN}
    groups = {
        "all": list(cells.values()),
        "diagonal": [value for (one, two), value in cells.items() if one == two],
        "off_diagonal": [value for (one, two), value in cells.items() if one != two],
        "with_source": [value for (one, two), value in cells.items() if one != two and "en" in (one, two)],
        "without_source": [value for (one, two), value in cells.items() if one != two and "en" not in (one, two)],
    }
    assert written["pairs"] == {"all": 49, "diagonal": 7, "off_diagonal": 42, "with_source": 12, "without_source": 30}
    for group, values in groups.items():
        assert written["averages"]["accuracy"][group] == pytest.approx(sum(values) / len(values)), group
    assert results.row_average("de", 0) == pytest.approx(sum(cells["de", two] for two in SEVEN if two != "de") / 6)
    assert results.row_average("de", 1) == pytest.approx(sum(cells[one, "de"] for one in SEVEN if one != "de") / 6)


def test_record_card_and_files_tell_it(world):
    record, folder = RunRecord.read(world / "run"), world / "run"
    assert record.status == FINISHED and record.generalized == json.loads((folder / "generalized.json").read_text())
    assert "generalized" not in record.settings and "generalized" not in record.arguments
    card, table = (folder / "README.md").read_text(), (folder / "generalized.md").read_text()
    results = read(folder)
    row = "| de | " + " | ".join(f"{100 * results.value('de', two):.1f}" for two in SEVEN) + " |"
    assert row in card and row in table and "### Sentences in two languages" in card
    average = f"| two languages | 42 | {100 * results.average('off_diagonal'):.1f} |"
    assert average in card and average in table
    assert main(["card", str(folder), "--check"]) == 0


def test_the_heat_map_is_drawn(world):
    pytest.importorskip("matplotlib")
    assert (world / "run" / "generalized.png").read_bytes()[:4] == b"\x89PNG"
    assert not list((world / "run").glob(".*part*"))


def test_225_pairs_of_15_languages_are_scored_by_evaluate(world, tmp_path, capsys):
    assert main(evaluate_line(world, "fifteen", tmp_path / "out").split()) == 0
    out, results = capsys.readouterr().out, read(tmp_path / "out")
    assert results.languages == FIFTEEN and results.count("all") == 225
    expected = forward_passes(world / "run", world / "fifteen", FIFTEEN, 8)
    assert all(results.value(one, two) == accuracy for (one, two), (accuracy, _) in expected.items())
    # Too wide for a terminal: a line per language.
    assert max(map(len, out.splitlines()[:-1])) < 130 and "Bulgarian" in out and "all ordered pairs" in out
    assert "generalized.json, generalized.md" in out


def test_the_order_of_rows_in_the_files_changes_nothing(world, tmp_path):
    assert main(evaluate_line(world, "seven", tmp_path / "one").split()) == 0
    write_pairs(tmp_path / "shuffled", SEVEN, 20, order=-1)
    for code, rows in (("de", rows_of("de", 20, "test")), ("zh", rows_of("zh", 20, "test"))):
        write_rows(tmp_path / "shuffled" / f"test.{code}.jsonl", rows[7:] + rows[:7])
    line = evaluate_line(world, "seven", tmp_path / "two").replace(f"{world}/seven", f"{tmp_path}/shuffled")
    assert main(line.split()) == 0
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert one.matrix["accuracy"] == two.matrix["accuracy"] == read(world / "run").matrix["accuracy"]
    for left, right in zip(one.matrix["loss"], two.matrix["loss"], strict=True):
        assert left == pytest.approx(right)


@pytest.mark.parametrize("chunk", [7, 50])
def test_the_size_of_a_chunk_changes_nothing(world, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("hf_xlt.generalized.CHUNK", chunk)
    assert main(evaluate_line(world, "seven", tmp_path / "out").split()) == 0
    assert read(tmp_path / "out").matrix["accuracy"] == read(world / "run").matrix["accuracy"]


def test_languages_can_be_limited_and_printed_as_json(world, tmp_path, capsys):
    more = "--generalized --generalized-languages zh,en,ja --json"
    assert main(evaluate_line(world, "seven", tmp_path / "out", more).split()) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["languages"]) == set(SEVEN) and printed["generalized"]["languages"] == ["en", "ja", "zh"]
    whole = read(world / "run")
    cells = [[whole.value(one, two) for two in ("en", "ja", "zh")] for one in ("en", "ja", "zh")]
    assert printed["generalized"]["matrix"]["accuracy"] == cells


def test_without_it_nothing_is_written_and_an_older_matrix_goes(world, tmp_path, capsys):
    assert (
        main(evaluate_line(world, "seven", tmp_path / "out", "--generalized --generalized-languages en,de").split())
        == 0
    )
    assert main(evaluate_line(world, "seven", tmp_path / "out", "--overwrite").split()) == 0
    assert not list((tmp_path / "out").glob("generalized*"))
    assert "Generalized" not in capsys.readouterr().out.rsplit("Saved in", 2)[1]


def test_the_plan_names_the_pairs(world, capsys):
    assert main(run_line(world, "seven", "none", "--generalized --dry-run").split()) == 0
    assert "49 ordered pairs of 7 languages are scored (--generalized)" in capsys.readouterr().out


def single(rows):
    return [{key: value for key, value in row.items() if key != "text_pair"} for row in rows]


TEST = rows_of("de", 20, "test")
BAD = {
    "single texts": ({code: single(rows_of(code, 20, "test")) for code in SEVEN}, "", "this task has single texts"),
    "no ids": (
        {"de": [{k: v for k, v in row.items() if k != "id"} for row in TEST]},
        "",
        "(de, test) must contain a `id`",
    ),
    "fewer rows": ({"de": TEST[:-1]}, "", "(de, test) has 19 rows and"),
    "another id": ({"de": [*TEST[:-1], {**TEST[-1], "id": "x"}]}, "", "(de, test) lacks 1 of the 20 ids"),
    "id twice": ({"de": [*TEST[:-1], TEST[0]]}, "", "(de, test): column `id` holds 1 id more than once, such as `0`"),
    "other label": (
        {"de": [{**TEST[0], "label": 1, "label_text": "good"}, *TEST[1:]]},
        "",
        "(de, test): the label of 1 id is not that in",
    ),
    "other column": ({}, "--id-column key", "must contain a `key` column"),
    "language not scored": ({}, "--generalized-languages en,dd", "`dd` is not scored"),
    "one language": ({}, "--generalized-languages de", "needs two languages or more"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_joined_is_one_line_and_nothing_is_written(world, name, tmp_path, capsys):
    changed, more, expected = BAD[name]
    write_pairs(tmp_path / "data", SEVEN, 20, changed=changed)
    if name == "single texts":
        write_rows(tmp_path / "data" / "train.en.jsonl", single(rows_of("en", 48, "train")))
    line = evaluate_line(world, "seven", tmp_path / "out", f"--generalized {more}")
    assert main(line.replace(f"{world}/seven", f"{tmp_path}/data").split()) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("error: ") and expected in err[-1]
    assert not (tmp_path / "out").exists()


def test_languages_without_the_setting_are_refused(world, capsys):
    assert main(run_line(world, "seven", "none", "--generalized-languages en,de").split()) == 2
    assert "add `--generalized`" in capsys.readouterr().err


def test_rows_that_cannot_be_joined_stop_a_run_before_training(world, tmp_path, capsys):
    write_pairs(world / "short", SEVEN, 20, changed={"de": TEST[:-1]})
    assert main(run_line(world, "short", "short-run").split()) == 2
    assert "cannot be joined one to one" in capsys.readouterr().err and not (world / "short-run").exists()


def test_mended_data_and_a_break_are_resumed_by_scoring_alone(world, capsys, monkeypatch):
    write_pairs(world / "torn", SEVEN[:3], 20, changed={"de": [{**TEST[0], "id": "x"}, *TEST[1:]]})
    assert main(run_line(world, "torn", "torn-run").split()) == 2
    err = capsys.readouterr().err
    assert "lacks 1 of the 20 ids" in err and "`--resume`, which only scores" in err
    write_rows(world / "torn" / "test.de.jsonl", TEST)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hf_xlt.generalized._features", stop)
        assert main(run_line(world, "torn", "torn-run", "--generalized --resume").split()) == 130
    assert RunRecord.read(world / "torn-run").status == TRAINED
    assert not list((world / "torn-run").glob("generalized*"))
    assert main(run_line(world, "torn", "torn-run", "--generalized --resume").split()) == 0
    record = RunRecord.read(world / "torn-run")
    assert record.status == FINISHED and record.generalized_scores.count("all") == 9
    capsys.readouterr()
    assert main(run_line(world, "torn", "torn-run", "--resume").split()) == 0
    assert "Generalized setting" in capsys.readouterr().out


def crafted(count):
    languages = tuple(f"l{chr(97 + number)}" for number in range(count))
    cells = tuple(tuple((row * count + column) / count**2 for column in range(count)) for row in range(count))
    return GeneralizedResults("accuracy", languages, languages[:1], 10, {"accuracy": cells})


def test_results_survive_a_round_trip():
    assert GeneralizedResults.from_dict(json.loads(json.dumps(crafted(4).to_dict()))) == crafted(4)
    assert crafted(3).value("la", "lc") == pytest.approx(2 / 9) and crafted(3).value("lc", "la") == pytest.approx(
        6 / 9
    )


def test_groups_without_pairs_have_no_average():
    two = crafted(2)
    assert two.average("without_source") is None and two.to_dict()["pairs"]["without_source"] == 0
    assert not any("neither" in row[0] for row in two.averages_table())


@pytest.mark.parametrize("count", [2, 8, 9])
def test_the_card_holds_the_matrix_of_few_languages_only(count):
    card = render(make_record(generalized=crafted(count).to_dict()))
    assert "### Sentences in two languages" in card and "| all ordered pairs |" in card
    assert ("| first \\ second | la | lb |" in card) == (count <= 8)
    assert ("is in `generalized.md`" in card) == (count > 8)


def test_a_card_without_it_says_nothing_of_it():
    assert "two languages" not in render(make_record()) and "eneralized" not in render(make_record())


@pytest.mark.parametrize(("count", "wide"), [(10, True), (11, False)])
def test_a_terminal_gets_the_matrix_or_a_line_per_language(count, wide):
    lines = crafted(count).describe().splitlines()
    assert any(line.split()[:3] == ["first", "\\", "second"] for line in lines) == wide
    assert max(map(len, lines[1:])) <= 80


REAL = pytest.mark.skipif(
    not (SHARED / "data").is_dir() or not (SHARED / "models" / "xlt-mini").is_dir(),
    reason=f"real data and models are not in {SHARED.name}/ beside the checkout (HF_XLT_SHARED names another place)",
)


@REAL
def test_real_topics_as_pairs_in_two_languages(tmp_path):
    pattern = SHARED / "data" / "topic_sib200" / "{split}.{lang}.parquet"
    assert main(["make-pairs", "--dataset", str(pattern), "--output-dir", str(tmp_path / "pairs")]) == 0
    line = (
        f"run --model {SHARED}/models/xlt-mini --dataset {tmp_path}/pairs/{{split}}.{{lang}}.parquet --max-steps 2 "
        f"--per-device-train-batch-size 8 --max-length 24 --disable-tqdm --threads 1 --save-strategy no --output-dir "
        f"{tmp_path}/out --target-languages sw,zh --generalized --generalized-languages en,sw"
    )
    assert main(line.split()) == 0
    record = RunRecord.read(tmp_path / "out")
    assert record.generalized_scores.languages == ("en", "sw") and record.generalized_scores.examples == 408
    assert all(record.generalized_scores.value(code, code) == record.scores.value(code) for code in ("en", "sw"))
    assert str(SHARED) not in (tmp_path / "out" / "xlt_run.json").read_text()


@REAL
def test_an_incomplete_language_of_a_real_set_is_refused_and_can_be_left_out(tmp_path, capsys):
    line = (
        f"run --model {SHARED}/models/xlt-mini --dataset {SHARED}/data/nli_americas/{{split}}.{{lang}}.parquet "
        "--source-languages quy --dry-run --generalized"
    )
    assert main(line.split()) == 2
    assert "(nah, test) has 735 rows and" in capsys.readouterr().err
    assert main([*line.split(), "--generalized-languages", "quy,ay,gn,shp"]) == 0
    assert "16 ordered pairs of 4 languages" in capsys.readouterr().out
