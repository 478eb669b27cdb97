"""Passes beside the main one, which must leave random number generators and training flags as they were.

What a plain training step would draw from the global generators is drawn by the main pass alone. So passes that
search for a perturbation, or add a second loss, shift nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from hf_xlt.randomness import read_generators, seed_generators, write_generators


@contextmanager
def side_pass(
    model: nn.Module, device: torch.device, dropout: Literal["train", "shared", "eval"], seed: int
) -> Iterator[None]:
    """Run a pass beside the main one.

    Args:
        model: its submodules' training flags are put back one by one, so that deliberately frozen modules stay so.
        device: where the model runs; the generators of this device and of the CPU are put back.
        dropout: `train` draws masks of its own, `shared` those that the main pass is about to draw, `eval` none.
        seed: of the masks of `train`.

    Yields:
        Nothing.
    """
    state = read_generators(device)
    woken = [module for module in model.modules() if module.training] if dropout == "eval" else []
    try:
        for module in woken:
            module.training = False
        if dropout == "train":
            seed_generators(seed, device)
        yield
    finally:
        for module in woken:
            module.training = True
        write_generators(state, device)


@contextmanager
def main_pass_first(device: torch.device) -> Iterator[Callable[[], None]]:
    """Let side passes come after the main one and find the generators as it found them.

    Args:
        device: where the model runs; the generators of this device and of the CPU count.

    Yields:
        To call after the main pass. When the block ends, the generators are where the main pass left them; when it
        raises, where they were before it.
    """
    before = after = read_generators(device)

    def rewind() -> None:
        nonlocal after
        after = read_generators(device)
        write_generators(before, device)

    try:
        yield rewind
    except BaseException:
        after = before
        raise
    finally:
        write_generators(after, device)
