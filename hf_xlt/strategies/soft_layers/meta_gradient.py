"""The gradient of the query loss with respect to the gates.

For an episode of k gated updates theta_t = theta_{t-1} + z * delta_t, with z constant over it:

- one step, exact: dL/dz_l = <q_l, delta_1,l>, since delta_1 does not depend on z;
- k steps, first order: dL/dz_l = <q_l, sum_t delta_t,l>, the curvature term dropped;
- k steps, exact: the reverse recursion of `reverse_episode`, with one Hessian-vector product per step.

q is the query gradient at the end of the episode. Derived in the documentation (docs/soft_layers.md); the paper's own
update rule could not be read. Shapes: n weights in all, L groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_xlt.errors import ConfigError


def group_products(left: Sequence[Tensor], right: Sequence[Tensor], index: Sequence[int], count: int) -> Tensor:
    """Sum the inner products of pairs of tensors by group.

    Args:
        left: n weights in tensors.
        right: as `left`.
        index: group of each tensor.
        count: L.

    Returns:
        (L,) float64 on the CPU.
    """
    products = torch.zeros(count, dtype=torch.float64)
    for one, two, group in zip(left, right, index, strict=True):
        products[group] += torch.sum(one * two, dtype=torch.float64).cpu()
    return products


def carried_products(
    query: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor], gates: Tensor, index: Sequence[int]
) -> Tensor:
    """Return the first-order gate gradient off the weights before and after the episode.

    Args:
        query: query gradient at the end of the episode.
        before: weights at its start.
        after: weights at its end.
        gates: (L,) gates during it.
        index: group of each tensor.

    Returns:
        (L,) float64; 0 for a closed gate, whose updates the weights do not tell.
    """
    products = torch.zeros(len(gates), dtype=torch.float64)
    for q, start, end, group in zip(query, before, after, index, strict=True):
        products[group] += torch.sum(q * (end - start.to(end.device)), dtype=torch.float64).cpu()
    return torch.where(gates > 0, products / gates.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def clip_adjoint(adjoint: Sequence[Tensor], raw: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Carry an adjoint back through clipping by global norm, as `torch.nn.utils.clip_grad_norm_` does it.

    Args:
        adjoint: of the clipped gradient.
        raw: the gradient before clipping.
        max_norm: its largest norm; 0 or less is no clipping.

    Returns:
        The adjoint of the raw gradient.
    """
    norm = global_norm(raw)
    factor = max_norm / (norm + 1e-6)
    if max_norm <= 0 or factor >= 1:
        return list(adjoint)
    product = sum(torch.sum(a * g, dtype=torch.float64) for a, g in zip(adjoint, raw, strict=True))
    along = float(factor * product / (norm * (norm + 1e-6)))
    return [float(factor) * a - along * g for a, g in zip(adjoint, raw, strict=True)]


def clipped(raw: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Return the gradients as clipping by global norm leaves them."""
    factor = max_norm / (global_norm(raw) + 1e-6)
    return [g * float(factor) for g in raw] if max_norm > 0 and factor < 1 else list(raw)


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm over all tensors: scalar."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))


@dataclass
class InnerStep:
    """One update of an episode, as it has to be known to go back through it.

    Attributes:
        before: weights before it.
        states: optimizer state of each tensor before it; empty before the very first.
        settings: optimizer settings of each tensor, with `lr` as it was before gating.
        moved: whether each tensor had a gradient; the optimizer passes over one that had none.
        replay: whatever the caller needs to compute the source gradient again.
    """

    before: list[Tensor]
    states: list[dict[str, Any]]
    settings: list[Mapping[str, Any]]
    moved: list[bool]
    replay: Any = field(default=None)


class Replay(Protocol):
    """The source loss of one inner step, at the weights before it."""

    def gradients(self, curved: bool) -> list[Tensor]:
        """Return the raw source gradient, before clipping; `curved` announces a call of `hessian_product`."""

    def hessian_product(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """Return the product of the source loss's Hessian with a direction."""


def reverse_episode(
    query: Sequence[Tensor],
    steps: Sequence[InnerStep],
    gates: Tensor,
    index: Sequence[int],
    optimizer_cls: type[torch.optim.Optimizer],
    replay: Callable[[InnerStep], Replay],
    max_norm: float = 0.0,
) -> Tensor:
    """Return the exact gate gradient of an episode, by going back through its updates.

    With a the adjoint of the weights and s that of the optimizer's state: zeta_l += <a_l, delta_t,l>; (z * a, s) go
    back through the optimizer's step to the weights, the clipped gradient and the state before it; the gradient's
    adjoint goes back through clipping and the Hessian.

    Args:
        query: query gradient at the end of the episode.
        steps: its updates, in order.
        gates: (L,) gates during it.
        index: group of each tensor.
        optimizer_cls: class of `torch.optim` that can be differentiated (`differentiable=True`).
        replay: gives the source gradient and Hessian products of a step.
        max_norm: global norm at which source gradients were clipped; 0 is not at all.

    Returns:
        (L,) float64.
    """
    adjoint = [q.clone() for q in query]
    state_adjoints: list[dict[str, Tensor]] = [{} for _ in query]
    total = torch.zeros(len(gates), dtype=torch.float64)
    factors = [float(gates[group]) for group in index]
    for number in reversed(range(len(steps))):
        step, source = steps[number], replay(steps[number])
        raw = source.gradients(curved=number > 0)
        gradients = clipped(raw, max_norm)
        gradient_adjoints = []
        for place, gradient in enumerate(gradients):
            if not step.moved[place]:
                gradient_adjoints.append(torch.zeros_like(gradient))
                continue
            passed = _through_step(optimizer_cls, step, place, gradient, factors[place], adjoint, state_adjoints)
            total[index[place]] += passed.product
            adjoint[place] = adjoint[place] + passed.weights
            gradient_adjoints.append(passed.gradient)
            state_adjoints[place] = passed.state
        if number > 0:
            direction = clip_adjoint(gradient_adjoints, raw, max_norm)
            for place, curvature in enumerate(source.hessian_product(direction)):
                adjoint[place] = adjoint[place] + curvature
    return total


@dataclass
class _Passed:
    """What comes back through one tensor's step: the gate's share, and the adjoints before it."""

    product: Tensor
    weights: Tensor
    gradient: Tensor
    state: dict[str, Tensor]


def _through_step(
    optimizer_cls: type[torch.optim.Optimizer],
    step: InnerStep,
    place: int,
    gradient: Tensor,
    gate: float,
    adjoint: Sequence[Tensor],
    state_adjoints: Sequence[dict[str, Tensor]],
) -> _Passed:
    outgoing, device = adjoint[place], adjoint[place].device
    weights = step.before[place].to(device).detach().requires_grad_()
    gradient = gradient.detach().requires_grad_()
    state = {
        name: value.to(device).detach().requires_grad_() if _is_elementwise(value, weights) else value
        for name, value in step.states[place].items()
    }
    inner = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.requires_grad}
    after, new_state = differentiable_step(optimizer_cls, step.settings[place], weights, gradient, state)
    delta = after - weights
    objective = (delta * (gate * outgoing)).sum()
    for name, value in state_adjoints[place].items():
        objective = objective + (new_state[name] * value).sum()
    leaves = [weights, gradient, *inner.values()]
    found = torch.autograd.grad(objective, leaves, allow_unused=True)
    found = [
        torch.zeros_like(leaf) if value is None else _without_singularities(value)
        for leaf, value in zip(leaves, found, strict=True)
    ]
    product = torch.sum(delta.detach() * outgoing, dtype=torch.float64).cpu()
    return _Passed(product, found[0], found[1], dict(zip(inner, found[2:], strict=True)))


def _is_elementwise(value: Any, weights: Tensor) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == weights.shape and value.dim() > 0


def _without_singularities(value: Tensor) -> Tensor:
    # The square root of a second moment of 0 has no derivative; there the update itself is constantly 0.
    return torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)


def differentiable_step(
    optimizer_cls: type[torch.optim.Optimizer],
    settings: Mapping[str, Any],
    weights: Tensor,
    gradient: Tensor,
    state: Mapping[str, Any],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Do one optimizer step on one tensor, as a function.

    Args:
        optimizer_cls: class of `torch.optim`.
        settings: its settings, as in a parameter group.
        weights: (...) before the step.
        gradient: (...).
        state: optimizer state before the step; empty before the first one.

    Returns:
        (...) weights after the step, and the state after it; both differentiable with respect to all inputs.

    Raises:
        ConfigError: the optimizer cannot be differentiated.
    """
    settings, state = dict(settings), dict(state)
    if optimizer_cls is torch.optim.SGD and settings.get("momentum") and state.get("momentum_buffer") is None:
        # The first step copies the gradient into the buffer without its derivative; a zero buffer without dampening
        # gives the same values.
        state["momentum_buffer"], settings["dampening"] = torch.zeros_like(weights), 0.0
    point = weights.clone()
    if point.requires_grad:
        # Reading the gradient of a tensor that is no leaf warns otherwise.
        point.retain_grad()
    optimizer = _differentiable(optimizer_cls, point, settings["lr"])
    fixed = {"foreach": False, "fused": False, "capturable": False, "differentiable": True}
    known = optimizer.param_groups[0]
    known.update({name: value for name, value in {**settings, **fixed}.items() if name in known and name != "params"})
    if state:
        optimizer.state[point] = {
            name: (value.double() if value.dim() == 0 else value.clone()) if isinstance(value, Tensor) else value
            for name, value in state.items()
        }
    with torch.enable_grad(), _double_counters():
        # A gradient is checked for being of a leaf's own kind; the copy keeps the graph to the given one.
        point.grad = gradient.clone()
        optimizer.step()
    return point, dict(optimizer.state[point])


def check_differentiable(optimizer_cls: type[torch.optim.Optimizer]) -> None:
    """Refuse an optimizer whose steps cannot be differentiated.

    Raises:
        ConfigError: it is none of `torch.optim` with `differentiable=True`.
    """
    _differentiable(optimizer_cls, torch.zeros(1, requires_grad=True), 1e-3)


def _differentiable(optimizer_cls: type[torch.optim.Optimizer], point: Tensor, rate: float) -> torch.optim.Optimizer:
    try:
        return optimizer_cls([point], lr=rate, differentiable=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimizer `{optimizer_cls.__name__}` cannot be differentiated, which exact meta-gradients over several "
            "steps and the audit need. Set `meta_gradient` to first_order and `audit_episodes` to 0, or use AdamW."
        ) from error


@contextmanager
def _double_counters() -> Iterator[None]:
    """Let optimizers count steps in float64.

    A differentiable step corrects biases in the type of its counter, where a plain one does so in Python's floats:
    1 - 0.999 in float32 is wrong by 5e-5 of itself.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
