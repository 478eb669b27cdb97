"""The gates: from meta-parameters to one number in [0, z_max] per layer group.

Source: Xu et al. (2021), title and abstract; every formula here is a reconstruction. A gate multiplies the update of
its group: theta_t = theta_{t-1} + z * delta_t. Shapes: L gates, S bins of training, F features, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FEATURES = ("gradient_norm", "weight_norm", "ratio", "momentum_cosine", "loss", "depth", "progress")
GATE_TYPES = ("constant", "table", "mlp", "recurrent")


class Gates(nn.Module):
    """Base: squashing of logits, and rescaling.

    All arithmetic is in float64 on the CPU: there are a few dozen numbers, equal on every process.
    """

    needs_features = False

    def __init__(
        self, count: int, *, maximum: float = 1.0, temperature: float = 1.0, weights: Sequence[float] | None = None
    ) -> None:
        """Make gates.

        Args:
            count: L.
            maximum: z_max, the largest gate, above 0.
            temperature: T, above 0: z = z_max * sigmoid(logit / T).
            weights: (L,) number of weights of each group; given, gates are rescaled to a weighted mean of 1.
        """
        super().__init__()
        self.count, self.maximum, self.temperature = count, maximum, temperature
        self.weights = None if weights is None else torch.tensor(list(weights), dtype=torch.float64)

    def logits(self, progress: float, features: Tensor | None) -> Tensor:
        """Return (L,) logits."""
        raise NotImplementedError

    def forward(self, progress: float, features: Tensor | None = None) -> Tensor:
        """Return the gates.

        Args:
            progress: share of training that is done, in [0, 1].
            features: (L, F) of the update at hand; only where `needs_features`.

        Returns:
            (L,) float64, differentiable with respect to the meta-parameters.
        """
        values = self.maximum * torch.sigmoid(self.logits(progress, features) / self.temperature)
        if self.weights is None:
            return values
        return values * (self.weights.sum() / (self.weights * values).sum())


class ConstantGates(Gates):
    """One logit per group."""

    def __init__(self, count: int, init: float = 0.0, **options: object) -> None:
        """Start every logit at `init`."""
        super().__init__(count, **options)
        self.table = nn.Parameter(torch.full((1, count), float(init), dtype=torch.float64))

    def logits(self, progress: float, features: Tensor | None) -> Tensor:
        """Return (L,) logits."""
        return self.table[0]


class TableGates(Gates):
    """One logit per group and bin of training, as the per-layer per-step rates of MAML++ (Antoniou et al. 2019)."""

    def __init__(self, count: int, init: float = 0.0, bins: int = 10, **options: object) -> None:
        """Start every logit at `init`."""
        super().__init__(count, **options)
        self.table = nn.Parameter(torch.full((bins, count), float(init), dtype=torch.float64))

    def logits(self, progress: float, features: Tensor | None) -> Tensor:
        """Return (L,) logits of the bin at hand."""
        bins = len(self.table)
        return self.table[min(int(progress * bins), bins - 1)]


class MLPGates(Gates):
    """A small network over features of the update, shared by all groups."""

    needs_features = True

    def __init__(self, count: int, init: float = 0.0, hidden: int = 16, **options: object) -> None:
        """Start with every logit at `init`, whatever the features."""
        super().__init__(count, **options)
        self.inner = nn.Linear(len(FEATURES), hidden, dtype=torch.float64)
        self.outer = nn.Linear(hidden, 1, dtype=torch.float64)
        _start(self, init)

    def logits(self, progress: float, features: Tensor | None) -> Tensor:
        """Return (L,) logits."""
        return self.outer(torch.tanh(self.inner(features))).squeeze(-1)


class RecurrentGates(Gates):
    """A recurrent cell over features of the updates, shared by all groups, each with a state of its own.

    The state is carried from update to update; gradients are not carried through it.
    """

    needs_features = True

    def __init__(self, count: int, init: float = 0.0, hidden: int = 16, **options: object) -> None:
        """Start with every logit at `init`, whatever the features."""
        super().__init__(count, **options)
        self.inner = nn.GRUCell(len(FEATURES), hidden, dtype=torch.float64)
        self.outer = nn.Linear(hidden, 1, dtype=torch.float64)
        self.register_buffer("state", torch.zeros(count, hidden, dtype=torch.float64))
        _start(self, init)

    def logits(self, progress: float, features: Tensor | None) -> Tensor:
        """Return (L,) logits, and carry the state on."""
        state = self.inner(features, self.state)
        self.state = state.detach()
        return self.outer(state).squeeze(-1)


def _start(gates: nn.Module, init: float) -> None:
    """Draw the inner weights from a generator of their own, and let the outer layer say `init`."""
    generator = torch.Generator().manual_seed(0)
    for parameter in gates.inner.parameters():
        width = max(parameter.shape[-1], 1)
        parameter.data = (torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 2 - 1) / width**0.5
    nn.init.zeros_(gates.outer.weight)
    nn.init.constant_(gates.outer.bias, float(init))


def make_gates(kind: str, count: int, *, init: float, bins: int = 10, hidden: int = 16, **options: object) -> Gates:
    """Make gates of one of `GATE_TYPES`; other arguments as for the classes."""
    if kind == "constant":
        return ConstantGates(count, init, **options)
    if kind == "table":
        return TableGates(count, init, bins, **options)
    if kind == "mlp":
        return MLPGates(count, init, hidden, **options)
    return RecurrentGates(count, init, hidden, **options)
