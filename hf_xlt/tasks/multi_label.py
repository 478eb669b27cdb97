"""Several labels, or none, for each text or pair of texts: micro- and macro-averaged F1 over labels.

A label is said of a text when its probability (sigmoid of its logit) reaches a threshold, one for all labels. It is
chosen on the validation data of the source languages, where there are any, as the one with the highest micro F1 over
all their examples; else it is 0.5. Evaluations during training, and with them the choice of a checkpoint, use 0.5.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_xlt.data.labels import LABEL_TEXT_COLUMN, LabelInventory, find_inventory
from hf_xlt.errors import ConfigError, setting, shortened
from hf_xlt.tasks.base import Column, Encoding, Task, checked_texts, encode_rows
from hf_xlt.tasks.classification import TEXT_CLASSIFICATION

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction

MULTI_LABEL = "multi_label_classification"
DEFAULT_THRESHOLD = 0.5
_READ = "labels as booleans"
_SAID = {"1": True, "true": True, "0": False, "false": False}


def _forms() -> str:
    return (
        f"a list of names, a list of indices, or a 0 or 1 for each label; {setting('label_columns')} reads one column "
        f"per label, and {setting('task', 'text-classification')} one label per row"
    )


@dataclasses.dataclass(frozen=True)
class ColumnsReading:
    """Reads one column of yes and no per label as a list of labels.

    Attributes:
        names: the columns, which name the labels.
        column: name of the list's column.
        where: what the data are, for messages.
    """

    names: tuple[str, ...]
    column: str
    where: str
    scheme: str = "columns"
    converts: bool = False

    def __call__(self, table: Dataset) -> Dataset:
        """Return the rows with a list of `ClassLabel` in place of the columns.

        Raises:
            ConfigError: a value is neither yes nor no.
        """
        from datasets import ClassLabel, List

        said = [[self._said(value, name, row) for row, value in enumerate(table[name])] for name in self.names]
        rows = [[index for index, holds in enumerate(values) if holds] for values in zip(*said, strict=True)]
        added = table.add_column(self.column, rows, feature=List(ClassLabel(names=list(self.names))))
        return added.remove_columns(list(self.names))

    def _said(self, value: Any, name: str, row: int) -> bool:
        plain = value.strip().lower() if isinstance(value, str) else str(int(value)) if value in (0, 1) else ""
        if plain not in _SAID:
            raise ConfigError(f"{self.where}, row {row}: column `{name}` holds {shortened(value)}, neither 0 nor 1.")
        return _SAID[plain]

    def read_names(self, names: Sequence[str]) -> Sequence[str]:
        """Return names as they are."""
        return names


def _declared(table: Dataset, column: str) -> tuple[str, ...]:
    feature = table.features[column]
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


@dataclasses.dataclass(frozen=True)
class MultiHotReading:
    """Reads lists with a 0 or 1 for each label as such, so that a few of them are no longer taken for indices.

    Attributes:
        column: the lists.
    """

    column: str
    scheme: str = "multi-hot"
    converts: bool = False

    def __call__(self, table: Dataset) -> Dataset:
        """Return the rows with lists of booleans."""
        from datasets import List, Value

        rows = [[bool(value) for value in row] for row in table[self.column]]
        added = table.add_column(_READ, rows, feature=List(Value("bool")))
        return added.remove_columns([self.column]).rename_column(_READ, self.column)

    def read_names(self, names: Sequence[str]) -> Sequence[str]:
        """Return names as they are."""
        return names


def find_reading(
    table: Dataset, columns: Mapping[str, str], given: Sequence[str] | None = None
) -> MultiHotReading | None:
    """Find out whether lists of integers hold a 0 or 1 for each label.

    They do where all are of one length and of these values, and one of them holds a value twice, which a list of
    indices does not: with three labels or more each list does.
    """
    column = columns["label"]
    rows = table[column][:]
    if _declared(table, column) or not rows or any(not isinstance(row, list) for row in rows):
        return None
    values = {value for row in rows for value in row}
    fits = len({len(row) for row in rows}) == 1 and values <= {0, 1} and all(type(value) is int for value in values)
    return MultiHotReading(column) if fits and any(len(set(row)) < len(row) for row in rows) else None


def _as_read(table: Dataset, columns: Mapping[str, str], where: str) -> Dataset:
    """Return a table whose label column holds lists, and those of 0 and 1 as booleans."""
    column = columns["label"]
    for number, row in enumerate(table[column]):
        if not isinstance(row, list):
            raise ConfigError(f"{where}, row {number}: column `{column}` holds {shortened(row)}; give {_forms()}.")
    reading = find_reading(table, columns)
    return table if reading is None else reading(table)


def _is_said(row: Sequence[Any]) -> bool:
    """Say whether a list has a yes or no for each label."""
    return bool(row) and all(isinstance(value, (bool, float)) for value in row)


def _find_labels(tables: Sequence[Dataset], columns: Mapping[str, str], given: Sequence[str] | None) -> LabelInventory:
    """Read the labels off the source training rows, as `find_inventory` reads classes.

    Raises:
        ConfigError: the column holds no lists, or lists that mix names and numbers.
    """
    from datasets import ClassLabel, Dataset, Features

    column = columns["label"]
    tables = [_as_read(table, columns, "the source training data") for table in tables]
    declared = [_declared(table, column) for table in tables]
    if not given and declared[0]:
        names = list(dict.fromkeys(name for names in declared for name in names))
        flat = Dataset.from_dict({column: []}, Features({column: ClassLabel(names=names)}))
        return find_inventory([flat], column, None)
    rows = [row for table in tables for row in table[column]]
    if not given and {tuple(row) for row in rows} in ({(0, 1)}, {(1, 0)}, {(0, 1), (1, 0)}) and not _is_said(rows[0]):
        raise ConfigError(
            f"column `{column}` of the source training data holds nothing but 0 and 1, one of each per row, which may "
            f"be two indices or a no and a yes. Give names, or one label per row with "
            f"{setting('task', 'text-classification')}."
        )
    widths = {len(row) for row in rows if _is_said(row)}
    values: list[Any] = list(range(max(widths))) if widths else [value for row in rows for value in row]
    return find_inventory([Dataset.from_dict({column: values})], column, given)


def encode_labelled_texts(table: Dataset, encoding: Encoding) -> Dataset:
    """Tokenise single texts or pairs; `labels` are a 1.0 or 0.0 for each label. Rows keep their order.

    Raises:
        ConfigError: a text is none, or labels are no list or not in the inventory.
    """
    column, inventory = encoding.columns["label"], encoding.inventory
    table = _as_read(table, encoding.columns, encoding.where)
    declared = _declared(table, column)
    # The data's own names say what their numbers mean, in whatever order.
    names = dict(enumerate(declared)) if declared != inventory.names else {}

    def features(rows: dict[str, list], start: int) -> dict[str, list]:
        sides = [encoding.columns[role] for role in ("text", "text_pair") if role in encoding.columns]
        texts = [checked_texts(rows[side], side, start, encoding.where) for side in sides]
        made = dict(encoding.tokenizer(*texts, truncation=True, max_length=encoding.max_length))
        made["labels"] = [
            _vector(row, names, inventory, f"{encoding.where}, row {number}")
            for number, row in enumerate(rows[column], start)
        ]
        made["length"] = [len(ids) for ids in made["input_ids"]]
        return made

    return encode_rows(table, encoding, f"{MULTI_LABEL_CLASSIFICATION.name} {declared}", features)


def _vector(row: Sequence[Any], names: Mapping[int, str], inventory: LabelInventory, place: str) -> list[float]:
    if _is_said(row):
        if any(value not in (0, 1) for value in row) or len(row) != len(inventory):
            raise ConfigError(f"{place}: {shortened(row)} is no list of 0 and 1 for {len(inventory)} labels.")
        return [float(value) for value in row]
    if any(isinstance(value, int) and not names and row.count(value) > 1 for value in row):
        raise ConfigError(
            f"{place}: {shortened(row)} holds a label twice; a 0 or 1 for each label would be {len(inventory)} values."
        )
    chosen = set(inventory.indices([names.get(value, value) for value in row], None, place, unit="label"))
    return [float(index in chosen) for index in range(len(inventory))]


def probabilities(prediction: EvalPrediction) -> np.ndarray:
    """Return (N, C) float64, the probability of each label."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return 1 / (1 + np.exp(-np.asarray(logits, dtype=np.float64)))


def choose_threshold(chances: np.ndarray, gold: np.ndarray) -> float:
    """Choose the threshold with the highest micro F1.

    Args:
        chances: (N, C) the probability of each label.
        gold: (N, C) 1 where it holds, else 0.

    Returns:
        Half-way between the lowest probability that counts and the next lower one, in as few digits as lie between
        them; of several best ones that nearest to 0.5, and 0.5 itself where it is one of them or no label holds.
    """
    order = np.argsort(-chances, axis=None, kind="stable")
    values, right = chances.ravel()[order], gold.ravel()[order] > 0
    if not right.any():
        return DEFAULT_THRESHOLD
    f1 = 2 * np.cumsum(right) / (np.arange(1, len(values) + 1) + right.sum())
    below = np.append(values[1:], 0.0)
    # Labels of one probability are said together.
    f1[values == below] = -1
    best = np.flatnonzero(f1 == f1.max())
    if ((below[best] < DEFAULT_THRESHOLD) & (values[best] >= DEFAULT_THRESHOLD)).any():
        return DEFAULT_THRESHOLD
    middles = (values[best] + below[best]) / 2
    nearest = np.argmin(np.abs(middles - DEFAULT_THRESHOLD))
    low, middle, high = (float(side[nearest]) for side in (below[best], middles, values[best]))
    rounded = (round(middle, digits) for digits in range(2, 9))
    return next((value for value in rounded if low < value < high), middle)


def _threshold_of(predictions: Sequence[EvalPrediction]) -> float:
    chances = np.concatenate([probabilities(prediction) for prediction in predictions])
    return choose_threshold(chances, np.concatenate([prediction.label_ids for prediction in predictions]))


def _label_metrics(
    inventory: LabelInventory | None, threshold: float = DEFAULT_THRESHOLD
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Build micro-averaged F1, and F1 averaged over the labels that occur in the data or in predictions."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        from sklearn.metrics import f1_score

        gold, said = prediction.label_ids > 0, probabilities(prediction) >= threshold
        occur = np.flatnonzero((gold | said).any(axis=0))
        macro = f1_score(gold, said, labels=occur, average="macro", zero_division=0) if len(occur) else 0.0
        return {
            "micro_f1": float(f1_score(gold, said, average="micro", zero_division=0)),
            "macro_f1": float(macro),
        }

    return compute


def _item_scores(
    inventory: LabelInventory | None, threshold: float = DEFAULT_THRESHOLD
) -> Callable[[EvalPrediction], np.ndarray]:
    """Count per example: twice its labels that are said rightly, of all that hold and all that are said."""

    def items(prediction: EvalPrediction) -> np.ndarray:
        gold, said = prediction.label_ids > 0, probabilities(prediction) >= threshold
        counts = [2 * (gold & said).sum(axis=1), gold.sum(axis=1) + said.sum(axis=1)]
        return np.stack(counts, axis=-1).astype(np.float32)

    return items


def _at_threshold(task: Task, threshold: float) -> Task:
    return dataclasses.replace(
        task,
        compute_metrics=functools.partial(_label_metrics, threshold=threshold),
        item_scores=functools.partial(_item_scores, threshold=threshold),
    )


MULTI_LABEL_CLASSIFICATION = dataclasses.replace(
    TEXT_CLASSIFICATION,
    name="multi-label-classification",
    columns={**TEXT_CLASSIFICATION.columns, "label": Column(("labels", "label", LABEL_TEXT_COLUMN), required=True)},
    metrics=("micro_f1", "macro_f1"),
    find_labels=_find_labels,
    find_reading=find_reading,
    encode=encode_labelled_texts,
    compute_metrics=_label_metrics,
    item_scores=_item_scores,
    class_column=None,
    problem_type=MULTI_LABEL,
    find_threshold=_threshold_of,
    at_threshold=_at_threshold,
    read_columns=ColumnsReading,
    unsmoothed="its labels exclude no other",
)
