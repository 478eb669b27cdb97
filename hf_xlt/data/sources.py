"""Where data lie: files by pattern, files with a language column, data sets of the Hub, the embedded task.

A source names languages and splits, tells the columns and size of one set without keeping its rows, and reads it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hf_xlt.data.formats import SUFFIXES, inspect_file, read_file
from hf_xlt.data.hub_data import EmbeddedSource, HubSource
from hf_xlt.data.patterns import (
    LANG,
    SPLIT,
    USUAL_SPLITS,
    Fit,
    LanguageNames,
    expand_home,
    fill,
    find_fits,
    looks_local,
    missing_language,
    shareable_pattern,
    unknown_names,
)
from hf_xlt.data.tables import (
    SPLIT_COLUMN,
    Rows,
    Shape,
    Source,
    check_named,
    check_single,
    find_language_column,
    has_split_column,
    hash_file,
    place_of,
    select_equal,
    split_names,
)
from hf_xlt.errors import ConfigError, setting

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "EMBEDDED",
    "ColumnSource",
    "EmbeddedSource",
    "FileSource",
    "HubSource",
    "Rows",
    "Shape",
    "Source",
    "make_source",
    "select_equal",
    "shareable_pattern",
]

EMBEDDED = "embedded"
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*(:\S+)?")


@dataclass
class FileSource:
    """Local files by a pattern with `{lang}` and, for more than one split, `{split}` or a column `split`.

    Attributes:
        pattern: the path.
        default_split: what files without splits serve as; None allows anything.
        names: codes of names that are none.
    """

    pattern: str
    default_split: str | None = None
    names: LanguageNames = field(default_factory=LanguageNames)
    name: str = field(init=False)
    hub_id: None = None
    _columns: dict[tuple[str, int], list[str] | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Name the source by the end of its pattern."""
        self.name = shareable_pattern(self.pattern)

    @property
    def _by_path(self) -> bool:
        return "{split}" in self.pattern

    def _there(self, split: str | None) -> tuple[dict[str, Path], list[str], list[str]]:
        """Return the files of a split by code, the names that are no codes, and those of links that lead nowhere."""
        fits = find_fits(self.pattern, {SPLIT: split or ""} if self._by_path else {})
        paths: dict[str, Path] = {}
        for fit in fits:
            # Of two files that differ in the case of the suffix the one that is spelt as the pattern wins.
            literal = fit.path == Path(fill(self.pattern, {**fit.parts, **({SPLIT: split or ""})}))
            if literal or fit.parts[LANG] not in paths:
                paths[fit.parts[LANG]] = fit.path
        found, strange = self.names.find([name for name, path in paths.items() if path.is_file()], self.name)
        broken = [name for name, path in paths.items() if not path.is_file()]
        return {code: paths[name] for code, name in found.items()}, strange, broken

    def names_splits(self, path: Path) -> bool:
        """Say whether a column of a file names the splits."""
        return not self._by_path and has_split_column(path)

    def _values(self, path: Path) -> list[str] | None:
        """Return the splits that a file's column names; None where it has no such column, or splits lie in paths."""
        if self._by_path:
            return None
        key = (str(path), path.stat().st_mtime_ns)
        if key not in self._columns:
            self._columns[key] = split_names(read_file(path)) if self.names_splits(path) else None
        return self._columns[key]

    def splits(self, language: str | None = None) -> list[str]:
        """Return the names of the splits there, of one language or of any; none of files without splits."""
        if self._by_path:
            # A language's own name in the pattern leaves no doubt where the name of the split begins.
            name = self._name(language) if language else None
            fits = find_fits(self.pattern, {LANG: name} if name else {SPLIT: list(USUAL_SPLITS)})
            return sorted({fit.parts[SPLIT] for fit in fits if fit.path.is_file()})
        paths = self._there(None)[0]
        chosen = [paths[language]] if language in paths else [] if language else list(paths.values())
        return sorted({value for path in chosen for value in self._values(path) or ()})

    def _name(self, language: str) -> str:
        return next(
            (name for name, code in self.names.codes.items() if code == language and self._has(name)), language
        )

    def _has(self, name: str) -> bool:
        return bool(find_fits(self.pattern, {LANG: name}))

    def languages(self, split: str | None) -> list[str]:
        """Return the languages that have the split; None takes those of files without splits.

        Raises:
            ConfigError: the files have no splits and serve as another one.
        """
        paths, found, single = self._there(split)[0], [], None
        for code, path in paths.items():
            values = self._splits_or_none(path)
            if self._by_path or (values is not None and split in values):
                found.append(code)
            elif values is None:
                single = single or path
                if split is None or self.default_split in (None, split):
                    found.append(code)
        if single is not None and (not found or self.default_split == split):
            check_single(single, split, self.default_split, self.pattern)
        return sorted(found)

    def _splits_or_none(self, path: Path) -> list[str] | None:
        try:
            return self._values(path)
        except ConfigError:
            # A file that cannot be read is told of when it is used.
            return None

    def left_out(self, split: str, used: Collection[str] = ()) -> list[str]:
        """Say what lies there and is not used, and why, in sentences; `used` are codes that are, for other splits."""
        paths, strange, broken = self._there(split)
        told = [unknown_names(strange, f"`{self.name}`")]
        told += [f"`{name}` in `{self.name}` is a link that leads nowhere, and was not used." for name in broken]
        others = self._all_languages() if self._by_path else paths
        lacking = sorted(set(others) - set(self.languages(split)) - set(used))
        if lacking:
            told.append(f"{', '.join(lacking)} in `{self.name}`: no `{split}` split, so not used.")
        return [sentence for sentence in told if sentence]

    def _all_languages(self) -> dict[str, str]:
        fits = find_fits(self.pattern, {SPLIT: list(USUAL_SPLITS)})
        return self.names.find([fit.parts[LANG] for fit in fits], self.name)[0]

    def strange(self, split: str) -> list[str]:
        """Return the names that lie there and are no codes."""
        return self._there(split)[1]

    def _path(self, language: str, split: str | None) -> Path:
        literal = Path(fill(self.pattern, {SPLIT: split or "", LANG: language}))
        if literal.is_file() and not self.names.codes:
            return literal
        paths, strange, _ = self._there(split)
        if language in paths:
            return paths[language]
        if not paths and not strange:
            splits = self.splits()
            there = f" Splits there: {', '.join(splits)}." if splits and self._by_path else ""
            raise ConfigError(
                f"no file fits `{self.pattern}` for the split `{split}`: looked for `{literal}`.{there} "
                f"Check the pattern, or name the split with {setting('source_split')}, {setting('validation_split')}, "
                f"{setting('target_split')} or {setting('few_shot_split')}."
            )
        raise ConfigError(
            f"language `{language}` has no `{split}` split: `{literal}` is missing."
            f"{missing_language(language, sorted(paths), strange)}"
        )

    def inspect(self, language: str, split: str | None) -> Shape:
        """Return columns and size; of Parquet only the footer is read, unless a column has the splits."""
        path = self._path(language, split)
        if self._values(path) is None:
            check_single(path, split, None if self._by_path else self.default_split, self.pattern)
            return Shape(*inspect_file(path))
        table = self.read(language, split)
        return Shape(tuple(table.column_names), len(table))

    def read(self, language: str, split: str | None) -> Dataset:
        """Read one file, or the rows of it whose column names the split; None reads a file without splits."""
        path = self._path(language, split)
        values = self._values(path)
        if values is None:
            check_single(path, split, None if self._by_path else self.default_split, self.pattern)
            return read_file(path)
        check_named(split, values, str(path))
        return select_equal(read_file(path), SPLIT_COLUMN, split)

    def fingerprint(self, language: str, split: str | None) -> str:
        """Hash the file."""
        return hash_file(self._path(language, split))

    def rows(self, language: str, split: str | None) -> Rows:
        """Say which rows these are."""
        path = self._path(language, split)
        return Rows(place_of(path), split if self._values(path) is not None else None)


@dataclass
class ColumnSource:
    """Local files in which a column names the language, and perhaps another one the split."""

    pattern: str
    language_column: str | None = None
    default_split: str | None = None
    names: LanguageNames = field(default_factory=LanguageNames)
    name: str = field(init=False)
    hub_id: None = None
    _tables: dict[str, Dataset] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Name the source by the end of its pattern."""
        self.name = shareable_pattern(self.pattern)

    def _path(self, split: str | None) -> Path:
        literal = Path(fill(self.pattern, {SPLIT: split or ""}))
        if literal.is_file():
            return literal
        fits: list[Fit] = [fit for fit in find_fits(self.pattern, {SPLIT: split or ""}) if fit.path.is_file()]
        if fits:
            return fits[0].path
        splits = self._splits_by_path()
        there = f" Splits there: {', '.join(splits)}." if splits else ""
        raise ConfigError(f"file `{literal}` is missing (split `{split}` of `{self.pattern}`).{there}")

    def _splits_by_path(self) -> list[str]:
        if "{split}" not in self.pattern:
            return []
        return sorted({fit.parts[SPLIT] for fit in find_fits(self.pattern, {}) if fit.path.is_file()})

    def _whole(self, path: Path) -> Dataset:
        if str(path) not in self._tables:
            self._tables[str(path)] = read_file(path)
        return self._tables[str(path)]

    def _table(self, split: str | None) -> Dataset:
        path = self._path(split)
        table = self._whole(path)
        if "{split}" in self.pattern:
            return table
        if SPLIT_COLUMN in table.column_names:
            check_named(split, split_names(table), str(path))
            return select_equal(table, SPLIT_COLUMN, split)
        check_single(path, split, self.default_split, self.pattern)
        return table

    def splits(self, language: str | None = None) -> list[str]:
        """Return the names of the splits there, of one language or of any; none of a file without splits."""
        if "{split}" in self.pattern:
            names = self._splits_by_path()
        else:
            table = self._whole(self._path(None))
            names = split_names(table) if SPLIT_COLUMN in table.column_names else []
        return [split for split in names if language is None or language in self._found(split)[0]]

    def _column(self, table: Dataset, split: str | None) -> str:
        return find_language_column(table, self.language_column, str(self._path(split)), "use {lang} in the pattern")

    def _found(self, split: str | None) -> tuple[Mapping[str, str], list[str]]:
        table = self._table(split)
        values = table.unique(self._column(table, split)) if len(table) else []
        return self.names.find([str(value) for value in values if value is not None], self.name)

    def languages(self, split: str | None) -> list[str]:
        """Return the languages named in the language column; the split None reads a file without splits."""
        return sorted(self._found(split)[0])

    def left_out(self, split: str, used: Collection[str] = ()) -> list[str]:
        """Say what lies there and is none of `languages(split)`, and why, in sentences."""
        told = unknown_names(self._found(split)[1], f"`{self.name}`")
        return [told] if told else []

    def strange(self, split: str) -> list[str]:
        """Return the names that lie there and are no codes."""
        return self._found(split)[1]

    def inspect(self, language: str, split: str | None) -> Shape:
        """Return columns and size of one language's rows."""
        table = self.read(language, split)
        return Shape(tuple(table.column_names), len(table))

    def read(self, language: str, split: str | None) -> Dataset:
        """Select one language's rows; the split None reads a file without splits."""
        table = self._table(split)
        column = self._column(table, split)
        found, strange = self._found(split)
        rows = select_equal(table, column, found.get(language, language))
        if len(rows) == 0 and len(table) > 0:
            raise ConfigError(
                f"language `{language}` does not occur in column `{column}` of `{self._path(split)}`."
                f"{missing_language(language, sorted(found), strange)}"
            )
        return rows

    def fingerprint(self, language: str, split: str | None) -> str:
        """Hash the whole file."""
        return hash_file(self._path(split))

    def rows(self, language: str, split: str | None) -> Rows:
        """Say which rows these are."""
        path = self._path(split)
        by_column = "{split}" not in self.pattern and SPLIT_COLUMN in self._whole(path).column_names
        return Rows(place_of(path), split if by_column else None, language)


def make_source(
    spec: str, language_column: str | None, default_split: str | None, names: LanguageNames | None = None
) -> Source:
    """Choose the kind of source from what the user typed.

    Args:
        spec: pattern, file, Hub id (`NAME`, `ORG/NAME`, with `:CONFIGURATION`), data set folder, or `embedded`.
        language_column: column that names the language, where the pattern has no `{lang}`.
        default_split: what a single file without `{split}` serves as.
        names: codes of names that are none.

    Raises:
        ConfigError: it is none of these.
    """
    names = names or LanguageNames()
    if spec == EMBEDDED:
        return EmbeddedSource()
    spec = expand_home(spec)
    if spec.lower().endswith(SUFFIXES):
        unknown = set(re.findall(r"\{(\w*)\}", spec)) - {LANG, SPLIT}
        if unknown:
            raise ConfigError(f"pattern `{spec}`: unknown part {{{unknown.pop()}}}; use {{lang}} and {{split}}.")
        if "{lang}" in spec:
            return FileSource(spec, default_split, names)
        return ColumnSource(spec, language_column, default_split, names)
    path = spec.partition(":")[0]
    if Path(path).is_dir():
        return HubSource(spec, language_column, names)
    reason = looks_local(path)
    if _HUB_ID.fullmatch(spec) and reason is None:
        return HubSource(spec, language_column, names)
    why = f" It {reason}, so it was not sought on the Hub." if reason and "{" not in spec else ""
    raise ConfigError(
        f"data `{spec}` is neither a file (ending in {', '.join(SUFFIXES)}) nor a Hub id such as `ORG/NAME` or "
        f"`ORG/NAME:{{lang}}`, nor `embedded`.{why}"
    )
