"""The labels of test data against the classes of a finished model, matched by name wherever both have names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_xlt.data.labels import (
    LABEL_TEXT_COLUMN,
    LabelInventory,
    declared_names,
    describe_spelling,
    is_number,
    normal,
    plain,
)
from hf_xlt.data.roles import DataPlan, DataSet
from hf_xlt.errors import ConfigError, few, setting

if TYPE_CHECKING:
    from datasets import Dataset

# What transformers calls the classes of a model that were never named.
GENERIC = re.compile(r"LABEL_\d+")
_SHOWN = 8


def match_labels(
    plan: DataPlan, classes: Sequence[str], given: Sequence[str] | None, named: bool = False
) -> LabelInventory:
    """Settle what the classes of a model are called, and let the plan's data be read as indices of these classes.

    Args:
        plan: the data; its sets are replaced by ones that translate labels, and notes are added.
        classes: the model's classes in index order, as its config names them.
        given: names as the user gave them, or None. Where they are the model's own, they say in which order bare
            numbers in the data count them; else what the model's classes are called, in its order.
        named: whether the model was trained on bare numbers, which the user named.

    Returns:
        The classes by the names that the data are read with.

    Raises:
        ConfigError: the numbers of classes differ, the names have nothing in common, or only the user can know.
    """
    entries = plan.of_role(*plan.sets)
    role = plan.task.label_role
    declared = _declared_names(entries[0].read_as_written(), entries[0].columns[role])
    names = tuple(map(normal, given or classes))
    if len(names) != len(classes):
        raise ConfigError(
            f"{setting('labels')} names {len(names)} classes, and the model has {len(classes)}: {_few(classes)}."
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"a class is named twice: {_few(names)}. Name the model's classes with {setting('labels')}.")
    unnamed = all(map(GENERIC.fullmatch, classes))
    counted: tuple[str, ...] = ()
    if given and sorted(map(plain, names)) == sorted(map(plain, classes)):
        order = {plain(name): normal(name) for name in classes}
        counted = tuple(order[plain(name)] for name in names)
        names = tuple(map(normal, classes))
    if declared and not given and unnamed:
        names = _unnamed(classes, declared, entries[0].where)
        plan.notes.append(f"the model's classes have no names; taken in the order of the data: {_numbered(names)}.")
    known = LabelInventory(names)
    for entry in entries:
        plan.notes += describe_spelling(entry.where, _different(entry.read(), entry.columns[role]), known)
    matching = _Matching(names, counted, plan.task.class_column is None, role)
    plan.sets = {
        kind: [_Translated(**_values(entry), matching=matching) for entry in sets] for kind, sets in plan.sets.items()
    }
    # A bare number is an index where nobody has named the classes, or the user has said what the numbers mean.
    return LabelInventory(names, numbered=bool(given) or unnamed or named)


def _values(entry: DataSet) -> dict[str, Any]:
    return {item.name: getattr(entry, item.name) for item in dataclasses.fields(DataSet)}


def _unnamed(classes: Sequence[str], declared: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the names of a model's classes that only the data know.

    Raises:
        ConfigError: the data do not say in which order, or have another number of classes.
    """
    if not isinstance(declared, tuple):
        raise ConfigError(
            f"the model's classes have no names ({_few(classes)}) and {where} has labels {_few(sorted(declared))}; "
            f"name the classes in the model's order with {setting('labels')}."
        )
    if len(declared) != len(classes):
        raise ConfigError(f"the model has {len(classes)} classes, and {where} has {len(declared)}: {_few(declared)}.")
    return declared


def _declared_names(table: Dataset, column: str) -> tuple[str, ...] | set[str] | None:
    """Return the names of a label column: in index order where the data say it, else a set; None for bare numbers."""
    names = declared_names(table, column)
    if names:
        return names
    values, flat = table[column][:], _different(table, column)
    if any(isinstance(value, str) and not is_number(value) for value in flat):
        return {str(value) for value in flat}
    if LABEL_TEXT_COLUMN not in table.column_names:
        return None
    beside = dict(zip(values, table[LABEL_TEXT_COLUMN][:], strict=True))
    complete = sorted(beside) == list(range(len(beside)))
    return tuple(str(beside[index]) for index in sorted(beside)) if complete else set(map(str, beside.values()))


def _different(table: Dataset, column: str) -> set[Any]:
    """Return the different labels of a table, whose rows have one or a list of them."""
    return {value for row in table[column][:] for value in (row if isinstance(row, (list, tuple)) else [row])}


@dataclass(frozen=True)
class _Matching:
    """The model's classes, and how the data spell them.

    Attributes:
        names: classes in index order.
        counted: the same in the order that bare numbers count them in, where that is known to be another.
        listed: whether a row has a list of labels.
        role: of the label column.
    """

    names: tuple[str, ...]
    counted: tuple[str, ...]
    listed: bool
    role: str

    def apply(self, table: Dataset, column: str, where: str) -> Dataset:
        """Return the table with labels as indices of the model's classes, where they are given by name."""
        values = table[column][:]
        if self.listed and any(row is not None and not isinstance(row, list) for row in values):
            # Left to the check that says where it stands.
            return table
        rows = values if self.listed else [[value] for value in values]
        if self.counted:
            rows = [[self._by_number(value) for value in row or ()] for row in rows]
        present = {value for row in rows for value in row or () if isinstance(value, str) and not is_number(value)}
        if not present:
            return table
        spelt = self._classes_of(present, where)
        # What is no name, such as a missing label, stays as it is for the check that says where it stands.
        found = [[spelt.get(value, value) for value in row or ()] for row in rows]
        return table.remove_columns([column]).add_column(column, found if self.listed else [row[0] for row in found])

    def _by_number(self, value: Any) -> Any:
        """Return the class that a bare number means; what is none, or is a class's name, stays."""
        is_index = value not in self.names and not isinstance(value, bool) and is_number(str(value))
        return self.counted[int(value)] if is_index and 0 <= int(value) < len(self.counted) else value

    def _classes_of(self, present: set[str], where: str) -> Mapping[str, str]:
        inventory = LabelInventory(self.names)
        near = {name: inventory.respelt(name) or normal(name) for name in sorted(present)}
        strange = [name for name, known in near.items() if known not in self.names]
        if strange:
            raise ConfigError(
                f"{where} has labels that the model has no class for: {_few(strange)}. The model's classes are "
                f"{_few(self.names)}; if they only have other names, give the data's in the model's order with "
                f"{setting('labels')}."
            )
        return near


@dataclass(frozen=True)
class _Translated(DataSet):
    """A data set whose labels are read as indices of a model's classes."""

    matching: _Matching | None = None

    def read(self) -> Dataset:
        """Read the rows and translate the labels."""
        return self.matching.apply(super().read(), self.columns[self.matching.role], self.where)


def _few(names: Sequence[str]) -> str:
    return few([f"`{name}`" for name in names], _SHOWN)


def _numbered(names: Sequence[str]) -> str:
    shown = ", ".join(f"{number} = {name}" for number, name in enumerate(names[:_SHOWN]))
    return f"{shown}, ..." if len(names) > _SHOWN else shown
