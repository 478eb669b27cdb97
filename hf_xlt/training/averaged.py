"""Averaging within a run: which phase is averaged, and where its own weights and their mean end.

The last phase, which trains the task, is averaged. Its weights go to `last/` (or, when a checkpoint was selected, to
`best/`) of the run's directory; the mean takes their place in the model, and is what the run saves, scores and pushes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.averaging.arguments import AverageArguments
from hf_xlt.averaging.callback import CheckpointAveragingCallback
from hf_xlt.averaging.snapshots import SnapshotKeeper
from hf_xlt.averaging.summary import KEY

if TYPE_CHECKING:
    from hf_xlt.training.phases import RunContext
    from hf_xlt.training.trainer import XLTTrainer

LAST_NAME = "last"
BEST_NAME = "best"


class RunAveraging(CheckpointAveragingCallback):
    """Averages a phase of a run, which saves the model and its state itself."""

    start_name = "average_start"

    def __init__(self, settings: AverageArguments) -> None:
        """Take a run's settings.

        Raises:
            ConfigError: they cannot be used.
        """
        schedule = settings.schedule()
        super().__init__(
            schedule.every,
            schedule.mode,
            schedule.start,
            schedule.last_k,
            schedule.ema_decay,
            evaluate_average=settings.average_evaluate,
            swap_at_end=False,
            output_name=None,
        )

    def tell(self, text: str) -> None:
        """Tell the user on stderr."""
        print(f"Note: {text}", file=sys.stderr, flush=True)  # noqa: T201

    def facts(self, beside: str) -> dict[str, Any]:
        """Return what the record says of the average, JSON-able.

        Args:
            beside: name of the subfolder of the phase's own weights.
        """
        schedule = self.schedule
        chosen = {"last_k": schedule.last_k, "ema_decay": schedule.ema_decay}
        return {
            "mode": schedule.mode,
            "every": schedule.every,
            **{name: value for name, value in chosen.items() if value is not None},
            "snapshots": len(self.steps),
            "steps": list(self.steps),
            "beside": beside,
        }


def add_averaging(context: RunContext, trainer: XLTTrainer, folder: Path) -> RunAveraging | None:
    """Let a trainer average, where the run or its strategy asks for it.

    Args:
        context: what the phase was built from.
        trainer: of the phase.
        folder: the run's directory, for snapshots that are scored later.

    Raises:
        ConfigError: the settings cannot be used.
    """
    settings = context.averaging
    if settings is None and context.strategy.averages:
        settings = AverageArguments(average=True)
    if settings is None or not settings.average:
        return None
    averaging = RunAveraging(settings).attach(trainer)
    if settings.average_compare:
        trainer.add_callback(SnapshotKeeper(averaging, folder))
    return averaging


def put_average(
    averaging: RunAveraging, trainer: XLTTrainer, folder: Path, save: Callable[[XLTTrainer, Path], None]
) -> dict[str, Any]:
    """Save a phase's own weights beside, and put the average into its model on every process.

    Args:
        averaging: of the phase.
        trainer: after training.
        folder: the run's directory.
        save: saves a trainer's model into a folder, atomically.

    Returns:
        What the phase's entry in the ledger says of it.

    Raises:
        RunError: there is nothing that could be averaged.
    """
    selected = trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None
    beside = BEST_NAME if selected else LAST_NAME
    if trainer.args.should_save:
        (folder / beside).mkdir(parents=True, exist_ok=True)
        save(trainer, folder / beside)
    averaging.swap_in_for_good(trainer.bare_model(), trainer.args)
    return {KEY: averaging.facts(beside)}
