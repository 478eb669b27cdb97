"""`make-pairs`: parallel files, the same bytes for the same seed, one side at chance, and clear refusals."""

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import save_encoder, write_rows

from hf_xlt.cli.main import main
from hf_xlt.record import RunRecord

SHARED = Path(os.environ.get("HF_XLT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
TOPICS = ("sport", "law", "food")
LANGUAGES = ("en", "de", "sw")
SIZES = {"train": 40, "validation": 15, "test": 20}


def sentences(language, split, count):
    """Sentences whose words tell topic, language and id; ids and topics are parallel."""
    shift = 20 * LANGUAGES.index(language)
    return [
        {
            "id": f"{split}{number}",
            "text": f"w{shift + number % 20} w{number % 3} w{shift + number // 20}",
            "label": number % 3,
            "label_text": TOPICS[number % 3],
        }
        for number in range(count)
    ]


def write_sentences(folder, changed=None):
    folder.mkdir(exist_ok=True)
    for language in LANGUAGES:
        for split, count in SIZES.items():
            rows = (changed or {}).get((split, language), sentences(language, split, count))
            write_rows(folder / f"{split}.{language}.jsonl", rows)
    return str(folder / "{split}.{lang}.jsonl")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Parallel sentences, and pairs made of them."""
    root = tmp_path_factory.mktemp("pairs")
    pattern = write_sentences(root / "topics")
    assert (
        main(["make-pairs", "--dataset", pattern, "--output-dir", str(root / "made"), "--pairs-per-sentence", "4"])
        == 0
    )
    return root


def read(folder, split, language):
    return pq.read_table(folder / f"{split}.{language}.parquet").to_pylist()


def test_training_splits_are_in_the_source_language_and_the_test_in_all(world):
    names = {path.name for path in (world / "made").iterdir()}
    parquet = {"train.en.parquet", "validation.en.parquet", *(f"test.{code}.parquet" for code in LANGUAGES)}
    assert names == parquet | {"README.md", "pairs.json"}
    for split, count in SIZES.items():
        rows = read(world / "made", split, "en")
        assert len(rows) == 4 * count and list(rows[0]) == ["id", "sentence1", "sentence2", "label", "label_text"]
        assert Counter((row["label"], row["label_text"]) for row in rows) == {
            (0, "different"): 2 * count,
            (1, "same"): 2 * count,
        }


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_pair_holds_the_sentences_of_its_ids_and_tells_whether_their_labels_are_equal(world, language):
    given = {row["id"]: row for row in sentences(language, "test", SIZES["test"])}
    for row in read(world / "made", "test", language):
        one, two = (given[part] for part in row["id"].split("|"))
        assert (row["sentence1"], row["sentence2"]) == (one["text"], two["text"])
        assert row["label"] == (one["label"] == two["label"])


def test_pairs_are_parallel_across_languages(world):
    first, *others = ([(row["id"], row["label"]) for row in read(world / "made", "test", code)] for code in LANGUAGES)
    assert all(other == first for other in others) and len({identifier for identifier, _ in first}) == len(first)


@pytest.mark.parametrize("split", SIZES)
def test_who_sees_one_sentence_is_at_chance(world, split):
    rows = read(world / "made", split, "en")
    for side in ("sentence1", "sentence2"):
        seen = defaultdict(list)
        for row in rows:
            seen[row[side]].append(row["label"])
        # The best guess from one sentence, which knows the answers, is right half of the time.
        assert sum(max(labels.count(0), labels.count(1)) for labels in seen.values()) == len(rows) / 2


def make(world, out, *more, data="topics"):
    pattern = str(world / data / "{split}.{lang}.jsonl")
    return main(["make-pairs", "--dataset", pattern, "--output-dir", str(out), *more])


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes_whatever_the_order_of_rows(world, tmp_path):
    write_sentences(
        world / "shuffled", {("test", code): sentences(code, "test", SIZES["test"])[::-1] for code in LANGUAGES}
    )
    assert make(world, tmp_path / "one") == 0 == make(world, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert make(world, tmp_path / "three", data="shuffled") == 0 == make(world, tmp_path / "four", "--seed", "1")
    one, three, four = (
        {name: content for name, content in contents(tmp_path / name).items() if name.endswith("parquet")}
        for name in ("one", "three", "four")
    )
    assert one == three and all(one[name] != four[name] for name in one)


def test_only_ids_that_all_languages_have_are_used_and_that_is_said(world, tmp_path, capsys):
    write_sentences(world / "fewer", {("test", "sw"): sentences("sw", "test", SIZES["test"])[:-2]})
    assert make(world, tmp_path / "out", data="fewer") == 0
    said = capsys.readouterr().out
    assert "left out: 2 sentences of en, 2 sentences of de." in said and "Target split in en, de, sw" in said
    assert not any("test19" in row["id"] for code in LANGUAGES for row in read(tmp_path / "out", "test", code))
    assert len(read(tmp_path / "out", "test", "en")) == 36


def test_numbers_by_split_languages_and_columns(world, tmp_path):
    (world / "other").mkdir()
    for code in LANGUAGES:
        rows = [
            {"key": row["id"], "sentence": row["text"], "topic": row["label_text"]}
            for row in sentences(code, "dev", 12)
        ]
        lines = ["key,sentence,topic", *(",".join(row.values()) for row in rows)]
        (world / "other" / f"dev.{code}.csv").write_text("\n".join(lines) + "\n")
    line = (
        f"make-pairs --dataset {world}/other/{{split}}.{{lang}}.csv --output-dir {tmp_path}/out --splits dev "
        "--target-split dev --pairs-per-sentence dev=2 --source-languages de --languages sw --id-column key "
        "--text-column sentence --label-column topic"
    )
    assert main(line.split()) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.parquet")} == {"dev.de.parquet", "dev.sw.parquet"}
    assert len(read(tmp_path / "out", "dev", "sw")) == 24


def test_manifest_and_readme_tell_the_source_and_nothing_of_the_machine(world):
    text = (world / "made" / "pairs.json").read_text() + (world / "made" / "README.md").read_text()
    assert str(world) not in text and "/tmp" not in text
    manifest = json.loads((world / "made" / "pairs.json").read_text())
    assert manifest["source"] == "topics/{split}.{lang}.jsonl" and manifest["seed"] == 0
    assert manifest["splits"]["test"]["sentences_by_label"] == {"food": 6, "law": 7, "sport": 7}
    assert manifest["splits"]["train"]["pairs"] == 160 and manifest["pairs_per_sentence"]["train"] == 4
    assert "stay under its licence" in text and "SIB-200" not in text


def test_what_is_there_is_replaced_only_when_asked(world, tmp_path, capsys):
    assert make(world, tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    assert make(world, tmp_path / "out", "--seed", "1") == 2
    assert "holds pairs already; add `--overwrite`" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "mine.parquet").write_text("mine")
    assert make(world, tmp_path / "out", "--seed", "1", "--languages", "de", "--overwrite") == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == (tmp_path / "out" / "mine.parquet").read_text() == "mine"
    assert "test.sw.parquet" not in contents(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_something_else_is_left_alone(world, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert make(world, tmp_path, "--overwrite") == 2
    assert "holds no pairs of hf-xlt, so it is left alone" in capsys.readouterr().err
    assert make(world, tmp_path / "thesis.txt") == 2
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_error_while_writing_leaves_what_was_there(world, tmp_path, monkeypatch):
    assert make(world, tmp_path / "out") == 0
    before = contents(tmp_path / "out")

    def fail(path, columns):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("hf_xlt.make_pairs._write_table", fail)
    assert make(world, tmp_path / "out", "--seed", "1", "--overwrite") == 1
    assert contents(tmp_path / "out") == before and [path.name for path in tmp_path.iterdir()] == ["out"]


TEST = sentences("sw", "test", SIZES["test"])
BAD = {
    "unknown language": ("--languages de,sv", {}, "language `sv` has no `test` split"),
    "no such split": ("--splits train,dev,test", {}, "language `en` has no `dev` split"),
    "target split not made": ("--splits train", {}, "lacks `test`, the split of all languages"),
    "number of another split": ("--pairs-per-sentence dev=2", {}, "names the split `dev`"),
    "no number": ("--pairs-per-sentence many", {}, "give an even number, or one by split"),
    "odd number": ("--pairs-per-sentence 3", {}, "give an even number from 2 on"),
    "too many": ("--pairs-per-sentence test=8", {}, "test): `food` has 6 sentences, enough for 4 pairs"),
    "no text column": ("--text-column sentence", {}, "must contain a `sentence` column"),
    "no label column": ("--label-column topic", {}, "must contain a `topic` column"),
    "no id column": ("--id-column key", {}, "must contain a `key` column, by which languages are joined"),
    "id twice": ("", {("test", "sw"): TEST[:-1] + TEST[:1]}, "(sw, test): column `id` holds 1 id more than once"),
    "label differs": (
        "",
        {("test", "sw"): [{**TEST[0], "label_text": "law"}, *TEST[1:]]},
        "(sw, test): the label of 1 id is not that in",
    ),
    "no text": (
        "",
        {("test", "sw"): [{**TEST[0], "text": " "}, *TEST[1:]]},
        "(sw, test), row 0: column `text` holds ' '",
    ),
    "bar in an id": (
        "",
        {("train", "en"): [{**row, "id": f"a|{row['id']}"} for row in sentences("en", "train", 40)]},
        "holds `|`, which joins the ids",
    ),
    "no shared id": (
        "",
        {("test", "sw"): [{**row, "id": f"x{row['id']}"} for row in TEST]},
        "no id is in all of en, de, sw",
    ),
    "no file": ("--target-split trial --splits trial", {}, "no language has a `trial` split"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(name, tmp_path, capsys):
    more, changed, expected = BAD[name]
    write_sentences(tmp_path / "topics", changed)
    assert make(tmp_path, tmp_path / "out", *more.split()) == 2
    err = capsys.readouterr().err
    assert expected in err and len(err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["topics"]


def test_made_pairs_are_trained_on_and_scored_in_every_pair_of_languages(world, tmp_path, capsys):
    save_encoder(tmp_path / "encoder")
    line = (
        f"run --model {tmp_path}/encoder --output-dir {tmp_path}/out "
        f"--dataset {world}/made/{{split}}.{{lang}}.parquet --max-steps 2 "
        "--disable-tqdm --threads 1 --save-strategy no --generalized"
    )
    assert main(line.split()) == 0
    record = RunRecord.read(tmp_path / "out")
    assert record.labels == ["different", "same"]
    assert record.generalized_scores.count("all") == 9 and record.generalized_scores.examples == 80
    assert "Generalized setting" in capsys.readouterr().out


@pytest.mark.skipif(
    not (SHARED / "data" / "topic_sib200").is_dir(),
    reason=f"real data are not in {SHARED.name}/ beside the checkout (HF_XLT_SHARED names another place)",
)
def test_real_topics_give_balanced_pairs_in_every_language(tmp_path):
    pattern = SHARED / "data" / "topic_sib200" / "{split}.{lang}.parquet"
    assert main(["make-pairs", "--dataset", str(pattern), "--output-dir", str(tmp_path / "out")]) == 0
    tests = {path.name: pq.read_table(path, columns=["id", "label"]) for path in (tmp_path / "out").glob("test.*")}
    first = tests["test.en.parquet"]
    assert len(tests) == 44 and first.num_rows == 408 and sum(first["label"].to_pylist()) == 204
    assert all(table.equals(first) for table in tests.values())
    topics = {
        row["id"]: row["label"] for row in pq.read_table(str(pattern).format(split="test", lang="sw")).to_pylist()
    }
    sides = Counter()
    for identifier, label in zip(first["id"].to_pylist(), first["label"].to_pylist(), strict=True):
        one, two = identifier.split("|")
        assert label == (topics[one] == topics[two])
        sides.update([(0, topics[one], label), (1, topics[two], label)])
    assert all(sides[side, topic, 0] == sides[side, topic, 1] for side in (0, 1) for topic in set(topics.values()))
    assert "CC BY-SA 4.0" in (tmp_path / "out" / "README.md").read_text()
