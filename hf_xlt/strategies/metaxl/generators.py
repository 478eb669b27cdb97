"""Random number generators of the passes beside the main one.

The main pass draws the dropout masks that plain training would draw; the passes of the meta update have streams of
their own, and a pass that must be repeated with the same masks is replayed from its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_xlt import randomness
from hf_xlt.randomness import GeneratorState


@contextmanager
def generators(device: torch.device, start: int | GeneratorState | None) -> Iterator[None]:
    """Draw from another stream inside the block, and go on as before after it.

    Args:
        device: where the model runs.
        start: seed of the stream, or a state to replay from; None changes nothing and restores nothing.

    Yields:
        Nothing.
    """
    if start is None:
        yield
        return
    with randomness.generators(device, start):
        yield
