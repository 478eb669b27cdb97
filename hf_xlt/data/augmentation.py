"""Augmentation: source training rows are rewritten before they are encoded, once (offline) or at every read (online).

Every draw is a pure function of (seed, language, copy or epoch, row). So neither the workers of a data loader, nor the
number of processes, nor resuming change the text. Only source training data pass through here: validation data, test
data and few-shot examples of target languages stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hf_xlt.data.rewriting import Row
from hf_xlt.randomness import derive_seed

if TYPE_CHECKING:
    from datasets import Dataset

OFFLINE = "offline"
ONLINE = "online"
COPIES = "copies"
EQUAL_UPDATES = "equal_updates"

# Rows encoded together to find those that are split into windows.
_CHUNK = 16


class Augmenter(Protocol):
    """Changes rows."""

    def fit(self, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> Augmenter:
        """Return the augmenter for one language, having looked at its training rows."""

    def augment(self, row: Mapping[str, Any], columns: Mapping[str, str], random: Random) -> Row:
        """Return a changed copy of a row; its columns are named by their role in `columns`."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to source training data between reading and encoding.

    Attributes:
        load: makes the augmenter.
        mode: `offline` (the training data are `copies` augmented copies, the same in every epoch), `online` (an
            example is augmented anew whenever it is read), or a baseline: `copies` (unchanged copies), or
            `equal_updates` (unchanged data, as many updates as `copies` would take).
        copies: copies of each example, 1 or more; 1 for `online`.
        seed: of the draws.
        describe: says in a sentence what is done.
        settings: what a record says in place of settings that name local files.
    """

    load: Callable[[], Augmenter]
    mode: str
    copies: int
    seed: int
    describe: Callable[[], str]
    settings: Callable[[], dict[str, str]] = dict

    def encode(
        self, table: Dataset, columns: Mapping[str, str], language: str, encode: Callable[[Dataset], Dataset]
    ) -> Any:
        """Augment and encode one language's training rows.

        Args:
            table: the rows.
            columns: their columns by role.
            language: part of the key of every draw.
            encode: turns rows into features. For `online` with data loader workers that are not forked it must
                pickle.

        Returns:
            Features as `encode` gives them, or an `OnlineDataset` whose items are such features.

        Raises:
            ConfigError: the augmenter cannot be made, or a row cannot be encoded.
        """
        from datasets import concatenate_datasets

        if self.mode == EQUAL_UPDATES:
            return encode(table)
        if self.mode == COPIES:
            return concatenate_datasets([encode(table)] * self.copies)
        rows = RowAugmenter(self.load().fit(rows_of(table), columns), columns, (self.seed, "augmentation", language))
        if self.mode == ONLINE:
            return OnlineDataset([OnlinePart.make(table, rows, encode)])
        return concatenate_datasets([encode(rows.augment(table, copy)) for copy in range(self.copies)])


def rows_of(table: Dataset) -> list[Row]:
    """Return the rows of a table; much faster than iterating over it."""
    columns = table[:]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@dataclass(frozen=True)
class RowAugmenter:
    """Augments rows by their number.

    Attributes:
        augmenter: what changes a row.
        columns: columns by role.
        key: first parts of the key of every draw.
    """

    augmenter: Augmenter
    columns: Mapping[str, str]
    key: tuple[int | str, ...]

    def augment(self, table: Dataset, draw: int, numbers: Sequence[int] | None = None) -> Dataset:
        """Return a table with every row changed.

        Args:
            table: the rows.
            draw: number of the copy or the epoch; each is a draw of its own.
            numbers: number of each row in the whole training data; None counts from 0.
        """
        from datasets import Dataset

        numbers = range(len(table)) if numbers is None else numbers
        changed = [
            self.augmenter.augment(row, self.columns, Random(derive_seed(*self.key, draw, number)))
            for number, row in zip(numbers, rows_of(table), strict=True)
        ]
        values = {column: [row[column] for row in changed] for column in table.column_names}
        return Dataset.from_dict(values, features=table.features)


@dataclass(frozen=True)
class OnlinePart:
    """One language of an `OnlineDataset`.

    Attributes:
        table: its rows.
        rows: what augments a row.
        encode: turns rows into features; a long row may become several windows.
        features: features of the rows as they are; they give lengths.
        places: of each of these features the row and the number of the window in it.
    """

    table: Dataset
    rows: RowAugmenter
    encode: Callable[[Dataset], Dataset]
    features: Dataset
    places: Sequence[tuple[int, int]]

    @classmethod
    def make(cls, table: Dataset, rows: RowAugmenter, encode: Callable[[Dataset], Dataset]) -> OnlinePart:
        """Encode the rows as they are, and find out which of them are split.

        Raises:
            ConfigError: a row cannot be encoded.
        """
        features = encode(table)
        if len(features) == len(table):
            return cls(table, rows, encode, features, [(row, 0) for row in range(len(table))])
        places: list[tuple[int, int]] = []
        for start in range(0, len(table), _CHUNK):
            chunk = table.select(range(start, min(start + _CHUNK, len(table))))
            for row, windows in enumerate(_encode_each(chunk, encode), start):
                places += [(row, window) for window in range(len(windows))]
        return cls(table, rows, encode, features, places)

    def read(self, numbers: Sequence[int], epoch: int) -> list[Row]:
        """Return some features as they are in an epoch.

        Where augmentation leaves a row fewer windows than it had, its last one is read again; further ones are not.
        """
        wanted = [self.places[number] for number in numbers]
        rows = sorted({row for row, _ in wanted})
        windows = _encode_each(self.rows.augment(self.table.select(rows), epoch, rows), self.encode)
        of_row = dict(zip(rows, windows, strict=True))
        return [of_row[row][min(window, len(of_row[row]) - 1)] for row, window in wanted]


def _encode_each(table: Dataset, encode: Callable[[Dataset], Dataset]) -> list[list[Row]]:
    """Return the features of each row; together where no row is split, which is much faster."""
    together = rows_of(encode(table))
    if len(together) == len(table):
        return [[features] for features in together]
    return [rows_of(encode(table.select([row]))) for row in range(len(table))]


class OnlineDataset(torch.utils.data.Dataset):
    """Training examples that are augmented and encoded whenever they are read.

    The text of an example depends on the epoch, which `set_epoch` gives to this process and to the workers that
    already hold a copy of the data set. `XLTTrainer` calls it at the start of every epoch, also of one that a resumed
    run enters in the middle. `dataset["length"]` is the length without augmentation, for grouping.
    """

    def __init__(self, parts: Sequence[OnlinePart | Dataset]) -> None:
        """Join languages.

        Args:
            parts: languages in order; features among them are read as they are.
        """
        from datasets import concatenate_datasets

        self.parts = list(parts)
        features = [part.features if isinstance(part, OnlinePart) else part for part in self.parts]
        self.starts = [sum(map(len, features[:number])) for number in range(len(features))]
        self.features = concatenate_datasets(features)
        # Shared memory: persistent workers keep their copy of the data set over epochs.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def column_names(self) -> list[str]:
        """Names of the features."""
        return self.features.column_names

    @property
    def epoch(self) -> int:
        """The epoch whose text is read."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose text is read from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.features)

    def __getitem__(self, key: int | str) -> Any:
        """Return one example's features, or a column of all examples' features without augmentation."""
        return self.features[key] if isinstance(key, str) else self.__getitems__([key])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Return some examples' features, in order."""
        indices = [range(len(self))[index] for index in indices]
        found: dict[int, Row] = {}
        for part, start in zip(self.parts, self.starts, strict=True):
            size = len(part.features if isinstance(part, OnlinePart) else part)
            numbers = sorted({index - start for index in indices if start <= index < start + size})
            if numbers:
                is_online = isinstance(part, OnlinePart)
                read = part.read(numbers, self.epoch) if is_online else rows_of(part.select(numbers))
                found.update(zip((start + number for number in numbers), read, strict=True))
        return [found[index] for index in indices]


def join_features(parts: Sequence[Any]) -> Any:
    """Join training features; those of an `OnlineDataset` stay augmented at every read."""
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0]
    if not any(isinstance(part, OnlineDataset) for part in parts):
        return concatenate_datasets(list(parts))
    nested = (part.parts if isinstance(part, OnlineDataset) else [part] for part in parts)
    return OnlineDataset([part for group in nested for part in group])
