"""Learning the gates: meta-parameters, their optimizer, what they were told, and how they moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_xlt.strategies.soft_layers.evidence import Evidence
from hf_xlt.strategies.soft_layers.gates import Gates

# A shorter memory of squares than Adam's 0.999 suits the few hundred updates that gates see.
BETAS = (0.9, 0.99)


class GateLearner:
    """Gates and their Adam, on the CPU in float64.

    Attributes:
        gates: the meta-parameters.
        evidence: of the gate gradients.
        updates: numbers of the run's updates after which the gates were updated.
        history: the gates (L,) before each of these.
        skipped: meta-updates left out because a gradient was not finite, or no weight had moved.
    """

    def __init__(
        self,
        gates: Gates,
        languages: Sequence[str],
        learning_rate: float,
        *,
        prior_weight: float = 0.0,
        freezing_bonus: float = 0.0,
    ) -> None:
        """Make a learner.

        Args:
            gates: with their initial meta-parameters, which are the prior.
            languages: auxiliary languages.
            learning_rate: of Adam.
            prior_weight: weight of the squared distance of the meta-parameters from their start.
            freezing_bonus: weight of the sum of the gates.
        """
        self.gates = gates
        self.optimizer = torch.optim.Adam(gates.parameters(), lr=learning_rate, betas=BETAS)
        self.evidence = Evidence(languages, gates.count)
        self.prior_weight, self.freezing_bonus = prior_weight, freezing_bonus
        self._prior = [parameter.detach().clone() for parameter in gates.parameters()]
        self.updates: list[int] = []
        self.history: list[Tensor] = []
        self.skipped = 0

    @property
    def count(self) -> int:
        """Number of meta-updates tried, which is where the auxiliary data are drawn from next."""
        return len(self.updates) + self.skipped

    def learn(self, values: Tensor, gradient: Tensor, language: int, update: int) -> bool:
        """Do one meta-update.

        Args:
            values: (L,) gates of the episode, with their graph.
            gradient: (L,) gate gradient dL/dz.
            language: number of the auxiliary language.
            update: number of the run's updates so far.

        Returns:
            Whether it was done; not where the gradient is not finite, or 0 throughout: at the rate of 0 that a warm-up
            starts with, an update says nothing of any gate.
        """
        if not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
            self.skipped += 1
            return False
        # The gradient of this scalar is the meta-gradient, whatever the gates are computed from.
        objective = (gradient * values).sum() + self.freezing_bonus * values.sum()
        if self.prior_weight:
            pairs = zip(self.gates.parameters(), self._prior, strict=True)
            objective = objective + self.prior_weight * sum(((one - start) ** 2).sum() for one, start in pairs)
        self.optimizer.zero_grad()
        objective.backward()
        self.optimizer.step()
        self.evidence.add(language, gradient)
        self.updates.append(update)
        self.history.append(values.detach().clone())
        return True

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and values to save."""
        tensors = {f"gates/{name}": value for name, value in self.gates.state_dict().items()}
        tensors |= {f"evidence/{name}": value for name, value in self.evidence.state().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{name}": value for name, value in state.items()}
        tensors["history"] = torch.stack(self.history) if self.history else torch.zeros(0, self.gates.count)
        return tensors, {"updates": self.updates, "skipped": self.skipped}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore `state`."""
        self.gates.load_state_dict(_under(tensors, "gates/"))
        self.evidence.load(_under(tensors, "evidence/"))
        saved: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "adam/").items():
            number, name = key.split("/")
            saved.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": saved})
        self.history = list(tensors["history"].double())
        self.updates, self.skipped = list(values["updates"]), values["skipped"]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
