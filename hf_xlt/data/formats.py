"""Reading one local file as a data set: Parquet, CSV, TSV, JSON lines, JSON, and words in columns.

Parquet and JSON are read by Arrow: `datasets.load_dataset` takes 0.1 s a file for its cache, and a run over a hundred
languages has hundreds of files. Text files are read as people write them: no type is guessed, so `01` and `true` stay
what they are, and whatever could lose a row is an error that names the line. A suffix `.gz` may follow any other.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_xlt.data.delimited import block_size, read_csv, read_tsv
from hf_xlt.data.word_columns import read_conllu, read_words
from hf_xlt.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

# Words in columns: Universal Dependencies, and the files of CoNLL-2003, MasakhaNER and Universal NER.
_CONLLU, _WORDS = (".conllu",), (".conll", ".iob2", ".bio", ".txt")
_PLAIN = (".parquet", ".jsonl", ".json", ".csv", ".tsv", *_CONLLU, *_WORDS)
_GZIP = ".gz"
SUFFIXES = (*_PLAIN, *(f"{suffix}{_GZIP}" for suffix in _PLAIN if suffix != ".parquet"))


class Inspected(NamedTuple):
    """What a file holds.

    Attributes:
        columns: names of the columns.
        rows: number of rows.
        note: what the user should know of how it is read, in a sentence, or None.
    """

    columns: tuple[str, ...]
    rows: int
    note: str | None = None


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

    return Dataset(_read_table(path)[0])


def inspect_file(path: Path) -> Inspected:
    """Return columns and number of rows; of Parquet only the footer is read.

    Raises:
        ConfigError: as `read_file`.
    """
    if suffix_of(path) != ".parquet":
        table, note = _read_table(path)
        return Inspected(tuple(table.column_names), table.num_rows, note)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(path)
        names = tuple(footer.schema.to_arrow_schema().names)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    _check_columns(names, path)
    return Inspected(names, footer.num_rows)


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


def _read_table(path: Path) -> tuple[pa.Table, str | None]:
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
            return file.read(), None
        text = read_text(path)
        if not text.strip():
            raise ValueError("the file is empty")
        found = _READERS[suffix](text, path)
        table, note = found if isinstance(found, tuple) else (found, None)
    except ConfigError:
        raise
    except (pa.ArrowException, OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    _check_columns(table.column_names, path)
    return table, note


def _unreadable(path: Path, error: BaseException) -> ConfigError:
    kind = suffix_of(path).lstrip(".") or path.suffix.lstrip(".")
    return ConfigError(f"`{path}` cannot be read as {kind}: {error}. It may be cut off, or of another format.")


def _check_columns(names: Sequence[str], path: Path) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ConfigError(
            f"`{path}` has the column `{twice[0]}` {list(names).count(twice[0])} times; rename or remove one of them."
        )


def _read_json_lines(text: str, path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.json

    content = text.encode()
    # A row that crosses two blocks is refused as "straddling".
    options = pyarrow.json.ReadOptions(block_size=block_size(content))
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


_READERS: dict[str, Callable[[str, Path], Any]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    **dict.fromkeys(_CONLLU, read_conllu),
    **dict.fromkeys(_WORDS, read_words),
}
