"""Ctrl-C and SIGTERM: finish the update, save a resumable checkpoint, stop.

A second signal stops at once. Outside training there is nothing to save, and the first signal stops at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The terminal signals a launcher and its processes alike, and the launcher then passes its own signal on.
_ECHO_SECONDS = 5.0


class InterruptionFlag:
    """Whether a signal has asked the run to stop, and whether training is under way."""

    def __init__(self) -> None:
        """Start with no signal seen, outside training."""
        self.raised = False
        self.training = False
        self._since = 0.0

    def _receive(self, number: int, frame: object) -> None:
        if self.raised and "RANK" in os.environ and time.monotonic() - self._since < _ECHO_SECONDS:
            return
        if self.raised or not self.training:
            raise KeyboardInterrupt
        self.raised, self._since = True, time.monotonic()
        if os.environ.get("RANK", "0") != "0":
            return
        print(  # noqa: T201
            "\nStopping after this update and saving a checkpoint; press Ctrl-C again to stop at once.",
            file=sys.stderr,
            flush=True,
        )

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Receive signals inside the block; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class InterruptionCallback(TrainerCallback):
    """Turns the flag into a saved checkpoint and an ended training, at the same update on every process."""

    def __init__(self, flag: InterruptionFlag) -> None:
        """Watch `flag`."""
        self.flag = flag
        self.stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Signals now ask for a checkpoint."""
        self.stopped = False
        self.flag.training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Signals now stop at once."""
        self.flag.training = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Agree over all processes whether to stop after this update."""
        raised = self.flag.raised
        if args.world_size > 1:
            vote = torch.tensor(int(raised), device=args.device)
            torch.distributed.all_reduce(vote, op=torch.distributed.ReduceOp.MAX)
            raised = bool(vote)
        if not raised or control.should_training_stop:
            return
        self.stopped = True
        control.should_training_stop = True
        # At the end of an epoch its evaluation and selection still have to happen; `on_epoch_end` saves then.
        control.should_save = control.should_save or not _at_epoch_end(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Undo what an epoch's end asks for when the epoch was cut short."""
        if not self.stopped:
            return
        at_end = _at_epoch_end(state)
        control.should_save = at_end
        control.should_evaluate = control.should_evaluate and at_end
        control.should_log = control.should_log and at_end


def _at_epoch_end(state: TrainerState) -> bool:
    return state.epoch is not None and math.isclose(state.epoch, round(state.epoch), abs_tol=1e-9)
