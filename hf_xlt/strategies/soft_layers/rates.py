"""Which optimizers a gate on the learning rate is right for, and the update that they make at a gate of 1.

Gating the update equals multiplying the learning rate exactly where the update is linear in it and the optimizer's
state does not depend on it: SGD, Adam, AdamW, Lion and the like, but not optimizers that set their own step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_xlt.errors import ConfigError

REFUSED = {
    "lomo": "updates weights within the backward pass",
    "adalomo": "updates weights within the backward pass",
    "schedule_free_radam": "keeps two averages of the weights that a gated step would pull apart",
    "schedule_free_adamw": "keeps two averages of the weights that a gated step would pull apart",
    "schedule_free_sgd": "keeps two averages of the weights that a gated step would pull apart",
    "galore_adamw_layerwise": "updates weights within the backward pass",
    "galore_adamw_8bit_layerwise": "updates weights within the backward pass",
    "apollo_adamw_layerwise": "updates weights within the backward pass",
}
_REFUSED_CLASSES = {
    "ASGD": "averages weights at a rate of its own",
    "Rprop": "keeps a step size per weight and reads the learning rate once",
    "LBFGS": "searches along a line",
    "Prodigy": "estimates its own learning rate",
    "DAdaptAdam": "estimates its own learning rate",
    "DAdaptSGD": "estimates its own learning rate",
    "DAdaptLion": "estimates its own learning rate",
    "DAdaptAdaGrad": "estimates its own learning rate",
}
_WAY_OUT = "A gate multiplies the learning rate, which is wrong there. Use adamw_torch, sgd, rmsprop or adagrad."


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer for which a gate on the learning rate is not a gate on the update.

    Known ones are refused by name; any other is tried on four numbers: the first update, and a later one, must be
    linear in the learning rate, and the state must not depend on it.

    Raises:
        ConfigError: it is refused.
    """
    name = type(optimizer).__name__
    reason = _REFUSED_CLASSES.get(name)
    if "schedulefree" in name.lower().replace("_", ""):
        reason = REFUSED["schedule_free_adamw"]
    if type(optimizer) is getattr(torch.optim, "Adafactor", None):
        reason = "bounds its learning rate by one of its own"
    group = optimizer.param_groups[0]
    if group.get("relative_step") or group.get("lr") is None:
        reason = "sets its own learning rate (relative step)"
    if reason is None and not _is_linear(optimizer):
        reason = "makes updates that are not proportional to the learning rate"
    if reason is not None:
        raise ConfigError(f"optimizer `{name}` {reason}. {_WAY_OUT}")


def _is_linear(optimizer: torch.optim.Optimizer) -> bool:
    settings = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    rate = 1e-2
    moves = []
    # Two updates at the same rate warm the state up; the third is made at a rate of its own.
    for last in (rate, rate / 4):
        generator = torch.Generator().manual_seed(0)
        point = torch.nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64))
        try:
            moves.append(_third_move(type(optimizer), settings, point, (rate, rate, last), generator))
        except (TypeError, ValueError, RuntimeError, NotImplementedError):
            # Not a class that this can build and step on the CPU: such an optimizer cannot be tried here.
            return True
    (full, states), (quarter, other) = moves
    same = all(
        torch.allclose(value.double(), other[name].double(), rtol=1e-9, atol=0)
        for name, value in states.items()
        if isinstance(value, Tensor)
    )
    return same and torch.allclose(full / 4, quarter, rtol=1e-7, atol=1e-15)


def _third_move(
    cls: type, settings: Mapping[str, Any], point: Tensor, rates: tuple[float, ...], generator: torch.Generator
) -> tuple[Tensor, Mapping[str, Any]]:
    optimizer = cls([point], lr=rates[0])
    known = optimizer.param_groups[0]
    known.update({name: value for name, value in settings.items() if name in known and name != "lr"})
    if "fused" in known:
        known["fused"] = False
    for rate in rates:
        point.grad = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        known["lr"] = rate
        before = point.detach().clone()
        optimizer.step()
    return point.detach() - before, optimizer.state[point]


def update_of(
    optimizer: torch.optim.Optimizer, weights: Tensor, group: Mapping[str, Any], rate: float, gate: float
) -> Tensor | None:
    """Rebuild the update that a step just proposed, off the optimizer's state after it.

    Args:
        optimizer: after the step.
        weights: (...) after the step.
        group: its parameter group.
        rate: learning rate of the step before gating.
        gate: the gate that it was multiplied by.

    Returns:
        (...) the update at a gate of 1, sign, rate and decay included; None where the state does not tell it.
    """
    kind, state = type(optimizer), optimizer.state.get(weights, {})
    if group.get("maximize") or group.get("amsgrad"):
        return None
    if kind not in (torch.optim.Adam, torch.optim.AdamW) or not state:
        return None
    decay = group["weight_decay"]
    decoupled = kind is torch.optim.AdamW or bool(group.get("decoupled_weight_decay"))
    step = float(state["step"])
    first, second = group["betas"]
    denominator = (state["exp_avg_sq"] / (1 - second**step)).sqrt_().add_(group["eps"])
    update = (state["exp_avg"] / denominator).mul_(-rate / (1 - first**step))
    if decoupled and decay:
        # The decay acts on the weights before the step, which are not kept.
        before = (weights.detach() - gate * update) / (1 - gate * rate * decay)
        update = update - rate * decay * before
    return update
