"""Several languages as one data set for evaluation, and predictions split back by language."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from transformers import EvalPrediction

from hf_xlt.training.losses import LOGIT_NAMES, count_units, loss_sum

# Question answering: two logits and two labels per example.
_ENDS = ("start", "end")


@dataclass(frozen=True)
class LanguageBatches:
    """Languages joined and sorted by length.

    Attributes:
        dataset: all examples, longest first.
        order: (N,) position in the unsorted concatenation of each example of `dataset`.
        sizes: number of examples by language, in the order of concatenation.
        parts: the data sets by language.
    """

    dataset: Any
    order: np.ndarray
    sizes: dict[str, int]
    parts: Mapping[str, Any]

    def split(self, predictions: Any, labels: Any) -> dict[str, EvalPrediction]:
        """Undo the sorting and cut the arrays by language.

        Args:
            predictions: array (N, ...) or tuple of them, in the order of `dataset`.
            labels: the same for labels, or None.

        Returns:
            Per language its predictions and labels, in the order of its own data set, which is their `inputs`.
        """
        inverse = np.empty_like(self.order)
        inverse[self.order] = np.arange(len(self.order))
        parts, start = {}, 0
        for language, size in self.sizes.items():
            rows = inverse[start : start + size]
            parts[language] = EvalPrediction(
                _take(predictions, rows), _take(labels, rows), inputs=self.parts[language]
            )
            start += size
        return parts


def _take(arrays: Any, rows: np.ndarray) -> Any:
    if arrays is None:
        return None
    if isinstance(arrays, tuple | list):
        return tuple(_take(array, rows) for array in arrays)
    if isinstance(arrays, Mapping):
        return {name: _take(array, rows) for name, array in arrays.items()}
    return arrays[rows]


@contextmanager
def names_beside_logits(model: nn.Module, config: Any) -> Iterator[list[str]]:
    """Collect the names of what a model gives beside its logits.

    Kept, the hidden states of an encoder-decoder would be held in memory for all examples, and be taken for a
    prediction.

    Args:
        model: it is called inside the block.
        config: the model's; it may name outputs that are no predictions.

    Yields:
        A list that `Trainer.prediction_step` takes as `ignore_keys`: it is read after the model has run, which
        completes it.
    """
    names = list(getattr(config, "keys_to_ignore_at_inference", ["past_key_values"]))

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, Mapping) and not LOGIT_NAMES.isdisjoint(output):
            names.extend(name for name in output if name not in LOGIT_NAMES)

    handle = model.register_forward_hook(note)
    try:
        yield names
    finally:
        handle.remove()


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
    return LanguageBatches(_select(list(datasets.values()), order), order, sizes, datasets)


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


def _of_labels(predictions: Any, labels: Any) -> Any:
    """Return the logits that labels are for: encoder-decoders give further arrays behind them."""
    count = len(labels) if isinstance(labels, tuple) else 1
    if not isinstance(predictions, tuple) or len(predictions) <= count - (count == 1):
        return predictions
    return predictions[0] if count == 1 else predictions[:count]


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
    labels = prediction.label_ids
    logits = _of_labels(prediction.predictions, labels)
    if isinstance(logits, np.ndarray) and isinstance(labels, np.ndarray) and np.issubdtype(logits.dtype, np.floating):
        named, outputs = {"labels": torch.from_numpy(labels)}, {"logits": torch.from_numpy(logits).float()}
    elif isinstance(logits, tuple) and isinstance(labels, tuple) and len(logits) == len(labels) == len(_ENDS):
        named = {f"{end}_positions": torch.from_numpy(values) for end, values in zip(_ENDS, labels, strict=True)}
        # What a model says of padding depends on the batch; it is no part of the loss.
        padding = torch.from_numpy(example_lengths(prediction.inputs)[:, None] <= np.arange(logits[0].shape[1]))
        outputs = {
            f"{end}_logits": torch.from_numpy(values).float().masked_fill(padding, float("-inf"))
            for end, values in zip(_ENDS, logits, strict=True)
        }
    else:
        return metrics
    metrics["loss"] = (loss_sum(outputs, named, config) / count_units(named).clamp(min=1)).item()
    return metrics
