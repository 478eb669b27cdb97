"""`PerturbingTrainer`: where perturbations come from. Starts and noise per example, and the ascent of ADV."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_xlt.errors import ConfigError
from hf_xlt.randomness import derive_seed
from hf_xlt.strategies.robust import perturbation as maths
from hf_xlt.strategies.robust.augmentation import AUGMENTATION_FIELDS
from hf_xlt.strategies.robust.checks import REFUSALS, SHARDED
from hf_xlt.strategies.robust.config import RobustConfig
from hf_xlt.strategies.robust.dropout import side_pass
from hf_xlt.strategies.robust.embedding_hook import gradient_to, perturbed_embeddings, word_embedding
from hf_xlt.strategies.robust.noise import Place, draw_noise, initial_perturbation
from hf_xlt.strategies.robust.predictions import (
    counted_units,
    divergences,
    kind_of,
    logits_of,
    without_labels,
)
from hf_xlt.strategies.robust.statistics import Statistics
from hf_xlt.strategies.robust.vocabulary import mean_embedding_norm, special_token_ids, warn_of_lost_shifts
from hf_xlt.training.losses import count_group_units, labels_of
from hf_xlt.training.trainer import XLTTrainer


@contextmanager
def trial(model: nn.Module, config: RobustConfig, batch: Mapping[str, Any]) -> Iterator[None]:
    """Put a perturbation of zeros into the pass that is made inside, as training would.

    Raises:
        ConfigError: the model has no word embeddings that could be perturbed.
    """
    if not (config.perturbs or config.smoothing_radius > 0):
        yield
        return
    weight = word_embedding(model).weight
    nothing = torch.zeros(*batch["input_ids"].shape, weight.shape[-1], device=weight.device)
    with perturbed_embeddings(model, batch, nothing):
        yield


class PerturbingTrainer(XLTTrainer):
    """Finds perturbations of word embeddings; takes a `RobustConfig`. What trains on them is `RobustTrainer`.

    Raises:
        ConfigError: no `RobustConfig`; a refused combination of settings; or special tokens are to be left out and
            no tokenizer tells which they are.
    """

    config_cls = RobustConfig
    refusals = REFUSALS
    settings_of_phases = dict.fromkeys(
        AUGMENTATION_FIELDS,
        "text is augmented before it is encoded, which `hf-xlt run --strategy robust` does. Leave it at its default, "
        "and give `train_dataset` augmented.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build a trainer; arguments as for `XLTTrainer`."""
        super().__init__(*args, **kwargs)
        self._reference_norm: float | None = None
        self._statistics = Statistics()
        self._special_ids: Tensor | None = None
        if not (self.args.perturbs or self.args.smoothing_radius > 0):
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(SHARDED)
        word_embedding(self.model)
        if self.args.method == "freelb" and self.args.steps == 1 and self.args.init == "zero":
            warnings.warn(
                "`freelb` with one step from a zero start is plain fine-tuning. Set `steps` to 3, or another `init`.",
                stacklevel=2,
            )
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
            self._reference_norm = mean_embedding_norm(word_embedding(self.bare_model()), self.processing_class)
        return length * self._reference_norm

    def _ball(self) -> maths.Ball:
        return maths.Ball(self.args.norm, self.args.norm_scope, self._absolute(self.args.epsilon))

    # ---- Passes beside the main one

    def _side_pass(self, bare: nn.Module, purpose: str, *, trains: bool) -> AbstractContextManager[None]:
        """Guard a pass beside the main one; one that trains weights keeps its dropout under `eval` too."""
        dropout = "train" if trains and self.args.inner_dropout == "eval" else self.args.inner_dropout
        place = (self.state.global_step, self.window.current if self.window else 0, self.args.process_index)
        seed = derive_seed(self.args.seed, "robust-dropout", purpose, *place)
        return side_pass(bare, self.args.device, dropout, seed)

    # ---- Perturbations

    def _place(
        self, bare: nn.Module, inputs: Mapping[str, Any], generators: list[torch.Generator] | None = None
    ) -> Place:
        """Return where a batch may be perturbed; the generators are those of the update unless others are given."""
        weight, config = word_embedding(bare).weight, self.args
        content = maths.content_positions(inputs, getattr(bare.config, "pad_token_id", None))
        mask = content
        if self._special_ids is not None:
            mask = content & ~torch.isin(inputs["input_ids"], self._special_ids)
        if generators is None:
            is_random = config.method == "rs_rp" or config.init != "zero"
            generators = self.window.generators("robust", content.device) if is_random else []
        return Place(content, mask, weight.shape[-1], generators, torch.promote_types(weight.dtype, torch.float32))

    def _next_perturbation(self, place: Place) -> Tensor:
        """Return a perturbation (B, T, D): a draw of RS-RP's noise, or the point where an ascent starts."""
        config, ball = self.args, self._ball()
        if config.method == "rs_rp":
            return draw_noise(config.noise, ball.scope, ball.radius, place)
        return initial_perturbation(config.init, ball, place, config.init_scale)

    def _ascend(
        self,
        bare: nn.Module,
        inputs: Mapping[str, Any],
        place: Place,
        *,
        units: Tensor | None = None,
        first_gradient: Tensor | None = None,
        reference: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Search ADV's perturbation (B, T, D), without history.

        Args:
            bare: the bare model.
            inputs: one batch.
            place: where it may be perturbed.
            units: as in `compute_loss`, for the log.
            first_gradient: the gradient at the start, where another pass has found it.
            reference: logits of the clean prediction, to raise the divergence from it in place of the label's loss.
        """
        config, delta = self.args, self._next_perturbation(place)
        # A clean training pass, where there is one, tells the clean loss itself.
        notes_clean_loss = config.init == "zero" and config.clean_weight == 0 and config.consistency == "none"
        for step in range(config.steps):
            if step == 0 and first_gradient is not None:
                delta = self._climb(delta, first_gradient, place)
                continue
            with self._side_pass(bare, f"ascent {step}", trains=False):
                gradient, losses = self._inner_gradient(bare, inputs, delta, reference)
            if step == 0 and notes_clean_loss:
                self._statistics.add("clean_loss", self._share_of_update(losses, inputs, units))
            delta = self._climb(delta, gradient, place)
        return delta

    def _climb(self, delta: Tensor, gradient: Tensor, place: Place) -> Tensor:
        """Do one ascent step."""
        step_size = self._absolute(self.args.ascent_length)
        direction = self.args.linf_direction
        delta, stuck = maths.ascend(delta.detach(), gradient, place.mask, self._ball(), step_size, direction)
        self._statistics.add("skipped_rows", stuck.sum())
        return delta

    def _inner_gradient(
        self,
        bare: nn.Module,
        inputs: Mapping[str, Any],
        delta: Tensor,
        reference: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient (B, T, D) of the summed losses at `delta`, up to scale, and the losses (B,)."""
        delta = delta.detach().requires_grad_()
        with perturbed_embeddings(bare, inputs, delta, detach=True) as perturbed:
            if reference is None:
                losses = self.losses_per_example(bare, perturbed)
            else:
                noised = logits_of(bare(**without_labels(perturbed)))
                losses = self._divergences(bare, reference, noised, inputs, symmetric=False)
        total = losses.sum()
        if self.accelerator.scaler is not None:
            # fp16: the scaler fits a mean over the batch. A power of two leaves each row's gradient exact, and only
            # `scale` is called: an overflow here must not lower the scale of the training pass.
            total = self.accelerator.scaler.scale(total / 2 ** math.ceil(math.log2(len(losses))))
        return gradient_to(delta, total), losses.detach()

    def _divergences(
        self,
        bare: nn.Module,
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        inputs: Mapping[str, Any],
        *,
        symmetric: bool,
    ) -> Tensor:
        """Return each example's divergence (B,) between two predictions, summed over its units."""
        content = maths.content_positions(inputs, getattr(bare.config, "pad_token_id", None))
        kind = kind_of(first, bare.config, labels_of(inputs))
        counted = counted_units(inputs, first, content)
        return divergences(first, second, kind, counted, content, symmetric=symmetric)

    def _clean_prediction(self, bare: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the logits without perturbation, for an ascent that starts from no training pass of them."""
        with torch.no_grad(), self._side_pass(bare, "reference", trains=False):
            return logits_of(bare(**without_labels(inputs)))

    def _share_of_update(self, losses: Tensor, inputs: Mapping[str, Any], units: Tensor | None) -> Tensor:
        """Sum losses (B,) with the weights that the update's loss gives them, times the number of processes."""
        if units is None:
            return losses.sum() / count_group_units(inputs, None, 1).to(losses.device)[0].clamp(min=1.0)
        if units.numel() == 1:
            return losses.sum() / units[0] * self.args.world_size
        weights = (1.0 / (units * units.numel()))[self.window.group.to(units.device)]
        return (losses * weights).sum() * self.args.world_size
