"""Whether a run's early snapshots are fit to be averaged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hf_xlt.averaging.inputs import Snapshot
from hf_xlt.errors import setting

STATE_NAME = "trainer_state.json"
_LOSS_RATIO = 2.0


def early_snapshot_note(
    history: Sequence[Mapping[str, Any]],
    first_step: int,
    remedy: str | None = None,
    warmup_steps: int = 0,
) -> str | None:
    """Say when the first averaged snapshot was taken too early to help.

    A slow run's early snapshots are hardly trained, and a uniform mean pulls the model back towards them.

    Args:
        history: the Trainer's `log_history`, with `step`, `loss` and `learning_rate`.
        first_step: update after which the first averaged snapshot was taken.
        remedy: the setting that leaves early ones out; those of an average on disk if None.
        warmup_steps: updates of the warm-up, where they are known and need not be read off the history.

    Returns:
        A sentence; None when the learning rate had peaked by then and the training loss was at most twice the last.
    """
    rates = [(entry["learning_rate"], entry["step"]) for entry in history if "learning_rate" in entry]
    peak = min((step for rate, step in rates if rate == max(rates)[0]), default=0)
    # Only a rate that was logged before and was lower shows that it was still rising.
    early = [rate for rate, step in rates if step <= first_step]
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    before = [loss for step, loss in losses if step <= first_step]
    if first_step < warmup_steps:
        reason = f"lies in the warm-up, which ended after step {warmup_steps}"
    elif early and first_step < peak and max(early) < max(rates)[0]:
        reason = f"lies in the warm-up, which ended about step {peak}"
    elif before and losses[-1][1] > 0 and before[-1] > _LOSS_RATIO * losses[-1][1]:
        reason = f"had a training loss of {before[-1]:.3g}, and the last one {losses[-1][1]:.3g}"
    else:
        return None
    remedy = remedy or f"{setting('window', '0.2:1.0')} or {setting('last_k', flag='last')}"
    return (
        f"the snapshot of step {first_step} {reason}: it may pull the average back. Leave early ones out with "
        f"{remedy}."
    )


def early_snapshot_notes(snapshots: Sequence[Snapshot]) -> list[str]:
    """Look at the first and the last averaged snapshot of each run, as far as it logged."""
    runs: dict[Any, list[Snapshot]] = {}
    for snapshot in snapshots:
        if snapshot.run is not None and snapshot.step is not None:
            runs.setdefault(snapshot.run, []).append(snapshot)
    notes = []
    for members in runs.values():
        try:
            state = json.loads((members[-1].place / STATE_NAME).read_text(encoding="utf-8"))
            note = early_snapshot_note(state["log_history"], members[0].step)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if note is not None and len(members) > 1:
            notes.append(note)
    return notes
