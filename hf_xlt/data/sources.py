"""Where data lie: files by pattern, files with a language column, data sets of the Hub, the embedded task.

A source names languages and splits, tells the columns and size of one set without keeping its rows, and reads it.
"""

from __future__ import annotations

import glob
import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hf_xlt.data.formats import SUFFIXES, inspect_file, read_file
from hf_xlt.errors import ConfigError, close_match
from hf_xlt.languages import is_code

if TYPE_CHECKING:
    from datasets import Dataset

EMBEDDED = "embedded"
LANGUAGE_COLUMNS = ("lang", "language")
SPLIT_COLUMN = "split"
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*(:\S+)?")


@dataclass(frozen=True)
class Shape:
    """Columns and number of rows of one set."""

    columns: tuple[str, ...]
    rows: int


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

    def inspect(self, language: str, split: str) -> Shape:
        """Return columns and size of one set.

        Raises:
            ConfigError: it is missing or cannot be read.
        """

    def read(self, language: str, split: str) -> Dataset:
        """Return the rows of one set.

        Raises:
            ConfigError: it is missing or cannot be read.
        """

    def fingerprint(self, language: str, split: str) -> str:
        """Return a hash of one set's content."""


@dataclass
class FileSource:
    """Local files by a pattern with `{lang}` and, for more than one split, `{split}`."""

    pattern: str
    name: str = field(init=False)
    hub_id: None = None

    def __post_init__(self) -> None:
        """Name the source by the end of its pattern."""
        self.name = shareable_pattern(self.pattern)

    def languages(self, split: str) -> list[str]:
        """Return the languages for which the split's file lies on disk."""
        filled = self.pattern.replace("{split}", split)
        before, after = filled.split("{lang}", 1)
        shape = re.compile(re.escape(before) + r"(?P<lang>[A-Za-z0-9_-]+)" + re.escape(after))
        found = (shape.fullmatch(path) for path in glob.glob(glob.escape(before) + "*" + after.replace("{lang}", "*")))
        return sorted({match["lang"] for match in found if match and is_code(match["lang"])})

    def _path(self, language: str, split: str) -> Path:
        path = Path(self.pattern.replace("{split}", split).replace("{lang}", language))
        if not path.is_file():
            present = self.languages(split)
            if not present:
                raise ConfigError(
                    f"no file fits `{self.pattern}` for the split `{split}`: looked for `{path}`. "
                    "Check the pattern, or name the split with `--source-split`, `--validation-split`, "
                    "`--target-split` or `--few-shot-split`."
                )
            raise ConfigError(
                f"language `{language}` has no `{split}` split: `{path}` is missing.{close_match(language, present)} "
                f"Languages there: {', '.join(present)}."
            )
        return path

    def inspect(self, language: str, split: str) -> Shape:
        """Return columns and size; of Parquet only the footer is read."""
        return Shape(*inspect_file(self._path(language, split)))

    def read(self, language: str, split: str) -> Dataset:
        """Read one file."""
        return read_file(self._path(language, split))

    def fingerprint(self, language: str, split: str) -> str:
        """Hash the file."""
        return _hash_file(self._path(language, split))


@dataclass
class ColumnSource:
    """Local files in which a column names the language, and perhaps another one the split."""

    pattern: str
    language_column: str | None = None
    default_split: str | None = None
    name: str = field(init=False)
    hub_id: None = None
    _tables: dict[str, Dataset] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Name the source by the end of its pattern."""
        self.name = shareable_pattern(self.pattern)

    def _path(self, split: str) -> Path:
        path = Path(self.pattern.replace("{split}", split))
        if not path.is_file():
            raise ConfigError(f"file `{path}` is missing (split `{split}` of `{self.pattern}`).")
        return path

    def _table(self, split: str) -> Dataset:
        path = self._path(split)
        if str(path) not in self._tables:
            self._tables[str(path)] = read_file(path)
        table = self._tables[str(path)]
        if "{split}" in self.pattern:
            return table
        if SPLIT_COLUMN in table.column_names:
            return select_equal(table, SPLIT_COLUMN, split)
        if split != self.default_split:
            raise ConfigError(
                f"`{path}` is a single set, used as `{self.default_split}`, without a `{SPLIT_COLUMN}` column to take "
                f"`{split}` from. Give a pattern with {{split}}, or a separate file for the role that needs `{split}`."
            )
        return table

    def _column(self, table: Dataset, split: str) -> str:
        return _find_language_column(table, self.language_column, str(self._path(split)), "use {lang} in the pattern")

    def languages(self, split: str) -> list[str]:
        """Return the languages named in the language column."""
        table = self._table(split)
        return sorted({str(code) for code in table.unique(self._column(table, split)) if code is not None})

    def inspect(self, language: str, split: str) -> Shape:
        """Return columns and size of one language's rows."""
        table = self.read(language, split)
        return Shape(tuple(table.column_names), len(table))

    def read(self, language: str, split: str) -> Dataset:
        """Select one language's rows."""
        table = self._table(split)
        column = self._column(table, split)
        rows = select_equal(table, column, language)
        if len(rows) == 0 and len(table) > 0:
            present = self.languages(split)
            raise ConfigError(
                f"language `{language}` does not occur in column `{column}` of `{self._path(split)}`."
                f"{close_match(language, present)} Languages there: {', '.join(present)}."
            )
        return rows

    def fingerprint(self, language: str, split: str) -> str:
        """Hash the whole file."""
        return _hash_file(self._path(split))


@dataclass
class HubSource:
    """A data set of the Hub, or a local data set folder; `{lang}` in the configuration name, or a language column.

    `ORG/NAME` has the language in a column, `ORG/NAME:{lang}` or `ORG/NAME:all_{lang}` as configuration name.
    """

    spec: str
    language_column: str | None = None
    name: str = field(init=False)
    _sets: dict[tuple[str | None, str], Dataset] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Split the id from the configuration name."""
        self.path, _, self.configuration = self.spec.partition(":")
        local = Path(self.path).is_dir()
        self.name = Path(self.path).name if local else self.path
        self.hub_id = None if local else self.path

    def _load(self, configuration: str | None, split: str) -> Dataset:
        from datasets import load_dataset

        key = (configuration, split)
        if key not in self._sets:
            try:
                self._sets[key] = load_dataset(self.path, configuration, split=split)
            except Exception as error:
                # `datasets` raises some twenty kinds of error for one cause: this set is not to be had.
                place = f" (configuration `{configuration}`)" if configuration else ""
                raise ConfigError(
                    f"data set `{self.path}`{place}, split `{split}`, cannot be loaded: {error} "
                    "Check the id, the split and the network; local files need a suffix such as .parquet."
                ) from error
        return self._sets[key]

    @cached_property
    def _configurations(self) -> list[str]:
        from datasets import get_dataset_config_names

        try:
            return get_dataset_config_names(self.path)
        except Exception as error:
            raise ConfigError(
                f"data set `{self.path}` cannot be found: {error} Check the id and the network."
            ) from error

    def languages(self, split: str) -> list[str]:
        """Return the languages among the configuration names, or in the language column."""
        if "{lang}" in self.configuration:
            shape = re.compile(re.escape(self.configuration).replace(r"\{lang\}", r"(?P<lang>[A-Za-z0-9_-]+)"))
            found = (match["lang"] for match in map(shape.fullmatch, self._configurations) if match)
            return sorted(code for code in found if is_code(code))
        table = self._load(self.configuration or None, split)
        return sorted({str(code) for code in table.unique(self._column(table))})

    def _column(self, table: Dataset) -> str:
        way_out = f"write `{self.path}:{{lang}}` when each language is a configuration"
        return _find_language_column(table, self.language_column, self.path, way_out)

    def inspect(self, language: str, split: str) -> Shape:
        """Return columns and size."""
        table = self.read(language, split)
        return Shape(tuple(table.column_names), len(table))

    def read(self, language: str, split: str) -> Dataset:
        """Load one language."""
        if "{lang}" in self.configuration:
            known = self.languages(split)
            if language not in known:
                raise ConfigError(
                    f"language `{language}` is no configuration of `{self.path}`.{close_match(language, known)} "
                    f"Languages there: {', '.join(known)}."
                )
            return self._load(self.configuration.replace("{lang}", language), split)
        table = self._load(self.configuration or None, split)
        rows = select_equal(table, self._column(table), language)
        if len(rows) == 0:
            known = self.languages(split)
            raise ConfigError(
                f"language `{language}` does not occur in `{self.path}`.{close_match(language, known)} "
                f"Languages there: {', '.join(known)}."
            )
        return rows

    def fingerprint(self, language: str, split: str) -> str:
        """Return the fingerprint that `datasets` keeps."""
        return self.read(language, split)._fingerprint


@dataclass
class EmbeddedSource:
    """The phrase task that is generated from the Unicode CLDR (`hf_xlt.embedded`)."""

    name: str = "hf-xlt-cldr-phrases"
    hub_id: None = None

    def languages(self, split: str) -> list[str]:
        """Return the task's languages."""
        from hf_xlt.embedded import SOURCE_LANGUAGE, TARGET_LANGUAGES

        return sorted((SOURCE_LANGUAGE, *TARGET_LANGUAGES))

    def _size(self, split: str) -> int:
        from hf_xlt import embedded

        sizes = {
            "train": embedded.TRAINING_PHRASES,
            "validation": embedded.DEVELOPMENT_PHRASES,
            "test": embedded.TEST_PHRASES,
        }
        if split not in sizes:
            raise ConfigError(f"the embedded task has no split {split!r}; its splits are {', '.join(sizes)}.")
        return sizes[split]

    def _check(self, language: str) -> None:
        known = self.languages("train")
        if language not in known:
            raise ConfigError(
                f"the embedded task has no language `{language}`.{close_match(language, known)} "
                f"Its languages: {', '.join(known)}."
            )

    def inspect(self, language: str, split: str) -> Shape:
        """Return columns and size."""
        self._check(language)
        return Shape(("id", "lang", "text", "label", "label_text"), self._size(split))

    def read(self, language: str, split: str) -> Dataset:
        """Generate one set."""
        from datasets import Dataset

        from hf_xlt.embedded.phrases import phrase_rows

        self._check(language)
        return Dataset.from_list(phrase_rows(split, language, self._size(split)))

    def fingerprint(self, language: str, split: str) -> str:
        """Hash the generated rows."""
        rows = "\n".join(f"{row['id']}\t{row['text']}\t{row['label']}" for row in self.read(language, split))
        return hashlib.sha256(rows.encode()).hexdigest()


def make_source(spec: str, language_column: str | None, default_split: str | None) -> Source:
    """Choose the kind of source from what the user typed.

    Args:
        spec: pattern, file, Hub id (`NAME`, `ORG/NAME`, with `:CONFIGURATION`), data set folder, or `embedded`.
        language_column: column that names the language, where the pattern has no `{lang}`.
        default_split: what a single file without `{split}` serves as.

    Raises:
        ConfigError: it is none of these.
    """
    if spec == EMBEDDED:
        return EmbeddedSource()
    if spec.lower().endswith(SUFFIXES):
        unknown = set(re.findall(r"\{(\w*)\}", spec)) - {"lang", "split"}
        if unknown:
            raise ConfigError(f"pattern `{spec}`: unknown part {{{unknown.pop()}}}; use {{lang}} and {{split}}.")
        if "{lang}" in spec:
            return FileSource(spec)
        return ColumnSource(spec, language_column, default_split)
    if Path(spec.partition(":")[0]).is_dir() or (_HUB_ID.fullmatch(spec) and not spec.startswith((".", "/"))):
        return HubSource(spec, language_column)
    raise ConfigError(
        f"data `{spec}` is neither a file (ending in {', '.join(SUFFIXES)}) nor a Hub id such as `ORG/NAME` or "
        "`ORG/NAME:{lang}`, nor `embedded`."
    )


def shareable_pattern(pattern: str) -> str:
    """Cut a local pattern to its file and folder, which say what the data are and not where or whose they are."""
    path = Path(pattern)
    folder = path.parent.absolute()
    is_home = folder == Path.home() or folder.parent.name in ("home", "Users") or folder.name == Path.home().name
    return path.name if is_home or not path.parent.name else f"{path.parent.name}/{path.name}"


def _find_language_column(table: Dataset, given: str | None, where: str, way_out: str) -> str:
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
        f"{', '.join(table.column_names)}. Name it with `--language-column`, or {way_out}."
    )


def select_equal(table: Dataset, column: str, value: str) -> Dataset:
    """Return the rows whose column equals a value."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kept = pc.equal(pc.cast(table.with_format("arrow")[:][column], pa.string()), value)
    return table.select(np.flatnonzero(kept.fill_null(False).to_numpy(zero_copy_only=False)))


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
