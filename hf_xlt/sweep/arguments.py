"""What the user asks of several runs (`--seeds`, `--vary`), and of the head that runs share (`--share-head`)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

from hf_xlt.arguments import Arguments, split_names
from hf_xlt.errors import ConfigError

# The value of a bare `--share-head`: the sweep trains the donor itself.
OWN_DONOR = ""


@dataclass
class SweepArguments:
    """Several runs by one command, and the head that they share."""

    _argument_group_name = "sweep"

    share_head: str | None = field(
        default=None,
        metadata={
            "help": "Load the head of this finished run, model or head file, and keep it frozen, so that runs can be "
            "averaged (Schmidt et al. 2023). With --seeds and without a value a donor is trained first.",
            "nargs": "?",
            "const": OWN_DONOR,
        },
    )
    seeds: int = field(
        default=0,
        metadata={
            "help": "Make so many runs, with --seed, --seed + 1, ..., below --output-dir; 0 makes one run there. With "
            "--share-head they are averaged as well, one after another, each step scored."
        },
    )
    strategies: list[str] | None = field(
        default=None,
        metadata={
            "help": "Compare strategies, separated by commas: --seeds runs of each (default 1), and a table of "
            "differences from the first one. A flag goes to the strategies that have the setting; "
            "`--NAME.flag value` goes to one of them."
        },
    )
    vary: list[str] | None = field(
        default=None,
        metadata={
            "help": "Give the runs of --seeds different settings, such as learning_rate=1e-5,3e-5; repeatable. Each "
            "run takes another combination, drawn by --seed.",
            "action": "extend",
        },
    )
    parallel_runs: int | None = field(
        default=None,
        metadata={"help": "How many runs to train at a time. Default: one per GPU, and one without GPUs."},
    )

    def __post_init__(self) -> None:
        """Make one run of each strategy unless more are asked for."""
        given = self.strategies is not None
        self.strategies = split_names(self.strategies)
        if given and not self.strategies:
            raise ConfigError("`--strategies` names none; give two or more, separated by commas.")
        if self.strategies and self.seeds == 0:
            self.seeds = 1


def check_sweep(arguments: Arguments) -> None:
    """Refuse what does not go together.

    Raises:
        ConfigError: a setting is out of range, does nothing, or needs another.
    """
    asked, config = arguments.sweep, arguments.config
    if asked.seeds < 0:
        raise ConfigError(f"`--seeds` is {asked.seeds}; give 1 or more, or 0 for a single run.")
    if not asked.seeds:
        own = {entry.name for entry in fields(asked)} - {"share_head", "seeds", "strategies"}
        unused = sorted(own & arguments.explicit)
        if unused:
            raise ConfigError(f"`--{unused[0].replace('_', '-')}` does nothing without `--seeds`; add that.")
        if asked.share_head == OWN_DONOR:
            raise ConfigError("`--share-head` needs a donor: name a finished run, or add `--seeds 5` to train one.")
        return
    if asked.strategies:
        for name in ("vary", "share_head"):
            if name in arguments.explicit:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"`{flag}` is for runs of one strategy: give `--strategy`, not `--strategies`.")
    if asked.parallel_runs is not None and asked.parallel_runs < 1:
        raise ConfigError(f"`--parallel-runs` is {asked.parallel_runs}; give 1 or more.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "a sweep (`--seeds`, `--strategies`) starts its own processes; call `hf-xlt run` without a launcher."
        )
    if config.push_to_hub:
        raise ConfigError("`--push-to-hub` pushes one run; push the one you want with `hf-xlt push` after the sweep.")
    if arguments.run.resume and "output_dir" not in arguments.explicit:
        raise ConfigError("`--resume` needs `--output-dir`: the directory of the sweep to continue.")
