"""Packed rows from data sets that are streamed: too large to tokenise before training, or of unknown length.

The data set is read in blocks of documents; a block is shuffled by its number and its rows are packed as those of
local text are, the remainder carried over. The state is where the current block starts, which document of it is being
read and how many of its tokens are used: a few hundred bytes, from which the stream goes on exactly. (The shuffle
buffer of `datasets` is refilled on resume, which repeats some rows and loses others.)

A read that fails is repeated; when it goes on failing, the rest of that shard is left out until the next pass, and the
state counts it. Losing more shards than allowed ends the run.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import time
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from hf_xlt.errors import ConfigError, RunError, one_line, setting
from hf_xlt.pretraining.corpus import encode_documents, separator_token
from hf_xlt.randomness import derive_seed

MAX_FAILED_SHARDS = 0.1
_ATTEMPTS = 3


def _read_errors() -> tuple[type[Exception], ...]:
    """Return what reading a shard raises when the connection fails, or the file is missing, damaged or cut off."""
    # The Hub's client raises errors of its HTTP library, which changed its name; aiohttp reads from other addresses.
    from huggingface_hub.errors import HTTPError

    others = (sys.modules["aiohttp"].ClientError,) if "aiohttp" in sys.modules else ()
    return OSError, EOFError, zlib.error, pa.ArrowException, HTTPError, *others


def too_many_failed(failed: int, shards: int, allowed: float) -> bool:
    """Say whether `failed` shards of `shards` are more than the share `allowed`, in [0, 1)."""
    # Without the margin the rounding of the product decides where both sides are equal.
    return failed > allowed * shards + 1e-9


@contextlib.contextmanager
def _outside_workers() -> Iterator[None]:
    """Hide from `datasets` 5.2 that it runs in a loader worker: it would divide the shards once more."""
    from torch.utils.data._utils import worker

    known, worker._worker_info = worker._worker_info, None
    try:
        yield
    finally:
        worker._worker_info = known


class StreamedRows:
    """Endless rows of one language for one reader, from a `datasets.IterableDataset`."""

    def __init__(
        self,
        dataset: Any,
        tokenizer: Any,
        body: int,
        *key: int | str,
        where: str,
        text_column: str = "text",
        reader: int = 0,
        readers: int = 1,
        block: int = 10_000,
        wait_seconds: float = 1.0,
        max_failed_shards: float = MAX_FAILED_SHARDS,
    ) -> None:
        """Read a part of `dataset`.

        Args:
            dataset: a streamed data set.
            tokenizer: fast tokenizer with a separator.
            body: tokens of a row.
            *key: (seed, phase, language); with pass and block number it gives the order of documents.
            where: what the data are, for messages.
            text_column: column of the text.
            reader: which of the readers this is. With at least as many shards as readers each has shards of its own,
                else every `readers`-th row.
            readers: how many there are, over processes and workers.
            block: documents that are shuffled together.
            wait_seconds: before a failed read is repeated; doubled each time.
            max_failed_shards: share of the data set's shards that may fail in one pass, in [0, 1). A reader that
                cannot read a single one of its shards always ends the run.
        """
        self.tokenizer, self.body, self.key, self.where = tokenizer, body, key, where
        self.text_column, self.reader, self.readers, self.block = text_column, reader, readers, block
        self.wait_seconds, self.max_failed_shards = wait_seconds, max_failed_shards
        self.dataset = dataset
        self.shards = getattr(dataset, "num_shards", 1)
        own = range(reader, self.shards, readers) if self.shards >= readers else range(self.shards)
        self._own_shards = np.array(own)
        self.separator = separator_token(tokenizer)
        self.number = self.shard = self.block_number = self.document = self.used = 0
        self.block_start: dict[str, Any] | None = None
        self.failures = self.skipped = self.failed = self.failed_pass = 0
        self._documents: list[list[int]] | None = None
        self._after_block: dict[str, Any] | None = None

    def _shard_number(self) -> int:
        """Return the number of the shard at hand, in this pass's order of shards."""
        seed = derive_seed(*self.key, self.reader, self.number, "shards")
        return int(np.random.Generator(np.random.Philox(key=seed)).permutation(self._own_shards)[self.shard])

    def _shard(self) -> Any:
        """Return the shard at hand."""
        # A data set bound to a state stays bound to it, so each block reads from a copy of its own.
        dataset = copy.deepcopy(self.dataset)
        if self.shards > 1:
            dataset = dataset.shard(num_shards=self.shards, index=self._shard_number(), contiguous=False)
        if self.shards >= self.readers:
            return dataset
        reader, readers = self.reader, self.readers
        return dataset.filter(lambda row, index: index % readers == reader, with_indices=True)

    def state(self) -> dict[str, Any]:
        """Return where this reader is, JSON-able.

        Beside the place: `failures`, reads that failed; `skipped`, shards left out so far; `failed`, those of the pass
        `failed_pass`, which is the last one that lost any.
        """
        return {
            "pass": self.number,
            "shard": self.shard,
            "block": self.block_number,
            "block_start": copy.deepcopy(self.block_start),
            "document": self.document,
            "used": self.used,
            "failures": self.failures,
            "skipped": self.skipped,
            "failed": self.failed,
            "failed_pass": self.failed_pass,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.number, self.shard, self.block_number = state["pass"], state["shard"], state["block"]
        self.document, self.used, self.failures = state["document"], state["used"], state["failures"]
        # States of before shards were skipped lack these.
        self.skipped, self.failed = state.get("skipped", 0), state.get("failed", 0)
        self.failed_pass = state.get("failed_pass", 0)
        self.block_start = copy.deepcopy(state["block_start"])
        self._documents = self._after_block = None

    def next_row(self) -> np.ndarray:
        """Return the next row: (body,) int64.

        Raises:
            ConfigError: the text column is missing, or a pass holds no text.
            RunError: more shards than allowed, or all of this reader's, could not be read after several attempts.
        """
        row = np.empty(self.body, dtype=np.int64)
        filled = 0
        while filled < self.body:
            if self._documents is None:
                self._open_block()
            while filled < self.body and self.document < len(self._documents):
                tokens = self._documents[self.document]
                part = tokens[self.used : self.used + self.body - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
                self.used += len(part)
                if filled < self.body:
                    row[filled] = self.separator
                    filled += 1
                    self.document, self.used = self.document + 1, 0
            if self.document == len(self._documents):
                self._close_block()
        return row

    def _close_block(self) -> None:
        if self._after_block is None:
            self._next_shard()
        else:
            self.block_start, self.block_number = self._after_block, self.block_number + 1
        self.document, self._documents = 0, None

    def _next_shard(self) -> None:
        self.block_start, self.block_number, self.shard = None, 0, self.shard + 1
        if self.shard == len(self._own_shards):
            self.number, self.shard = self.number + 1, 0

    def _open_block(self) -> None:
        """Read, tokenise and shuffle the block at hand; empty ones are passed over."""
        first = (self.number, self.shard, self.block_number)
        while True:
            block = self._read_block()
            if block is None:
                # A document that was begun before is closed, as if it ended here.
                documents = [[]] if self.used else []
                self.document, self._after_block = 0, None
            else:
                texts, self._after_block = block
                documents = [tokens for tokens in encode_documents(texts, self.tokenizer) if tokens] if texts else []
            if documents:
                break
            self._close_block()
            if (self.number - 1, self.shard, self.block_number) >= first:
                raise ConfigError(f"{self.where} holds no text for reader {self.reader + 1} of {self.readers}.")
        seed = derive_seed(*self.key, self.reader, self.number, self.shard, self.block_number)
        order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(documents))
        self._documents = [documents[index] for index in order]

    def _read_block(self) -> tuple[list[str], dict[str, Any] | None] | None:
        """Return the block's texts, and the state after it (None at the end of the shard); None for a failed shard."""
        for attempt in range(_ATTEMPTS):
            try:
                dataset = self._shard()
                if self.block_start is not None:
                    dataset.load_state_dict(copy.deepcopy(self.block_start))
                with _outside_workers():
                    rows = list(islice(self._rows(dataset), self.block))
                after = dataset.state_dict() if len(rows) == self.block else None
                return [text for text in rows if text and text.strip()], copy.deepcopy(after)
            except _read_errors() as error:
                self.failures += 1
                if attempt == _ATTEMPTS - 1:
                    self._give_up(error)
                else:
                    time.sleep(self.wait_seconds * 2**attempt)
        return None

    def _give_up(self, error: Exception) -> None:
        """Count the shard at hand as lost to this pass, and warn.

        Raises:
            RunError: that is one too many.
        """
        self.failed = self.failed + 1 if self.failed_pass == self.number else 1
        self.failed_pass, self.skipped = self.number, self.skipped + 1
        reason = one_line(error).rstrip(".")
        if self.failed == len(self._own_shards):
            raise RunError(
                f"{self.where} cannot be read: {reason}. {_ATTEMPTS} attempts failed; check the network or the file, "
                f"and continue with {setting('resume')}."
            ) from error
        if too_many_failed(self.failed, self.shards, self.max_failed_shards):
            raise RunError(
                f"{self.where}: {self.failed} of {self.shards} shards cannot be read, the last one because: {reason}. "
                f"`max_failed_shards` is {self.max_failed_shards:g}; check the network or the files, or raise it, and "
                f"continue with {setting('resume')}."
            ) from error
        print(  # noqa: T201
            f"Warning: {self.where}: shard {self._shard_number()} of {self.shards} (counted from 0) cannot be read: "
            f"{reason}. {_ATTEMPTS} attempts failed; the rest of it is left out in this pass.",
            flush=True,
        )

    def _rows(self, dataset: Any) -> Iterator[str]:
        for row in dataset:
            if self.text_column not in row:
                raise ConfigError(
                    f"{self.where} must contain a `{self.text_column}` column; its columns are {', '.join(row)}."
                )
            yield row[self.text_column]
