"""The weights of a model in training: which ones are trained, and what they are called whatever wraps the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_xlt.errors import ConfigError

_ON_DISK = "Average its consolidated checkpoints on disk with `hf-xlt average` instead."


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside DDP and compilation wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by name, tied ones once; names are those without wrappers."""
    # Of a model that is compiled in regions, inner modules are wrapped as well.
    return {name.replace("_orig_mod.", ""): weight for name, weight in bare(model).named_parameters()}


def trained_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that training changes."""
    return tuple(name for name, weight in named_weights(model).items() if weight.requires_grad)


def check_whole(model: nn.Module, args: Any) -> None:
    """Refuse weights that are divided over processes.

    Raises:
        ConfigError: by FSDP, tensor parallelism or ZeRO-3.
    """
    weights = list(model.parameters())
    divided = any(isinstance(weight, DTensor) for weight in weights)
    divided |= any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if divided or getattr(args, "fsdp", None):
        raise ConfigError(f"averaging in training does not work with weights that FSDP divides. {_ON_DISK}")
    # Outside its gathering context ZeRO-3 leaves empty placeholders, whose mean is nothing.
    if any(weight.numel() == 0 or hasattr(weight, "ds_id") for weight in weights):
        raise ConfigError(f"averaging in training does not work with weights that ZeRO-3 divides. {_ON_DISK}")


def send_to_all(tensor: Tensor, args: Any) -> None:
    """Overwrite a tensor on every process with that of the first."""
    if args.world_size > 1:
        torch.distributed.broadcast(tensor, src=0)
