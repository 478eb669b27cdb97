"""The manifest: true counts up to a number of documents, estimates above it, and languages that do not fit."""

import json

import pytest
import typer
from tiny import make_tokenizer, write_rows

from hf_xlt.cli import lang_stats
from hf_xlt.errors import ConfigError, as_flags
from hf_xlt.pretraining.statistics import manifest, measure, tokenizer_hash
from hf_xlt.pretraining.texts import LanguageText


def text(count, words="w1 w2 w3"):
    return LanguageText("en", ("toy", "more"), tuple(f"{words} w{index % 60}" for index in range(count)))


def test_small_text_is_counted():
    found = measure(text(30), make_tokenizer(), documents=30)
    assert (found.rows, found.tokens, found.estimated, found.unknown_share) == (30, 120, False, 0.0)
    assert found.bytes == sum(len(document) for document in text(30).documents)
    assert found.tokens_per_byte == 120 / found.bytes


def test_large_text_is_sampled_and_multiplied():
    tokenizer, whole = make_tokenizer(), text(3000)
    found = measure(whole, tokenizer, documents=200)
    assert found.estimated and found.rows == 3000 and found.bytes == whole.size
    assert found.tokens == pytest.approx(12_000, rel=0.01)
    assert found == measure(whole, tokenizer, documents=200)
    assert measure(text(200), tokenizer, documents=200).estimated is False


def test_unknown_tokens_and_bytes_are_told_apart():
    found = measure(LanguageText("zh", ("toy",), ("w1 日 w2 月",)), make_tokenizer())
    assert (found.unknown_share, found.byte_share, found.bytes) == (0.5, 0.0, 13)


def test_the_hash_is_of_the_tokenizer_and_not_of_its_last_call(tmp_path):
    tokenizer = make_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer(["w1 w2", "w1"], truncation=True, max_length=3, padding="max_length")
    assert tokenizer_hash(tokenizer) == before and len(before) == 64
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(type(tokenizer).from_pretrained(tmp_path)) == before
    tokenizer.add_tokens(["w60"])
    assert tokenizer_hash(tokenizer) != before


def test_the_manifest_holds_what_the_specification_asks_for():
    tokenizer = make_tokenizer()
    content = manifest({"en": measure(text(3), tokenizer)}, tokenizer, "tiny")
    assert content["tokenizer"] == {"name": "tiny", "hash": tokenizer_hash(tokenizer)}
    (entry,) = content["languages"]
    assert entry["code"] == "en" and entry["source"] == "toy, more" and entry["estimated"] is False
    assert {"rows", "tokens", "bytes", "tokens_per_byte"} <= set(entry)


def invoke(line):
    app = typer.Typer()
    lang_stats.register(app)
    app(line.split(), standalone_mode=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("stats")
    make_tokenizer().save_pretrained(root / "tokenizer")
    (root / "text").mkdir()
    write_rows(root / "text" / "en.jsonl", [{"text": document} for document in text(90).documents])
    write_rows(root / "text" / "zh.jsonl", [{"text": "日 月 w1"}] * 10)
    (root / "there.json").write_text("mine")
    (root / "manifest.json").write_text('{"format_version": 1, "tokenizer": {}, "languages": []}')
    return root


GOOD = "--text text/{lang}.jsonl --tokenizer tokenizer"


def test_the_command_writes_the_manifest_and_warns(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(world)
    invoke(f"{GOOD} -o {tmp_path}/made/languages.json --alpha 0.5 --sample-documents 50")
    captured = capsys.readouterr()
    assert "~" in captured.out and "Shares at alpha 0.5" in captured.out
    assert "language `zh`: 66.7% of its tokens are unknown" in captured.err and "`en`" not in captured.err
    written = (tmp_path / "made" / "languages.json").read_text()
    assert str(world.parent) not in written and str(world) not in captured.out
    entries = {entry["code"]: entry for entry in json.loads(written)["languages"]}
    assert entries["zh"]["rows"] == 10 and entries["zh"]["tokens"] == 30 and entries["en"]["estimated"]
    assert entries["en"]["source"] == "text/{lang}.jsonl"
    assert json.loads(written)["tokenizer"]["name"] == "tokenizer"


def test_json_is_printed_alone(world, capsys, monkeypatch):
    monkeypatch.chdir(world)
    invoke(f"{GOOD} --languages en --json")
    assert [entry["code"] for entry in json.loads(capsys.readouterr().out)["languages"]] == ["en"]


BAD = {
    "missing tokenizer": ("--text text/{lang}.jsonl --tokenizer ./none", "tokenizer directory `./none` is missing"),
    "no tokenizer there": ("--text text/{lang}.jsonl --tokenizer text", "`text`"),
    "missing files": ("--text none/{lang}.jsonl --tokenizer tokenizer", "no file fits"),
    "unknown language": (f"{GOOD} --languages fr", "language `fr` has no text in `--text`"),
    "missing column": (f"{GOOD} --text-column body", "must contain a `body` column"),
    "negative alpha": (f"{GOOD} --alpha -0.1", "`alpha` is -0.1"),
    "no documents": (f"{GOOD} --sample-documents 0", "`--sample-documents` is 0"),
    "output there": (f"{GOOD} -o manifest.json", "Add `--overwrite`"),
    "output in a file": (f"{GOOD} -o there.json/languages.json", "is a file; give a directory"),
    "output of another": (f"{GOOD} -o there.json", "left alone"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name, world, monkeypatch):
    monkeypatch.chdir(world)
    line, message = BAD[name]
    with pytest.raises(ConfigError) as caught, as_flags():
        invoke(line)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert (world / "there.json").read_text() == "mine"
