"""What all sources of data share: their interface, and how rows are chosen by columns of language and split."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hf_xlt.data.formats import inspect_file
from hf_xlt.data.patterns import USUAL_SPLITS
from hf_xlt.errors import ConfigError, close_match, setting

if TYPE_CHECKING:
    from datasets import Dataset

LANGUAGE_COLUMNS = ("lang", "language")
SPLIT_COLUMN = "split"
# Rows that are hashed at once.
_HASHED = 10_000


@dataclass(frozen=True)
class Shape:
    """Columns and number of rows of one set, and what the user should know of how it is read."""

    columns: tuple[str, ...]
    rows: int
    note: str | None = None


class Rows(NamedTuple):
    """Which rows a set has, whatever it is called.

    Attributes:
        place: the file, or the data set with its configuration; links and spellings of a path are one place.
        split: the split of it; None is all of the place.
        language: the language of it; None is all of the place.
        part: the part of a divided set; None is all of it.
    """

    place: str
    split: str | None = None
    language: str | None = None
    part: str | None = None

    def shares(self, other: Rows) -> bool:
        """Say whether two sets have rows in common."""
        pairs = zip(self[1:], other[1:], strict=True)
        return self.place == other.place and all(one is None or two is None or one == two for one, two in pairs)


class Source(Protocol):
    """One place that data come from.

    Attributes:
        name: how records and cards call it; never a local path.
        hub_id: id on the Hub, or None.
    """

    name: str
    hub_id: str | None

    def languages(self, split: str) -> list[str]:
        """Return the language codes that have this split, sorted."""

    def left_out(self, split: str, used: Collection[str] = ()) -> list[str]:
        """Say what lies there and is not used, and why, in sentences; `used` are codes that are, for other splits."""

    def strange(self, split: str) -> list[str]:
        """Return the names that lie there in the place of languages and are no codes."""

    def splits(self, language: str | None = None) -> list[str]:
        """Return the names of the splits there; none of a set without splits."""

    def inspect(self, language: str, split: str | None) -> Shape:
        """Return columns and size of one set.

        Raises:
            ConfigError: it is missing or cannot be read.
        """

    def read(self, language: str, split: str | None) -> Dataset:
        """Return the rows of one set; the split None reads the whole of a set without splits.

        Raises:
            ConfigError: it is missing or cannot be read.
        """

    def fingerprint(self, language: str, split: str | None) -> str:
        """Return a hash of one set's content."""

    def rows(self, language: str, split: str | None) -> Rows:
        """Say which rows these are."""


def hash_rows(table: Dataset) -> str:
    """Hash names of columns and values of a table, wherever and in whatever pieces they lie."""
    arrow, found = table.with_format("arrow"), hashlib.sha256()
    for start in range(0, len(table), _HASHED):
        # Arrow's own bytes depend on how rows were cut into pieces before.
        found.update(repr(arrow[start : start + _HASHED].to_pydict()).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def find_language_column(table: Dataset, given: str | None, where: str, way_out: str) -> str:
    """Return the column that names the language.

    Raises:
        ConfigError: there is none.
    """
    wanted = (given,) if given else LANGUAGE_COLUMNS
    for column in wanted:
        if column in table.column_names:
            return column
    raise ConfigError(
        f"`{where}` must contain a column that names the language ({' or '.join(wanted)}); it has "
        f"{', '.join(table.column_names)}. Name it with {setting('language_column')}, or {way_out}."
    )


def has_split_column(path: Path) -> bool:
    """Say whether a file has a column of splits; of most kinds only the start is read, since files may be large."""
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv", ".jsonl"):
            with open(path, encoding="utf-8-sig", newline="") as file:
                if suffix == ".jsonl":
                    return SPLIT_COLUMN in json.loads(next((line for line in file if line.strip()), "{}"))
                return SPLIT_COLUMN in next(csv.reader(file, delimiter="\t" if suffix == ".tsv" else ","), [])
    except (OSError, ValueError, TypeError, csv.Error):
        # Told of by what reads the whole file.
        pass
    return SPLIT_COLUMN in inspect_file(path)[0]


def split_names(table: Dataset) -> list[str]:
    """Return the splits that a table's column names, in the order of their first row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.select_columns([SPLIT_COLUMN]).with_format("arrow")[:][SPLIT_COLUMN]
    return [
        value for value in pc.unique(pc.cast(_named(table, SPLIT_COLUMN, column), pa.string())).to_pylist() if value
    ]


def select_equal(table: Dataset, column: str, value: str | None) -> Dataset:
    """Return the rows whose column equals a value; classes of the Hub by their name."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    values = table.select_columns([column]).with_format("arrow")[:][column]
    kept = pc.equal(pc.cast(_named(table, column, values), pa.string()), value)
    return table.select(np.flatnonzero(kept.fill_null(False).to_numpy(zero_copy_only=False)))


def _named(table: Dataset, column: str, values: object) -> object:
    """Return a column with its classes' names, where its values are classes of the Hub."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = getattr(table.features[column], "names", None)
    if not names:
        return values
    # Minus one is a missing class.
    numbers = pc.if_else(pc.less(values, 0), None, values)
    return pc.take(pa.array(names), numbers.combine_chunks() if isinstance(numbers, pa.ChunkedArray) else numbers)


def hash_file(path: Path) -> str:
    """Return the hash of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def place_of(path: Path) -> str:
    """Name a file as the file system does, so that links and other spellings of a path are one."""
    try:
        found = os.stat(path)
    except OSError:
        return str(path.resolve())
    return f"{found.st_dev}:{found.st_ino}" if found.st_ino else str(path.resolve())


def check_single(path: Path, split: str | None, default: str | None, pattern: str) -> None:
    """Check that a set without splits is asked for what it serves as.

    Args:
        path: the file.
        split: what is asked for; None takes the whole.
        default: what it serves as; None allows anything.
        pattern: as the user typed it.

    Raises:
        ConfigError: another split is asked for, or one by a name that says nothing of the file.
    """
    if split is None or default is None:
        return
    if split != default:
        raise ConfigError(
            f"`{path}` is a single set, used as `{default}`, without a `{SPLIT_COLUMN}` column to take `{split}` from."
            f" Give a pattern with {{split}}, or a separate file for the role that needs `{split}`; or let `hf-xlt "
            f"run` divide the set: {setting('divide_split', 'train=0.8,validation=0.1,test=0.1')}."
        )
    if split not in USUAL_SPLITS and split not in re.split(r"[^A-Za-z0-9]+", pattern) and split not in pattern:
        raise ConfigError(
            f"`{path}` has no splits (no {{split}} in `{pattern}`, no `{SPLIT_COLUMN}` column), so there is no "
            f"`{split}` split. Leave out the flag that names it, or give data that have it."
        )


def check_named(split: str | None, values: list[str], where: str) -> None:
    """Check that a column of splits has one.

    Raises:
        ConfigError: it has not.
    """
    if split not in values:
        raise ConfigError(
            f"`{where}` has no `{split}` split in its column `{SPLIT_COLUMN}`.{close_match(str(split), values)} "
            f"Splits there: {', '.join(values) or 'none'}."
        )
