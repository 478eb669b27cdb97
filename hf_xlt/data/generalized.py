"""Test pairs in two languages: the first sentence of an example in one, the second in another.

The generalized cross-lingual setting of Huang et al. 2021, "Improving Zero-Shot Cross-Lingual Transfer Learning via
Robust Training". Files of single languages are joined by the id of an example; nothing is joined by row number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_xlt.data.joining import check_id_column, check_same_labels, counted, missing_from, rows_by_id
from hf_xlt.data.labels import LabelInventory
from hf_xlt.data.roles import SOURCE_TEST, TARGET_TEST, DataPlan, DataSet
from hf_xlt.errors import ConfigError, close_match, setting
from hf_xlt.languages import find_same

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xlt.arguments import DataArguments

FIRST, SECOND, LABEL = "text", "text_pair", "label"
COLUMNS = {FIRST: FIRST, SECOND: SECOND, LABEL: LABEL}


@dataclass(frozen=True)
class ParallelPairs:
    """Sentence pairs that several languages share.

    Attributes:
        languages: codes, source languages first.
        source_languages: those of them with training labels.
        ids: the examples' ids, sorted, so that the order of rows in the files changes nothing.
        first: per language the first sentences, in the order of `ids`.
        second: per language the second sentences.
        labels: class index per id, the same in every language.
    """

    languages: tuple[str, ...]
    source_languages: tuple[str, ...]
    ids: tuple[str, ...]
    first: Mapping[str, tuple[Any, ...]]
    second: Mapping[str, tuple[Any, ...]]
    labels: tuple[int, ...]

    def ordered_pairs(self) -> list[tuple[str, str]]:
        """Return every ordered pair of two different languages."""
        return [(one, two) for one in self.languages for two in self.languages if one != two]

    def table(self, first: str, second: str) -> Dataset:
        """Return the rows whose first sentence is in one language and whose second is in another.

        Args:
            first: code of the first sentence's language.
            second: code of the second sentence's language.

        Returns:
            Columns as in `COLUMNS`, labels as class indices.
        """
        from datasets import Dataset

        return Dataset.from_dict({FIRST: self.first[first], SECOND: self.second[second], LABEL: self.labels})


def choose_pair_sets(plan: DataPlan, arguments: DataArguments) -> list[DataSet]:
    """Choose the test sets to join and check what can be checked without reading their rows.

    Args:
        plan: the data of a run, test sets included.
        arguments: which languages to join, by which column.

    Returns:
        Test sets, source languages first.

    Raises:
        ConfigError: the data are no pairs, have no ids or differ in size, or a language is not scored.
    """
    if plan.task.class_column is None and SECOND in plan.task.columns:
        raise ConfigError(
            f"{setting('generalized')} scores pairs with one class each; {plan.task.name} has several labels."
        )
    scored = {entry.language: entry for entry in plan.of_role(SOURCE_TEST, TARGET_TEST)}
    asked = arguments.generalized_languages or list(scored)
    for language in asked:
        if language not in scored:
            raise ConfigError(
                f"{setting('generalized_languages')}: `{language}` is not scored.{close_match(language, scored)} "
                f"Languages that are: {', '.join(scored)}."
            )
    chosen = [entry for language, entry in scored.items() if language in asked]
    for entry in chosen:
        if SECOND not in entry.columns:
            raise ConfigError(
                f"{setting('generalized')} puts the two sentences of a pair in different languages, but this task "
                f"has single "
                f"texts: {entry.where} has no second text. {setting('text_pair_column')} names it; `hf-xlt "
                f"make-pairs` makes "
                "pairs from parallel sentences."
            )
        present = entry.source.inspect(entry.language, entry.split).columns
        check_id_column(present, arguments.id_column, entry.where)
    if len(chosen) < 2:
        raise ConfigError(
            f"{setting('generalized')} needs two languages or more, but {', '.join(scored) or 'none'} is all that "
            f"is scored; "
            f"add {setting('target_languages')}."
        )
    first = chosen[0]
    for entry in chosen[1:]:
        if entry.rows != first.rows:
            raise ConfigError(
                f"{entry.where} has {counted(entry.rows, 'row')} and {first.where} has {first.rows:,}: their examples "
                f"cannot be joined one to one. Choose languages that share all ids with "
                f"{setting('generalized_languages')}."
            )
    return chosen


def join_pairs(plan: DataPlan, arguments: DataArguments, inventory: LabelInventory) -> ParallelPairs:
    """Read the test sets of several languages and join them by id.

    Args:
        plan: the data of a run, test sets included.
        arguments: which languages to join, by which column.
        inventory: label inventory.

    Raises:
        ConfigError: as `choose_pair_sets`; or a language has an id twice, lacks one that another has, or gives one
            another label; the message says which language, how many ids, and one of them.
    """
    entries = choose_pair_sets(plan, arguments)
    rows, labels, tables = {}, {}, {}
    for entry in entries:
        table = tables[entry.language] = entry.read()
        rows[entry.language] = rows_by_id(table, arguments.id_column, entry.where)
        labels[entry.language] = _labels_by_id(entry, table, rows[entry.language], inventory)
    first = entries[0]
    for entry in entries[1:]:
        _check_same_ids(first, entry, rows)
        check_same_labels(
            labels[entry.language], entry.where, labels[first.language], first.where, names=inventory.names
        )
    ids = tuple(sorted(rows[first.language]))
    sides: dict[str, dict[str, tuple[Any, ...]]] = {FIRST: {}, SECOND: {}}
    for entry in entries:
        for role, side in sides.items():
            texts = list(tables[entry.language][entry.columns[role]])
            side[entry.language] = tuple(texts[rows[entry.language][identifier]] for identifier in ids)
    languages = tuple(entry.language for entry in entries)
    return ParallelPairs(
        languages,
        tuple(code for code in languages if find_same(code, plan.source_languages)),
        ids,
        sides[FIRST],
        sides[SECOND],
        tuple(labels[first.language][identifier] for identifier in ids),
    )


def _labels_by_id(
    entry: DataSet, table: Dataset, rows: Mapping[str, int], inventory: LabelInventory
) -> dict[str, int]:
    column = entry.columns[LABEL]
    indices = inventory.indices(list(table[column]), None, entry.where)
    return {identifier: indices[row] for identifier, row in rows.items()}


def _check_same_ids(first: DataSet, entry: DataSet, rows: Mapping[str, Mapping[str, int]]) -> None:
    sides = ((first, entry), (entry, first))
    for whole, lacking in sides:
        missing = missing_from(rows[whole.language], rows[lacking.language])
        if missing:
            raise ConfigError(
                f"{lacking.where} lacks {len(missing):,} of the {counted(len(rows[whole.language]), 'id')} of "
                f"{whole.where}, such as `{missing[0]}`: the languages cannot be joined. Complete the data, or leave "
                f"`{entry.language}` out with {setting('generalized_languages')}."
            )
