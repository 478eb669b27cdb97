"""Meta-gradients with respect to the initial weights: MAML, first-order MAML, Reptile, ANIL.

Shapes: n weights in tensors; k inner steps of plain gradient descent at rate alpha. Sources: Finn et al. (2017) for
MAML and its first-order form, Nichol et al. (2018) for Reptile, Raghu et al. (2020) for ANIL; X-MAML (Nooralahzadeh et
al. 2020) is MAML with auxiliary languages for tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_xlt.strategies.xmaml.card import PLAIN, REPTILE, SECOND

Loss = Callable[[Sequence[Tensor]], Tensor]
Mean = Callable[[list[Tensor]], list[Tensor]]


def adapt(
    weights: Sequence[Tensor],
    support: Loss,
    *,
    rate: float,
    steps: int,
    scope: Sequence[bool],
    mean: Mean,
    keep_graphs: bool,
) -> tuple[list[Tensor], list[tuple[list[Tensor], list[Tensor]]]]:
    """Take k steps of gradient descent on the support loss.

    Args:
        weights: n weights; they are not changed.
        support: loss of this process's share of the support examples, as a function of all weights.
        rate: alpha.
        steps: k.
        scope: whether each tensor is adapted.
        mean: averages gradients over processes.
        keep_graphs: keep what second derivatives need.

    Returns:
        The adapted weights, and per step the weights before it with this process's gradient, for `back_through`.
    """
    current, kept = [weight.detach() for weight in weights], []
    for _ in range(steps):
        leaves = [weight.detach().requires_grad_() for weight in current]
        inner = [leaf for leaf, chosen in zip(leaves, scope, strict=True) if chosen]
        gradients = _gradients(support(leaves), inner, create_graph=keep_graphs)
        if keep_graphs:
            kept.append((leaves, gradients))
        moves = iter(mean([gradient.detach() for gradient in gradients]))
        current = [
            leaf.detach() - rate * next(moves) if chosen else leaf.detach()
            for leaf, chosen in zip(leaves, scope, strict=True)
        ]
    return current, kept


def back_through(
    query: Sequence[Tensor],
    kept: Sequence[tuple[list[Tensor], list[Tensor]]],
    *,
    rate: float,
    scope: Sequence[bool],
    mean: Mean,
) -> list[Tensor]:
    """Carry the query gradient back through the inner steps: a <- a - alpha H_t[:, scope] a[scope], for t = k, ..., 1.

    Args:
        query: gradient of the query loss at the adapted weights.
        kept: as `adapt` returned; each step's graph is freed.
        rate: alpha.
        scope: as for `adapt`.
        mean: averages over processes.

    Returns:
        The exact gradient of the query loss with respect to the weights before adaptation.
    """
    adjoint = [part.clone() for part in query]
    for leaves, gradients in reversed(kept):
        direction = [part for part, chosen in zip(adjoint, scope, strict=True) if chosen]
        pairs = [(one, two) for one, two in zip(gradients, direction, strict=True) if one.requires_grad]
        if not pairs:
            continue
        products = torch.autograd.grad([one for one, _ in pairs], leaves, [two for _, two in pairs], allow_unused=True)
        products = mean([torch.zeros_like(a) if p is None else p for a, p in zip(adjoint, products, strict=True)])
        adjoint = [part - rate * product for part, product in zip(adjoint, products, strict=True)]
    return adjoint


def meta_gradient(
    weights: Sequence[Tensor],
    support: Loss,
    query: Loss,
    *,
    order: str,
    rate: float,
    steps: int = 1,
    scope: Sequence[bool] | None = None,
    mean: Mean | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Return one task's meta-gradient.

    Args:
        weights: n weights; they are not changed.
        support: loss of the support examples as a function of the weights; of all examples for `reptile` and `plain`.
        query: loss of the query examples.
        order: `second` (exact), `first` (the query gradient at the adapted weights), `reptile` or `plain`.
        rate: alpha; above 0 for reptile.
        steps: k.
        scope: whether each tensor is adapted; None is all of them. All get a meta-gradient.
        mean: averages gradients over processes; None where there is one.

    Returns:
        n numbers like `weights`, and this process's share of the loss that they descend on, detached.
    """
    mean, scope = mean or (lambda tensors: tensors), scope or [True] * len(weights)
    if order == PLAIN:
        leaves = [weight.detach().requires_grad_() for weight in weights]
        loss = support(leaves)
        return mean(_gradients(loss, leaves)), loss.detach()
    options = {"rate": rate, "scope": scope, "mean": mean}
    if order == REPTILE:
        first: list[Tensor] = []

        def noted(leaves: Sequence[Tensor]) -> Tensor:
            loss = support(leaves)
            first.append(loss.detach())
            return loss

        ended, _ = adapt(weights, noted, steps=steps, keep_graphs=False, **options)
        moved = [(one.detach() - two) / (rate * steps) for one, two in zip(weights, ended, strict=True)]
        return moved, first[0]
    ended, kept = adapt(weights, support, steps=steps, keep_graphs=order == SECOND and rate != 0, **options)
    leaves = [weight.requires_grad_() for weight in ended]
    loss = query(leaves)
    found = mean(_gradients(loss, leaves))
    if kept:
        found = back_through(found, kept, **options)
    return found, loss.detach()


def _gradients(loss: Tensor, leaves: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
    found = torch.autograd.grad(loss, leaves, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, found, strict=True)]


def cosine(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """Return the cosine between two vectors of n numbers; 0 where either is 0."""
    product, first, second = (
        sum(float(torch.sum(a * b, dtype=torch.float64)) for a, b in zip(left, right, strict=True))
        for left, right in ((one, two), (one, one), (two, two))
    )
    return product / (first * second) ** 0.5 if first > 0 and second > 0 else 0.0
