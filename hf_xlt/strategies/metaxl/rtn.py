"""The representation transformation network (RTN), a small network beside the encoder that only training sees.

Source: Xia et al. (2021); the arithmetic follows the authors' published code (class `Raptors`, `perceptron`). It
departs from it in one point: every slot has a gate of its own, where theirs shares the gate built last.

Shapes: B batch, T tokens, D hidden size, R bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
}
TIED, SEPARATE, NO_GATE = "tied", "separate", "none"


def _linear(inputs: int, outputs: int, generator: torch.Generator, *, default_init: bool = False) -> nn.Linear:
    """Return a linear layer drawn from `generator`: Xavier-normal and zero biases, or the default of `nn.Linear`."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    if default_init:
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
        nn.init.uniform_(layer.bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
    else:
        nn.init.xavier_normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    return layer


class Transformation(nn.Module):
    """f(u) = gate(u) * (W2 act(W1 u + b1) + b2), token by token: one slot of the RTN.

    The gate is one number in (0, 1) per token: `tied` takes it from a further output row of the same network,
    `separate` from a network of its own with the same activation, `none` is 1.
    """

    def __init__(
        self, hidden: int, bottleneck: int, *, gate: str, activation: str, init: str, generator: torch.Generator
    ) -> None:
        """Draw the weights.

        Args:
            hidden: D.
            bottleneck: R.
            gate: `tied`, `separate` or `none`.
            activation: key of `ACTIVATIONS`.
            init: `xavier`, or `zero_out` for W2 = 0, so that f is 0 at first.
            generator: source of the weights; the global generators are left alone.
        """
        super().__init__()
        self.hidden, self.gate, self.activation = hidden, gate, ACTIVATIONS[activation]
        self.down = _linear(hidden, bottleneck, generator)
        self.up = _linear(bottleneck, hidden + (gate == TIED), generator)
        if gate == SEPARATE:
            self.gate_down = _linear(hidden, bottleneck, generator, default_init=True)
            self.gate_up = _linear(bottleneck, 1, generator, default_init=True)
        if init == "zero_out":
            nn.init.zeros_(self.up.weight)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Transform hidden states.

        Args:
            states: (B, T, D).

        Returns:
            f(states) (B, T, D), and the gate (B, T, 1), None without one.
        """
        output = self.up(self.activation(self.down(states)))
        if self.gate == NO_GATE:
            return output, None
        if self.gate == TIED:
            logit, output = output[..., self.hidden :], output[..., : self.hidden]
        else:
            logit = self.gate_up(self.activation(self.gate_down(states)))
        gate = torch.sigmoid(logit)
        return gate * output, gate


class RepresentationTransformation(nn.Module):
    """The RTN: one `Transformation` per slot, and with several slots the logits that mix their losses.

    A slot is a place in the encoder. With several, each makes its own pass with only that slot active, and the losses
    are mixed with softmax(mixture_logits).
    """

    def __init__(
        self,
        hidden: int,
        slots: int,
        *,
        bottleneck: int = 192,
        gate: str = TIED,
        activation: str = "relu",
        init: str = "xavier",
        generator: torch.Generator,
    ) -> None:
        """Build `slots` transformations of `hidden` wide states; other arguments as for `Transformation`."""
        super().__init__()
        settings = {"gate": gate, "activation": activation, "init": init, "generator": generator}
        self.slots = nn.ModuleList(Transformation(hidden, bottleneck, **settings) for _ in range(slots))
        self.mixture_logits = nn.Parameter(torch.zeros(slots)) if slots > 1 else None

    def mixture(self) -> Tensor:
        """Return the weights of the slots' losses: (slots,), summing to 1; the constant 1 where there is one slot."""
        if self.mixture_logits is None:
            return self.slots[0].down.weight.new_ones(1)
        return self.mixture_logits.softmax(0)
