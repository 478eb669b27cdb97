"""Grouping training examples by length, as a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from hf_xlt.randomness import keyed_generator


class EpochLengthSampler(Sampler[int]):
    """Orders examples so that batches hold similar lengths.

    The stock sampler draws its order from the global generator, so a run resumed in its second epoch or later would
    see another order than the uninterrupted one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """Group `lengths` (in tokens) for batches of `batch_size` examples of the whole update."""
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield every index once."""
        generator = keyed_generator(self.seed, "length order", self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
