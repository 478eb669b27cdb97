"""Pickled weight files: where their tensors lie, found without unpickling anything but tensors.

torch reads the pickle with `weights_only=True` into tensors without data, which know their place in the file. So
their numbers are read by position, like those of safetensors files; on top of the memory of the import comes little.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_xlt.averaging.headers import DamagedFile, Layout, Tensor, WeightFile, file_state
from hf_xlt.errors import ConfigError, one_line

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_OUTPUT_SIDE = re.compile(r"(^|\.)(lm_head|decoder|predictions|cls|embed_out|output_embeddings)(\.|$)")
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def open_pickle(path: Path) -> WeightFile:
    """Find the tensors of a file that `torch.save` wrote from a state dict.

    Raises:
        ConfigError: it holds anything but tensors by name, is damaged, or is of the format before PyTorch 1.6.
    """
    state = file_state(path)
    values = _load_without_data(path)
    _check_is_state_dict(path, values)
    tensors: dict[str, Tensor] = {}
    shared: dict[Tensor, list[str]] = {}
    for name, value in values.items():
        tensors[name] = _place(path, name, value, state[2])
        if tensors[name].size:
            shared.setdefault(tensors[name], []).append(name)
    # Tied weights are names of one storage; that on the input's side stands for all.
    aliases = {}
    for names in shared.values():
        kept = min(names, key=_name_rank)
        aliases |= dict.fromkeys((name for name in names if name != kept), kept)
    digest = hashlib.sha256(repr(sorted(tensors.items())).encode()).hexdigest()
    return WeightFile(path, Layout(tensors, digest, aliases), state)


def _name_rank(name: str) -> tuple[bool, int, str]:
    return bool(_OUTPUT_SIDE.search(name)), len(name), name


def _load_without_data(path: Path) -> Any:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    if path.stat().st_size and path.open("rb").read(4) != b"PK\x03\x04":
        raise ConfigError(
            f"`{path}` is no file of `torch.save`, or one of before PyTorch 1.6. Load it where you trust it, and save "
            "it with `save_pretrained`, which writes safetensors."
        )
    try:
        with FakeTensorMode():
            return torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"`{path}` holds more than tensors, so it is not unpickled: such a file can run any code. Save the "
            "weights with `save_pretrained`, which writes safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise DamagedFile(path, f"is damaged or cut off ({one_line(error)[:120]}).") from error


def _check_is_state_dict(path: Path, values: Any) -> None:
    import torch

    if isinstance(values, Mapping) and {"state", "param_groups"} <= set(values):
        raise ConfigError(f"`{path}` holds the state of an optimizer, not weights. Give the file with the weights.")
    good = isinstance(values, Mapping) and values and all(isinstance(name, str) for name in values)
    wrong = next((name for name, value in values.items() if not isinstance(value, torch.Tensor)), None) if good else ""
    if wrong is not None:
        raise ConfigError(
            f"`{path}` is no state dict: it should map names to tensors"
            f"{f', and `{wrong}` is none' if wrong else ''}. Give a model's weights, or save them with "
            "`save_pretrained`."
        )


def _place(path: Path, name: str, value: Any, file_size: int) -> Tensor:
    dtype = _DTYPES.get(str(value.dtype).removeprefix("torch."))
    if dtype is None or value.layout.__str__() != "torch.strided":
        raise ConfigError(f"`{path}` holds `{name}` as {value.dtype}, which cannot be averaged.")
    offset = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    if offset is None or not value.is_contiguous():
        raise ConfigError(
            f"`{path}` holds `{name}` in an order that cannot be read in one piece. Save the model with "
            "`save_pretrained`, which writes safetensors."
        )
    size = value.numel() * value.element_size()
    start = offset + value.storage_offset() * value.element_size()
    if start + size > file_size:
        raise DamagedFile(path, f"is cut off: `{name}` ends at byte {start + size:,} and the file has {file_size:,}.")
    return Tensor(dtype, tuple(value.shape), start, size)
