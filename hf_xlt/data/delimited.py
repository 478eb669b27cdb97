"""Rows of fields between commas or tabs, read as they are written: no type is guessed, no row is lost unsaid."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_xlt.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

# Arrow reads in blocks, and a row has to fit into one.
_BLOCK = 2**20
_MARKS_ARE_TEXT = (
    "quotation marks are taken as text, and each line as a row; as quotation they would swallow line ends or leave "
    "text behind a closing mark."
)
_Spans = Sequence[tuple[int, int, int]]


def read_csv(text: str, path: Path) -> tuple[pa.Table, str | None]:
    """Read fields between commas, which may stand in quotation marks (RFC 4180).

    Args:
        text: content of the file.
        path: what it is, for messages.

    Returns:
        Columns of strings, and nothing to be told.

    Raises:
        ConfigError: a mark is not closed or swallows rows, text follows a closed one, or a row has too few or too many
            fields; the message names the line.
    """
    table = _without_marks(text, ",")
    return (_strings(*_quoted(text, ",", path)) if table is None else table), None


def read_tsv(text: str, path: Path) -> tuple[pa.Table, str | None]:
    """Read fields between tabs, with quotation marks as text or, where that fits, as in CSV.

    Most such files know no quotation: a mark at the start of a field is text. Others quote as CSV does. A file in
    which every line has the fields of the header, taken as it stands, is of the first kind if quotation would make
    other rows of it, or none.

    Args:
        text: content of the file.
        path: what it is, for messages.

    Returns:
        Columns of strings, and a sentence where marks that open a field were taken as text.

    Raises:
        ConfigError: as `read_csv`.
    """
    table = _without_marks(text, "\t")
    if table is not None:
        return table, None
    plain = _unquoted(text)
    try:
        header, rows = _quoted(text, "\t", path)
    except ConfigError:
        if plain is None:
            raise
        return _strings(*plain), _MARKS_ARE_TEXT
    if plain is None or len(rows) == len(plain[1]):
        return _strings(header, rows), None
    return _strings(*plain), _MARKS_ARE_TEXT


def block_size(content: bytes) -> int:
    """Return a size of blocks into which every line fits, in bytes."""
    longest = start = 0
    while (end := content.find(b"\n", start)) >= 0:
        longest, start = max(longest, end - start), end + 1
    return max(_BLOCK, 2 * max(longest, len(content) - start) + 2)


def _without_marks(text: str, delimiter: str) -> pa.Table | None:
    """Read a file without any quotation mark by Arrow, ten times as fast; None for one that is not so plain."""
    import pyarrow as pa
    import pyarrow.csv

    first = text.partition("\n")[0].removesuffix("\r")
    names = _names(first.split(delimiter))
    if '"' in text or not first or len(set(names)) < len(names) or text.count("\r") != text.count("\r\n"):
        return None
    content = text.encode()
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(content),
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1, block_size=block_size(content)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowException:
        # The slow way finds the line.
        return None


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
    rows, starts, spans, first = [], [], [], 1
    try:
        for row in reader:
            if row:
                if reader.line_num > first:
                    spans.append((len(rows), first, reader.line_num))
                rows.append(row)
                starts.append(first)
            first = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(_quotation_problem(path, first, reader.line_num, error, delimiter)) from error
    finally:
        csv.field_size_limit(limit)
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, 1):
        if len(row) != len(header):
            raise ConfigError(
                f"`{path}`, line {starts[number]}: {len(row)} field{'s' * (len(row) != 1)}, but the header names "
                f"{len(header)} columns ({', '.join(header)}). A field that holds {_named(delimiter)} stands in "
                "quotation marks."
            )
    _check_swallowed(text, delimiter, body, spans, path)
    return header, body


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


def _check_swallowed(text: str, delimiter: str, body: Sequence[Sequence[str]], spans: _Spans, path: Path) -> None:
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
        # A single column has no labels to lose, and texts with line ends in marks are how CSV writes them.
        if row == 0 or width == 1 or any(len(piece) != width for piece in pieces):
            continue
        alike = [place for place in range(width) if all(piece[place] in seen[place] for piece in pieces)]
        if alike or len(inside) >= len(body):
            raise ConfigError(
                f"`{path}`, line {first}: the quotation mark that opens a field there is closed on line {last} only, "
                f"and the {last - first + 1} lines look like rows of their own. Close it on its line, or double it "
                'and put the field in marks ("""like this"" ...").'
            )


def _strings(header: Sequence[str], rows: Sequence[Sequence[str]]) -> pa.Table:
    """Return a table of strings."""
    import pyarrow as pa

    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], names=_names(header))


def _names(header: Sequence[str]) -> list[str]:
    """Return the names of columns; one without a name, as an index has it, gets one."""
    return [name.strip() or f"column {place}" for place, name in enumerate(header, 1)]
