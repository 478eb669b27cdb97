"""Endless loaders beside the main one: the i-th draw is a pure function of (seed, role, language, i).

Resuming is one integer. The draws of a global batch do not depend on how it is split over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from hf_xlt.randomness import permutation


class EndlessLoader:
    """Batches of one language for ever, each pass over the data in a new order."""

    def __init__(
        self, dataset: Dataset, collate: Callable[[list[Any]], dict[str, Any]], *, seed: int, role: str, language: str
    ) -> None:
        """Draw from `dataset`.

        Args:
            dataset: map-style; each item is a feature dict.
            collate: turns features into a batch.
            seed: of the run.
            role: data role, part of the key.
            language: language code, part of the key.

        Raises:
            ValueError: the dataset is empty.
        """
        if len(dataset) == 0:
            raise ValueError(f"The {role} data of {language!r} are empty: an endless loader needs one example.")
        self.dataset, self.collate = dataset, collate
        self.key = (seed, "loader", role, language)
        self._order: tuple[int, list[int]] = (-1, [])

    def indices(self, start: int, count: int) -> list[int]:
        """Return the examples at positions `start`, ..., `start + count - 1` of the endless stream."""
        chosen = []
        for position in range(start, start + count):
            number, offset = divmod(position, len(self.dataset))
            if self._order[0] != number:
                self._order = (number, permutation(len(self.dataset), *self.key, number))
            chosen.append(self._order[1][offset])
        return chosen

    def draw(self, start: int, count: int) -> dict[str, Any]:
        """Return the collated batch at positions `start`, ..., `start + count - 1`."""
        return self.collate([self.dataset[index] for index in self.indices(start, count)])


def concatenate_batches(
    batches: Sequence[dict[str, Any]], pad_values: dict[str, int], padding_side: str = "right"
) -> dict[str, Any]:
    """Stack batches of unequal width into one.

    Args:
        batches: dicts of tensors (B_i, ...) with equal keys; two-dimensional ones (B_i, T_i) are padded.
        pad_values: what to pad each key with; 0 for keys not named.
        padding_side: `right` or `left`, as the tokenizer pads.

    Returns:
        Dict of tensors (sum of B_i, max of T_i).
    """
    merged = {}
    for key in batches[0]:
        tensors = [batch[key] for batch in batches]
        if tensors[0].dim() == 2:
            width = max(tensor.shape[1] for tensor in tensors)
            fill = pad_values.get(key, 0)
            tensors = [_widen(tensor, width, fill, padding_side) for tensor in tensors]
        merged[key] = torch.cat(tensors)
    return merged


def _widen(tensor: torch.Tensor, width: int, fill: int, side: str) -> torch.Tensor:
    missing = width - tensor.shape[1]
    return F.pad(tensor, (0, missing) if side == "right" else (missing, 0), value=fill)
