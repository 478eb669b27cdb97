"""Several languages as one data set for evaluation, and predictions split back by language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset
from transformers import EvalPrediction

from hf_xlt.training.losses import count_units, loss_sum


@dataclass(frozen=True)
class LanguageBatches:
    """Languages joined and sorted by length.

    Attributes:
        dataset: all examples, longest first.
        order: (N,) position in the unsorted concatenation of each example of `dataset`.
        sizes: number of examples by language, in the order of concatenation.
    """

    dataset: Any
    order: np.ndarray
    sizes: dict[str, int]

    def split(self, predictions: Any, labels: Any) -> dict[str, EvalPrediction]:
        """Undo the sorting and cut the arrays by language.

        Args:
            predictions: array (N, ...) or tuple of them, in the order of `dataset`.
            labels: the same for labels, or None.

        Returns:
            Per language its predictions and labels, in the order of its own data set.
        """
        inverse = np.empty_like(self.order)
        inverse[self.order] = np.arange(len(self.order))
        parts, start = {}, 0
        for language, size in self.sizes.items():
            rows = inverse[start : start + size]
            parts[language] = EvalPrediction(_take(predictions, rows), _take(labels, rows))
            start += size
        return parts


def _take(arrays: Any, rows: np.ndarray) -> Any:
    if arrays is None:
        return None
    return tuple(array[rows] for array in arrays) if isinstance(arrays, tuple) else arrays[rows]


def join_languages(datasets: Mapping[str, Any]) -> LanguageBatches:
    """Concatenate data sets and sort them by length, longest first, so that padding and memory are small.

    Args:
        datasets: map-style data sets by language; each example has `input_ids`, or the data set a `length` column.

    Returns:
        The joined data set and how to split predictions on it.

    Raises:
        ValueError: a data set is empty.
    """
    empty = [language for language, dataset in datasets.items() if len(dataset) == 0]
    if empty:
        raise ValueError(f"Nothing to evaluate in {', '.join(empty)}: the data set is empty.")
    lengths = np.concatenate([example_lengths(dataset) for dataset in datasets.values()])
    order = np.argsort(-lengths, kind="stable")
    sizes = {language: len(dataset) for language, dataset in datasets.items()}
    return LanguageBatches(_select(list(datasets.values()), order), order, sizes)


def example_lengths(dataset: Any) -> np.ndarray:
    """Return the length in tokens of each example, from the `length` column where there is one."""
    if "length" in getattr(dataset, "column_names", ()):
        return np.asarray(dataset["length"])
    return np.asarray([len(example["input_ids"]) for example in dataset])


def _select(parts: list[Any], order: np.ndarray) -> Any:
    # Arrow data sets fetch a whole batch at once, torch's ConcatDataset one example at a time.
    if all(hasattr(part, "select") for part in parts):
        from datasets import concatenate_datasets

        return concatenate_datasets(parts).select(order)
    return Subset(ConcatDataset(parts), order.tolist())


def language_metrics(
    prediction: EvalPrediction, compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None, config: Any
) -> dict[str, float]:
    """Score one language.

    Args:
        prediction: logits and labels of the language.
        compute_metrics: the task's metrics; None leaves only the loss.
        config: the model's config, for the kind of loss.

    Returns:
        Metrics by name; `loss` is the exact mean over units, when the predictions are logits and labels are known.
    """
    metrics = dict(compute_metrics(prediction)) if compute_metrics is not None else {}
    logits, labels = prediction.predictions, prediction.label_ids
    if isinstance(logits, np.ndarray) and isinstance(labels, np.ndarray) and np.issubdtype(logits.dtype, np.floating):
        named = {"labels": torch.from_numpy(labels)}
        total = loss_sum({"logits": torch.from_numpy(logits).float()}, named, config)
        metrics["loss"] = (total / count_units(named).clamp(min=1)).item()
    return metrics
