"""What no row of a run may lack, looked for in every set before anything is trained, test sets too.

Whole columns are looked at by Arrow; what a model or a scorer would stumble over in hours costs seconds here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hf_xlt.data.labels import LabelInventory, describe_spelling
from hf_xlt.data.sources import EmbeddedSource
from hf_xlt.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xlt.data.roles import DataSet

_TEXTS = ("text", "text_pair", "question", "context")


def check_rows(entries: Iterable[DataSet], inventory: LabelInventory | None) -> list[str]:
    """Check texts, words and labels of data sets.

    Args:
        entries: the sets; one that has several roles is looked at once.
        inventory: the classes that labels must be of; None leaves labels to the task.

    Returns:
        What the user should know, in sentences: texts that are empty.

    Raises:
        ConfigError: a row has no text, no words, words and tags that do not fit together, or a label of no class; the
            message names set and row.
    """
    notes, seen = [], set()
    for entry in entries:
        key = (id(entry.source), entry.language, entry.split)
        if key in seen or isinstance(entry.source, EmbeddedSource):
            continue
        seen.add(key)
        table = entry.read()
        arrow = table.with_format("arrow")[:] if len(table) else None
        if arrow is None:
            continue
        notes += _check_texts(entry, arrow)
        if "tokens" in entry.columns:
            _check_words(entry, arrow)
        if inventory is not None and entry.label_column is not None:
            notes += _check_labels(entry, table, inventory)
    return notes


def _check_texts(entry: DataSet, table: Any) -> list[str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    notes = []
    for column in (entry.columns[role] for role in _TEXTS if role in entry.columns):
        values = table[column]
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            raise ConfigError(f"{entry.where}, row 0: column `{column}` holds {values[0].as_py()!r}, not a text.")
        missing = _first(pc.is_null(values))
        if missing is not None:
            raise ConfigError(f"{entry.where}, row {missing}: column `{column}` holds None, not a text.")
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(values)), 0)
        count = pc.sum(blank).as_py()
        if count == len(values):
            raise ConfigError(f"{entry.where}: column `{column}` holds no text; every row of it is empty.")
        if count:
            notes.append(
                f"{entry.where}: column `{column}` is empty in {count:,} of {len(values):,} rows, such as row "
                f"{_first(blank)}; they are used as empty texts."
            )
    return notes


def _check_words(entry: DataSet, table: Any) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    names = entry.columns
    words, tags = table[names["tokens"]], table[names["tags"]]
    if not all(pa.types.is_list(side.type) or pa.types.is_large_list(side.type) for side in (words, tags)):
        # What is no list is told by the task, which shows the row.
        return
    counts = [pc.fill_null(pc.list_value_length(side), 0) for side in (words, tags)]
    empty = _first(pc.equal(counts[0], 0))
    if empty is not None:
        raise ConfigError(
            f"{entry.where}, row {empty}: column `{names['tokens']}` must hold a list of words; got "
            f"{words[empty].as_py()!r}. Leave sentences without words out of the data."
        )
    unequal = _first(pc.not_equal(*counts))
    if unequal is not None:
        raise ConfigError(
            f"{entry.where}, row {unequal}: {counts[0][unequal].as_py()} words in `{names['tokens']}`, but "
            f"`{names['tags']}` holds {counts[1][unequal].as_py()} tags."
        )


def _check_labels(entry: DataSet, table: Dataset, inventory: LabelInventory) -> list[str]:
    """Look for labels of no class: among the different ones, and row by row only where there is one.

    Returns:
        A note where labels are spelt otherwise than their classes.
    """
    column = entry.label_column
    values = table.with_format(None)[column][:]
    listed = "tags" in entry.columns
    if listed and not all(isinstance(row, list) for row in values):
        return []
    different: Mapping[str, Any] = {repr(value): value for row in values for value in (row if listed else (row,))}
    try:
        inventory.indices(list(different.values()), None, entry.where)
    except ConfigError:
        if not listed:
            inventory.indices(values, None, entry.where)
        for number, row in enumerate(values if listed else ()):
            inventory.indices(row, None, f"{entry.where}, row {number}", unit="word")
    return describe_spelling(entry.where, different.values(), inventory)


def _first(mask: Any) -> int | None:
    """Return the place of the first true value, or None."""
    import pyarrow as pa
    import pyarrow.compute as pc

    place = pc.index(mask, pa.scalar(True)).as_py()
    return place if place >= 0 else None
