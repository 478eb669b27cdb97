"""How far each layer group went: its effective learning rate, and its displacement from where it started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_xlt.modelling.seen_rows import with_whole_norm


def relative_displacements(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], members: Mapping[str, Sequence[str]]
) -> dict[str, float | None]:
    """Return by group the norm of what its weights moved, over the norm of what they were.

    Args:
        before: weights at the start, by name.
        after: weights now; names that `before` lacks were not trained and did not move.
        members: names of each group's weights.

    Returns:
        By group; None where the weights were all zero at the start.
    """
    found = {}
    for group, names in members.items():
        moved = size = 0.0
        for name in names:
            start = before.get(name)
            now = after[name].detach()
            start = now if start is None else start.to(now.device)
            moved += float(torch.sum(with_whole_norm(now - start, after[name]) ** 2, dtype=torch.float64))
            size += float(torch.sum(with_whole_norm(start, after[name]) ** 2, dtype=torch.float64))
        found[group] = (moved / size) ** 0.5 if size > 0 else None
    return found


def movement(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    members: Mapping[str, Sequence[str]],
    gates: Mapping[str, float],
    learning_rate: float,
) -> dict[str, dict[str, Any]]:
    """Return by group its peak learning rate times its gate, and its relative displacement, JSON-able.

    Args:
        before: as for `relative_displacements`.
        after: as there.
        members: as there.
        gates: final gate by group; a group that is not named is open.
        learning_rate: the largest of the schedule.
    """
    moved = relative_displacements(before, after, members)
    return {
        group: {
            "learning_rate": float(f"{learning_rate * gates.get(group, 1.0):.3g}"),
            "displacement": None if moved[group] is None else float(f"{moved[group]:.3g}"),
        }
        for group in members
    }
