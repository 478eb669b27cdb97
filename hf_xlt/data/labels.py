"""Labels by name: what a data set calls them, and the inventory that a run or a model knows.

Numbers mean nothing by themselves: another file may count its classes in another order. So labels are read by name
wherever there are names (`named`), and compared by name; bare numbers go with bare numbers only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, close_match, few, setting, shortened

if TYPE_CHECKING:
    from datasets import Dataset

LABEL_TEXT_COLUMN = "label_text"
# A number as people write it: `01` and `1.0` are names.
_NUMBER = re.compile(r"0|-?[1-9]\d*")
_FRACTION = re.compile(r"-?\d+\.\d+")
# Numbers of classes up to which gaps are no sign that the numbers are ids.
_FEW = 100


@dataclass(frozen=True)
class LabelInventory:
    """Class names in index order.

    Attributes:
        names: class names; class i is called `names[i]`.
        numbered: whether a bare number in the data is an index: the training data had numbers only, or the user said
            what they are called.
    """

    names: tuple[str, ...]
    numbered: bool = True

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

    def respelt(self, name: Any) -> str | None:
        """Return the one class whose name differs from a label in case, blanks, hyphens or underscores alone.

        Args:
            name: a label; None is returned for the name of a class, for numbers and for what is no text.
        """
        if not isinstance(name, str) or normal(name) in self.names or is_number(name):
            return None
        near = [known for known in self.names if plain(known) == plain(name)]
        return near[0] if len(near) == 1 else None

    def indices(
        self, values: Sequence[Any], texts: Sequence[str | None] | None, where: str, start: int = 0, unit: str = "row"
    ) -> list[int]:
        """Map labels to class indices.

        Args:
            values: names or numbers.
            texts: the names beside numbers, where the data have them: they count.
            where: what the data are, for messages.
            start: number of the first value.
            unit: what is numbered, for messages.

        Raises:
            ConfigError: a label is missing, outside the inventory, or a bare number where the classes have names. One
                that is spelt otherwise is its class (`respelt`).
        """
        known, found = self.label2id, {}
        chosen = []
        for place, value in enumerate(values):
            if texts is not None and texts[place] is not None and isinstance(value, int):
                value = str(texts[place])
            # Of equal labels one is looked at.
            key = (type(value), value if isinstance(value, (str, int, bool)) else repr(value))
            if key not in found:
                found[key] = self._index(value, known, f"{where}, {unit} {start + place}")
            chosen.append(found[key])
        return chosen

    def _index(self, value: Any, known: dict[str, int], spot: str) -> int:
        if isinstance(value, bool):
            value = str(value)
        if isinstance(value, (list, tuple, dict)):
            raise ConfigError(f"{spot}: label {shortened(value)} is no single label. {_one_label()}")
        if value is None or value == "" or not isinstance(value, (int, str)):
            raise ConfigError(f"{spot}: label {value!r} is neither a class index nor a class name.")
        text = str(value) if isinstance(value, int) else normal(value)
        if text in known:
            return known[text]
        near = self.respelt(text)
        if near is not None:
            return known[near]
        if not _NUMBER.fullmatch(text):
            raise ConfigError(
                f"{spot}: label {value!r} is not in the inventory {few(self.names)}."
                f"{close_match(text, self.names)} It is that of the source training split; {setting('labels')} "
                f"names another."
            )
        if not self.numbered:
            raise ConfigError(
                f"{spot}: label {value!r} is a bare number, and the classes have names: {few(self.names)}. Which "
                "is which? Give the data a column of names, or name the classes in the order of the numbers with "
                f"{setting('labels')}."
            )
        if 0 <= int(text) < len(self.names):
            return int(text)
        raise ConfigError(
            f"{spot}: label {value} is outside the inventory 0..{len(self.names) - 1} "
            f"({few(self.names)}). The inventory is that of the source training split; {setting('labels')} names it."
        )


def describe_spelling(where: str, labels: Iterable[Any], inventory: LabelInventory) -> list[str]:
    """Say which labels are spelt otherwise than their classes.

    Args:
        where: what the data are.
        labels: the different ones of a set.
        inventory: the classes.
    """
    read = {label: inventory.respelt(label) for label in labels if isinstance(label, str)}
    pairs = [f"`{label}` as `{name}`" for label, name in sorted(read.items()) if name is not None]
    told = f"{where}: labels that differ from a class in case, blanks or hyphens alone are read as it: {few(pairs)}."
    return [told] if pairs else []


def _one_label() -> str:
    several = setting("task", "multi-label-classification")
    return f"`text-classification` takes one label per row; {several} takes several."


def is_number(text: str) -> bool:
    """Say whether a text is a whole number as people write it; `01` and `1.0` are names."""
    return _NUMBER.fullmatch(text) is not None


def normal(name: str) -> str:
    """Return a label's name in Unicode's composed form (NFC), in which `é` is one letter however it was typed."""
    return unicodedata.normalize("NFC", name)


def plain(name: str) -> str:
    """Return a name without what spellings differ in: case, blanks, hyphens, underscores, how letters are typed."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name)).casefold()


def declared_names(table: Dataset, column: str) -> tuple[str, ...]:
    """Return the names of a `ClassLabel` column, or of a column of lists of them, in index order; else none."""
    feature = table.features[column]
    return tuple(normal(name) for name in getattr(getattr(feature, "feature", feature), "names", None) or ())


def named(table: Dataset, column: str) -> Dataset:
    """Return a table whose labels are names wherever the data have names; bare numbers stay numbers.

    Names come from the column itself, from its `ClassLabel`, or from a column `label_text` beside it. What is no
    label, such as a missing one, stays for the check that says where it stands.

    Args:
        table: rows of one data set.
        column: of the labels: one in each row, or a list.
    """
    import pyarrow as pa
    from datasets import Dataset

    declared, values = declared_names(table, column), table.with_format(None)[column][:]
    beside = column != LABEL_TEXT_COLUMN and LABEL_TEXT_COLUMN in table.column_names
    listed = any(isinstance(value, list) for value in values)
    if declared:
        words = dict(enumerate(declared))
        found = [[words.get(entry, entry) for entry in row or ()] if listed else words.get(row, row) for row in values]
    elif beside and not listed:
        texts = table.with_format(None)[LABEL_TEXT_COLUMN][:]
        found = [
            str(text) if text is not None and isinstance(value, int) else value
            for value, text in zip(values, texts, strict=True)
        ]
    else:
        found = values
    found = [
        [normal(entry) if isinstance(entry, str) else entry for entry in row]
        if isinstance(row, list)
        else _as_name(row)
        for row in found
    ]
    if found == values and not declared:
        return table
    try:
        made = pa.array(found)
    except pa.ArrowException:
        # Numbers that are no index of a name, beside names.
        made = pa.array([str(value) if isinstance(value, int) else value for value in found])
    arrow = table.with_format("arrow")[:] if table._indices is not None else table.data.table
    place = arrow.column_names.index(column)
    arrow = arrow.set_column(place, column, made).replace_schema_metadata(None)
    return Dataset(arrow, fingerprint=_fingerprint(table, column))


def _fingerprint(table: Dataset, column: str) -> str:
    """Return what the cache of features knows the named rows by."""
    import hashlib

    return hashlib.sha256(f"{table._fingerprint} named {column}".encode()).hexdigest()[:16]


def _as_name(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value)
    return normal(value) if isinstance(value, str) else value


def find_inventory(tables: Sequence[Dataset], column: str, given: Sequence[str] | None) -> LabelInventory:
    """Read the inventory off the source training split, unless it is given.

    Args:
        tables: the training rows of each source language.
        column: the label column.
        given: names in index order, or None.

    Returns:
        Given names; else the names of the data: in the order of the first table that declares one (`ClassLabel`, or
        numbers with names beside them), then what other tables have besides, in theirs, then the rest sorted; else
        `LABEL_i` for bare numbers.

    Raises:
        ConfigError: fewer than two classes, names in one place and bare numbers in another, or no labels at all.
    """
    if given:
        names = tuple(map(normal, given))
        if len(set(names)) != len(names):
            raise ConfigError(f"{setting('labels')} names a class twice: {', '.join(names)}.")
        return _checked(names, True)
    ordered: list[str] = []
    present: set[Any] = set()
    for table in tables:
        ordered += _ordered_names(table, column)
        present |= {value if _is_plain(value) else repr(value) for value in _values_of(table, column)}
    present.discard(None)
    names = {value for value in present if isinstance(value, str)}
    numbers = present - names
    if numbers and names | set(ordered):
        raise ConfigError(
            f"column `{column}` of the source training data mixes names ({few(sorted(names | set(ordered)))}) and "
            f"bare numbers ({few(sorted(map(str, numbers)))}); labels are either all indices or all names."
        )
    if numbers:
        return _checked(_names_of_indices(column, numbers), True)
    rest = names - set(ordered)
    if rest and not ordered and all(_NUMBER.fullmatch(name) for name in rest):
        # A column of a text file: whole numbers that count the classes are indices, others are names.
        found = sorted(map(int, rest))
        if found[0] >= 0 and len(found) > found[-1]:
            return _checked(_names_of_indices(column, set(found)), True)
        return _checked(tuple(map(str, found)), False)
    fractions = sorted(name for name in rest if _FRACTION.fullmatch(name))
    if fractions and len(fractions) == len(rest):
        raise _fraction_problem(column, fractions[0])
    return _checked((*dict.fromkeys(ordered), *sorted(rest)), False)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int))


def _values_of(table: Dataset, column: str) -> list[Any]:
    """Return the different labels of a table by name, where it has names.

    Raises:
        ConfigError: a label is a list, an object or a number with a fraction.
    """
    values = list({repr(value): value for value in named(table, column)[column]}.values())
    for value in values:
        if isinstance(value, (list, dict)):
            raise ConfigError(
                f"column `{column}` of the source training data holds {shortened(value)}. {_one_label()}"
            )
        if isinstance(value, float):
            raise _fraction_problem(column, value)
        if not _is_plain(value):
            raise ConfigError(
                f"column `{column}` of the source training data holds {shortened(value)}, a {type(value).__name__}; "
                "class labels are integers or names."
            )
    return ["" if value == "" else value for value in values if value not in (None, "")]


def _fraction_problem(column: str, value: object) -> ConfigError:
    return ConfigError(
        f"column `{column}` holds {value}, a number with a fraction; class labels are integers or names."
    )


def _ordered_names(table: Dataset, column: str) -> list[str]:
    """Return names in the order that a table declares; none where it declares none."""
    declared = declared_names(table, column)
    if declared or column == LABEL_TEXT_COLUMN or LABEL_TEXT_COLUMN not in table.column_names:
        return list(declared)
    pairs = set(zip(table[column][:], table[LABEL_TEXT_COLUMN][:], strict=True))
    counted = {(index, normal(str(text))) for index, text in pairs if isinstance(index, int) and text is not None}
    return [text for _, text in sorted(counted)]


def _names_of_indices(column: str, values: set[int]) -> tuple[str, ...]:
    lowest, highest = min(values), max(values)
    if lowest < 0:
        raise ConfigError(
            f"column `{column}` of the source training data holds the label {lowest}; classes are 0, 1, …"
        )
    if highest >= max(_FEW, 10 * len(values)):
        raise ConfigError(
            f"column `{column}` of the source training data holds the label {highest:,}, and only {len(values):,} "
            "different ones: these look like ids. Number the classes from 0, or give them names."
        )
    return tuple(f"LABEL_{index}" for index in range(highest + 1))


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of names that differ in case or blanks alone, as slips do."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        plain = "".join(unicodedata.normalize("NFKC", name).split()).casefold()
        if plain in first:
            pairs.append((first[plain], name))
        first.setdefault(plain, name)
    return pairs


def _checked(names: tuple[str, ...], numbered: bool) -> LabelInventory:
    if len(names) < 2:
        raise ConfigError(f"the source training data have {len(names)} class; classification needs two or more.")
    return LabelInventory(names, numbered)
