"""The RTN's optimizer: Adam with L2 decay in the gradient, and a linear schedule, as in the published code.

It is kept apart from the Trainer's optimizer, which knows the model alone. The rate is a function of the update's
number, so a checkpoint holds the moments and counters only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class RTNOptimizer:
    """Steps the RTN's parameters."""

    def __init__(
        self, rtn: nn.Module, *, rate: float, weight_decay: float, warmup_ratio: float, max_grad_norm: float
    ) -> None:
        """Serve the parameters of `rtn`.

        Args:
            rtn: the RTN.
            rate: β, peak learning rate.
            weight_decay: factor of the L2 decay that is added to the gradient.
            warmup_ratio: share of all updates in which the rate rises from 0.
            max_grad_norm: clip the gradient's norm to this; 0 does not.
        """
        self.rtn, self.rate, self.warmup_ratio, self.max_grad_norm = rtn, rate, warmup_ratio, max_grad_norm
        self.optimizer = torch.optim.Adam(rtn.parameters(), lr=rate, weight_decay=weight_decay, foreach=False)
        self.skipped = 0
        self.steps = 0

    def rate_at(self, update: int, updates: int) -> float:
        """Return the rate of an update: linear from 0 over the warm-up, then linear to 0 (Trainer's `linear`)."""
        # The schedule wants an optimizer to drive; ours takes its rate from the number of the update alone.
        driven = torch.optim.SGD([torch.zeros(())], lr=self.rate)
        schedule = get_linear_schedule_with_warmup(driven, math.ceil(updates * self.warmup_ratio), updates)
        return self.rate * schedule.lr_lambdas[0](update)

    def step(self, gradients: Sequence[Tensor | None], update: int, updates: int) -> Tensor | None:
        """Do one step; a gradient that is not finite changes nothing and is counted.

        Args:
            gradients: one per parameter; None where there is none.
            update: number of updates done before this one.
            updates: number of updates in all.

        Returns:
            Norm of the gradient, scalar; None when the step was skipped.
        """
        present = [value for value in gradients if value is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in present]))
        if not torch.isfinite(norm):
            self.skipped += 1
            return None
        scale = 1.0
        if self.max_grad_norm > 0:
            scale = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        for parameter, gradient in zip(self.rtn.parameters(), gradients, strict=True):
            parameter.grad = None if gradient is None else (scale * gradient).to(parameter.dtype)
        self.optimizer.param_groups[0]["lr"] = self.rate_at(update, updates)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return norm

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the RTN's weights and the moments as tensors by name, and the counters."""
        tensors = {f"rtn/{name}": value.detach() for name, value in self.rtn.state_dict().items()}
        for name, parameter in self.rtn.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{moment}/{name}": moments[moment].detach() for moment in _MOMENTS if moment in moments}
        return tensors, {"rtn_steps": self.steps, "rtn_skipped": self.skipped}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        weights = {key.removeprefix("rtn/"): value for key, value in tensors.items() if key.startswith("rtn/")}
        self.rtn.load_state_dict(weights)
        for name, parameter in self.rtn.named_parameters():
            if f"exp_avg/{name}" in tensors:
                moments = {moment: tensors[f"{moment}/{name}"].clone() for moment in _MOMENTS}
                on_device = {key: value if key == "step" else value.to(parameter) for key, value in moments.items()}
                self.optimizer.state[parameter] = on_device
        self.steps, self.skipped = values["rtn_steps"], values["rtn_skipped"]
