"""The target batches of an update: a part G that trains the model, and a part E that is the meta loss.

Batches are positions of an endless stream (`EndlessLoader`), so a batch of the whole update does not depend on how it
is split over micro-batches and processes, and resuming needs no state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from hf_xlt.errors import ConfigError

FIRST_HALF = "first"
POOL, TRAIN_POOL, META_POOL = "pool", "train", "meta"


def train_rows(size: int, portion: int, rule: str) -> list[bool]:
    """Say which examples of a target batch train the model; the others are the meta loss.

    Args:
        size: n, examples in the batch.
        portion: 1/portion of the batch trains the model.
        rule: `position` takes every position divisible by portion, `first` the first int(n / portion), as the
            published code does.

    Returns:
        n flags, of which at least one is set and one is not.

    Raises:
        ConfigError: a part would be empty, or `position` does not divide the batch evenly.
    """
    if size < portion:
        raise ConfigError(
            f"a target batch of {size} cannot be split with `portion` {portion}: the part that trains the model would "
            "be empty. Raise `target_batch_size`, or set `inner_target_loss` to false."
        )
    if rule == FIRST_HALF:
        return [position < size // portion for position in range(size)]
    if size % portion:
        raise ConfigError(
            f"the target batch of {size} is no multiple of `portion` {portion}, so the split would depend on the "
            "number of processes. Change `target_batch_size`, or set `batch_split` to first."
        )
    return [position % portion == 0 for position in range(size)]


def select_rows(batch: Mapping[str, Any], flags: Sequence[bool]) -> dict[str, Any]:
    """Return the examples of a batch whose flag is set, in order."""
    places = torch.tensor([place for place, flag in enumerate(flags) if flag])
    return {
        name: value[places.to(value.device)] if isinstance(value, Tensor) else value for name, value in batch.items()
    }


def target_pools(datasets: Mapping[str, Any], portion: int | None) -> dict[str, Dataset]:
    """Join the target languages' examples, or part them for good.

    Args:
        datasets: map-style data sets by language.
        portion: 1/portion of the examples only ever train the model, and the others are only ever meta loss; None for
            one pool, whose every pass is split anew.

    Raises:
        ConfigError: there are no examples, or too few for both parts.
    """
    parts = [dataset for dataset in datasets.values() if len(dataset)]
    if not parts:
        raise ConfigError(
            "this strategy needs labelled target-language examples: give them in `role_datasets['target']` "
            "(`shots` of a run)."
        )
    pool = parts[0] if len(parts) == 1 else ConcatDataset(parts)
    if portion is None:
        return {POOL: pool}
    if len(pool) < portion:
        raise ConfigError(
            f"{len(pool)} target examples cannot be parted with `portion` {portion}. Give more (`shots`), or set "
            "`target_resplit` to true."
        )
    ours = [index for index in range(len(pool)) if index % portion == 0]
    rest = [index for index in range(len(pool)) if index % portion]
    return {TRAIN_POOL: Subset(pool, ours), META_POOL: Subset(pool, rest)}


@dataclass
class TargetDraw:
    """How target batches are drawn and split.

    Attributes:
        draw: (pool, start, count) to a collated batch of that pool's endless stream.
        size: examples per process and micro-batch.
        portion: see `train_rows`; None takes the whole batch as the meta loss.
        rule: see `train_rows`.
        resplit: whether one pool is split anew in every pass.
    """

    draw: Callable[[str, int, int], dict[str, Any]]
    size: int
    portion: int | None
    rule: str
    resplit: bool

    def __post_init__(self) -> None:
        """Check that both parts have examples.

        Raises:
            ConfigError: as `train_rows`.
        """
        self.flags = [False] * self.size if self.portion is None else train_rows(self.size, self.portion, self.rule)

    def batch(self, slot: int) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Return G (None when the whole batch is the meta loss) and E of one micro-batch of one process.

        Args:
            slot: number of the batch over all updates, micro-batches and processes.
        """
        ours = sum(self.flags)
        if not self.resplit and self.portion is not None:
            rest = self.size - ours
            return self.draw(TRAIN_POOL, slot * ours, ours), self.draw(META_POOL, slot * rest, rest)
        whole = self.draw(POOL, slot * self.size, self.size)
        if self.portion is None:
            return None, whole
        return select_rows(whole, self.flags), select_rows(whole, [not flag for flag in self.flags])
