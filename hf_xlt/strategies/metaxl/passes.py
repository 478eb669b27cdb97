"""Losses of source and target batches, with and without the RTN.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_xlt.strategies.metaxl.placement import Injection, Trace
from hf_xlt.training.losses import labels_of, loss_sum


@contextmanager
def second_order_attention() -> Iterator[None]:
    """Run attention by a kernel that can be differentiated twice; the fused ones of torch 2.13 cannot.

    Only kernels chosen by `scaled_dot_product_attention` are concerned, and nothing is written into the model.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def full_precision(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Switch autocast off, also the one that Accelerate puts around a prepared model's forward pass."""
    prepared = model.__dict__.pop("forward", None) if "_original_forward" in model.__dict__ else None
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if prepared is not None:
            model.forward = prepared


@dataclass
class Passes:
    """Computes shares of an update's losses.

    Attributes:
        model: bare model.
        injection: where the RTN sits; None trains without.
        autocast: context of every forward pass.
    """

    model: nn.Module
    injection: Injection | None
    autocast: Callable[[], AbstractContextManager] = nullcontext

    def target(self, batch: Mapping[str, Any], units: Tensor | float, model: nn.Module | None = None) -> Tensor:
        """Return the loss without the RTN.

        Args:
            batch: inputs with labels.
            units: of the whole update; the loss is the sum over the batch divided by them.
            model: wrapped model to run instead of the bare one.

        Returns:
            Scalar.
        """
        labels = labels_of(batch)
        with self.autocast():
            outputs = (model or self.model)(**{key: value for key, value in batch.items() if key not in labels})
            return loss_sum(outputs, labels, self.model.config) / units

    def source(
        self,
        batch: Mapping[str, Any],
        units: Tensor | float,
        model: nn.Module | None = None,
        *,
        pinned: Sequence[Tensor] | None = None,
        traces: list[Trace] | None = None,
    ) -> Tensor:
        """Return the loss with the RTN: per slot a pass with that slot alone, mixed by the RTN's mixture.

        Args:
            batch: as for `target`.
            units: as for `target`.
            model: as for `target`.
            pinned: per slot (B, T, D) what the RTN sees instead of the hidden states at hand.
            traces: gets what the passes left, one entry per slot.

        Returns:
            Scalar.
        """
        if self.injection is None:
            return self.target(batch, units, model)
        losses = []
        for slot in range(len(self.injection.modules)):
            with self.injection.active(slot, None if pinned is None else pinned[slot]) as trace:
                losses.append(self.target(batch, units, model))
            if traces is not None:
                traces.append(trace)
        mixture = self.injection.rtn.mixture()
        return losses[0] if len(losses) == 1 else (torch.stack(losses) * mixture).sum()
