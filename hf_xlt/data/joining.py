"""Rows of several languages joined by the id of an example, never by row number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, close_match, setting

if TYPE_CHECKING:
    from datasets import Dataset


def check_id_column(present: Sequence[str], id_column: str, where: str) -> None:
    """Check that a data set has ids.

    Raises:
        ConfigError: the column is missing.
    """
    if id_column not in present:
        raise ConfigError(
            f"{where} must contain a `{id_column}` column, by which languages are joined; its columns are "
            f"{', '.join(present)}.{close_match(id_column, present)} Name the right one with {setting('id_column')}."
        )


def rows_by_id(table: Dataset, id_column: str, where: str) -> dict[str, int]:
    """Return the row of each id.

    Args:
        table: one language's rows.
        id_column: the column of ids, texts or integers.
        where: what the data are, for messages.

    Raises:
        ConfigError: the column is missing, an id is missing, or one occurs twice.
    """
    check_id_column(table.column_names, id_column, where)
    rows: dict[str, int] = {}
    repeated = []
    for row, value in enumerate(table[id_column]):
        if value is None or not str(value):
            raise ConfigError(f"{where}, row {row}: column `{id_column}` holds {value!r}; each row needs an id.")
        if str(value) in rows:
            repeated.append(str(value))
        rows.setdefault(str(value), row)
    if repeated:
        raise ConfigError(
            f"{where}: column `{id_column}` holds {counted(len(set(repeated)), 'id')} more than once, such as "
            f"`{repeated[0]}`; languages cannot be joined by it."
        )
    return rows


def check_same_labels(
    labels: Mapping[str, Any], where: str, others: Mapping[str, Any], others_where: str, names: Sequence[str] = ()
) -> None:
    """Check that two languages give each id the same label.

    Args:
        labels: label by id of one language.
        where: what its data are, for messages.
        others: the same of the language it is compared with; holds every id of `labels`.
        others_where: what that one's data are.
        names: class names, where labels are their indices.

    Raises:
        ConfigError: a label differs.
    """
    differing = [identifier for identifier, label in labels.items() if label != others[identifier]]
    if differing:
        here, there = (names[side[differing[0]]] if names else side[differing[0]] for side in (labels, others))
        raise ConfigError(
            f"{where}: the label of {counted(len(differing), 'id')} is not that in {others_where}, such as "
            f"`{differing[0]}`: {here!r} here, {there!r} there. Translations must share their labels."
        )


def missing_from(ids: Iterable[str], present: Mapping[str, Any]) -> list[str]:
    """Return the ids that a language does not have, in their order."""
    return [identifier for identifier in ids if identifier not in present]


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: `1 id`, `1,204 ids`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
