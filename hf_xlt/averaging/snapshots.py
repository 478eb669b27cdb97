"""Snapshots of a run kept as models on disk, for what is scored beside their mean."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_xlt.averaging.callback import CheckpointAveragingCallback
from hf_xlt.averaging.model_folder import write_model
from hf_xlt.errors import RunError, setting
from hf_xlt.models import is_adapted
from hf_xlt.written import delete_written

SNAPSHOTS_NAME = "snapshots"


def snapshot_folder(run: Path, step: int) -> Path:
    """Return where the snapshot after an update lies."""
    return run / SNAPSHOTS_NAME / f"step-{step}"


class SnapshotKeeper(TrainerCallback):
    """Writes each snapshot that an average takes as a model of its own; stands behind the average's callback.

    A resumed run writes those after its checkpoint anew, which are the same.

    Args:
        averaging: whose snapshots.
        run: the run's directory.
    """

    def __init__(self, averaging: CheckpointAveragingCallback, run: Path) -> None:
        """Take the average and the run's directory."""
        self.averaging, self.run = averaging, run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Delete what an earlier training left."""
        if args.should_save and state.global_step == 0:
            discard_snapshots(self.run)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        processing_class: Any = None,
        **kwargs: object,
    ) -> None:
        """Write the snapshot that the average has just taken."""
        taken = self.averaging.steps
        if args.should_save and taken and taken[-1] == state.global_step:
            write_model(_plain(model), processing_class, snapshot_folder(self.run, state.global_step))


def _plain(model: Any) -> Any:
    if not is_adapted(model):
        return model
    from hf_xlt.adapters import merged

    return merged(model)


def check_snapshots(run: Path, steps: tuple[int, ...]) -> None:
    """Check that the snapshots of an average are still there.

    Raises:
        RunError: one is missing.
    """
    missing = [step for step in steps if not (snapshot_folder(run, step) / "config.json").is_file()]
    if missing:
        raise RunError(
            f"`{snapshot_folder(run, missing[0])}` is gone, so the comparators cannot be scored. Start the run "
            f"anew with {setting('overwrite')}."
        )


def discard_snapshots(run: Path) -> None:
    """Delete a run's snapshots."""
    with contextlib.suppress(OSError):
        delete_written(run / SNAPSHOTS_NAME, itself=True)
