"""Random numbers as pure functions of what they are for.

A strategy's noise is drawn per example from a generator keyed by (seed, purpose, update, row in the global batch).
Neither accumulation, nor processes, nor padding, nor resuming changes it, and the global generators, on which
plain training depends, are left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

GeneratorState = tuple[torch.Tensor, torch.Tensor | None]


def derive_seed(*key: int | str) -> int:
    """Map a key to a seed in [0, 2**63), equal on every machine and in every process."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose stream is a pure function of the key and the kind of device."""
    return torch.Generator(device=device).manual_seed(derive_seed(*key))


def permutation(length: int, *key: int | str) -> list[int]:
    """Return a permutation of `range(length)` that is a pure function of the key."""
    return torch.randperm(length, generator=keyed_generator(*key)).tolist()


def read_generators(device: torch.device) -> GeneratorState:
    """Return the state of the CPU's global generator, and of the device's where it is another, of whatever type."""
    on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(*_index(device))
    return torch.get_rng_state(), on_device


def write_generators(state: GeneratorState, device: torch.device) -> None:
    """Put both generators into a state that `read_generators` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], *_index(device))


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and the device's; `torch.manual_seed` would reseed every other device as well."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def generators(device: torch.device, start: int | GeneratorState | None = None) -> Iterator[None]:
    """Draw random numbers inside the block without a trace in the global generators after it.

    Args:
        device: where the model runs.
        start: seed of the block's stream, or a state to replay from; None draws on from where the generators stand.

    Yields:
        Nothing.
    """
    before = read_generators(device)
    try:
        if isinstance(start, int):
            seed_generators(start, device)
        elif start is not None:
            write_generators(start, device)
        yield
    finally:
        write_generators(before, device)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    # Metal has one device, and its functions take none.
    return () if device.type == "mps" else (device,)
