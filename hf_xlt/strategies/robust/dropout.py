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


def _restore(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1])


def _save(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    return torch.get_rng_state(), on_device


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
    state = _save(device)
    woken = [module for module in model.modules() if module.training] if dropout == "eval" else []
    try:
        for module in woken:
            module.training = False
        if dropout == "train":
            # Not `torch.manual_seed`, which would also reseed every other device of this process.
            torch.default_generator.manual_seed(seed)
            if device.type != "cpu":
                torch.get_device_module(device).manual_seed(seed)
        yield
    finally:
        for module in woken:
            module.training = True
        _restore(state, device)


@contextmanager
def main_pass_first(device: torch.device) -> Iterator[Callable[[], None]]:
    """Let side passes come after the main one and find the generators as it found them.

    Args:
        device: where the model runs; the generators of this device and of the CPU count.

    Yields:
        To call after the main pass. When the block ends, the generators are where the main pass left them; when it
        raises, where they were before it.
    """
    before = after = _save(device)

    def rewind() -> None:
        nonlocal after
        after = _save(device)
        _restore(before, device)

    try:
        yield rewind
    except BaseException:
        after = before
        raise
    finally:
        _restore(after, device)
