"""Launches that do not do what they look like, and how many threads a process uses."""

from __future__ import annotations

import os
import sys
from typing import Any

from hf_xlt.errors import ConfigError

WORKING_COMMAND = (
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {processes} --num_machines 1 "
    "--mixed_precision no --dynamo_backend no -m hf_xlt.run ..."
)


def check_launch(config: Any) -> None:
    """Refuse several unrelated trainings, and warn of one process where several were asked for.

    `accelerate launch --cpu --num_processes 2` starts one process without a word; `torchrun` and
    `accelerate launch --multi_gpu` on a machine without GPUs start processes that do not know of each other unless
    the CPU is asked for.

    Args:
        config: training arguments, whose `world_size` is what training will really use.

    Raises:
        ConfigError: the launcher started several processes that would each train alone.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and config.world_size == 1:
        raise ConfigError(
            f"the launcher started {started} processes, but each would train alone and write the same directory. "
            f"On CPUs use: {WORKING_COMMAND.format(processes=started)}"
        )
    if "MASTER_ADDR" in os.environ and "RANK" not in os.environ and config.world_size == 1:
        print(  # noqa: T201
            "warning: a launcher was asked for several processes and started one (`accelerate launch --cpu` does so). "
            f"For two processes on CPUs use: {WORKING_COMMAND.format(processes=2)}",
            file=sys.stderr,
        )


def divides_weights(config: Any) -> bool:
    """Say whether FSDP or DeepSpeed will divide the weights over processes.

    A launcher (`accelerate launch --use_fsdp`) says so in the environment, and the config does not learn of it.

    Args:
        config: training arguments.
    """
    flags = (os.environ.get(f"ACCELERATE_USE_{name}", "false") for name in ("FSDP", "DEEPSPEED"))
    return bool(config.fsdp or config.deepspeed or any(flag.lower() in ("1", "true", "yes", "y") for flag in flags))


def set_threads(asked: int | None, world_size: int) -> int:
    """Set the number of CPU threads of this process.

    Args:
        asked: number the user gave, or None.
        world_size: number of processes.

    Returns:
        The number in use. Without a request it is left as torch chose it, except where `accelerate launch` exported
        `OMP_NUM_THREADS=1` to a single process: that is the launcher's default and not the user's wish.
    """
    import torch

    launcher_default = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if asked is not None:
        torch.set_num_threads(asked)
    elif launcher_default and world_size == 1:
        torch.set_num_threads(_physical_cores())
    return torch.get_num_threads()


def available_cores() -> int:
    """Return the number of logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _physical_cores() -> int:
    import psutil

    available = available_cores()
    return max(1, min(psutil.cpu_count(logical=False) or available, available))


def is_first_process() -> bool:
    """Say whether this process speaks and writes for all."""
    return os.environ.get("RANK", "0") == "0"
