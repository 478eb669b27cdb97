"""Task losses as sums over units, so that every way to split a batch gives the same update.

A unit is an example for sentence-level tasks and question answering, and a valid token (label other than -100)
for token-level ones. Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
LABEL_NAMES = ("labels", "start_positions", "end_positions")
LOGIT_NAMES = frozenset({"logits", "start_logits", "end_logits"})


def labels_of(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a batch's label tensors by argument name."""
    return {name: inputs[name] for name in LABEL_NAMES if inputs.get(name) is not None}


def _label_logits(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]


def _is_regression(config: Any) -> bool:
    problem = getattr(config, "problem_type", None)
    return problem == "regression" or (problem is None and getattr(config, "num_labels", None) == 1)


def count_units(labels: Mapping[str, Tensor]) -> Tensor:
    """Count the units of a batch.

    Args:
        labels: the label tensors by argument name: `labels` (B,), (B, T) or (B, C), or `start_positions` and
            `end_positions` (B,).

    Returns:
        int64 scalar.
    """
    if "start_positions" in labels:
        return labels["start_positions"].ge(0).sum()
    values = labels["labels"]
    if values.is_floating_point():
        return torch.tensor(values.shape[0], device=values.device)
    return values.ne(IGNORED).sum()


def batch_size(batch: Mapping[str, Any]) -> int:
    """Return the number of examples of a batch: the length of its first tensor."""
    return next(value.shape[0] for value in batch.values() if isinstance(value, Tensor))


def count_group_units(batch: Mapping[str, Any], group: Tensor | None, groups: int) -> Tensor:
    """Count a batch's units per language group.

    Args:
        batch: one batch; without labels its examples are counted.
        group: (B,) language group of each example, or None when there is one group.
        groups: K, number of groups.

    Returns:
        (K,) float32.
    """
    labels = labels_of(batch)
    if not labels:
        return torch.tensor([float(batch_size(batch))])
    if group is None:
        return count_units(labels).float().reshape(1)
    members = [
        {name: values[(group == index).to(values.device)] for name, values in labels.items()}
        for index in range(groups)
    ]
    return torch.stack([count_units(chosen).float() for chosen in members])


def loss_sum(outputs: Any, labels: Mapping[str, Tensor], config: Any) -> Tensor:
    """Sum a batch's losses over its units, in float32.

    Args:
        outputs: model outputs with `logits` (B, C) or (B, T, C), or `start_logits` and `end_logits` (B, T).
        labels: as in `count_units`.
        config: the model's config, for `problem_type` and `num_labels`.

    Returns:
        float32 scalar; divided by the number of units it is what the model's own head computes.

    Raises:
        KeyError: the outputs lack the logits that the labels call for.
    """
    if "start_positions" in labels or labels["labels"].is_floating_point() or _is_regression(config):
        return per_example_losses(outputs, labels, config).sum()
    logits = _label_logits(outputs)
    return F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels["labels"].reshape(-1), ignore_index=IGNORED, reduction="sum"
    )


def mean_loss(outputs: Any, labels: Mapping[str, Tensor], config: Any, units: Tensor) -> Tensor:
    """Return a batch's summed loss over so many units, in float32.

    Args:
        outputs: as in `loss_sum`.
        labels: as in `count_units`.
        config: as in `loss_sum`.
        units: scalar, those of the whole update.
    """
    if "labels" not in labels or not labels["labels"].is_floating_point() or _is_regression(config):
        return loss_sum(outputs, labels, config) / units
    # The mean over all, as the heads of transformers take it, times 1 where the batch is the whole update: its bits
    # are those of the stock Trainer.
    logits, values = _label_logits(outputs).float(), labels["labels"].float()
    return F.binary_cross_entropy_with_logits(logits, values) * (values.shape[0] / units)


def per_example_losses(outputs: Any, labels: Mapping[str, Tensor], config: Any, smoothing: float = 0.0) -> Tensor:
    """Sum each example's losses over its own units.

    Args:
        outputs: as in `loss_sum`.
        labels: as in `count_units`.
        config: as in `loss_sum`.
        smoothing: share of a label that is spread over all classes, as in the stock `LabelSmoother`; for classes only.

    Returns:
        (B,) float32; without smoothing its sum is `loss_sum` up to the order of summation.
    """
    if "start_positions" in labels:
        ends = (("start_logits", "start_positions"), ("end_logits", "end_positions"))
        losses = [_position_losses(outputs[logits], labels[positions]) for logits, positions in ends]
        return (losses[0] + losses[1]) / 2
    logits, values = _label_logits(outputs), labels["labels"]
    if _is_regression(config):
        return F.mse_loss(logits.reshape(values.shape).float(), values.float(), reduction="none")
    if values.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits.float(), values.float(), reduction="none").mean(-1)
    losses = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        values.reshape(-1),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )
    return losses.reshape(values.shape[0], -1).sum(-1)


def _position_losses(logits: Tensor, positions: Tensor) -> Tensor:
    # A position outside the window is no target: the heads clamp it to T and ignore it there.
    width = logits.shape[1]
    targets = torch.where(positions < 0, width, positions).clamp(max=width)
    return F.cross_entropy(logits.float(), targets, ignore_index=width, reduction="none")
