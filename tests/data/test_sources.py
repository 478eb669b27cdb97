"""Where data lie and how they are read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, concatenate_datasets, load_dataset
from tiny import make_rows, write_data, write_rows

from hf_xlt.data.sources import (
    ColumnSource,
    EmbeddedSource,
    FileSource,
    HubSource,
    make_source,
    shareable_pattern,
)
from hf_xlt.data.tables import hash_rows
from hf_xlt.errors import ConfigError


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "csv", "tsv"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    import csv
    import json

    rows = [{"text": 'a "quoted", text', "label": 1}, {"text": "zweite\nZeile", "label": 0}]
    path = tmp_path / f"train.en.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "jsonl":
        write_rows(path, rows)
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter="," if suffix == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    source = make_source(str(tmp_path / f"{{split}}.{{lang}}.{suffix}"), None, None)
    # Text files have no types: what is a number is for the one who reads it to say.
    typed = suffix in ("csv", "tsv")
    expected = [{**row, "label": str(row["label"])} for row in rows] if typed else rows
    assert source.read("en", "train").to_list() == expected
    assert source.inspect("en", "train").rows == 2


def test_languages_are_read_off_file_names(tmp_path):
    pattern = write_data(tmp_path / "a.b [x]")
    source = make_source(pattern, None, None)
    assert isinstance(source, FileSource)
    for other in ("all", "combined", "de.old"):
        (tmp_path / "a.b [x]" / f"test.{other}.jsonl").write_text("{}")
    assert source.languages("test") == ["de", "en", "sw", "zh"] and source.languages("none") == []


def test_inspecting_parquet_reads_no_rows(tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "test.en.parquet")
    monkeypatch.setattr(pq, "ParquetFile", None)
    shape = make_source(str(tmp_path / "test.{lang}.parquet"), None, None).inspect("en", "test")
    assert (shape.columns, shape.rows) == (("text", "label"), 2)


def test_a_language_column_selects_rows(tmp_path):
    write_rows(tmp_path / "all.jsonl", make_rows("en", 5, 0) + make_rows("de", 7, 0))
    source = make_source(str(tmp_path / "all.jsonl"), None, "train")
    assert isinstance(source, ColumnSource)
    assert source.languages("train") == ["de", "en"]
    assert set(source.read("de", "train")["lang"]) == {"de"} and source.inspect("de", "train").rows == 7
    with pytest.raises(ConfigError, match=r"language `fr` does not occur in column `lang`.*Languages there: de, en"):
        source.read("fr", "train")


def test_a_split_column_selects_rows(tmp_path):
    rows = [{**row, "split": split} for split in ("train", "test") for row in make_rows("en", 4, 0)]
    write_rows(tmp_path / "all.jsonl", rows)
    source = make_source(str(tmp_path / "all.jsonl"), "lang", "train")
    assert source.inspect("en", "test").rows == 4


def test_a_folder_with_configurations_by_language_is_read_like_a_hub_data_set(tmp_path):
    folder = tmp_path / "set"
    configurations = []
    for language in ("en", "de"):
        (folder / language).mkdir(parents=True)
        write_rows(folder / language / "test.jsonl", make_rows(language, 6, 0))
        configurations.append(
            f"- config_name: topic_{language}\n  data_files:\n  - split: test\n    path: {language}/test.jsonl\n"
        )
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(configurations) + "---\n")
    source = make_source(f"{folder}:topic_{{lang}}", None, None)
    assert isinstance(source, HubSource) and source.hub_id is None
    assert source.languages("test") == ["de", "en"]
    assert source.read("de", "test")[0]["lang"] == "de"
    with pytest.raises(ConfigError, match=r"language `ed` is no configuration of .*Languages there: de, en"):
        source.read("ed", "test")


def test_a_hub_id_with_a_language_column(monkeypatch):
    import datasets

    asked = []

    def load_dataset(path, configuration, split):
        asked.append((path, configuration, split))
        return datasets.Dataset.from_list(make_rows("en", 3, 0) + make_rows("sw", 4, 0))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = make_source("org/name", "lang", None)
    assert source.languages("test") == ["en", "sw"] and len(source.read("sw", "test")) == 4
    assert asked == [("org/name", None, "test")] and source.hub_id == "org/name"


def test_a_hub_data_set_that_cannot_be_had_is_one_clear_error(monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ConfigError, match="data set `org/name`, split `test`, cannot be loaded: no network"):
        make_source("org/name", None, None).languages("test")


def test_the_embedded_task_is_a_source():
    source = make_source("embedded", None, None)
    assert isinstance(source, EmbeddedSource) and "sw" in source.languages("test")
    assert source.inspect("sw", "test").rows == 1000 == len(source.read("sw", "test"))
    with pytest.raises(ConfigError, match="has no language `xx`"):
        source.inspect("xx", "test")


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("/data/topic/{split}.{lang}.parquet", "topic/{split}.{lang}.parquet"),
        ("topic/{split}.{lang}.parquet", "topic/{split}.{lang}.parquet"),
        ("/home/alice/{split}.{lang}.csv", "{split}.{lang}.csv"),
        ("/Users/alice/x.csv", "x.csv"),
        ("x.csv", "x.csv"),
    ],
)
def test_what_is_told_of_a_pattern_names_the_data_and_nobody(pattern, told):
    assert shareable_pattern(pattern) == told


def test_the_fingerprint_follows_the_content(tmp_path):
    source = make_source(str(tmp_path / "{lang}.jsonl"), None, None)
    write_rows(tmp_path / "en.jsonl", make_rows("en", 3, 0))
    before = source.fingerprint("en", "train")
    assert before == source.fingerprint("en", "train")
    write_rows(tmp_path / "en.jsonl", make_rows("en", 3, 1))
    assert before != source.fingerprint("en", "train")


def test_rows_are_hashed_alike_wherever_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_xlt.data.tables._HASHED", 7)
    rows = [{"text": f"t{n}" if n % 5 else None, "label": n % 3, "tags": ["a", "b"][: n % 3]} for n in range(40)]
    table = Dataset.from_list(rows)
    halves = concatenate_datasets([Dataset.from_list(rows[:13]), Dataset.from_list(rows[13:])])
    table.to_parquet(tmp_path / "x.parquet", batch_size=9)
    stored = load_dataset("parquet", data_files=str(tmp_path / "x.parquet"), split="train", cache_dir=str(tmp_path))
    turned = Dataset.from_list(rows[::-1]).select(range(39, -1, -1))
    assert {hash_rows(other) for other in (halves, stored, turned)} == {hash_rows(table)}
    for other in (rows[:39], [{**rows[0], "label": 1}, *rows[1:]], [{"txt": row["text"], **row} for row in rows]):
        assert hash_rows(Dataset.from_list(other)) != hash_rows(table)


def test_data_of_a_folder_or_the_hub_are_known_by_their_rows(tmp_path):
    prints = []
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "train.jsonl", make_rows("en", 12, seed))
        configuration = "configs:\n- config_name: en\n  data_files:\n  - split: train\n    path: train.jsonl\n"
        (tmp_path / name / "README.md").write_text(f"---\n{configuration}---\n")
        prints.append(HubSource(f"{tmp_path / name}:{{lang}}").fingerprint("en", "train"))
    assert prints[0] == prints[1] != prints[2]
