"""Source passes of an episode again: gradient and Hessian-vector products at the weights before an update."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_xlt.errors import ConfigError
from hf_xlt.randomness import GeneratorState, generators

if TYPE_CHECKING:
    from hf_xlt.strategies.soft_layers.meta_gradient import InnerStep
    from hf_xlt.training.trainer import XLTTrainer
    from hf_xlt.training.window import UpdateWindow

_NO_SECOND_DERIVATIVE = ("flash_attention", "flex_attention")


@dataclass
class MicroBatch:
    """One source pass of an update: what went in, and where the random number generators stood."""

    inputs: dict[str, Tensor]
    window: UpdateWindow
    place: int
    generators: GeneratorState


def check_attention(model: Any) -> None:
    """Refuse attention kernels that have no second derivative and cannot be replaced for a part of a run.

    Raises:
        ConfigError: the model uses one.
    """
    kernel = str(getattr(model.config, "_attn_implementation", "") or "")
    if kernel.startswith(_NO_SECOND_DERIVATIVE):
        raise ConfigError(
            f"attention kernel `{kernel}` has no second derivative, which exact gradients need. Use "
            "`attn_implementation` sdpa or eager."
        )


def _plain_attention() -> contextlib.AbstractContextManager:
    # Fused attention has no second derivative. Backward passes are inside too: activation checkpointing runs forward
    # passes again in them.
    return sdpa_kernel(SDPBackend.MATH)


class SourceReplay:
    """The source passes of one update, for `reverse_episode`; loads the weights before it into the model.

    Processes work on their own examples; gradients and products are means over them, as in training.
    """

    def __init__(self, trainer: XLTTrainer, parameters: Sequence[Tensor], step: InnerStep) -> None:
        """Load the weights."""
        self.trainer, self.parameters = trainer, list(parameters)
        self.passes: list[MicroBatch] = step.replay
        with torch.no_grad():
            for parameter, before in zip(self.parameters, step.before, strict=True):
                parameter.copy_(before)
        self._raw: list[Tensor] | None = None

    def gradients(self, curved: bool) -> list[Tensor]:
        """Return the raw source gradient; with one pass, its graph is kept for the product that is announced."""
        keep = curved and len(self.passes) == 1
        total: list[Tensor] | None = None
        for micro_batch in self.passes:
            found = self._gradient(micro_batch, keep)
            self._raw = found if keep else None
            found = [gradient.detach() for gradient in found]
            total = found if total is None else [one + two for one, two in zip(total, found, strict=True)]
        return self._mean(total)

    def hessian_product(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """Return the product of the source loss's Hessian with a direction."""
        total = [torch.zeros_like(part) for part in direction]
        for micro_batch in self.passes:
            raw = self._raw if self._raw is not None else self._gradient(micro_batch, True)
            self._raw = None
            pairs = [(g, part) for g, part in zip(raw, direction, strict=True) if g.requires_grad]
            with _plain_attention():
                found = torch.autograd.grad(
                    [g for g, _ in pairs], self.parameters, [part for _, part in pairs], allow_unused=True
                )
            for place, product in enumerate(found):
                if product is not None:
                    total[place] += product
        return self._mean(total)

    def _gradient(self, micro_batch: MicroBatch, keep_graph: bool) -> list[Tensor]:
        trainer = self.trainer
        bare, window = trainer.bare_model(), trainer.window
        trainer.window, place = micro_batch.window, micro_batch.window.current
        micro_batch.window.current = micro_batch.place
        try:
            with generators(trainer.args.device, micro_batch.generators), _plain_attention():
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(bare, micro_batch.inputs, num_items_in_batch=micro_batch.window.units)
                found = torch.autograd.grad(loss, self.parameters, create_graph=keep_graph, allow_unused=True)
        finally:
            micro_batch.window.current = place
            trainer.window = window
        return [
            torch.zeros_like(parameter) if gradient is None else gradient
            for gradient, parameter in zip(found, self.parameters, strict=True)
        ]

    def _mean(self, tensors: list[Tensor]) -> list[Tensor]:
        if self.trainer.args.world_size == 1:
            return tensors
        return [self.trainer.accelerator.reduce(tensor.contiguous(), reduction="mean") for tensor in tensors]
