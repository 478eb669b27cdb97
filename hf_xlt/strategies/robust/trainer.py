"""`RobustTrainer`: fine-tuning on embeddings that are perturbed adversarially (ADV) or at random (RS-RP).

Source: Huang et al. (2021), in the spirit of the abstract; see the package. What differs from plain fine-tuning is
`compute_loss` in training mode; evaluation is never perturbed.

What an update keeps as in plain fine-tuning: the training pass draws the same dropout masks from the global
generators, no `.grad` is touched before the backward pass, and at radius 0, under `method="none"` and before
`start_step` every bit is equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from hf_xlt.errors import ConfigError
from hf_xlt.randomness import derive_seed
from hf_xlt.strategies.robust import perturbation as maths
from hf_xlt.strategies.robust.config import REFUSALS, SHARDED, RobustConfig
from hf_xlt.strategies.robust.dropout import side_pass
from hf_xlt.strategies.robust.embedding_hook import gradient_to, perturbed_embeddings, word_embedding
from hf_xlt.strategies.robust.statistics import Statistics
from hf_xlt.strategies.robust.vocabulary import mean_embedding_norm, special_token_ids, warn_of_lost_shifts
from hf_xlt.training.trainer import XLTTrainer


class RobustTrainer(XLTTrainer):
    """Trains on perturbed word embeddings; takes a `RobustConfig`.

    ADV: K inner passes on the bare model find, per example, a perturbation in the ball that raises the loss; only
    the perturbation gets a gradient there. One pass on the wrapped model then trains on it. The inner graph is freed
    before that pass, so peak memory is that of plain training.

    RS-RP with several draws, and a clean-loss weight above 0, keep the activations of all training passes until
    the one backward pass: memory grows with their number.

    Raises:
        ConfigError: no `RobustConfig`; a refused combination of settings; or special tokens are to be left out and
            no tokenizer tells which they are.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build a trainer; arguments as for `XLTTrainer`."""
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, RobustConfig):
            raise ConfigError(f"`args` is a {type(self.args).__name__}; `RobustTrainer` takes a `RobustConfig`.")
        self._reference_norm: float | None = None
        self._statistics = Statistics()
        self._special_ids: Tensor | None = None
        if not self.args.perturbs:
            return
        for refusal in REFUSALS:
            if refusal.applies(self.args):
                raise ConfigError(refusal.reason)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(SHARDED)
        word_embedding(self.model)
        if not self.args.perturb_special_tokens:
            ids = special_token_ids(self.processing_class)
            if not ids:
                raise ConfigError(
                    "`perturb_special_tokens` is off, but no tokenizer says which tokens are special. Pass one as "
                    "`processing_class`, or leave it on."
                )
            self._special_ids = torch.tensor(ids, device=self.args.device)

    # ---- Radius

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `XLTTrainer.train`; the radius is fixed from the embeddings as they are now, or were at resume.

        Raises:
            RunError: the loss became non-finite.
        """
        if self.args.perturbs:
            self._reference_norm = None
            radius, weight = self._absolute(self.args.epsilon), word_embedding(self.bare_model()).weight
            warn_of_lost_shifts(weight, radius, per_coordinate=self.args.bounds_coordinates)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the norm that relative radii refer to."""
        return {}, {"reference_norm": self._reference_norm}

    def load_strategy_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore the norm that relative radii refer to."""
        self._reference_norm = values["reference_norm"]

    def _absolute(self, length: float) -> float:
        """Turn a radius or step size of the config into a length in embedding space."""
        if self.args.eps_mode == "absolute":
            return length
        if self._reference_norm is None:
            self._reference_norm = mean_embedding_norm(word_embedding(self.bare_model()).weight, self.processing_class)
        return length * self._reference_norm

    # ---- Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the task loss on perturbed embeddings; outside training, and while inactive, the plain one.

        Args:
            model: wrapped or bare.
            inputs: one batch; it is not changed.
            return_outputs: also return the outputs of the last perturbed pass.
            num_items_in_batch: as in `XLTTrainer.compute_loss`.

        Returns:
            Scalar loss, or (loss, outputs).
        """
        active = self.args.perturbs and self.state.global_step >= self.args.start_step
        if not (model.training and active):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._statistics.start_batch(first_of_update=self.window is None or self.window.current == 0)
        bare = self.bare_model()
        # Entered once around all passes, so that they share the cast copies of the weights.
        with self.accelerator.autocast():
            perturbations = self._perturbations(bare, inputs, num_items_in_batch)
            loss, outputs = self._training_passes(model, bare, inputs, perturbations, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _training_passes(
        self,
        model: nn.Module,
        bare: nn.Module,
        inputs: dict[str, Any],
        perturbations: list[Tensor],
        units: Tensor | None,
    ) -> tuple[Tensor, Any]:
        weight, plain_loss = self.args.clean_weight, super().compute_loss

        def perturbed_loss(perturbation: Tensor) -> tuple[Tensor, Any]:
            with perturbed_embeddings(bare, inputs, perturbation) as perturbed:
                return plain_loss(model, perturbed, True, units)

        # The last perturbed pass is the main one: it alone draws from the global generators.
        losses = []
        for number, perturbation in enumerate(perturbations[:-1]):
            with self._side_pass(bare, f"draw {number}", trains=True):
                losses.append(perturbed_loss(perturbation)[0])
        clean = None
        if weight > 0:
            with self._side_pass(bare, "clean", trains=True):
                clean = plain_loss(model, inputs, False, units)
            self._statistics.add("clean_loss", clean)
        loss, outputs = perturbed_loss(perturbations[-1])
        if losses:
            loss = torch.stack([*losses, loss]).mean()
        self._statistics.add("perturbed_loss", loss)
        return (loss if clean is None else weight * clean + (1.0 - weight) * loss), outputs

    def _side_pass(self, bare: nn.Module, purpose: str, *, trains: bool) -> AbstractContextManager[None]:
        """Guard a pass beside the main one; one that trains weights keeps its dropout under `eval` too."""
        dropout = "train" if trains and self.args.inner_dropout == "eval" else self.args.inner_dropout
        place = (self.state.global_step, self.window.current if self.window else 0, self.args.process_index)
        seed = derive_seed(self.args.seed, "robust-dropout", purpose, *place)
        return side_pass(bare, self.args.device, dropout, seed)

    # ---- Perturbations

    def _perturbations(self, bare: nn.Module, inputs: Mapping[str, Any], units: Tensor | None) -> list[Tensor]:
        """Return the perturbations to train on, each (B, T, D) and without history."""
        weight, config = word_embedding(bare).weight, self.args
        content = maths.content_positions(inputs, getattr(bare.config, "pad_token_id", None))
        mask = content
        if self._special_ids is not None:
            mask = content & ~torch.isin(inputs["input_ids"], self._special_ids)
        is_random = config.method == "rs_rp" or config.init != "zero"
        generators = self.window.generators("robust", content.device) if is_random else ()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        place = (content, mask, weight.shape[-1], generators, dtype)
        ball = maths.Ball(config.norm, config.norm_scope, self._absolute(config.epsilon))
        if config.method == "adv":
            start = maths.initial_perturbation(config.init, ball, *place)
            chosen = [self._ascend(bare, inputs, units, start, mask, ball)]
        else:
            chosen = [
                maths.draw_noise(config.noise, ball.scope, ball.radius, *place) for _ in range(config.num_samples)
            ]
        noise = config.noise if config.method == "rs_rp" else None
        self._statistics.add("norm_ratio", maths.norm_ratio(chosen[0], mask, ball, noise))
        return chosen

    def _ascend(
        self,
        bare: nn.Module,
        inputs: Mapping[str, Any],
        units: Tensor | None,
        delta: Tensor,
        mask: Tensor,
        ball: maths.Ball,
    ) -> Tensor:
        config, step_size = self.args, self._absolute(self.args.ascent_length)
        for step in range(config.steps):
            with self._side_pass(bare, f"ascent {step}", trains=False):
                gradient, losses = self._inner_gradient(bare, inputs, delta)
            if step == 0 and config.init == "zero" and config.clean_weight == 0:
                self._statistics.add("clean_loss", self._share_of_update(losses, units))
            delta, stuck = maths.ascend(delta, gradient, mask, ball, step_size, config.linf_direction)
            self._statistics.add("skipped_rows", stuck.sum())
        return delta

    def _inner_gradient(self, bare: nn.Module, inputs: Mapping[str, Any], delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient (B, T, D) of the summed losses at `delta`, up to scale, and the losses (B,)."""
        delta = delta.detach().requires_grad_()
        with perturbed_embeddings(bare, inputs, delta, detach=True) as perturbed:
            losses = self.losses_per_example(bare, perturbed)
        total = losses.sum()
        if self.accelerator.scaler is not None:
            # fp16: the scaler fits a mean over the batch. A power of two leaves each row's gradient exact, and only
            # `scale` is called: an overflow here must not lower the scale of the training pass.
            total = self.accelerator.scaler.scale(total / 2 ** math.ceil(math.log2(len(losses))))
        return gradient_to(delta, total), losses.detach()

    # ---- Log

    def _share_of_update(self, losses: Tensor, units: Tensor | None) -> Tensor:
        """Sum losses (B,) with the weights that the update's loss gives them, times the number of processes."""
        if units is None:
            return losses.mean()
        if units.numel() == 1:
            return losses.sum() / units[0] * self.args.world_size
        weights = (1.0 / (units * units.numel()))[self.window.group.to(units.device)]
        return (losses * weights).sum() * self.args.world_size

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `XLTTrainer.log`; with the training loss also what was perturbed since the last time.

        `robust_clean_loss` (where a pass at zero perturbation is made anyway), `robust_perturbed_loss`,
        `robust_norm_ratio` (mean norm / radius), `robust_skipped_rows` (examples without a usable gradient, summed
        over ascent steps).
        """
        if "loss" in logs:
            reduce = self.accelerator.reduce
            logs.update(self._statistics.drain(lambda sums: reduce(sums, reduction="sum"), self.args.world_size))
        super().log(logs, start_time)
