"""What MetaXL logs, summed on the device so that no step waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_xlt.strategies.metaxl.placement import Trace

if TYPE_CHECKING:
    from hf_xlt.strategies.metaxl.rtn_optimizer import RTNOptimizer

_LOSS_NAMES = {"source": "loss_source", "train": "loss_target_train", "meta": "loss_meta"}


class MetaStatistics:
    """Sums over the RTN's updates since the last log."""

    def __init__(self) -> None:
        """Start at zero."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, losses: Mapping[str, Tensor], traces: Sequence[Trace], norm: Tensor | None) -> None:
        """Count an update of the RTN.

        Args:
            losses: L_S, L_G and L_E by `source`, `train` and `meta`, scalars.
            traces: what its source passes left.
            norm: of the meta gradient; None when it was not finite.
        """
        for name, value in losses.items():
            self._add(_LOSS_NAMES[name], value)
        for trace in traces:
            if trace.gate is not None:
                self._add("gate", trace.gate)
            self._add("change_ratio", trace.ratio)
        if norm is not None:
            self._add("gradient_norm", norm)

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def drain(self, optimizer: RTNOptimizer, update: int, updates: int) -> dict[str, float]:
        """Return the means to log and start again at zero.

        Args:
            optimizer: of the RTN.
            update: number of updates done.
            updates: number of updates in all.

        Returns:
            By name with the prefix `metaxl_`.
        """
        values = {f"metaxl_{name}": float(total) / self._counts[name] for name, total in self._sums.items()}
        values["metaxl_rtn_lr"] = optimizer.rate_at(max(update - 1, 0), updates)
        values["metaxl_skipped"] = optimizer.skipped
        decay = optimizer.optimizer.param_groups[0]["weight_decay"]
        if decay and values.get("metaxl_gradient_norm"):
            norms = [torch.linalg.vector_norm(parameter.detach()) for parameter in optimizer.rtn.parameters()]
            size = float(torch.linalg.vector_norm(torch.stack(norms)))
            values["metaxl_decay_ratio"] = decay * size / values["metaxl_gradient_norm"]
        self._sums, self._counts = {}, {}
        return values
