"""What a task is: which model class, which columns, how rows become features, how predictions are scored.

Strategies know no task; everything that depends on one is a field of `Task`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hf_xlt.data.labels import LabelInventory
from hf_xlt.errors import ConfigError, close_match, setting

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase

_LOGGER = logging.getLogger(__name__)
# Features of larger sets are kept in the cache of `datasets`; of smaller ones the cache costs more than it saves.
CACHED_ROWS = 20_000


@dataclass(frozen=True)
class Column:
    """One column that a task reads.

    Attributes:
        candidates: names tried in order when the user names none.
        required: whether the task cannot do without it.
    """

    candidates: tuple[str, ...]
    required: bool


class Reading(Protocol):
    """How the rows of one data set are read.

    Attributes:
        scheme: what they are written in, for the record.
        converts: whether reading changes them.
    """

    scheme: str
    converts: bool

    def __call__(self, table: Dataset) -> Dataset:
        """Return the rows as they are read."""

    def read_names(self, names: Sequence[str]) -> Sequence[str]:
        """Return the names of all labels as they are read, from those in which the rows are written."""


@dataclass(frozen=True)
class Encoding:
    """What turning rows into features needs to know.

    Attributes:
        tokenizer: a fast tokenizer.
        columns: the task's columns by their role, as found in the data (`{"text": "sentence", ...}`).
        inventory: label inventory; None for tasks without labels.
        max_length: longest input in tokens; longer ones are cut, or split into windows.
        where: what the data are, for messages.
        language: their language.
        overlap: tokens that neighbouring windows of a long input share, in tasks that split it.
    """

    tokenizer: PreTrainedTokenizerBase
    columns: Mapping[str, str]
    inventory: LabelInventory | None
    max_length: int
    where: str
    language: str = "en"
    overlap: int = 0


@dataclass(frozen=True)
class Task:
    """One kind of task.

    Attributes:
        name: as typed after `--task`.
        pipeline_tag: the Hub's name of it.
        auto_model: name of the `AutoModelFor…` class in `transformers`.
        columns: columns by role; the user names another one by `--<role>-column`.
        metrics: names of the metrics, the main one first; fractions in [0, 1], greater is better.
        find_labels: reads the label inventory off the source training rows; None for tasks without labels.
        encode: rows to features (`input_ids`, ..., `labels`, `length`); a long row may become several.
        collator: builds the collator from a tokenizer.
        compute_metrics: builds the scoring function from the inventory. Its argument's `inputs` are the features of
            one language, in the order of the predictions.
        item_scores: builds, from the inventory, what gives each example's share of the main metric: (N, 2) numerators
            and denominators, whose sums' ratio is the metric. Examples stand in the order of the data.
        class_column: the column to stratify few shots by, or None.
        max_length: longest input in tokens where the user sets none.
        count_examples: number of examples that features stand for.
        splits_rows: whether one row may become several features, so that these are counted only once encoded.
        unsmoothed: why `label_smoothing_factor` does not go with it; empty where each label is one class of several.
        with_labels: the task once its labels are known; None where these do not decide how it is scored.
        find_reading: from rows, columns by role and the names given for labels, how the rows of a data set are to be
            read for this task, or None for as they are; it is called with each data set before anything is trained.
        describe_readings: what the user should know of such readings, by data set, in sentences.
        problem_type: what a saved model's config says of its head, where the task alone decides it; else None.
        find_threshold: chooses, from the predictions of the source languages' validation data, the probability from
            which a label is said; None for tasks whose labels exclude each other.
        at_threshold: the task as it is scored with such a threshold.
        read_columns: how labels in one column each are read: from their names, the name of the column to be and what
            the data are; None where labels stand in one column.
        needs_fast_tokenizer: whether it must know where in a text, or in which word, a token lies.
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
    item_scores: Callable[[LabelInventory | None], Callable[[EvalPrediction], np.ndarray]]
    class_column: str | None = None
    max_length: int = 128
    count_examples: Callable[[Any], int] = len
    with_labels: Callable[[Task, LabelInventory], Task] | None = None
    find_reading: Callable[[Dataset, Mapping[str, str], Sequence[str] | None], Reading | None] | None = None
    describe_readings: Callable[[Mapping[str, Any]], list[str]] | None = None
    problem_type: str | None = None
    find_threshold: Callable[[Sequence[EvalPrediction]], float] | None = None
    at_threshold: Callable[[Task, float], Task] | None = None
    read_columns: Callable[[tuple[str, ...], str, str], Reading] | None = None
    splits_rows: bool = False
    unsmoothed: str = ""
    needs_fast_tokenizer: bool = False

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def label_role(self) -> str:
        """Role of the column with labels."""
        return self.class_column or next(role for role in ("tags", "label", *self.columns) if role in self.columns)

    def given_labels(self, inventory: LabelInventory) -> Task:
        """Return the task as its labels make it."""
        return self.with_labels(self, inventory) if self.with_labels else self

    def find_columns(self, present: Sequence[str], given: Mapping[str, str | None], where: str) -> dict[str, str]:
        """Match the task's columns with those of a data set.

        Args:
            present: column names of the data set.
            given: names the user gave, by role.
            where: what the data are, for messages.

        Returns:
            Column names by role; optional ones only where they are there.

        Raises:
            ConfigError: a required or named column is missing, or a name is given for a role this task has not.
        """
        foreign = [role for role, name in given.items() if name and role not in self.columns]
        if foreign:
            own = ", ".join(column_setting(role) for role in self.columns)
            raise ConfigError(f"task `{self.name}` has no {column_setting(foreign[0])}; it takes {own}.")
        found = {}
        for role, column in self.columns.items():
            candidates = (given[role],) if given.get(role) else column.candidates
            name = next((candidate for candidate in candidates if candidate in present), None)
            if name is not None:
                found[role] = name
            elif column.required or given.get(role):
                raise ConfigError(
                    f"{where} must contain a `{candidates[0]}` column; its columns are {', '.join(present)}."
                    f"{close_match(candidates[0], present)} Name the right one with {column_setting(role)}."
                )
        return found


def column_setting(role: str) -> str:
    """Return the setting that names a column, as the reader of a message gives it."""
    return setting(f"{role}_column")


def encode_rows(
    table: Dataset, encoding: Encoding, task: str, function: Callable[[dict[str, list], int], dict[str, list]]
) -> Dataset:
    """Turn rows into features in batches; the features of a large set are kept in the cache of `datasets`.

    Args:
        table: the rows.
        encoding: what the features depend on, and with it the cache.
        task: name of the task, for the cache.
        function: rows as columns and the number of the first one, to features as columns; it may return more or
            fewer than there are rows.

    Raises:
        ConfigError: as the function does.
    """
    from datasets import Dataset, config, is_caching_enabled

    if len(table) < CACHED_ROWS:
        return Dataset.from_dict(function(table[:], 0))
    state = json.dumps(
        [
            table._fingerprint,
            task,
            _hash_of(encoding.tokenizer),
            sorted(encoding.columns.items()),
            encoding.inventory.names if encoding.inventory else None,
            [encoding.max_length, encoding.overlap, encoding.language],
        ]
    )
    fingerprint = hashlib.sha256(state.encode()).hexdigest()[:32]
    mapping = functools.partial(
        table.map,
        lambda rows, numbers: function(rows, numbers[0]),
        with_indices=True,
        batched=True,
        remove_columns=table.column_names,
        new_fingerprint=fingerprint,
        desc=f"Tokenising {encoding.where}",
    )
    file = Path(config.HF_DATASETS_CACHE) / "hf_xlt" / f"{fingerprint}.arrow"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return mapping(cache_file_name=str(file), load_from_cache_file=is_caching_enabled())
    except OSError as error:
        # A cache only saves time: a read-only or full one costs the time, never the run.
        _LOGGER.warning("No features are kept in `%s` (%s); they are made in memory.", file.parent, error.strerror)
        return mapping(keep_in_memory=True, load_from_cache_file=False)


def _hash_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that a tokenizer's output depends on."""
    if tokenizer.is_fast:
        state = tokenizer.backend_tokenizer.to_str()
    else:
        # A slow one is its class, what it was made with, and the files it was made from.
        state = repr(
            (
                type(tokenizer).__qualname__,
                sorted(tokenizer.init_kwargs.items(), key=str),
                sorted(tokenizer.get_vocab().items()),
            )
        )
    return hashlib.sha256(state.encode()).hexdigest()


def checked_texts(values: Sequence[Any], column: str, start: int, where: str) -> list[str]:
    """Return a column of texts.

    Args:
        values: the column's values.
        column: its name.
        start: row number of the first value.
        where: what the data are, for messages.

    Raises:
        ConfigError: a value is no text.
    """
    for row, text in enumerate(values, start):
        if not isinstance(text, str):
            raise ConfigError(f"{where}, row {row}: column `{column}` holds {text!r}, not a text.")
    return list(values)
