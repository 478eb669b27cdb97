"""Gates on the updates of any optimizer whose update is linear in its learning rate.

The learning rate of each layer group is multiplied by its gate for the length of one step, in hooks of the raw
optimizer: schedulers and the log never see the gate, a gate of exactly 1 leaves every bit as it was, and a step that a
gradient scaler skips is known to be skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

GROUP = "gate_group"


class GatedOptimizer:
    """The hooks on one optimizer.

    Attributes:
        optimizer: the raw one.
        gates: of the last step, by group.
        stepped: whether a step was made since this was last set to False.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, group_of: Mapping[int, int], choose: Callable[[], Sequence[float]]
    ) -> None:
        """Split the parameter groups by gate, and hook on.

        Args:
            optimizer: it has no state yet.
            group_of: number of the layer group by the identity of each parameter.
            choose: called before every step, with gradients in place; returns the gates.
        """
        self.optimizer, self._choose = optimizer, choose
        self.gates: Sequence[float] = ()
        self.stepped = False
        self._rates: list[Any] = []
        self._place: dict[int, int] = {}
        _split(optimizer, group_of)
        self.initial_state = {
            parameter: {name: _copy(value) for name, value in state.items()}
            for parameter, state in optimizer.state.items()
        }
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.gates = self._choose()
        self._rates = []
        for group in optimizer.param_groups:
            rate, gate = group["lr"], self.gates[group[GROUP]]
            self._rates.append(_copy(rate))
            if isinstance(rate, Tensor):
                # A compiled or captured optimizer reads this very tensor.
                rate.mul_(gate)
            else:
                group["lr"] = rate * gate

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate
        self.stepped = True

    def settings_of(self, parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return the settings of some parameters' groups, with the learning rate as it is now."""
        place = {id(own): group for group in self.optimizer.param_groups for own in group["params"]}
        return [
            {name: value for name, value in place[id(parameter)].items() if name not in ("params", GROUP)}
            for parameter in parameters
        ]

    def rates_of(self, parameters: Sequence[Tensor]) -> list[float]:
        """Return the learning rates of the last step, before gating, of some parameters."""
        place = {
            id(own): float(rate)
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True)
            for own in group["params"]
        }
        return [place[id(parameter)] for parameter in parameters]

    def forget(self) -> None:
        """Put the optimizer's state back to what it was before the first step."""
        self.optimizer.state.clear()
        for parameter, state in self.initial_state.items():
            self.optimizer.state[parameter] = {name: _copy(value) for name, value in state.items()}


def _split(optimizer: torch.optim.Optimizer, group_of: Mapping[int, int]) -> None:
    split = []
    for group in optimizer.param_groups:
        members: dict[int, list[Tensor]] = {}
        for parameter in group["params"]:
            members.setdefault(group_of[id(parameter)], []).append(parameter)
        # A rate that is a tensor is written in place: groups must not share it.
        split += [
            {**group, "lr": _copy(group["lr"]), "params": members[number], GROUP: number} for number in sorted(members)
        ]
    optimizer.param_groups[:] = split


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
