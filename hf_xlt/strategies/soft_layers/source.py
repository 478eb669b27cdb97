"""Where the gates of an update come from: fixed numbers, a profile without labels, or meta-parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_xlt.errors import ConfigError
from hf_xlt.modelling.seen_rows import with_whole_norm
from hf_xlt.strategies.soft_layers import profiles
from hf_xlt.strategies.soft_layers.gates import FEATURES, Gates
from hf_xlt.strategies.soft_layers.groups import matches


class GateSource:
    """Base: L gates for an update, with the gradients of its groups' tensors in place."""

    def choose(self, progress: float, groups: Sequence[Sequence[Tensor]]) -> list[float]:
        """Return L gates.

        Args:
            progress: share of training that is done.
            groups: the tensors of each gated group.
        """
        raise NotImplementedError


class FixedGates(GateSource):
    """Numbers that do not change."""

    def __init__(self, values: Mapping[str, float] | float, names: Sequence[str]) -> None:
        """Take one number for all groups, or numbers by pattern.

        Raises:
            ConfigError: a pattern fits no group.
        """
        if not isinstance(values, Mapping):
            values = {"*": values}
        for pattern in values:
            if not any(matches(name, [pattern]) for name in names):
                raise ConfigError(f"`gate_values`: no group is called {pattern!r}; there are {', '.join(names)}.")
        self.values = [
            float(next((value for pattern, value in values.items() if matches(name, [pattern])), 1.0))
            for name in names
        ]

    def choose(self, progress: float, groups: Sequence[Sequence[Tensor]]) -> list[float]:
        """Return the numbers."""
        return self.values


class ProfileGates(GateSource):
    """A choice of the setting `profile`."""

    def __init__(self, profile: str, names: Sequence[str], *, decay: float, layers: int, share: float) -> None:
        """Take the profile's name and the settings of all of them."""
        self.profile, self.names, self.share = profile, tuple(names), share
        self.fixed = {
            "layerwise_decay": profiles.layerwise_decay(names, decay),
            "freeze_bottom": profiles.freeze_bottom(names, layers),
        }.get(profile)

    def choose(self, progress: float, groups: Sequence[Sequence[Tensor]]) -> list[float]:
        """Return the profile's gates now."""
        if self.fixed is not None:
            return self.fixed
        if self.profile == "gradual_unfreezing":
            return profiles.gradual_unfreezing(self.names, progress, self.share)
        return profiles.auto_rgn(groups, {id(p): p.grad for members in groups for p in members})


class ComputedGates(GateSource):
    """Gates from meta-parameters.

    Attributes:
        gates: the meta-parameters.
        last: (L,) the last gates, with their graph.
        loss: source loss of the update at hand, for gates that look at it.
    """

    def __init__(self, gates: Gates, names: Sequence[str]) -> None:
        """Compute the gates of some groups."""
        self.gates, self.depths = gates, profiles.depths(names)
        self.last: Tensor | None = None
        self.loss = 0.0
        self.momenta: Mapping[Tensor, Mapping[str, Tensor]] = {}

    def choose(self, progress: float, groups: Sequence[Sequence[Tensor]]) -> list[float]:
        """Return the gates now."""
        seen = None
        if self.gates.needs_features:
            deepest = max(max(self.depths), 1)
            rows = [
                features_of(members, self.momenta, self.loss, depth / deepest, progress)
                for members, depth in zip(groups, self.depths, strict=True)
            ]
            seen = torch.tensor(rows, dtype=torch.float64)
        self.last = self.gates(progress, seen)
        return self.last.tolist()


def features_of(
    members: Sequence[Tensor],
    momenta: Mapping[Tensor, Mapping[str, Tensor]],
    loss: float,
    depth: float,
    progress: float,
) -> list[float]:
    """Describe a group before an update, by the numbers of `FEATURES`.

    Args:
        members: its tensors, with clipped gradients in place.
        momenta: state of the optimizer by tensor.
        loss: source loss of the update.
        depth: distance from the top, in [0, 1].
        progress: share of training that is done, in [0, 1].

    Returns:
        Logarithms of norms are divided by 10, so that all numbers are of order 1.
    """
    squares = {"gradient": 0.0, "weight": 0.0, "momentum": 0.0, "product": 0.0}
    for member in members:
        gradient = member.grad
        squares["weight"] += float(torch.sum(with_whole_norm(member, member).detach() ** 2, dtype=torch.float64))
        if gradient is None:
            continue
        squares["gradient"] += float(torch.sum(gradient**2, dtype=torch.float64))
        state = momenta.get(member, {})
        momentum = state.get("exp_avg", state.get("momentum_buffer"))
        if momentum is not None:
            whole = with_whole_norm(momentum, member)
            squares["momentum"] += float(torch.sum(whole**2, dtype=torch.float64))
            squares["product"] += float(torch.sum(momentum * gradient, dtype=torch.float64))
    gradient, weight = squares["gradient"] ** 0.5, squares["weight"] ** 0.5
    norms = gradient * squares["momentum"] ** 0.5
    values = {
        "gradient_norm": math.log(gradient + 1e-12) / 10,
        "weight_norm": math.log(weight + 1e-12) / 10,
        "ratio": math.log((gradient + 1e-12) / (weight + 1e-12)) / 10,
        "momentum_cosine": squares["product"] / norms if norms > 0 else 0.0,
        "loss": loss,
        "depth": depth,
        "progress": progress,
    }
    return [values[name] for name in FEATURES]
