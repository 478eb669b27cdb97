"""The meta update of one window: the gradient of the meta loss at the virtual step, with respect to the RTN.

Source: Xia et al. (2021), their published code for what the abstract leaves open; EvoGrad: Bohdal et al. (2021).

A window is all micro-batches of an update. g and v are sums over micro-batches and processes of losses that are
divided by the units of the whole update, so neither accumulation nor processes change the result. With one
micro-batch the graph of the inner pass is kept; with several, which are there to save memory, inner passes are
replayed with their dropout masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_xlt.randomness import GeneratorState, read_generators
from hf_xlt.strategies.metaxl import hypergradient as maths
from hf_xlt.strategies.metaxl.evograd import EvoGrad
from hf_xlt.strategies.metaxl.generators import generators
from hf_xlt.strategies.metaxl.passes import Passes, full_precision, second_order_attention
from hf_xlt.strategies.metaxl.placement import Trace
from hf_xlt.strategies.metaxl.weights import TrainableWeights, Weights

EXACT, FINITE_DIFFERENCE, EVOGRAD, NONE = "exact", "finite_difference", "evograd", "none"
Batch = Mapping[str, Any]


@dataclass
class MetaWindow:
    """The batches of an update on one process.

    Attributes:
        sources: S, per micro-batch.
        trains: G, target batches that train θ; None entries where θ sees no target batch.
        metas: E, target batches of the meta loss.
        units: of S, G and E over all micro-batches and processes, each 1 or more.
        shares: weight of L_S and of L_G in the inner loss.
    """

    sources: Sequence[Batch]
    trains: Sequence[Batch | None]
    metas: Sequence[Batch]
    units: tuple[Tensor | float, Tensor | float, Tensor | float]
    shares: tuple[float, float] = (1.0, 1.0)

    def batches(self) -> list[Batch]:
        """Return every batch of the window."""
        return [batch for batch in (*self.sources, *self.trains, *self.metas) if batch is not None]


@dataclass
class MetaGradient:
    """What the meta step found.

    Attributes:
        phi: gradient of the meta loss with respect to the RTN's parameters, without the factor η; None where there is
            none.
        weights: θ over the window's tokens.
        inner: g, gradient of the inner loss; None for EvoGrad, which has none.
        losses: L_S, L_G, L_E over the whole update, scalars.
        own_inner_loss: this process's share of the inner loss, scalar.
        traces: what the source passes left at the RTN.
    """

    phi: list[Tensor | None]
    weights: TrainableWeights
    inner: Weights | None
    losses: dict[str, Tensor]
    own_inner_loss: Tensor
    traces: list[Trace]


@dataclass
class _Inner:
    """State of the inner passes."""

    gradient: Weights = field(default_factory=dict)
    source_graph: Weights | None = None
    starts: list[GeneratorState] = field(default_factory=list)
    pins: list[list[Tensor]] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    source: Tensor | float = 0.0
    train: Tensor | float = 0.0


@dataclass
class MetaStep:
    """Computes meta gradients.

    Attributes:
        passes: losses of the model with the RTN.
        hypergrad: `exact`, `finite_difference` or `evograd`.
        fd_scale: see `finite_difference_product`.
        evograd: candidates of EvoGrad; needed for it alone.
        over_processes: sums a tensor over processes.
    """

    passes: Passes
    hypergrad: str = EXACT
    fd_scale: float = 1e-4
    evograd: EvoGrad | None = None
    over_processes: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @property
    def phi(self) -> list[Tensor]:
        """The RTN's parameters."""
        return list(self.passes.injection.rtn.parameters())

    def run(
        self, window: MetaWindow, rate: float, *, inner_seed: int | None = None, meta_seed: int | None = None
    ) -> MetaGradient:
        """Compute the meta gradient; no weight and no `.grad` is changed.

        Args:
            window: the batches.
            rate: η, length of the virtual step.
            inner_seed: of the dropout masks of S and G; None draws from the global generators.
            meta_seed: of those of E; None as before.

        Raises:
            ConfigError: the RTN cannot be placed in the pass.
        """
        device = next(self.passes.model.parameters()).device
        weights = TrainableWeights(self.passes.model, window.batches(), self.over_processes)
        with self._learning(), self._kernels():
            if self.hypergrad == EVOGRAD:
                return self._evolve(window, weights, device, inner_seed, meta_seed)
            leaves = weights.leaves()
            with generators(device, inner_seed):
                inner = self._inner(window, weights, leaves, device)
            moved = maths.virtual_step(leaves, inner.gradient, rate)
            with generators(device, meta_seed):
                meta, direction = self._meta_gradient(window, weights, moved)
            del moved
            product = self._product(window, weights, leaves, inner, direction, device)
        losses = torch.stack([torch.as_tensor(value, device=device) for value in (inner.source, inner.train, meta)])
        own = (torch.as_tensor(window.shares, device=device) * losses[:2]).sum()
        total = self.over_processes(losses)
        phi = [None if value is None else -window.shares[0] * value for value in product]
        names = dict(zip(("source", "train", "meta"), total, strict=True))
        return MetaGradient(phi, weights, inner.gradient, names, own, inner.traces)

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """Let the RTN's parameters require gradients inside the block."""
        before = [parameter.requires_grad for parameter in self.phi]
        self.passes.injection.rtn.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, required in zip(self.phi, before, strict=True):
                parameter.requires_grad_(required)

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        # The graph of S is differentiated twice; under activation checkpointing its forward pass runs again then.
        with ExitStack() as stack:
            if self.hypergrad == EXACT and any(module.training for module in self._checkpointed()):
                stack.enter_context(second_order_attention())
            yield

    def _checkpointed(self) -> list[Any]:
        return [module for module in self.passes.model.modules() if getattr(module, "gradient_checkpointing", False)]

    def _inner(self, window: MetaWindow, weights: TrainableWeights, leaves: Weights, device: torch.device) -> _Inner:
        """Sum the inner gradient over the window."""
        inner, single = _Inner(), len(window.sources) == 1
        share, train_share = window.shares
        for source, train in zip(window.sources, window.trains, strict=True):
            inner.starts.append(read_generators(device))
            keep = self.hypergrad == EXACT and single
            loss, gradient, traces = self._source_gradient(window, weights, leaves, source, keep)
            inner.source_graph = gradient if keep else None
            inner.source = inner.source + loss
            inner.traces += traces
            inner.pins.append([trace.input for trace in traces])
            inner.gradient = maths.add_gradients(
                inner.gradient, {name: share * value.detach() for name, value in gradient.items()}
            )
            if train is not None:
                loss, gradient = weights.call(leaves, lambda train=train: self._train_gradient(window, leaves, train))
                inner.train = inner.train + loss
                scaled = {name: train_share * value for name, value in gradient.items()}
                inner.gradient = maths.add_gradients(inner.gradient, scaled)
        inner.gradient = {name: self.over_processes(value) for name, value in inner.gradient.items()}
        return inner

    def _source_gradient(
        self, window: MetaWindow, weights: TrainableWeights, leaves: Weights, source: Batch, keep_graph: bool
    ) -> tuple[Tensor, Weights, list[Trace]]:
        traces: list[Trace] = []

        def differentiate() -> tuple[Tensor, Weights]:
            loss = self.passes.source(source, window.units[0], traces=traces)
            return loss.detach(), maths.gradients_by_name(loss, leaves, create_graph=keep_graph)

        with ExitStack() as stack:
            if keep_graph:
                stack.enter_context(second_order_attention())
            loss, gradient = weights.call(leaves, differentiate)
        return loss, gradient, traces

    def _train_gradient(self, window: MetaWindow, leaves: Weights, train: Batch) -> tuple[Tensor, Weights]:
        loss = self.passes.target(train, window.units[1])
        return loss.detach(), maths.gradients_by_name(loss, leaves)

    def _meta_gradient(
        self, window: MetaWindow, weights: TrainableWeights, moved: Weights
    ) -> tuple[Tensor | float, Weights]:
        """Return L_E on this process, and v over all of them, at the virtual weights."""
        total, direction = 0.0, {}

        def differentiate(batch: Batch) -> tuple[Tensor, Weights]:
            loss = self.passes.target(batch, window.units[2])
            return loss.detach(), maths.gradients_by_name(loss, moved)

        for batch in window.metas:
            loss, gradient = weights.call(moved, lambda batch=batch: differentiate(batch))
            total, direction = total + loss, maths.add_gradients(direction, gradient)
        return total, {name: self.over_processes(value) for name, value in direction.items()}

    def _product(
        self,
        window: MetaWindow,
        weights: TrainableWeights,
        leaves: Weights,
        inner: _Inner,
        direction: Weights,
        device: torch.device,
    ) -> list[Tensor | None]:
        """Return ∇φ <∇θ L_S, v> over the window and all processes."""
        if self.hypergrad == FINITE_DIFFERENCE:
            found = maths.finite_difference_product(
                lambda moved: self._phi_gradient(window, weights, moved, inner, device),
                leaves,
                direction,
                self.fd_scale,
            )
        elif inner.source_graph is not None:
            found = maths.exact_product(inner.source_graph, direction, self.phi)
        else:
            found = [None] * len(self.phi)
            for source, start in zip(window.sources, inner.starts, strict=True):
                with generators(device, start):
                    _, gradient, _ = self._source_gradient(window, weights, leaves, source, True)
                found = _add(found, maths.exact_product(gradient, direction, self.phi))
        return [None if value is None else self.over_processes(value) for value in found]

    def _phi_gradient(
        self, window: MetaWindow, weights: TrainableWeights, moved: Weights, inner: _Inner, device: torch.device
    ) -> list[Tensor | None]:
        """Return ∇φ L_S at other weights: what the RTN sees is held, in float32, with the masks of the inner pass."""
        found: list[Tensor | None] = [None] * len(self.phi)
        detach = self.passes.injection.detach
        for number, source in enumerate(window.sources):

            def differentiate(source: Batch = source, number: int = number) -> tuple[Tensor | None, ...]:
                loss = self.passes.source(source, window.units[0], pinned=inner.pins[number] if detach else None)
                return torch.autograd.grad(loss, self.phi, allow_unused=True)

            with generators(device, inner.starts[number]), full_precision(self.passes.model, device):
                found = _add(found, weights.call(moved, differentiate))
        return found

    def _evolve(
        self,
        window: MetaWindow,
        weights: TrainableWeights,
        device: torch.device,
        inner_seed: int | None,
        meta_seed: int | None,
    ) -> MetaGradient:
        with generators(device, inner_seed):
            candidates = self.evograd.candidates(window, self.passes, weights, self.over_processes, device)
        with generators(device, meta_seed):
            phi, meta = self.evograd.gradient(candidates, window, self.passes, weights, self.over_processes)
        losses = {"source": candidates.source, "train": candidates.train, "meta": meta}
        own = torch.zeros((), device=device)
        return MetaGradient(phi, weights, None, losses, own, candidates.traces)


def _add(total: Sequence[Tensor | None], more: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [
        second if first is None else first if second is None else first + second
        for first, second in zip(total, more, strict=True)
    ]
