"""Classes of single texts and of pairs of texts: accuracy and macro-averaged F1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_xlt.data.labels import LABEL_TEXT_COLUMN, LabelInventory, find_inventory, named
from hf_xlt.tasks.base import Column, Encoding, Task, checked_texts, encode_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase


def _find_class_labels(
    tables: Sequence[Dataset], columns: Mapping[str, str], given: Sequence[str] | None
) -> LabelInventory:
    return find_inventory(tables, columns["label"], given)


def encode_texts(table: Dataset, encoding: Encoding) -> Dataset:
    """Tokenise single texts or pairs and map labels; rows keep their order.

    Raises:
        ConfigError: a text is none, or a label is not in the inventory.
    """
    column = encoding.columns["label"]
    table = named(table, column)

    def features(rows: dict[str, list], start: int) -> dict[str, list]:
        sides = [encoding.columns[role] for role in ("text", "text_pair") if role in encoding.columns]
        texts = [checked_texts(rows[side], side, start, encoding.where) for side in sides]
        made = dict(encoding.tokenizer(*texts, truncation=True, max_length=encoding.max_length))
        made["labels"] = encoding.inventory.indices(rows[column], None, encoding.where, start)
        made["length"] = [len(ids) for ids in made["input_ids"]]
        return made

    return encode_rows(table, encoding, TEXT_CLASSIFICATION.name, features)


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


def _right_or_wrong(inventory: LabelInventory | None) -> Callable[[EvalPrediction], np.ndarray]:
    def items(prediction: EvalPrediction) -> np.ndarray:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        right = np.argmax(logits, axis=-1) == prediction.label_ids
        return np.stack([right, np.ones_like(right)], axis=-1).astype(np.float32)

    return items


TEXT_CLASSIFICATION = Task(
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
    encode=encode_texts,
    collator=_padding_collator,
    compute_metrics=_class_metrics,
    item_scores=_right_or_wrong,
    class_column="label",
    problem_type="single_label_classification",
)
