"""The number formats of weight files, and exact steps between them and numpy's.

numpy has no bfloat16: it is widened by shifting bits, and narrowed with ties to even, as torch does.
"""

from __future__ import annotations

import functools

import numpy as np

from hf_xlt.errors import ConfigError, setting

# Names as in safetensors headers, sizes in bytes.
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
WHOLE = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
SIZES = {**FLOATS, **WHOLE}

_TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NUMPY = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "BF16": np.uint16,
}
# From these magnitudes on, rounding to the format gives infinity: largest number plus half a step.
LIMITS = {"F64": np.inf, "F32": 3.4028235677973366e38, "BF16": 3.3961775292304957e38, "F16": 65520.0}


def torch_name(dtype: str) -> str:
    """Return torch's name of a floating format, such as `bfloat16`."""
    return _TORCH[dtype]


def from_torch_name(name: str) -> str:
    """Return the format of torch's name.

    Raises:
        ConfigError: it is no floating format that weights are saved in.
    """
    plain = str(name).removeprefix("torch.")
    for dtype, known in _TORCH.items():
        if plain == known:
            return dtype
    raise ConfigError(f"{setting('dtype', name)} is not known; choose one of {', '.join(sorted(_TORCH.values()))}.")


def numpy_type(dtype: str) -> type:
    """Return the numpy type that holds a format's bits; of `BF16` the unsigned 16-bit integers."""
    return _NUMPY[dtype]


def accumulation_type(dtypes: set[str], accumulate: str) -> type:
    """Choose the precision that inputs are summed in.

    Args:
        dtypes: floating formats of one tensor in the inputs.
        accumulate: `auto`, `float32` or `float64`. Numbers of 64 bits are summed in 64 bits whatever it says.

    Returns:
        numpy's float32 or float64.
    """
    if "F64" in dtypes or accumulate == "float64":
        return np.float64
    return np.float64 if accumulate == "auto" and "F32" in dtypes else np.float32


@functools.cache
def _half_table() -> np.ndarray:
    # numpy converts 16-bit floats one by one in software; looking all of them up is faster.
    with np.errstate(invalid="ignore"):
        return np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)


def widen(bits: np.ndarray, dtype: str, out: np.ndarray) -> np.ndarray:
    """Write numbers of a file into an array of float32 or float64, exactly.

    Args:
        bits: what the file holds, as `numpy_type(dtype)`, any number of elements.
        dtype: its format; of no more bits than `out`.
        out: as long as `bits`.

    Returns:
        `out`.
    """
    if dtype == "F16":
        places = bits.view(np.uint16)
        if out.dtype == np.float32:
            # With `mode="clip"` numpy writes straight into `out`.
            np.take(_half_table(), places, out=out, mode="clip")
        else:
            np.copyto(out, _half_table()[places])
    elif dtype == "BF16":
        wide = out if out.dtype == np.float32 else np.empty(len(bits), np.float32)
        np.left_shift(bits, 16, out=wide.view(np.uint32), dtype=np.uint32, casting="unsafe")
        if wide is not out:
            np.copyto(out, wide)
    else:
        np.copyto(out, bits)
    return out


def narrow(numbers: np.ndarray, dtype: str, out: np.ndarray) -> None:
    """Round float32 or float64 numbers once to a format, ties to even.

    Args:
        numbers: what is rounded.
        dtype: the format.
        out: as long, of `numpy_type(dtype)`.
    """
    if dtype != "BF16":
        np.copyto(out, numbers, casting="same_kind")
        return
    bits = _rounded_to_odd(numbers) if numbers.dtype == np.float64 else numbers.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    # The carry of a NaN's bits could run into its sign: a NaN stays one.
    np.copyto(rounded, 0x7FC0, where=np.isnan(numbers))
    np.copyto(out, rounded, casting="unsafe")


def _rounded_to_odd(numbers: np.ndarray) -> np.ndarray:
    """Round float64 to float32 such that a further rounding to fewer bits gives what one rounding would.

    Cut towards zero, then set the last bit where anything was cut off: a tie of the further rounding is then a tie
    of the exact number.

    Returns:
        The bits, as unsigned 32-bit integers.
    """
    near = numbers.astype(np.float32)
    bits = near.view(np.uint32)
    bits -= np.abs(near.astype(np.float64)) > np.abs(numbers)
    bits |= near.astype(np.float64) != numbers
    return bits
