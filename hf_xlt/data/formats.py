"""Reading one local file as a data set: Parquet, CSV, TSV, JSON lines, JSON, and words in columns.

Parquet and JSON are read by Arrow: `datasets.load_dataset` takes 0.1 s a file for its cache, and a run over a hundred
languages has hundreds of files. Text files are read as people write them: no type is guessed, so `01` and `true` stay
what they are, and whatever could lose a row is an error that names the line. A suffix `.gz` may follow any other.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

# Words in columns: Universal Dependencies, and the files of CoNLL-2003, MasakhaNER and Universal NER.
_CONLLU, _WORDS = (".conllu",), (".conll", ".iob2", ".bio", ".txt")
_PLAIN = (".parquet", ".jsonl", ".json", ".csv", ".tsv", *_CONLLU, *_WORDS)
_GZIP = ".gz"
SUFFIXES = (*_PLAIN, *(f"{suffix}{_GZIP}" for suffix in _PLAIN if suffix != ".parquet"))
# The fields of CoNLL-U after the number of the word (universaldependencies.org/format); `tags` is UPOS.
_CONLLU_COLUMNS = ("tokens", "lemmas", "tags", "xpos", "feats", "head", "deprel", "deps", "misc")
_KEPT_COLUMNS = ("tokens", "lemmas", "tags", "xpos", "deprel")
# No word, in files of the CoNLL shared tasks: what stands between documents.
_BETWEEN_DOCUMENTS = "-DOCSTART-"
# Arrow's largest block; a row has to fit into one.
_BLOCK = 2**20


def suffix_of(path: Path) -> str:
    """Return what a file is, by its name: one of `SUFFIXES` without `.gz`."""
    name = path.name.lower().removesuffix(_GZIP)
    return next((suffix for suffix in _PLAIN if name.endswith(suffix)), "")


def read_file(path: Path) -> Dataset:
    """Read a file.

    Args:
        path: an existing file with one of `SUFFIXES`.

    Raises:
        ConfigError: it cannot be read as what its suffix says; the message names the place.
    """
    from datasets import Dataset

    return Dataset(_read_table(path))


def inspect_file(path: Path) -> tuple[tuple[str, ...], int]:
    """Return columns and number of rows; of Parquet only the footer is read.

    Raises:
        ConfigError: as `read_file`.
    """
    if suffix_of(path) != ".parquet":
        table = _read_table(path)
        return tuple(table.column_names), table.num_rows
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(path)
        names = tuple(footer.schema.to_arrow_schema().names)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    _check_columns(names, path)
    return names, footer.num_rows


def read_text(path: Path) -> str:
    """Read a text file, compressed or not; a byte order mark at its start is skipped.

    Raises:
        ConfigError: it is missing, not UTF-8, or its compression is damaged; the message names line and byte.
    """
    try:
        content = path.read_bytes()
        if path.name.lower().endswith(_GZIP):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    return decoded(content, path)


def decoded(content: bytes, path: Path) -> str:
    """Decode a file's bytes.

    Raises:
        ConfigError: they are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"`{path}` is not UTF-8: line {line}, byte {error.start} of the file is 0x{content[error.start]:02x}. "
            "Save it as UTF-8; where it comes from Windows, `iconv -f WINDOWS-1252 -t UTF-8` converts it."
        ) from error


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    suffix = suffix_of(path)
    try:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        if suffix == ".parquet":
            # A plain file: pyarrow would take `lang=xx` in a folder's name for another column.
            file = pq.ParquetFile(path)
            _check_columns(file.schema_arrow.names, path)
            return file.read()
        text = read_text(path)
        if not text.strip():
            raise ValueError("the file is empty")
        table = _READERS[suffix](text, path)
    except ConfigError:
        raise
    except (pa.ArrowException, OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    _check_columns(table.column_names, path)
    return table


def _unreadable(path: Path, error: BaseException) -> ConfigError:
    kind = suffix_of(path).lstrip(".") or path.suffix.lstrip(".")
    return ConfigError(f"`{path}` cannot be read as {kind}: {error}. It may be cut off, or of another format.")


def _check_columns(names: Sequence[str], path: Path) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ConfigError(
            f"`{path}` has the column `{twice[0]}` {list(names).count(twice[0])} times; rename or remove one of them."
        )


# ---- Lines of fields


def _read_csv(text: str, path: Path) -> pa.Table:
    return _strings(*_quoted(text, ",", path))


def _read_tsv(text: str, path: Path) -> pa.Table:
    """Read fields between tabs.

    Most such files know no quotation: a mark at the start of a field is text. Others quote as CSV does. A file in
    which every line has the fields of the header, taken as it stands, is of the first kind if quotation would make
    other rows of it.
    """
    plain = _unquoted(text)
    try:
        header, rows = _quoted(text, "\t", path)
    except ConfigError:
        if plain is None:
            raise
        return _strings(*plain)
    return _strings(header, rows) if plain is None or len(rows) == len(plain[1]) else _strings(*plain)


def _unquoted(text: str) -> tuple[list[str], list[list[str]]] | None:
    """Return header and rows of a file without quotation; None where lines differ in their number of fields."""
    # Not `splitlines`, which also splits at characters that are text, such as U+2028.
    lines = [line.removesuffix("\r").split("\t") for line in text.split("\n")]
    rows = [row for row in lines if row != [""]]
    return (rows[0], rows[1:]) if all(len(row) == len(rows[0]) for row in rows) else None


def _quoted(text: str, delimiter: str, path: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a file whose fields may be in quotation marks (RFC 4180).

    Raises:
        ConfigError: a mark is not closed, text follows a closed one, a row has too few or too many fields, or a mark
            has swallowed rows.
    """
    limit = csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, spans, first = [], [], 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                if reader.line_num > first:
                    spans.append((len(rows) - 1, first, reader.line_num))
            first = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(_quotation_problem(path, first, reader.line_num, error, delimiter)) from error
    finally:
        csv.field_size_limit(limit)
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, 1):
        if len(row) != len(header):
            line = _line_of(number, spans)
            raise ConfigError(
                f"`{path}`, line {line}: {len(row)} fields, but the header names {len(header)} columns "
                f"({', '.join(header)}). A field that holds {_named(delimiter)} stands in quotation marks."
            )
    _check_swallowed(text, delimiter, body, spans, path)
    return header, body


def _line_of(number: int, spans: Sequence[tuple[int, int, int]]) -> int:
    """Return the line on which a row starts; rows over several lines come before."""
    own = next((first for row, first, _ in spans if row == number), None)
    return own or number + 1 + sum(last - first for row, first, last in spans if row < number)


def _named(delimiter: str) -> str:
    return "a tab" if delimiter == "\t" else "a comma"


def _quotation_problem(path: Path, first: int, last: int, error: csv.Error, delimiter: str) -> str:
    problem = str(error)
    if "expected after" in problem:
        where = f"line {last}" if first == last else f"line {last} (the row begins on line {first})"
        problem = "text follows a closing quotation mark"
    else:
        where = f"line {first}"
        problem = "a quotation mark is opened and never closed" if "end of data" in problem else problem
    return (
        f"`{path}`, {where}: {problem}. A field that begins with a quotation mark is closed by one, and marks inside "
        f'it are doubled (""); a field with marks elsewhere needs none.'
        + ("" if delimiter == "\t" else " Or save the file as .tsv, where they are plain text.")
    )


def _check_swallowed(
    text: str, delimiter: str, body: Sequence[Sequence[str]], spans: Sequence[tuple[int, int, int]], path: Path
) -> None:
    """Refuse a quoted field over several lines each of which is a row by itself.

    Two stray marks at the start of fields make one field of all that lies between them, which is well-formed. What
    tells it from a text with line ends: each of its lines, taken alone, has the fields of a row, and in some other
    column all of them hold values which that column has elsewhere too, such as labels.
    """
    if not spans or not body:
        return
    lines, width = text.split("\n"), len(body[0])
    inside = {row for row, _, _ in spans}
    seen = [{row[place] for number, row in enumerate(body, 1) if number not in inside} for place in range(width)]
    for row, first, last in spans:
        pieces = [line.removesuffix("\r").split(delimiter) for line in lines[first - 1 : last]]
        if row == 0 or any(len(piece) != width for piece in pieces):
            continue
        alike = [place for place in range(width) if all(piece[place] in seen[place] for piece in pieces)]
        if alike or width == 1 or len(inside) >= len(body):
            raise ConfigError(
                f"`{path}`, line {first}: the quotation mark that opens a field there is closed on line {last} only, "
                f"and the {last - first + 1} lines look like rows of their own. Close it on its line, or double it "
                'and put the field in marks ("""like this"" ...").'
            )


def _strings(header: Sequence[str], rows: Sequence[Sequence[str]]) -> pa.Table:
    """Return a table of strings; a column without a name, as an index has it, gets one."""
    import pyarrow as pa

    names = [name.strip() or f"column {place}" for place, name in enumerate(header, 1)]
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], names=names)


# ---- JSON


def _read_json_lines(text: str, path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.json

    content = text.encode()
    longest = max(map(len, content.split(b"\n")))
    # A row that crosses two blocks is refused as "straddling".
    options = pyarrow.json.ReadOptions(block_size=max(_BLOCK, 2 * longest + 2))
    table = pyarrow.json.read_json(pa.BufferReader(content), read_options=options)
    kinds = {entry.name: _without_times(entry.type) for entry in table.schema}
    if all(kinds[entry.name] == entry.type for entry in table.schema):
        return table
    # Texts that are all dates were taken for points in time.
    parse = pyarrow.json.ParseOptions(explicit_schema=pa.schema(list(kinds.items())))
    return pyarrow.json.read_json(pa.BufferReader(content), read_options=options, parse_options=parse)


def _without_times(kind: pa.DataType) -> pa.DataType:
    """Return a type with strings where Arrow saw points in time."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_date(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_times(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(entry.name, _without_times(entry.type)) for entry in kind])
    return kind


def _read_json(text: str, path: Path) -> pa.Table:
    import pyarrow as pa

    start = text.lstrip()[:1]
    if start == "[":
        return pa.Table.from_pylist(json.loads(text))
    if start == "{":
        try:
            whole = json.loads(text)
        except ValueError:
            # Objects one after another, whatever the file is called.
            return _read_json_lines(text, path)
        articles = whole.get("data")
        if isinstance(articles, list) and articles and "paragraphs" in articles[0]:
            return pa.Table.from_pylist(list(_squad_rows(articles)))
    return _read_json_lines(text, path)


def _squad_rows(articles: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each question of a file of SQuAD (Rajpurkar et al. 2016), as XQuAD and MLQA have it."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question.get("answers") or []
                yield {
                    "id": str(question["id"]),
                    "title": article.get("title", ""),
                    "context": paragraph["context"],
                    "question": question["question"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                }


# ---- Words in columns


def _sentences(text: str) -> Iterator[list[tuple[int, str]]]:
    """Yield the lines of each sentence with their numbers, without comments and what stands between documents."""
    is_comment = _tabbed_comment if "\t" in text else _spaced_comment
    kept: list[tuple[int, str]] = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.removesuffix("\r")
        if not line.strip():
            if kept:
                yield kept
            kept = []
        elif not (not kept and is_comment(line)) and not line.startswith(_BETWEEN_DOCUMENTS):
            kept.append((number, line))
    if kept:
        yield kept


def _tabbed_comment(line: str) -> bool:
    """Say whether a line at the head of a sentence is a comment, and not the word `#` with its columns."""
    return line.startswith("# ") or (line.startswith("#") and "\t" not in line)


def _spaced_comment(line: str) -> bool:
    """Say the same where blanks separate columns, and `# O` is a word with its tag."""
    return re.match(r"#\s*\w+ = ", line) is not None


def _read_conllu(text: str, path: Path) -> pa.Table:
    """Read Universal Dependencies: syntactic words, without the ranges of multi-word tokens and empty nodes."""
    import pyarrow as pa

    columns: dict[str, list[list[str]]] = {name: [] for name in _KEPT_COLUMNS}
    for sentence in _sentences(text):
        rows = []
        for number, line in sentence:
            fields = line.split("\t")
            if len(fields) != 10:
                raise ConfigError(
                    f"`{path}`, line {number}: {len(fields)} fields between tabs, where CoNLL-U has 10: {line[:60]!r}."
                )
            if re.fullmatch(r"\d+", fields[0]):
                rows.append(dict(zip(_CONLLU_COLUMNS, fields[1:], strict=True)))
            elif not re.fullmatch(r"\d+[-.]\d+", fields[0]):
                raise ConfigError(f"`{path}`, line {number}: {fields[0]!r} is no number of a word.")
        if rows:
            for name, values in columns.items():
                values.append([row[name] for row in rows])
    return pa.table(columns)


def _read_words(text: str, path: Path) -> pa.Table:
    """Read a word and its tag on each line, a blank line after each sentence: the last column is the tag.

    Files whose first column numbers the words, as Universal NER has them, have word and tag in the second and third.
    """
    import pyarrow as pa

    tokens, tags = [], []
    for sentence in _sentences(text):
        rows = [(number, line.split("\t") if "\t" in line else line.split()) for number, line in sentence]
        width = len(rows[0][1])
        for number, fields in rows:
            if len(fields) != width or width < 2:
                raise ConfigError(
                    f"`{path}`, line {number}: {len(fields)} columns, where a word and its tag are expected"
                    + (f", and {width} on the lines before" if width != len(fields) else "")
                    + ". Running text goes into .jsonl, .csv or .tsv."
                )
        numbered = width > 2 and all(fields[0] == str(place) for place, (_, fields) in enumerate(rows, 1))
        word, tag = (1, 2) if numbered else (0, -1)
        tokens.append([fields[word] for _, fields in rows])
        tags.append([fields[tag] for _, fields in rows])
    return pa.table({"tokens": tokens, "tags": tags})


_READERS: dict[str, Callable[[str, Path], Any]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    **dict.fromkeys(_CONLLU, _read_conllu),
    **dict.fromkeys(_WORDS, _read_words),
}
