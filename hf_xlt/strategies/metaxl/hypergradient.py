"""The mathematics of the meta update: gradients of a loss at virtual weights with respect to the RTN.

With g(θ, φ) the gradient of the inner loss L_S(θ, φ) + L_G(θ) and θ' = θ - η g, the meta loss is J(φ) = L_E(θ'(φ)),
and with v = ∇L_E at θ'

    ∇φ J = -η ∇φ <∇θ L_S(θ, φ), v>

where v is held constant and L_G drops out (Xia et al. 2021, and the product form of their published code). The
functions here return ∇φ <∇θ L_S, v>; -η is the caller's.

θ and φ are `{name: tensor}` and lists of tensors; a gradient that is missing is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_xlt.strategies.metaxl.weights import Weights


def gradients_by_name(loss: Tensor, weights: Weights, *, create_graph: bool = False) -> Weights:
    """Return the gradient of a scalar with respect to named weights; names it does not depend on are left out."""
    found = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph, allow_unused=True)
    return {name: value for name, value in zip(weights, found, strict=True) if value is not None}


def add_gradients(total: Weights, more: Weights) -> Weights:
    """Return the sum of two gradients by name, without history."""
    names = list(dict.fromkeys([*total, *more]))
    return {name: sum(part[name].detach() for part in (total, more) if name in part) for name in names}


def inner_product(first: Weights, second: Weights) -> Tensor:
    """Return the sum over shared names of <first, second>, in float32 or wider."""
    terms = [(first[name] * second[name]).sum() for name in first if name in second]
    return torch.stack([term.to(torch.promote_types(term.dtype, torch.float32)) for term in terms]).sum()


def norm(weights: Weights) -> Tensor:
    """Return the Euclidean norm over all names."""
    return inner_product(weights, weights).sqrt()


def virtual_step(weights: Weights, gradients: Weights, rate: float) -> Weights:
    """Return θ' = θ - η g as leaves that require a gradient; weights are untouched.

    Args:
        weights: θ.
        gradients: g by name; missing names have none.
        rate: η.
    """
    moved = {}
    for name, value in weights.items():
        value = value.detach()
        shifted = value - rate * gradients[name].to(value.dtype) if name in gradients else value.clone()
        moved[name] = shifted.requires_grad_()
    return moved


def exact_product(source_gradient: Weights, direction: Weights, phi: Sequence[Tensor]) -> list[Tensor | None]:
    """Differentiate <∇θ L_S, v> with respect to φ alone.

    The engine then computes only what lies between φ and the product: two matrix products for each of the forward
    pass, where an unrestricted backward pass takes nine times that pass.

    Args:
        source_gradient: ∇θ L_S with its graph.
        direction: v.
        phi: the RTN's parameters.

    Returns:
        One gradient per parameter; None where there is none.
    """
    product = inner_product(source_gradient, {name: value.detach() for name, value in direction.items()})
    return list(torch.autograd.grad(product, list(phi), allow_unused=True))


def finite_difference_product(
    phi_gradient: Callable[[Weights], Sequence[Tensor | None]], weights: Weights, direction: Weights, scale: float
) -> list[Tensor | None]:
    """Approximate ∇φ <∇θ L_S, v> by (∇φ L_S(θ + εv) - ∇φ L_S(θ - εv)) / 2ε with ε = scale * ‖θ‖ / ‖v‖.

    Args:
        phi_gradient: ∇φ L_S at given weights. It must see the RTN's input and the dropout masks of the inner pass:
            what enters the RTN is a constant in ∇θ L_S.
        weights: θ.
        direction: v.
        scale: length of the shift as a share of ‖θ‖, some 1e-5 to 1e-4 in float32.

    Returns:
        One gradient per parameter; None where there is none. All zero where v is.
    """
    length = norm(direction)
    epsilon = float(scale * norm({name: value.detach() for name, value in weights.items()}) / length)
    if not 0 < epsilon < float("inf"):
        return [None if value is None else torch.zeros_like(value) for value in phi_gradient(weights)]

    def shifted(sign: int) -> Sequence[Tensor | None]:
        moved = {
            name: value.detach() + sign * epsilon * direction[name] if name in direction else value.detach()
            for name, value in weights.items()
        }
        return phi_gradient(moved)

    plus, minus = shifted(1), shifted(-1)
    return [
        None if up is None or down is None else (up - down) / (2 * epsilon)
        for up, down in zip(plus, minus, strict=True)
    ]


def candidate_weights(losses: Tensor, temperature: float) -> Tensor:
    """Return softmax(-losses / temperature), the weights of candidate models in EvoGrad (Bohdal et al. 2021).

    Args:
        losses: (K,) inner losses of the candidates.
        temperature: τ > 0.
    """
    return torch.softmax(-losses / temperature, dim=0)
