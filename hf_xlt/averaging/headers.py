"""The headers of safetensors files, read strictly: every fault of a file shows before any number is read.

The format (safetensors 0.8): eight bytes with the header's length, a JSON header with dtype, shape and place of each
tensor, then the data without holes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hf_xlt.averaging.dtypes import SIZES
from hf_xlt.errors import ConfigError

HEADER_LIMIT = 100_000_000
_POINTER = b"version https://git-lfs"
_QUANTISED = ("F8_", "F6_", "F4", "C64")


class DamagedFile(ConfigError):
    """A weight file that cannot be read as one."""

    def __init__(self, path: Path, problem: str) -> None:
        """Make the message of path and problem."""
        super().__init__(f"`{path}` {problem} Copy, download or save it again.")


class Tensor(NamedTuple):
    """Where one tensor lies in its file: format, shape, first byte, number of bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Layout:
    """What a header says.

    Attributes:
        tensors: by name, in the order of their data.
        sha256: of the header, in hexadecimal; for a pickle, of the names, formats, shapes and places.
        aliases: name to the name of the tensor whose data it shares; only pickles have them.
    """

    tensors: Mapping[str, Tensor]
    sha256: str
    aliases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightFile:
    """A weight file as it was found.

    Attributes:
        path: where it is.
        layout: its header; files with equal headers share one.
        state: device, inode, size in bytes, time of modification in ns, to see a change while it is read.
    """

    path: Path
    layout: Layout
    state: tuple[int, int, int, int]


def file_state(path: Path) -> tuple[int, int, int, int]:
    """Return device, inode, size in bytes and time of modification in ns."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_weights(path: Path, known: dict[str, Layout]) -> WeightFile:
    """Read and check a safetensors header.

    Args:
        path: the file.
        known: layouts by hash and file size; equal headers are kept once, whatever the number of files.

    Raises:
        ConfigError: the file is damaged, cut off, a git-lfs pointer, or quantised.
    """
    state = file_state(path)
    header = _read_header(path, state[2])
    digest = hashlib.sha256(header).hexdigest()
    key = f"{digest}:{state[2]}"
    if key not in known:
        known[key] = Layout(_parse(path, header, state[2]), digest)
    return WeightFile(path, known[key], state)


def _read_header(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        start = file.read(len(_POINTER))
        if start == _POINTER:
            raise ConfigError(
                f"`{path}` is a git-lfs pointer, not the weights themselves. Fetch them with `git lfs pull`."
            )
        if size < 8:
            raise DamagedFile(path, f"is cut off: it has {size} bytes, too few for a safetensors header.")
        (length,) = struct.unpack("<Q", start[:8])
        if length > HEADER_LIMIT:
            raise DamagedFile(path, f"is no safetensors file: its header would be {length:,} bytes long.")
        if length > size - 8:
            raise DamagedFile(path, f"is cut off: its header has {length:,} bytes and the file {size:,}.")
        file.seek(8)
        header = file.read(length)
    if len(header) != length:
        raise DamagedFile(path, "was cut short while it was read.")
    return header


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice")
    return values


def _parse(path: Path, header: bytes, size: int) -> dict[str, Tensor]:
    try:
        values = json.loads(header, object_pairs_hook=_no_twice)
        entries = [(name, entry) for name, entry in values.items() if name != "__metadata__"]
        tensors = [_tensor(path, name, entry, 8 + len(header)) for name, entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise DamagedFile(path, f"is damaged: its safetensors header cannot be read ({error}).") from error
    if not tensors:
        raise DamagedFile(path, "holds no tensors.")
    tensors.sort(key=lambda pair: (pair[1].start, pair[1].size))
    end = 8 + len(header)
    for name, tensor in tensors:
        if tensor.start != end:
            fault = "overlaps the tensor before it" if tensor.start < end else "leaves a hole before it"
            raise DamagedFile(path, f"is damaged: the data of `{name}` begin at byte {tensor.start}, which {fault}.")
        end += tensor.size
        if end > size:
            raise DamagedFile(path, f"is cut off: `{name}` ends at byte {end:,} and the file has {size:,}.")
    if end != size:
        raise DamagedFile(path, f"is damaged: its tensors end at byte {end:,} and the file has {size:,}.")
    return dict(tensors)


def _tensor(path: Path, name: str, entry: Mapping[str, Any], data: int) -> tuple[str, Tensor]:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if isinstance(dtype, str) and dtype.startswith(_QUANTISED):
        raise ConfigError(
            f"`{path}` holds `{name}` as {dtype}: quantised or complex weights cannot be averaged. Average the models "
            "before they are quantised."
        )
    if dtype not in SIZES:
        raise ValueError(f"`{name}` has the unknown dtype {dtype!r}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"`{name}` has a shape or place that is no whole number")
    wanted = math.prod(shape) * SIZES[dtype]
    if end - begin != wanted:
        raise ValueError(f"`{name}` has {end - begin:,} bytes, and {dtype} of shape {list(shape)} takes {wanted:,}")
    return name, Tensor(dtype, shape, data + begin, wanted)


def build_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, Tensor]]:
    """Make a header for tensors that follow each other in the given order.

    Args:
        tensors: dtype and shape by name.

    Returns:
        The header with its length before it, and each tensor's place in the file.
    """
    # `from_pretrained` refuses files that do not say which framework they are for.
    values: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * SIZES[dtype]
        values[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        places[name] = Tensor(dtype, shape, offset, size)
        offset += size
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    placed = {name: place._replace(start=start + place.start) for name, place in places.items()}
    return struct.pack("<Q", len(text)) + text, placed
