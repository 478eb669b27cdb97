"""Where the streams of one process are: what their batches say, what a checkpoint keeps, and the shards they lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_xlt.errors import ConfigError, RunError, setting
from hf_xlt.files import write_json
from hf_xlt.pretraining.batches import FAILURE, READER_STATE, PhaseText
from hf_xlt.pretraining.streaming import MAX_FAILED_SHARDS, too_many_failed

STATE_NAME = "data_state-rank{rank}.json"


class StreamStates:
    """Follows the streams by the states that travel with the batches: loader workers run ahead, and they may not."""

    def __init__(
        self,
        text: PhaseText,
        rank: int = 0,
        processes: int = 1,
        workers: int = 0,
        max_failed_shards: float = MAX_FAILED_SHARDS,
    ) -> None:
        """Follow the streams of `text`; none if it has none.

        Args:
            text: what the phase reads.
            rank: index of this process.
            processes: how many there are.
            workers: loader workers of each.
            max_failed_shards: share of a language's shards that may fail in one pass, in [0, 1).
        """
        self.rank, self.layout, self.max_failed_shards = rank, [processes, workers], max_failed_shards
        self.shards = {code: getattr(stream[0], "num_shards", 1) for code, stream in text.streams.items()}
        self.readers: dict[str, Any] = {}
        self.skipped: dict[str, int] = {}

    def take(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Take the states off the micro-batches of an update; return the micro-batches.

        Raises:
            ConfigError: a reader cannot go on.
            RunError: likewise.
        """
        for batch in batches:
            if FAILURE in batch:
                raise batch[FAILURE]
            self.readers |= batch.pop(READER_STATE, {})
        return batches

    def count(self) -> Tensor:
        """Count over the readers of this process: (2, L) shards skipped so far, and in the readers' latest passes."""
        counts = torch.zeros(2, len(self.shards))
        for states in self.readers.values():
            for place, code in enumerate(self.shards):
                state = states[code]
                counts[0, place] += state.get("skipped", 0)
                # Just after the end of a pass its losses still stand for the latest one.
                if state.get("failed_pass", 0) >= state["pass"] - 1:
                    counts[1, place] += state.get("failed", 0)
        return counts

    def check(self, counts: Tensor) -> None:
        """Note how many shards were skipped, and stop when too many were.

        Args:
            counts: (2, L), as `count` gives them, summed over processes.

        Raises:
            RunError: a language lost more than the allowed share of its shards.
        """
        skipped, failed = counts.round().int().tolist()
        self.skipped = {code: count for code, count in zip(self.shards, skipped, strict=True) if count}
        readers = self.layout[0] * max(self.layout[1], 1)
        for (code, shards), count in zip(self.shards.items(), failed, strict=True):
            # With fewer shards than readers each reads all of them, and judges for itself.
            if shards >= readers and too_many_failed(count, shards, self.max_failed_shards):
                raise RunError(
                    f"the text of `{code}`: {count} of {shards} shards cannot be read (the warnings say why). "
                    f"`max_failed_shards` is {self.max_failed_shards:g}; check the network or the files, or raise it, "
                    f"and continue with {setting('resume')}."
                )

    def log_entries(self) -> dict[str, int]:
        """Return the number of skipped shards of each language that lost any."""
        return {f"skipped_shards_{code}": count for code, count in self.skipped.items()}

    def save(self, folder: Path) -> None:
        """Write into a checkpoint where the streams of this process are; nothing without streams."""
        if self.shards:
            write_json(folder / STATE_NAME.format(rank=self.rank), {"layout": self.layout, "readers": self.readers})

    def load(self, folder: Path, strict: bool) -> None:
        """Go on from what `save` wrote; from the start, with a warning, when the numbers of readers have changed.

        Args:
            folder: the checkpoint.
            strict: refuse other numbers of processes and workers.

        Raises:
            ConfigError: the numbers have changed under `strict`.
            RunError: the file is damaged.
        """
        if not self.shards:
            return
        path = folder / STATE_NAME.format(rank=self.rank)
        try:
            saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
            if saved is not None and saved["layout"] == self.layout:
                # The loader holds this very dictionary.
                self.readers.update(saved["readers"])
                return
        except (ValueError, KeyError) as error:
            raise RunError(f"`{folder.name}/{path.name}` is damaged; resume from an earlier checkpoint.") from error
        before = "{} processes and {} loader workers".format(*saved["layout"]) if saved else "fewer processes"
        message = (
            f"the run was saved with {before} and goes on with {self.layout[0]} and {self.layout[1]}: streamed text "
            "starts over, so some rows are read again."
        )
        if strict:
            raise ConfigError(f"{message} Resume with the same numbers, or without {setting('strict_resume')}.")
        print(f"Warning: {message}", flush=True)  # noqa: T201
