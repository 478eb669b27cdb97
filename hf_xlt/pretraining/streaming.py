"""Packed rows from data sets that are streamed: too large to tokenise before training, or of unknown length.

The data set is read in blocks of documents; a block is shuffled by its number and its rows are packed as those of
local text are, the remainder carried over. The state is where the current block starts, which document of it is being
read and how many of its tokens are used: a few hundred bytes, from which the stream goes on exactly. (The shuffle
buffer of `datasets` is refilled on resume, which repeats some rows and loses others.)
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hf_xlt.errors import ConfigError, RunError, one_line
from hf_xlt.files import write_json
from hf_xlt.pretraining.corpus import encode_documents, separator_token
from hf_xlt.randomness import derive_seed

STATE_NAME = "data_state-rank{rank}.json"
_ATTEMPTS = 3


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
        """
        self.tokenizer, self.body, self.key, self.where = tokenizer, body, key, where
        self.text_column, self.reader, self.readers, self.block = text_column, reader, readers, block
        self.wait_seconds = wait_seconds
        self.dataset = dataset
        self.shards = getattr(dataset, "num_shards", 1)
        own = range(reader, self.shards, readers) if self.shards >= readers else range(self.shards)
        self._own_shards = np.array(own)
        self.separator = separator_token(tokenizer)
        self.number = self.shard = self.block_number = self.document = self.used = 0
        self.block_start: dict[str, Any] | None = None
        self.failures = 0
        self._documents: list[list[int]] | None = None
        self._after_block: dict[str, Any] | None = None

    def _shard(self) -> Any:
        """Return the shard at hand, in this pass's order of shards."""
        seed = derive_seed(*self.key, self.reader, self.number, "shards")
        order = np.random.Generator(np.random.Philox(key=seed)).permutation(self._own_shards)
        # A data set bound to a state stays bound to it, so each block reads from a copy of its own.
        dataset = copy.deepcopy(self.dataset)
        if self.shards > 1:
            dataset = dataset.shard(num_shards=self.shards, index=int(order[self.shard]), contiguous=False)
        if self.shards >= self.readers:
            return dataset
        reader, readers = self.reader, self.readers
        return dataset.filter(lambda row, index: index % readers == reader, with_indices=True)

    def state(self) -> dict[str, Any]:
        """Return where this reader is, JSON-able."""
        return {
            "pass": self.number,
            "shard": self.shard,
            "block": self.block_number,
            "block_start": copy.deepcopy(self.block_start),
            "document": self.document,
            "used": self.used,
            "failures": self.failures,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.number, self.shard, self.block_number = state["pass"], state["shard"], state["block"]
        self.document, self.used, self.failures = state["document"], state["used"], state["failures"]
        self.block_start = copy.deepcopy(state["block_start"])
        self._documents = self._after_block = None

    def next_row(self) -> np.ndarray:
        """Return the next row: (body,) int64.

        Raises:
            ConfigError: the text column is missing, or a pass holds no text.
            RunError: the data could not be read after several attempts.
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
            texts, self._after_block = self._read_block()
            documents = [tokens for tokens in encode_documents(texts, self.tokenizer) if tokens] if texts else []
            if documents:
                break
            self._close_block()
            if (self.number - 1, self.shard, self.block_number) >= first:
                raise ConfigError(f"{self.where} holds no text for reader {self.reader + 1} of {self.readers}.")
        seed = derive_seed(*self.key, self.reader, self.number, self.shard, self.block_number)
        order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(documents))
        self._documents = [documents[index] for index in order]

    def _read_block(self) -> tuple[list[str], dict[str, Any] | None]:
        """Return the block's texts, and the state after it (None at the end of the shard)."""
        for attempt in range(_ATTEMPTS):
            try:
                dataset = self._shard()
                if self.block_start is not None:
                    dataset.load_state_dict(copy.deepcopy(self.block_start))
                with _outside_workers():
                    rows = list(islice(self._rows(dataset), self.block))
                after = dataset.state_dict() if len(rows) == self.block else None
                return [text for text in rows if text and text.strip()], copy.deepcopy(after)
            except ConfigError:
                raise
            except (OSError, ConnectionError, TimeoutError) as error:
                self.failures += 1
                if attempt == _ATTEMPTS - 1:
                    raise RunError(
                        f"{self.where} cannot be read: {one_line(error)}. {_ATTEMPTS} attempts failed; check the "
                        "network or the file, and continue with `--resume`."
                    ) from error
                time.sleep(self.wait_seconds * 2**attempt)
        raise AssertionError("unreachable")

    def _rows(self, dataset: Any) -> Iterator[str]:
        for row in dataset:
            if self.text_column not in row:
                raise ConfigError(
                    f"{self.where} must contain a `{self.text_column}` column; its columns are {', '.join(row)}."
                )
            yield row[self.text_column]


def write_states(folder: Path, rank: int, layout: list[int], readers: Mapping[str, Any]) -> None:
    """Write where the streams of one process are into a checkpoint.

    Args:
        folder: the checkpoint.
        rank: index of the process.
        layout: numbers of processes and of loader workers.
        readers: states by reader.
    """
    write_json(folder / STATE_NAME.format(rank=rank), {"layout": layout, "readers": readers})


def read_states(folder: Path, rank: int, layout: list[int], strict: bool) -> dict[str, Any]:
    """Read what `write_states` wrote; nothing, with a warning, when the layout has changed.

    Args:
        folder: the checkpoint.
        rank: index of this process.
        layout: numbers of processes and of loader workers now.
        strict: refuse another layout.

    Raises:
        ConfigError: the layout has changed under `strict`.
        RunError: the file is damaged.
    """
    path = folder / STATE_NAME.format(rank=rank)
    try:
        saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if saved is not None and saved["layout"] == layout:
            return saved["readers"]
    except (ValueError, KeyError) as error:
        raise RunError(f"`{folder.name}/{path.name}` is damaged; resume from an earlier checkpoint.") from error
    before = "{} processes and {} loader workers".format(*saved["layout"]) if saved else "fewer processes"
    message = (
        f"the run was saved with {before} and goes on with {layout[0]} and {layout[1]}: streamed text starts over, so "
        "some rows are read again."
    )
    if strict:
        raise ConfigError(f"{message} Resume with the same numbers, or without `--strict-resume`.")
    print(f"Warning: {message}", flush=True)  # noqa: T201
    return {}
