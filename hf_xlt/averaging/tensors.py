"""Single tensors in memory: read from an opened checkpoint, written to a small file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_xlt.averaging.dtypes import FLOATS, SIZES, narrow, numpy_type, widen
from hf_xlt.averaging.headers import build_header
from hf_xlt.averaging.inputs import Checkpoint
from hf_xlt.averaging.plan import Source
from hf_xlt.averaging.streaming import Inputs
from hf_xlt.errors import ConfigError

if TYPE_CHECKING:
    import torch


def read_bits(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """Return a tensor as the file holds it, in its shape; of bfloat16 the bits as unsigned integers."""
    number, place = checkpoint.tensors[name]
    bits = np.empty(place.size, np.uint8)
    Inputs(checkpoint.files).read(Source(number, place.start, place.dtype), 0, bits)
    return bits.view(numpy_type(place.dtype)).reshape(place.shape)


def read_numbers(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """Return a tensor of a floating format as float64, in its shape.

    Raises:
        ConfigError: it is of another format, or holds NaN or infinity.
    """
    _, place = checkpoint.tensors[name]
    if place.dtype not in FLOATS:
        raise ConfigError(f"`{checkpoint.place}` holds `{name}` as {place.dtype}, which cannot be averaged.")
    out = np.empty(math.prod(place.shape), np.float64)
    widen(read_bits(checkpoint, name).reshape(-1), place.dtype, out)
    if not np.isfinite(out).all():
        count = int(np.count_nonzero(~np.isfinite(out)))
        raise ConfigError(
            f"`{checkpoint.place}` holds {count:,} numbers in `{name}` that are NaN or infinite. Leave it out."
        )
    return out.reshape(place.shape)


def read_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """Return a tensor as torch's, in its own dtype."""
    import torch

    bits = torch.from_numpy(read_bits(checkpoint, name))
    return bits.view(torch.bfloat16) if checkpoint.tensors[name][1].dtype == "BF16" else bits


def write_tensors(path: Path, tensors: Mapping[str, tuple[str, np.ndarray]]) -> int:
    """Write a safetensors file.

    Args:
        path: it does not exist.
        tensors: format, and float64 numbers in the tensor's shape, by name.

    Returns:
        Its size in bytes.

    Raises:
        OSError: the disk is full.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-SIZES[item[1][0]], item[0])))
    header, _ = build_header({name: (dtype, numbers.shape) for name, (dtype, numbers) in ordered.items()})
    with open(path, "xb") as file:
        size = file.write(header)
        for dtype, numbers in ordered.values():
            out = np.empty(numbers.size, numpy_type(dtype))
            narrow(np.ascontiguousarray(numbers).reshape(-1), dtype, out)
            size += file.write(out.tobytes())
    return size
