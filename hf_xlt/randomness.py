"""Random numbers as pure functions of what they are for.

A strategy's noise is drawn per example from a generator keyed by (seed, purpose, update, row in the global batch).
Neither accumulation, nor processes, nor padding, nor resuming changes it, and the global generators, on which
plain training depends, are left alone.
"""

from __future__ import annotations

import hashlib

import torch


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
