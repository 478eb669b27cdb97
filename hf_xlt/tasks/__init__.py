"""The tasks, one row each: which model class, which columns, how rows become features, how predictions are scored.

Strategies know no task; everything that depends on one is a field of `Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_xlt.data.labels import LABEL_TEXT_COLUMN, LabelInventory, find_inventory
from hf_xlt.errors import ConfigError, close_match

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Column:
    """One column that a task reads.

    Attributes:
        candidates: names tried in order when the user names none.
        required: whether the task cannot do without it.
    """

    candidates: tuple[str, ...]
    required: bool


@dataclass(frozen=True)
class Encoding:
    """What turning rows into features needs to know.

    Attributes:
        tokenizer: a fast tokenizer.
        columns: the task's columns by their role, as found in the data (`{"text": "sentence", ...}`).
        inventory: label inventory; None for tasks without labels.
        max_length: longest input in tokens; longer ones are cut.
        where: what the data are, for messages.
    """

    tokenizer: PreTrainedTokenizerBase
    columns: Mapping[str, str]
    inventory: LabelInventory | None
    max_length: int
    where: str


@dataclass(frozen=True)
class Task:
    """One kind of task.

    Attributes:
        name: as typed after `--task`.
        pipeline_tag: the Hub's name of it.
        auto_model: name of the `AutoModelFor…` class in `transformers`.
        columns: columns by role.
        metrics: names of the metrics, the main one first; fractions in [0, 1], greater is better.
        find_labels: reads the label inventory off the source training rows; None for tasks without labels.
        encode: rows to features (`input_ids`, ..., `labels`, `length`).
        collator: builds the collator from a tokenizer.
        compute_metrics: builds the scoring function from the inventory.
        class_column: the column to stratify few shots by, or None.
    """

    name: str
    pipeline_tag: str
    auto_model: str
    columns: Mapping[str, Column]
    metrics: tuple[str, ...]
    find_labels: Callable[[Sequence[Dataset], Mapping[str, str], Sequence[str] | None], LabelInventory] | None
    encode: Callable[[Dataset, Encoding], Dataset]
    collator: Callable[[PreTrainedTokenizerBase], Any]
    compute_metrics: Callable[[LabelInventory | None], Callable[[EvalPrediction], dict[str, float]]]
    class_column: str | None = None

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    def find_columns(self, present: Sequence[str], given: Mapping[str, str | None], where: str) -> dict[str, str]:
        """Match the task's columns with those of a data set.

        Args:
            present: column names of the data set.
            given: names the user gave, by role.
            where: what the data are, for messages.

        Returns:
            Column names by role; optional ones only where they are there.

        Raises:
            ConfigError: a required or named column is missing.
        """
        found = {}
        for role, column in self.columns.items():
            candidates = (given[role],) if given.get(role) else column.candidates
            name = next((candidate for candidate in candidates if candidate in present), None)
            if name is not None:
                found[role] = name
            elif column.required or given.get(role):
                flag = f"--{role.replace('_', '-')}-column"
                raise ConfigError(
                    f"{where} must contain a `{candidates[0]}` column; its columns are {', '.join(present)}."
                    f"{close_match(candidates[0], present)} Name the right one with `{flag}`."
                )
        return found


def _find_class_labels(
    tables: Sequence[Dataset], columns: Mapping[str, str], given: Sequence[str] | None
) -> LabelInventory:
    return find_inventory(tables, columns["label"], given)


def _encode_texts(table: Dataset, encoding: Encoding) -> Dataset:
    """Tokenise single texts or pairs and map labels; rows keep their order."""
    from datasets import Dataset

    texts = [_texts(table, encoding.columns["text"], encoding.where)]
    if "text_pair" in encoding.columns:
        texts.append(_texts(table, encoding.columns["text_pair"], encoding.where))
    features = dict(encoding.tokenizer(*texts, truncation=True, max_length=encoding.max_length))
    column = encoding.columns["label"]
    named = (
        table[LABEL_TEXT_COLUMN] if LABEL_TEXT_COLUMN in table.column_names and column != LABEL_TEXT_COLUMN else None
    )
    features["labels"] = encoding.inventory.indices(list(table[column]), named, encoding.where)
    features["length"] = [len(ids) for ids in features["input_ids"]]
    return Dataset.from_dict(features)


def _texts(table: Dataset, column: str, where: str) -> list[str]:
    texts = list(table[column])
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(f"{where}, row {row}: column `{column}` holds {text!r}, not a text.")
    return texts


def _padding_collator(tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(tokenizer)


def _class_metrics(inventory: LabelInventory | None) -> Callable[[EvalPrediction], dict[str, float]]:
    """Build accuracy and macro-averaged F1 over the classes that occur in labels or predictions."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        from sklearn.metrics import f1_score

        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        chosen = np.argmax(logits, axis=-1)
        return {
            "accuracy": float(np.mean(chosen == prediction.label_ids)),
            "macro_f1": float(f1_score(prediction.label_ids, chosen, average="macro", zero_division=0)),
        }

    return compute


TASKS = {
    task.name: task
    for task in (
        Task(
            name="text-classification",
            pipeline_tag="text-classification",
            auto_model="AutoModelForSequenceClassification",
            columns={
                "text": Column(("text", "sentence", "sentence1", "premise"), required=True),
                "text_pair": Column(("text_pair", "sentence2", "hypothesis"), required=False),
                "label": Column(("label", "labels", LABEL_TEXT_COLUMN), required=True),
            },
            metrics=("accuracy", "macro_f1"),
            find_labels=_find_class_labels,
            encode=_encode_texts,
            collator=_padding_collator,
            compute_metrics=_class_metrics,
            class_column="label",
        ),
    )
}


def get_task(name: str) -> Task:
    """Look a task up.

    Raises:
        ConfigError: the name is unknown; the message lists the known ones.
    """
    if name not in TASKS:
        known = ", ".join(f"`{known}`" for known in TASKS)
        raise ConfigError(f"unknown task {name!r}.{close_match(name, TASKS)} Known tasks: {known}.")
    return TASKS[name]
