"""Which updates of a training run are averaged, and how much each counts.

All of it is settled before the first update, from their number: so the last k snapshots need no k copies of the model,
and a resumed run can be held to what was planned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hf_xlt.errors import ConfigError, setting

UNIFORM, WEIGHTED, LAST_K, EMA = "uniform", "weighted", "last_k", "ema"
MODES = (UNIFORM, WEIGHTED, LAST_K, EMA)
EPOCH, SAVE = "epoch", "save"


def parse_every(text: str) -> float | int | str:
    """Read how often to take a snapshot: `epoch`, `save`, a number of updates, or below 1 a share of all updates.

    Raises:
        ConfigError: it is none of these.
    """
    if text in (EPOCH, SAVE):
        return text
    try:
        number = float(text)
    except ValueError as error:
        raise ConfigError(
            f"{setting('average_every', text)} is neither `epoch` nor `save` nor a number; give 0.1 for ten snapshots."
        ) from error
    return int(number) if number >= 1 and number.is_integer() else number


@dataclass(frozen=True)
class Schedule:
    """When to take a snapshot, and what becomes of it.

    Attributes:
        every: a share of all updates (above 0, below 1), a number of updates (1 or more), `epoch` or `save`. The last
            update always counts, once.
        mode: `uniform`, `weighted`, `last_k` or `ema`.
        start: leave out what comes earlier: up to 1 a share of all updates, beyond it an update.
        last_k: how many snapshots, of mode `last_k`.
        ema_decay: β per snapshot, of mode `ema`; at least 0 and below 1.
    """

    every: float | int | str = 0.1
    mode: str = UNIFORM
    start: float = 0.0
    last_k: int | None = None
    ema_decay: float | None = None

    def check(self, spell: Callable[[str], str] = "`{}`".format) -> None:
        """Check ranges and what goes together.

        Args:
            spell: writes a field's name as the user knows it.

        Raises:
            ConfigError: a value cannot be used, or two contradict each other.
        """
        every, is_number = self.every, isinstance(self.every, (int, float)) and not isinstance(self.every, bool)
        if not (is_number or every in (EPOCH, SAVE)) or is_number and not _is_rate(every):
            raise ConfigError(
                f"{spell('every')} is {every!r}; give a share of all updates such as 0.1, a whole number of updates, "
                f"`{EPOCH}` or `{SAVE}`."
            )
        if self.mode not in MODES:
            raise ConfigError(f"{spell('mode')} is {self.mode!r}; choose one of {', '.join(MODES)}.")
        if not (math.isfinite(self.start) and self.start >= 0):
            raise ConfigError(f"{spell('start')} is {self.start}; give 0 or more.")
        for name, mode in (("last_k", LAST_K), ("ema_decay", EMA)):
            value = getattr(self, name)
            if self.mode == mode and value is None:
                raise ConfigError(f"{spell('mode')} {mode} needs {spell(name)}.")
            if self.mode != mode and value is not None:
                raise ConfigError(f"{spell(name)} is for {spell('mode')} {mode}; it is {self.mode} here.")
        if self.last_k is not None and self.last_k < 1:
            raise ConfigError(f"{spell('last_k')} is {self.last_k}; give 1 or more.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"{spell('ema_decay')} is {self.ema_decay}; give 0 or more, and less than 1.")

    def steps(self, max_steps: int, interval: int | None = None) -> tuple[int, ...]:
        """Return the updates after which a snapshot is taken.

        Args:
            max_steps: number of updates of the run, 1 or more.
            interval: updates of an epoch, or between two saves, where `every` is one of these.

        Returns:
            They rise, and the last is `max_steps`.

        Raises:
            ConfigError: `start` lies behind the last update.
        """
        period = interval if isinstance(self.every, str) else self.every
        if period < 1:
            share = Fraction(str(period))
            planned = {round(number * share * max_steps) for number in range(1, int(1 / share) + 1)}
        else:
            planned = set(range(int(period), max_steps + 1, int(period)))
        # A share counts up to 1, as in the window of an average on disk.
        first = Fraction(str(self.start)) * (max_steps if self.start <= 1 else 1)
        if first > max_steps:
            raise ConfigError(f"averaging starts at update {self.start:g}, and training ends after {max_steps}.")
        kept = sorted(step for step in planned | {max_steps} if step >= max(first, 1))
        return tuple(kept[-self.last_k :] if self.last_k else kept)


def _is_rate(number: float) -> bool:
    return 0 < number < 1 or number >= 1 and math.isfinite(number) and float(number).is_integer()


def interval_of(every: float | int | str, args: Any, state: Any, dataloader: Any) -> int | None:
    """Return the updates of an epoch, or between two regular saves; None where `every` is a number.

    Args:
        every: of a schedule.
        args: training arguments.
        state: of the Trainer, with `save_steps` resolved.
        dataloader: what is trained on.

    Raises:
        ConfigError: nothing is saved regularly, or the length of an epoch is not known.
    """
    if not isinstance(every, str):
        return None
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if every == SAVE and strategy == "steps":
        return int(state.save_steps)
    if every == SAVE and strategy != "epoch":
        raise ConfigError(
            f"snapshots at every save need regular saves, and the save strategy is `{strategy}`. Choose `steps` or "
            "`epoch`, or take snapshots every 0.1 of the updates."
        )
    try:
        batches = len(dataloader)
    except TypeError as error:
        raise ConfigError(
            "snapshots at the end of epochs need training data whose length is known. Take them every 0.1 of the "
            "updates, or after a number of updates."
        ) from error
    return max(-(-batches // args.gradient_accumulation_steps), 1)
