"""EvoGrad's meta gradient: no virtual step, but candidates that differ in the head, weighted by their inner losses.

Source: Bohdal, Yang and Hospedales (2021), after their published code for this method. It is a first-order estimate of
another quantity than the exact meta gradient, and noisy. Where theirs also computes gradients of the encoder and
throws them away, the encoder here has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_xlt.randomness import keyed_generator, read_generators
from hf_xlt.strategies.metaxl.generators import generators
from hf_xlt.strategies.metaxl.hypergradient import candidate_weights
from hf_xlt.strategies.metaxl.passes import Passes
from hf_xlt.strategies.metaxl.placement import Trace, encoder_of
from hf_xlt.strategies.metaxl.weights import TrainableWeights, Weights

if TYPE_CHECKING:
    from hf_xlt.strategies.metaxl.meta_step import MetaWindow

OverProcesses = Callable[[Tensor], Tensor]


def head_names(model: nn.Module, names: list[str]) -> list[str]:
    """Return those of `names` that are parameters outside of the encoder."""
    inside = {id(parameter) for parameter in encoder_of(model).parameters()}
    parameters = dict(model.named_parameters())
    return [name for name in names if id(parameters[name]) not in inside]


@dataclass
class Candidates:
    """A population of heads.

    Attributes:
        heads: per candidate its head's weights.
        fixed: every other trainable weight, without history.
        losses: (K,) inner loss of each over the whole update.
        phi: per candidate ∇φ of its inner loss over the whole update.
        source: mean L_S over candidates, scalar.
        train: mean L_G, scalar.
        traces: what the first candidate's source passes left at the RTN.
    """

    heads: list[Weights]
    fixed: Weights
    losses: Tensor
    phi: list[list[Tensor]]
    source: Tensor
    train: Tensor
    traces: list[Trace] = field(default_factory=list)


@dataclass
class EvoGrad:
    """Makes candidates and the gradient from them.

    Attributes:
        population: K, number of candidates.
        sigma: size of the noise on every weight of the head; its sign is drawn.
        temperature: of the softmax over candidates.
        key: of the noise; the run's seed and the update.
    """

    population: int = 2
    sigma: float = 1e-3
    temperature: float = 0.05
    key: tuple[int | str, ...] = (0,)

    def _heads(self, model: nn.Module, head: Weights) -> list[Weights]:
        heads = []
        for number in range(self.population):
            generator = keyed_generator(*self.key, "evograd", number)
            noise = {name: torch.randn(value.shape, generator=generator).sign() for name, value in head.items()}
            heads.append({name: value + self.sigma * noise[name].to(value) for name, value in head.items()})
        return heads

    def candidates(
        self,
        window: MetaWindow,
        passes: Passes,
        weights: TrainableWeights,
        over_processes: OverProcesses,
        device: torch.device,
    ) -> Candidates:
        """Compute every candidate's inner loss and its gradient with respect to the RTN, with the same masks."""
        fixed = {name: value.detach() for name, value in weights.leaves().items()}
        head = {name: fixed.pop(name) for name in head_names(passes.model, list(fixed))}
        heads, phi = self._heads(passes.model, head), list(passes.injection.rtn.parameters())
        starts, traces = [], []
        parts: list[Tensor | float] = [0.0] * self.population
        gradients = [[torch.zeros_like(value) for value in phi] for _ in heads]
        for number, values in enumerate(heads):
            for place, (source, train) in enumerate(zip(window.sources, window.trains, strict=True)):
                if number == 0:
                    starts.append(read_generators(device))

                def differentiate(source=source, train=train, first=number == 0):
                    loss = passes.source(source, window.units[0], traces=traces if first else None)
                    found = torch.autograd.grad(loss, phi, allow_unused=True)
                    if train is None:
                        return loss.detach(), torch.zeros_like(loss), found
                    with torch.no_grad():
                        return loss.detach(), passes.target(train, window.units[1]), found

                with generators(device, None if number == 0 else starts[place]):
                    source_loss, train_loss, found = weights.call({**fixed, **values}, differentiate)
                parts[number] = parts[number] + torch.stack([source_loss, train_loss])
                for total, value in zip(gradients[number], found, strict=True):
                    total += 0 if value is None else window.shares[0] * value
        totals = over_processes(torch.stack(parts))
        summed = [[over_processes(value) for value in group] for group in gradients]
        losses = totals @ torch.tensor(window.shares, dtype=totals.dtype, device=device)
        return Candidates(heads, fixed, losses, summed, totals[:, 0].mean(), totals[:, 1].mean(), traces)

    def gradient(
        self,
        candidates: Candidates,
        window: MetaWindow,
        passes: Passes,
        weights: TrainableWeights,
        over_processes: OverProcesses,
    ) -> tuple[list[Tensor], Tensor]:
        """Return ∇φ of the meta loss at the weighted mean of the candidates, and that loss."""
        losses = candidates.losses.detach().requires_grad_()
        shares = candidate_weights(losses, self.temperature)
        mean = {
            name: torch.einsum("k,k...->...", shares.to(value.dtype), torch.stack([h[name] for h in candidates.heads]))
            for name, value in candidates.heads[0].items()
        }
        moved = {**candidates.fixed, **mean}
        total = torch.zeros_like(losses[0])
        slope = torch.zeros_like(losses)

        def differentiate(batch):
            loss = passes.target(batch, window.units[2])
            return loss.detach(), torch.autograd.grad(loss, losses, retain_graph=True)[0]

        for batch in window.metas:
            loss, gradient = weights.call(moved, lambda batch=batch: differentiate(batch))
            total, slope = total + loss, slope + gradient
        slope = over_processes(slope)
        phi = [
            sum(slope[number] * group[place] for number, group in enumerate(candidates.phi))
            for place in range(len(candidates.phi[0]))
        ]
        return phi, over_processes(total)
