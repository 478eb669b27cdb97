"""Random number generators of the passes beside the main one.

The main pass draws the dropout masks that plain training would draw; the passes of the meta update have streams of
their own, and a pass that must be repeated with the same masks is replayed from its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

GeneratorState = tuple[torch.Tensor, torch.Tensor | None]


def read_generators(device: torch.device) -> GeneratorState:
    """Return the state of the CPU's generator, and of the device's where it is another."""
    on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), on_device


def write_generators(state: GeneratorState, device: torch.device) -> None:
    """Put both generators into a state that `read_generators` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)


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
    before = read_generators(device)
    try:
        if isinstance(start, int):
            # Not `torch.manual_seed`, which would also reseed every other device of this process.
            torch.default_generator.manual_seed(start)
            if device.type != "cpu":
                torch.get_device_module(device).manual_seed(start)
        else:
            write_generators(start, device)
        yield
    finally:
        write_generators(before, device)
