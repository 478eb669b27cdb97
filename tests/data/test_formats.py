"""Text files as people have them: what could lose a row is an error that names the line."""

import gzip
import json

import pytest

from hf_xlt.cli.main import main
from hf_xlt.data.formats import inspect_file, read_file
from hf_xlt.errors import ConfigError


@pytest.fixture
def read(tmp_path):
    """Write a file and read it."""

    def through(name, content, encoding="utf-8"):
        path = tmp_path / name
        data = content.encode(encoding) if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        assert inspect_file(path)[:2] == (tuple(read_file(path).column_names), len(read_file(path)))
        return read_file(path)[:]

    return through


def test_texts_and_labels_are_read_as_they_are_written(read):
    content = "text,label\n01,true\n123,False\n2020-01-01,1.0\n,NA\n"
    expected = {"text": ["01", "123", "2020-01-01", ""], "label": ["true", "False", "1.0", "NA"]}
    assert read("a.csv", content) == read("a.tsv", content.replace(",", "\t")) == expected
    lines = [{"text": "2020-01-01", "tokens": ["2020-01-01T10:00:00"]}, {"text": "2021-01-01", "tokens": []}]
    assert read("a.jsonl", "\n".join(map(json.dumps, lines)))["text"] == ["2020-01-01", "2021-01-01"]
    assert read("b.jsonl", "\n".join(map(json.dumps, lines)))["tokens"] == [["2020-01-01T10:00:00"], []]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quoted_line_breaks_delimiters_and_marks_keep_working(read, end):
    content = end.join(["text,label", '"one, two', 'three ""four"" five",good', "x,bad", "", '"6",good', ""])
    expected = {"text": [f'one, two{end}three "four" five', "x", "6"], "label": ["good", "bad", "good"]}
    assert read("a.csv", content) == expected
    assert (
        read("a.tsv", content.replace(",good", "\tgood").replace(",bad", "\tbad").replace("t,l", "t\tl")) == expected
    )
    assert read("one.csv", end.join(["text", '"one', 'two"', "three"]))["text"] == [f"one{end}two", "three"]
    assert read("u.tsv", "text\tlabel\na\u2028b\tgood\n")["text"] == ["a\u2028b"]


def test_a_tsv_without_quotation_keeps_every_row_and_says_so(read, tmp_path):
    rows = ['"mies mies\tbad', "toll\tgood", '"prima" sagt er\tgood', 'nur ein " hier\tbad', '"ganz"\tgood']
    found = read("a.tsv", "\n".join(["text\tlabel", *rows]))
    assert found["text"] == ['"mies mies', "toll", '"prima" sagt er', 'nur ein " hier', '"ganz"']
    assert found["label"] == ["bad", "good", "good", "bad", "good"]
    assert inspect_file(tmp_path / "a.tsv").note.startswith("quotation marks are taken as text")
    read("b.tsv", 'text\tlabel\n"a"\tb\n')
    assert inspect_file(tmp_path / "b.tsv").note is None


SWALLOWED = 'text,label\nfroh,good\n"mies,bad\ntoll,good\nprima",good\nübel,bad\n'
BAD = {
    "swallowed rows": ("a.csv", SWALLOWED, r"line 3: the quotation mark .* closed on line 5 only, and the 3 lines"),
    "never closed": (
        "a.csv",
        'text,label\nx,y\n"abc,bad\nx,y\n',
        r"line 3: a quotation mark is opened and never closed",
    ),
    "text behind": ("a.csv", 'text,label\n"abc"d,bad\n', r"line 2: text follows a closing quotation mark"),
    "text behind in tsv": ("a.tsv", 'text\tlabel\n"a\nb" c\tbad\n', r"text follows a closing quotation mark"),
    "too many": ("a.csv", 'text,label\n"a\nb",c\nx,y,z\n', r"line 4: 3 fields, but the header names 2 columns"),
    "too few": ("a.tsv", "text\tlabel\nx\n", r"line 2: 1 field, but the header names 2 columns"),
    "a column twice": ("a.csv", "text,label,label\nx,y,z\n", r"has the column `label` 2 times"),
    "not UTF-8": (
        "a.csv",
        "text,label\nx,y\nübel,y\n".encode("cp1252"),
        r"not UTF-8: line 3, byte 15 of the file is 0xfc",
    ),
    "not UTF-8 json": ("a.jsonl", '{"text": "übel"}'.encode("latin-1"), r"not UTF-8: line 1, byte 10"),
    "cut gzip": ("a.csv.gz", None, "cannot be read as csv"),
    "running text": (
        "a.txt",
        "just a text\nwith lines\n",
        r"line 2: 2 columns, where a word and its tag are expected",
    ),
    "no conllu": ("a.conllu", "1\tA\tB\n", r"line 1: 3 fields between tabs, where CoNLL-U has 10"),
    "withheld text": ("a.conllu", "1\t_\t_\tNOUN\t_\t_\t0\troot\t_\t_\n", r"its text is withheld"),
    "blank lines count": ("a.csv", 'text,label\n\nx,y\n"p, q",r\n\nz\n', r"line 6: 1 field, but the header"),
    "blank": ("a.csv", "\n\n", "the file is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_could_lose_a_row_is_an_error_with_its_place(read, tmp_path, case):
    name, content, message = BAD[case]
    if content is None:
        (tmp_path / name).write_bytes(gzip.compress(b"text,label\nx,y\n" * 100)[:-10])
        with pytest.raises(ConfigError, match=message):
            read_file(tmp_path / name)
        return
    with pytest.raises(ConfigError, match=message):
        read(name, content)


def test_a_byte_order_mark_is_skipped_everywhere(read):
    expected = {"text": ["x"], "label": ["y"]}
    for name, content in {
        "a.csv": "text,label\nx,y\n",
        "a.tsv": "text\tlabel\nx\ty\n",
        "a.json": '[{"text": "x", "label": "y"}]',
        "a.jsonl": '{"text": "x", "label": "y"}\n',
    }.items():
        assert read(name, content, "utf-8-sig") == expected == read(f"b{name[1:]}.gz", content)


def test_rows_of_megabytes_are_read(read):
    long = "word " * 600_000
    rows = [{"text": text} for text in ("short", long, "short")]
    assert read("a.jsonl", "\n".join(map(json.dumps, rows)))["text"] == ["short", long, "short"]
    assert read("a.csv", "\n".join(["text", "short", long, "short"]))["text"] == ["short", long, "short"]


def test_words_in_columns_as_their_authors_ship_them(read):
    masakhaner = "-DOCSTART- O\n\nEmir B-PER\nof O\n# O\n\n\nKano B-LOC\n"
    expected = {"tokens": [["Emir", "of", "#"], ["Kano"]], "tags": [["B-PER", "O", "O"], ["B-LOC"]]}
    assert read("train.txt", masakhaner) == read("train.conll", masakhaner.replace(" ", "\t")) == expected
    uner = "# text = Emir of #\n1\tEmir\tB-PER\t-\ta\n2\tof\tO\t-\ta\n3\t#\tO\t-\ta\n\n1\tKano\tB-LOC\t-\ta\n"
    assert read("train.iob2", uner) == expected
    conll2003 = "-DOCSTART- -X- -X- O\n\nEmir NNP B-NP B-PER\nof IN B-PP O\n# SYM O O\n\nKano NNP B-NP B-LOC\n"
    assert read("eng.txt", conll2003) == expected
    ranges = uner.replace("1\tEmir", "1-2\tEmirof\t_\t-\ta\n1\tEmir")
    assert read("ranges.iob2", ranges) == expected
    assert read("blank.txt", "a\u00a0b B-PER\n\u2028 O\n")["tokens"] == [["a\u00a0b", "\u2028"]]
    assert read("between.txt", "a O\n-DOCSTART- O\nb O\n")["tokens"] == [["a"], ["b"]]


def test_universal_dependencies_are_read_as_syntactic_words(read):
    def line(number, word, tag):
        return "\t".join([number, word, word.lower(), tag, "X", "_", "0", "root", "_", "_"])

    words = [line("1-2", "Zum", "_"), line("1", "Zu", "ADP"), line("2", "dem", "DET"), line("2.1", "geht", "VERB")]
    content = "\n".join(
        [
            "# newdoc",
            "# sent_id = w-1",
            "# text = Zum #1",
            *words,
            line("3", "#1", "NUM"),
            "",
            line("1", "Ja", "INTJ"),
            "",
        ]
    )
    found = read("de-ud-test.conllu", content)
    assert found["tokens"] == [["Zu", "dem", "#1"], ["Ja"]] and found["tags"] == [["ADP", "DET", "NUM"], ["INTJ"]]
    assert found["upos"] == found["tags"] and found["xpos"] == [["X"] * 3, ["X"]] and found["id"] == ["w-1", None]
    assert read("a.conllu.gz", content) == found and found["lemmas"][0] == ["zu", "dem", "#1"]


def test_questions_as_squad_nests_them(read):
    answers = [{"text": "dort", "answer_start": 4}]
    asked = {"paragraphs": [{"context": "Hier dort", "qas": [{"id": 7, "question": "Wo?", "answers": answers}]}]}
    found = read("xquad.de.json", json.dumps({"version": "1.1", "data": [asked]}))
    assert (found["id"], found["question"], found["context"]) == (["7"], ["Wo?"], ["Hier dort"])
    assert found["answers"] == [{"text": ["dort"], "answer_start": [4]}]


def test_a_file_of_another_encoding_is_told_before_training(tmp_path, capsys):
    for language, encoding in (("en", "utf-8"), ("de", "cp1252")):
        for split in ("train", "test"):
            rows = "".join(f"{word},{label}\n" for word, label in (("übel", "bad"), ("schön", "good")) * 4)
            (tmp_path / f"{split}.{language}.csv").write_bytes(f"text,label\n{rows}".encode(encoding))
    line = f"run --model embedded-phrases --dataset {tmp_path}/{{split}}.{{lang}}.csv --output-dir {tmp_path}/out"
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert "test.de.csv` is not UTF-8: line 2" in err and err.count("\n") == 1 and not (tmp_path / "out").exists()
