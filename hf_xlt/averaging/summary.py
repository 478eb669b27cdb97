"""What a run's record says of averaging, and how that is put into words. Needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# The name under which the average stands in checkpoints, in the ledger of phases and in the record.
KEY = "averaging"
# Where the record of an average on disk says of how many checkpoints and runs it was made.
MADE_OF = "made_of"
_SHOWN = 12


def averaged(phases: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what the last phase says of its average, or None when the run averaged nothing.

    Returns:
        `mode`, `every`, `snapshots` (their number), `steps` (the updates they were taken after), `beside` (the
        subfolder of the last, or the selected, weights), and `last_k` or `ema_decay` where the mode has one.
    """
    return phases[-1].get(KEY) if phases else None


def is_oracle(selection: dict[str, Any], phases: Sequence[dict[str, Any]]) -> bool:
    """Say whether target-language labels chose the model that was saved: of an average they chose nothing."""
    facts = averaged(phases)
    return bool(selection.get("oracle")) and not (facts and facts["snapshots"])


def mode_words(mode: str, last_k: int | None = None, ema_decay: float | None = None) -> str:
    """Name a mean, such as `uniform mean of the last 5 snapshots`."""
    if ema_decay is not None:
        return f"exponential mean (decay {ema_decay:g} per snapshot) of the snapshots"
    if last_k is not None:
        return f"uniform mean of the last {last_k} snapshots"
    return f"{mode} mean of the snapshots"


def every_words(every: float | int | str) -> str:
    """Say how often snapshots are taken."""
    if isinstance(every, str):
        return f"at the end of every {every}" if every == "epoch" else f"at every {every}"
    return f"at every {every:g} of the updates" if every < 1 else f"every {every:g} updates"


def describe(facts: dict[str, Any]) -> str:
    """Say in a sentence what the weights are.

    Args:
        facts: as `averaged` returns them.
    """
    if not facts["snapshots"]:
        return "Training ended before the first snapshot: the weights are the last ones, not an average."
    steps = [f"{step:,}" for step in facts["steps"]]
    if len(steps) > _SHOWN:
        steps = [*steps[:3], "...", steps[-1]]
    words = mode_words(facts["mode"], facts.get("last_k"), facts.get("ema_decay"))
    return (
        f"The weights are the {words} that were taken {every_words(facts['every'])} of this run: "
        f"{facts['snapshots']}, after update{'s' * (len(steps) > 1)} {', '.join(steps)}."
    )


def describe_made(made_of: dict[str, Any]) -> str:
    """Say in a sentence what an average on disk is the mean of.

    Args:
        made_of: `checkpoints` and `runs` (their numbers), and `of_means`: of how many snapshots the checkpoints are
            means themselves, none where they are no means.
    """
    counts = " of ".join(
        f"{made_of[noun]} {noun if made_of[noun] != 1 else noun[:-1]}" for noun in ("checkpoints", "runs")
    )
    sizes = " or ".join(str(size) for size in made_of["of_means"])
    inner = f", each of which is the mean of {sizes} snapshots" if sizes else ""
    return f"The mean of {counts}{inner}."
