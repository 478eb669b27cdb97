"""Sentences with a word on each line: CoNLL-U, and the columns of CoNLL-2003, MasakhaNER and Universal NER."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hf_xlt.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

# The fields of CoNLL-U after the number of the word (universaldependencies.org/format).
_FIELDS = ("tokens", "lemmas", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_KEPT = ("tokens", "lemmas", "upos", "xpos", "deprel")
# No word, in files of the CoNLL shared tasks: what stands between documents.
_BETWEEN_DOCUMENTS = "-DOCSTART-"
_NAME = re.compile(r"#\s*sent_id\s*=\s*(.*\S)")
# Blanks of other kinds, such as the one that does not break, are part of a word.
_BLANKS = " \t\r"


class _Sentence(NamedTuple):
    """Lines of words with their numbers in the file, and the comments above them."""

    lines: list[tuple[int, str]]
    comments: list[str]


def read_conllu(text: str, path: Path) -> pa.Table:
    """Read Universal Dependencies: syntactic words, without the ranges of multi-word tokens and empty nodes.

    Args:
        text: content of the file.
        path: what it is, for messages.

    Returns:
        Lists `tokens`, `tags` (UPOS, also as `upos`), `xpos`, `lemmas` and `deprel`; `id` where sentences have one.

    Raises:
        ConfigError: a line has not ten fields, or does not begin with the number of a word; or the words are withheld,
            as in treebanks without rights to their text.
    """
    import pyarrow as pa

    columns: dict[str, list[list[str]]] = {name: [] for name in _KEPT}
    names = []
    for sentence in _sentences(text):
        rows = []
        for number, line in sentence.lines:
            fields = line.split("\t")
            if len(fields) != 1 + len(_FIELDS):
                raise ConfigError(
                    f"`{path}`, line {number}: {len(fields)} fields between tabs, where CoNLL-U has 10: {line[:60]!r}."
                )
            if fields[0].isdecimal():
                rows.append(dict(zip(_FIELDS, fields[1:], strict=True)))
            elif not _is_no_word(fields[0]):
                raise ConfigError(f"`{path}`, line {number}: {fields[0]!r} is no number of a word.")
        if rows:
            names.append(next((match[1] for match in map(_NAME.match, sentence.comments) if match), None))
            for name, values in columns.items():
                values.append([row[name] for row in rows])
    if columns["tokens"] and all(set(words) == {"_"} for words in columns["tokens"]):
        raise ConfigError(
            f"`{path}` holds no words, but `_` for each: its text is withheld, and is added by a script."
        )
    ids = {"id": pa.array(names, pa.string())} if any(names) else {}
    return pa.table(
        ids | {name: _lists(values) for name, values in columns.items()} | {"tags": _lists(columns["upos"])}
    )


def read_words(text: str, path: Path) -> pa.Table:
    """Read a word and its tag on each line, a blank line after each sentence: the last column is the tag.

    Files whose first column numbers the words, as Universal NER has them, have word and tag in the second and third.

    Args:
        text: content of the file.
        path: what it is, for messages.

    Returns:
        Lists `tokens` and `tags`.

    Raises:
        ConfigError: a line has one column, or another number of columns than the sentence's first line.
    """
    import pyarrow as pa

    tokens, tags = [], []
    for sentence in _sentences(text):
        rows = [(number, _fields(line)) for number, line in sentence.lines]
        width = len(rows[0][1])
        for number, fields in rows:
            if len(fields) != width or width < 2:
                before = f", and {width} on the lines before" if width != len(fields) else ""
                raise ConfigError(
                    f"`{path}`, line {number}: {len(fields)} column{'s' * (len(fields) != 1)}, where a word and its "
                    f"tag are expected{before}. Running text goes into .jsonl, .csv or .tsv."
                )
        words = [fields for _, fields in rows if not _is_no_word(fields[0])]
        numbered = width > 2 and all(fields[0] == str(place) for place, fields in enumerate(words, 1))
        word, tag = (1, 2) if numbered else (0, -1)
        chosen = words if numbered and words else [fields for _, fields in rows]
        tokens.append([fields[word] for fields in chosen])
        tags.append([fields[tag] for fields in chosen])
    return pa.table({"tokens": _lists(tokens), "tags": _lists(tags)})


def _sentences(text: str) -> Iterator[_Sentence]:
    """Yield the sentences, without what stands between documents."""
    is_comment = _tabbed_comment if "\t" in text else _spaced_comment
    kept, comments = [], []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.removesuffix("\r")
        if not line.strip(_BLANKS) or line.startswith(_BETWEEN_DOCUMENTS):
            if kept:
                yield _Sentence(kept, comments)
            kept, comments = [], []
        elif not kept and is_comment(line):
            comments.append(line)
        else:
            kept.append((number, line))
    if kept:
        yield _Sentence(kept, comments)


def _tabbed_comment(line: str) -> bool:
    """Say whether a line at the head of a sentence is a comment, and not the word `#` with its columns."""
    return line.startswith("# ") or (line.startswith("#") and "\t" not in line)


def _spaced_comment(line: str) -> bool:
    """Say the same where blanks separate columns, and `# O` is a word with its tag."""
    return re.match(r"#\s*\w+ = ", line) is not None


def _fields(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else re.split(r" +", line.strip(_BLANKS))


def _is_no_word(number: str) -> bool:
    """Say whether a number is that of a range of words (`1-2`) or of an empty node (`1.1`)."""
    return re.fullmatch(r"\d+[-.]\d+", number) is not None


def _lists(values: list[list[str]]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, pa.list_(pa.string()))
