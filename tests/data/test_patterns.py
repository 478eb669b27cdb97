"""Patterns: which files fit, which names of languages are told or mapped, and what data are called."""

import os

import pytest
from tiny import make_rows, write_rows

from hf_xlt.data.patterns import (
    LanguageNames,
    expand_home,
    find_fits,
    label_of,
    looks_local,
    parse_language_map,
    shareable_pattern,
)
from hf_xlt.data.sources import make_source
from hf_xlt.errors import ConfigError


def lay(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_rows(root / path, make_rows("en", 3, 0))


@pytest.mark.parametrize(
    ("pattern", "files", "languages"),
    [
        ("{lang}/{lang}-{split}.jsonl", ["en/en-test.jsonl", "de/de-test.jsonl", "fr/de-test.jsonl"], ["de", "en"]),
        ("{split}/{lang}/{split}.jsonl", ["test/sw/test.jsonl", "train/de/test.jsonl"], ["sw"]),
        ("{lang}[v1]/{split}.jsonl", ["en[v1]/test.jsonl", "dev/test.jsonl"], ["en"]),
        ("[{lang}]/{split}.jsonl", ["[en]/test.jsonl", "e/test.jsonl"], ["en"]),
        ("a*{lang}?/{split}.jsonl", ["a*en?/test.jsonl", "abdex/test.jsonl"], ["en"]),
        ("UD_{lang}-PUD/{split}.jsonl", ["UD_de-PUD/test.jsonl", "UD_fr-GSD/test.jsonl"], ["de"]),
        ("{lang}(1)+.{split}.jsonl", ["en(1)+.test.jsonl"], ["en"]),
        (
            "{split}.{lang}.jsonl",
            ["test.en.JSONL", "test.de.jsonl", ".test.fr.jsonl", "test.en.jsonl.bak"],
            ["de", "en"],
        ),
        ("{lang}.jsonl", ["en.jsonl", ".de.jsonl"], ["en"]),
        (".{lang}.jsonl", ["en.jsonl", ".de.jsonl"], ["de"]),
        ("{split}.{lang}.jsonl", ["test.be-x-old.jsonl", "test.zh-classical.jsonl"], ["be-x-old", "zh-classical"]),
    ],
)
def test_a_pattern_stands_for_itself_but_for_its_parts(tmp_path, pattern, files, languages):
    lay(tmp_path, *files)
    source = make_source(str(tmp_path / pattern), None, "test")
    assert source.languages("test") == languages
    assert all(len(source.read(code, "test")) == 3 for code in languages)


def test_a_relative_pattern_is_sought_in_the_current_folder(tmp_path, monkeypatch):
    lay(tmp_path, "test.en.jsonl")
    monkeypatch.chdir(tmp_path)
    for pattern in ("{split}.{lang}.jsonl", "./{split}.{lang}.jsonl"):
        assert make_source(pattern, None, None).languages("test") == ["en"]


def test_links_are_followed_and_those_that_lead_nowhere_are_told(tmp_path):
    lay(tmp_path, "test.en.jsonl")
    os.symlink(tmp_path / "test.en.jsonl", tmp_path / "test.de.jsonl")
    os.symlink(tmp_path / "gone", tmp_path / "test.fr.jsonl")
    source = make_source(str(tmp_path / "{split}.{lang}.jsonl"), None, None)
    assert source.languages("test") == ["de", "en"]
    assert [line for line in source.left_out("test") if "`fr`" in line and "leads nowhere" in line]
    with pytest.raises(ConfigError, match="language `fr` has no `test` split"):
        source.read("fr", "test")


def test_names_that_are_no_codes_are_told(tmp_path):
    lay(tmp_path, *(f"{name}/test.jsonl" for name in ("indonesian", "toba_batak", "en", "all", "old data")))
    lay(tmp_path, "sw/train.jsonl")
    source = make_source(str(tmp_path / "{lang}/{split}.jsonl"), None, None)
    assert source.languages("test") == ["en"]
    strange, lacking = source.left_out("test")
    assert "`all`, `indonesian`, `old data`, `toba_batak`" in strange
    assert 'are no language codes and were not used; `language_map="indonesian=CODE"`' in strange
    assert lacking.startswith("sw in ") and "no `test` split" in lacking
    assert source.left_out("test", used=["sw"]) == [strange]
    with pytest.raises(ConfigError, match=r"language `fr` .*Languages there: en. Not taken as codes: all, indonesian"):
        source.read("fr", "test")


def test_names_of_languages_are_mapped_to_codes(tmp_path):
    names = parse_language_map(["indonesian=id, toba_batak=bbc", "simple=en"])
    lay(tmp_path, "indonesian/test.jsonl", "simple/test.jsonl", "de/test.jsonl")
    source = make_source(str(tmp_path / "{lang}/{split}.jsonl"), None, None, names)
    assert source.languages("test") == ["de", "en", "id"] and source.left_out("test") == []
    assert len(source.read("id", "test")) == 3 and names.used == {"indonesian", "simple"}
    lay(tmp_path, "id/test.jsonl")
    with pytest.raises(ConfigError, match="has both `id` and `indonesian`"):
        source.languages("test")


def test_names_in_a_column_are_told_and_mapped(tmp_path):
    write_rows(tmp_path / "all.jsonl", make_rows("German", 3, 0) + make_rows("en", 3, 0))
    assert "`German`" in make_source(str(tmp_path / "all.jsonl"), None, None).left_out("test")[0]
    source = make_source(str(tmp_path / "all.jsonl"), None, None, LanguageNames({"German": "de"}))
    assert source.languages("test") == ["de", "en"] and set(source.read("de", "test")["lang"]) == {"German"}


def test_names_of_configurations_are_told_and_mapped(tmp_path):
    folder = tmp_path / "set"
    configurations = []
    for name in ("en_en", "acehnese_acehnese", "de_en"):
        (folder / name).mkdir(parents=True)
        write_rows(folder / name / "test.jsonl", make_rows("en", 3, 0))
        configurations.append(f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test.jsonl\n")
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(configurations) + "---\n")
    assert "`acehnese`" in make_source(f"{folder}:{{lang}}_{{lang}}", None, None).left_out("test")[0]
    source = make_source(f"{folder}:{{lang}}_{{lang}}", None, None, LanguageNames({"acehnese": "ace"}))
    assert source.languages("test") == ["ace", "en"] and len(source.read("ace", "test")) == 3


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["indonesian"], "is no NAME=CODE"),
        (["=id"], "is no NAME=CODE"),
        (["a=id,a=jv"], "two codes"),
        (["a=indonesian"], "not a language code"),
    ],
)
def test_a_map_that_cannot_be_used_is_one_line(entries, message):
    with pytest.raises(ConfigError, match=message):
        parse_language_map(entries)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lay(tmp_path, "x/test.en.jsonl")
    assert make_source("~/x/{split}.{lang}.jsonl", None, None).languages("test") == ["en"]
    assert expand_home("a/~/x") == "a/~/x"


@pytest.mark.parametrize(
    ("name", "is_local"),
    [
        ("topic.txt", True),
        ("org/data.tar", True),
        ("a/b/c", True),
        ("./a", True),
        ("~/a", True),
        ("here/missing", True),
        ("notes", True),
        ("model.safetensors", True),
        ("org/name", False),
        ("xlm-roberta-base", False),
        ("org/model-v1.5", False),
        ("intfloat/e5.small", False),
    ],
)
def test_what_looks_like_a_file_is_not_sought_on_the_hub(tmp_path, monkeypatch, name, is_local):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "notes").write_text("")
    assert (looks_local(name) is not None) == is_local


@pytest.mark.parametrize("flag", ["--dataset", "--model"])
@pytest.mark.parametrize("name", ["topic.xlsx", "here/missing", "notes"])
def test_a_command_does_not_ask_the_hub_for_a_file(tmp_path, monkeypatch, capsys, flag, name):
    from hf_xlt.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "notes").write_text("")
    lay(tmp_path, "test.en.jsonl")

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.create_connection", refuse)
    others = {"--dataset": "{split}.{lang}.jsonl", "--model": "embedded-phrases", flag: name}
    assert main(["run", *(part for pair in others.items() for part in pair)]) == 2
    assert "not sought on the Hub" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("/data/NAME/{lang}/{split}.jsonl", "NAME/{lang}/{split}.jsonl"),
        ("NAME/{lang}/{split}.jsonl", "NAME/{lang}/{split}.jsonl"),
        ("/data/NAME/{lang}/{lang}-{split}.csv", "NAME/{lang}/{lang}-{split}.csv"),
        ("/data/NAME/UD_{lang}/x/{split}.csv", "NAME/UD_{lang}/x/{split}.csv"),
        ("/home/alice/{lang}/{split}.csv", "{lang}/{split}.csv"),
        ("../{lang}/{split}.csv", "{lang}/{split}.csv"),
        ("{lang}/{split}.csv", "{lang}/{split}.csv"),
    ],
)
def test_the_name_of_the_data_stays_where_parts_are_folders(pattern, told):
    assert shareable_pattern(pattern) == told


@pytest.mark.parametrize(
    ("place", "label"),
    [
        ("topic/{split}.{lang}.parquet", "topic"),
        ("NAME/{lang}/{split}.jsonl", "NAME"),
        ("topic/a.{lang}.csv", "topic-a"),
        ("topic/{split}.{lang}.jsonl.gz", "topic"),
        ("{lang}/{split}.csv", "data"),
        ("org/name", "org-name"),
        ("org/name:sent_{lang}", "org-name-sent"),
        ("hf-xlt-cldr-phrases", "hf-xlt-cldr-phrases"),
    ],
)
def test_evaluation_folders_are_called_as_the_data(place, label):
    assert label_of(place) == label


def test_only_whole_names_fit(tmp_path):
    lay(tmp_path, "a/test.jsonl", "b/c/test.jsonl")
    assert [fit.parts["lang"] for fit in find_fits(str(tmp_path / "{lang}/test.jsonl"), {})] == ["a"]


def test_text_and_parallel_sentences_take_the_map_too(tmp_path, capsys):
    from hf_xlt.data.parallel import read_parallel
    from hf_xlt.make_pairs import Recipe, read_splits
    from hf_xlt.pretraining.loading import source_languages
    from hf_xlt.pretraining.plan import make_source as plan_source
    from hf_xlt.pretraining.texts import read_texts

    lay(
        tmp_path,
        *(f"{name}/{split}.jsonl" for name in ("indonesian", "en", "odd name") for split in ("train", "test")),
    )
    pattern, told = str(tmp_path / "{lang}/{split}.jsonl"), []
    texts = read_texts([pattern], language_map=["indonesian=id"], tell=told.append)
    assert list(texts) == ["en", "id"] and len(told) == 1 and "`odd name`" in told[0]
    _, sets = read_parallel(pattern, "test", pair_column="text", language_map=["indonesian=id"])
    assert [entry.language for entry in sets] == ["en", "id"]
    source = plan_source({"text": pattern, "language_map": {"indonesian": "id"}}, "plan")
    assert source_languages(source)[1] == ["en", "id"] and "`odd name`" in capsys.readouterr().err
    recipe = Recipe(pattern, splits=("test",), language_map=("indonesian=fr",))
    with pytest.raises(ConfigError, match=r"pair|sentences"):
        # Three sentences are too few for pairs; the languages were found.
        read_splits(recipe)


def test_pairs_of_two_splits_are_not_made_of_one_set(tmp_path):
    from hf_xlt.make_pairs import Recipe, read_splits

    lay(tmp_path, "en.jsonl", "de.jsonl")
    with pytest.raises(ConfigError, match="single set, used as `test`"):
        read_splits(Recipe(str(tmp_path / "{lang}.jsonl"), splits=("train", "test")))


def test_streamed_text_is_that_of_the_split_in_a_column(tmp_path):
    from hf_xlt.pretraining.loading import _open_stream
    from hf_xlt.pretraining.plan import Source

    write_rows(tmp_path / "en.jsonl", [{"text": split, "split": split} for split in ("train", "test", "train")])
    pattern = str(tmp_path / "{lang}.jsonl")
    opened = make_source(pattern, None, "train")
    assert [row["text"] for row in _open_stream(opened, Source(pattern, streaming=True), "en")] == ["train"] * 2
