"""Streamed text of several shards, some of which break off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import IterableDataset

# By shard, how many documents can be read before the connection breaks. Loader workers see it as it was when forked.
BROKEN: dict[int, int] = {}


def read(shards: list[int]) -> Iterator[dict[str, Any]]:
    """Nine documents of each shard: three times w(3 s), three times w(3 s + 1), and so on, of 5 words each."""
    for shard in shards:
        for number in range(9):
            if BROKEN.get(shard) == number:
                raise ConnectionError("reset by peer")
            yield {"text": " ".join([f"w{(3 * shard + number // 3) % 60}"] * 5)}


def make_shards(count: int = 20) -> IterableDataset:
    """Return a streamed data set of `count` shards."""
    return IterableDataset.from_generator(read, gen_kwargs={"shards": list(range(count))})
