"""Data sets of the Hub, data set folders, and the embedded task."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hf_xlt.data.patterns import LanguageNames, missing_language, unknown_names
from hf_xlt.data.tables import SPLIT_COLUMN, Rows, Shape, find_language_column, hash_rows, select_equal, split_names
from hf_xlt.errors import ConfigError, close_match

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class HubSource:
    """A data set of the Hub, or a local data set folder; `{lang}` in the configuration name, or a language column.

    `ORG/NAME` has the language in a column, `ORG/NAME:{lang}` or `ORG/NAME:all_{lang}` as configuration name. A column
    `split` tells the splits apart where the data set has only one.
    """

    spec: str
    language_column: str | None = None
    names: LanguageNames = field(default_factory=LanguageNames)
    name: str = field(init=False)
    _sets: dict[tuple[str | None, str], Dataset] = field(default_factory=dict, repr=False)
    _hashes: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Split the id from the configuration name."""
        self.path, _, self.configuration = self.spec.partition(":")
        local = Path(self.path).is_dir()
        self.name = Path(self.path).name if local else self.path
        self.hub_id = None if local else self.path

    @property
    def _by_configuration(self) -> bool:
        return "{lang}" in self.configuration

    def _load(self, configuration: str | None, split: str) -> Dataset:
        from datasets import load_dataset

        key = (configuration, split)
        if key not in self._sets:
            try:
                table = load_dataset(self.path, configuration, split=split)
            except Exception as error:
                # `datasets` raises some twenty kinds of error for one cause: this set is not to be had.
                only = self._only_split(configuration)
                if only is None or SPLIT_COLUMN not in only.column_names:
                    place = f" (configuration `{configuration}`)" if configuration else ""
                    raise ConfigError(
                        f"data set `{self.path}`{place}, split `{split}`, cannot be loaded: {error} "
                        "Check the id, the split and the network; local files need a suffix such as .parquet."
                    ) from error
                table = only
            self._sets[key] = self._by_column(table, split)
        return self._sets[key]

    def _only_split(self, configuration: str | None) -> Dataset | None:
        """Load the one split of a data set; None where it has several, or cannot be had."""
        from datasets import get_dataset_split_names, load_dataset

        try:
            names = get_dataset_split_names(self.path, configuration)
            return load_dataset(self.path, configuration, split=names[0]) if len(names) == 1 else None
        except Exception:
            # Told by the caller, with the error that led here.
            return None

    def _by_column(self, table: Dataset, split: str) -> Dataset:
        """Take a split by the column that names it, where the data set itself has one split only.

        Raises:
            ConfigError: the column does not name it.
        """
        if SPLIT_COLUMN not in table.column_names or len(table.info.splits or ()) > 1:
            return table
        values = split_names(table)
        if split not in values:
            raise ConfigError(
                f"data set `{self.path}` has no `{split}` split in its column `{SPLIT_COLUMN}`."
                f"{close_match(split, values)} Splits there: {', '.join(values) or 'none'}."
            )
        return select_equal(table, SPLIT_COLUMN, split)

    @cached_property
    def _configurations(self) -> list[str]:
        from datasets import get_dataset_config_names

        try:
            return get_dataset_config_names(self.path)
        except Exception as error:
            raise ConfigError(
                f"data set `{self.path}` cannot be found: {error} Check the id and the network."
            ) from error

    def _found(self, split: str) -> tuple[dict[str, str], list[str]]:
        """Return the names of languages by code, and those that are no codes."""
        if self._by_configuration:
            # The second and later parts must be what the first is.
            first, *rest = re.escape(self.configuration).split(r"\{lang\}")
            shape = re.compile(first + "(?P<lang>.+)" + "(?P=lang)".join(rest))
            matches = map(shape.fullmatch, self._configurations)
            return self.names.find([match["lang"] for match in matches if match], f"`{self.name}`")
        table = self._load(self.configuration or None, split)
        column = self._column(table)
        values = table.unique(column) if len(table) else []
        classes = getattr(table.features[column], "names", None)
        named = [str(classes[value]) if classes else str(value) for value in values if value is not None]
        return self.names.find(named, f"`{self.name}`")

    def languages(self, split: str) -> list[str]:
        """Return the languages among the configuration names, or in the language column."""
        return sorted(self._found(split)[0])

    def left_out(self, split: str, used: Collection[str] = ()) -> list[str]:
        """Say what lies there and is none of `languages(split)`, and why, in sentences."""
        told = unknown_names(self._found(split)[1], f"`{self.name}`")
        return [told] if told else []

    def strange(self, split: str) -> list[str]:
        """Return the names that lie there and are no codes."""
        return self._found(split)[1]

    def configuration_of(self, language: str | None) -> str | None:
        """Return the name of the configuration that a language's data are in."""
        if not self._by_configuration:
            return self.configuration or None
        found = self._found("")[0]
        if language is None:
            return None
        return self.configuration.replace("{lang}", found.get(language, language))

    def splits(self, language: str | None = None) -> list[str]:
        """Return the names of the splits there; none where they cannot be told."""
        from datasets import get_dataset_split_names

        if language is None and self._by_configuration:
            return sorted({name for code in self.languages("")[:1] for name in self.splits(code)})
        configuration = self.configuration_of(language)
        try:
            names = get_dataset_split_names(self.path, configuration)
        except Exception:
            # Told of when the set is read.
            return []
        only = self._only_split(configuration) if len(names) == 1 else None
        return split_names(only) if only is not None and SPLIT_COLUMN in only.column_names else list(names)

    def _column(self, table: Dataset) -> str:
        way_out = f"write `{self.path}:{{lang}}` when each language is a configuration"
        return find_language_column(table, self.language_column, self.path, way_out)

    def inspect(self, language: str, split: str) -> Shape:
        """Return columns and size."""
        table = self.read(language, split)
        return Shape(tuple(table.column_names), len(table))

    def read(self, language: str, split: str) -> Dataset:
        """Load one language."""
        found, strange = self._found(split)
        if self._by_configuration:
            if language not in found:
                raise ConfigError(
                    f"language `{language}` is no configuration of `{self.path}`."
                    f"{missing_language(language, sorted(found), strange)}"
                )
            return self._load(self.configuration_of(language), split)
        table = self._load(self.configuration or None, split)
        rows = select_equal(table, self._column(table), found.get(language, language))
        if len(rows) == 0:
            raise ConfigError(
                f"language `{language}` does not occur in `{self.path}`."
                f"{missing_language(language, sorted(found), strange)}"
            )
        return rows

    def fingerprint(self, language: str, split: str) -> str:
        """Hash the rows: what `datasets` keeps of them differs from machine to machine."""
        key = (language, split)
        if key not in self._hashes:
            self._hashes[key] = hash_rows(self.read(language, split))
        return self._hashes[key]

    def rows(self, language: str, split: str) -> Rows:
        """Say which rows these are."""
        place = str(Path(self.path).resolve()) if self.hub_id is None else f"hub:{self.path}"
        configuration = self.configuration_of(language)
        return Rows(f"{place}:{configuration or ''}", split, None if self._by_configuration else language)


@dataclass
class EmbeddedSource:
    """The phrase task that is generated from the Unicode CLDR (`hf_xlt.embedded`)."""

    name: str = "hf-xlt-cldr-phrases"
    hub_id: None = None

    def languages(self, split: str) -> list[str]:
        """Return the task's languages."""
        from hf_xlt.embedded import SOURCE_LANGUAGE, TARGET_LANGUAGES

        return sorted((SOURCE_LANGUAGE, *TARGET_LANGUAGES))

    def left_out(self, split: str, used: Collection[str] = ()) -> list[str]:
        """Return nothing: all of its languages are used."""
        return []

    def strange(self, split: str) -> list[str]:
        """Return nothing: its languages have codes."""
        return []

    def splits(self, language: str | None = None) -> list[str]:
        """Return its splits."""
        return ["train", "validation", "test"]

    def rows(self, language: str, split: str) -> Rows:
        """Say which rows these are."""
        return Rows("embedded", split, language)

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
