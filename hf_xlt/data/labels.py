"""The label inventory: that of the source training split, or the one the user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, close_match

if TYPE_CHECKING:
    from datasets import Dataset

LABEL_TEXT_COLUMN = "label_text"


@dataclass(frozen=True)
class LabelInventory:
    """Class names in index order.

    Attributes:
        names: class names; class i is called `names[i]`.
    """

    names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """Index to name, for the model's config."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """Name to index, for the model's config."""
        return {name: index for index, name in enumerate(self.names)}

    def indices(
        self, values: Sequence[Any], texts: Sequence[str | None] | None, where: str, start: int = 0, unit: str = "row"
    ) -> list[int]:
        """Map a label column to class indices.

        Args:
            values: integers or names.
            texts: the names beside integer labels, where the data have them; checked against the inventory.
            where: what the data are, for messages.
            start: number of the first value.
            unit: what is numbered, for messages.

        Raises:
            ConfigError: a label is missing, outside the inventory, or named otherwise than in the inventory.
        """
        known, chosen = self.label2id, []
        for place, value in enumerate(values):
            spot = f"{where}, {unit} {start + place}"
            index = self._index(value, known, spot)
            if texts is not None and texts[place] is not None and str(texts[place]) != self.names[index]:
                raise ConfigError(
                    f"{spot}: label {value!r} is called {texts[place]!r}, but class {index} of the "
                    f"inventory is called {self.names[index]!r}. All data of a run must share one label set."
                )
            chosen.append(index)
        return chosen

    def _index(self, value: Any, known: dict[str, int], spot: str) -> int:
        if value is None or isinstance(value, float):
            raise ConfigError(f"{spot}: label {value!r} is neither a class index nor a class name.")
        if isinstance(value, int) and not isinstance(value, bool):
            if 0 <= value < len(self.names):
                return value
            raise ConfigError(
                f"{spot}: label {value} is outside the inventory 0..{len(self.names) - 1} "
                f"({', '.join(self.names)}). The inventory is that of the source training split; `--labels` names it."
            )
        if str(value) in known:
            return known[str(value)]
        raise ConfigError(
            f"{spot}: label {value!r} is not in the inventory {', '.join(self.names)}."
            f"{close_match(str(value), self.names)} It is that of the source training split; `--labels` names another."
        )


def find_inventory(tables: Sequence[Dataset], column: str, given: Sequence[str] | None) -> LabelInventory:
    """Read the inventory off the source training split, unless it is given.

    Args:
        tables: the training rows of each source language.
        column: the label column.
        given: names in index order, or None.

    Returns:
        Given names; else `ClassLabel` names; else the names beside integer labels; else sorted names; else `LABEL_i`.

    Raises:
        ConfigError: fewer than two classes, or names and indices mixed.
    """
    if given:
        if len(set(given)) != len(given):
            raise ConfigError(f"`--labels` names a class twice: {', '.join(given)}.")
        return _checked(tuple(given))
    feature_names = getattr(tables[0].features[column], "names", None)
    if feature_names:
        return _checked(tuple(feature_names))
    values = {value for table in tables for value in table.unique(column)}
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1:
        raise ConfigError(
            f"column `{column}` of the source training data mixes {' and '.join(sorted(k.__name__ for k in kinds))}; "
            "labels are either all indices or all names."
        )
    if kinds == {int}:
        return _checked(_names_of_indices(tables, column, values))
    if kinds == {float}:
        raise ConfigError(f"column `{column}` holds numbers with a fraction; class labels are integers or names.")
    return _checked(tuple(sorted(str(value) for value in values if value is not None)))


def _names_of_indices(tables: Sequence[Dataset], column: str, values: set[int]) -> tuple[str, ...]:
    lowest = min(value for value in values if value is not None)
    if lowest < 0:
        raise ConfigError(
            f"column `{column}` of the source training data holds the label {lowest}; classes are 0, 1, …"
        )
    names = {index: f"LABEL_{index}" for index in range(max(value for value in values if value is not None) + 1)}
    for table in tables:
        if LABEL_TEXT_COLUMN in table.column_names and LABEL_TEXT_COLUMN != column:
            for index, text in zip(table[column], table[LABEL_TEXT_COLUMN], strict=True):
                if index is not None and text is not None:
                    names[index] = str(text)
    return tuple(names[index] for index in sorted(names))


def _checked(names: tuple[str, ...]) -> LabelInventory:
    if len(names) < 2:
        raise ConfigError(f"the source training data have {len(names)} class; classification needs two or more.")
    return LabelInventory(names)
