"""`RobustTrainer`: fine-tuning on embeddings that are perturbed adversarially (ADV, FreeLB) or at random (RS-RP).

Source: Huang et al. (2021), in the spirit of the abstract; see the package. FreeLB: Zhu et al. (2020), algorithm 1.
Consistency terms: R3F (Aghajanyan et al. 2021), VAT (Miyato et al. 2018), SMART (Jiang et al. 2020) without its
proximal part. Smoothed prediction: Cohen et al. (2019).

What an update keeps as in plain fine-tuning: one training pass draws the same dropout masks from the global
generators, and at radius 0, under `method="none"` and before `start_step` every bit is equal. Evaluation is plain
unless `smooth_predict` asks otherwise.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hf_xlt.strategies.robust import perturbation as maths
from hf_xlt.strategies.robust.dropout import main_pass_first
from hf_xlt.strategies.robust.embedding_hook import gradient_to, perturbed_embeddings
from hf_xlt.strategies.robust.noise import Place
from hf_xlt.strategies.robust.predictions import detached, logits_of, without_labels
from hf_xlt.strategies.robust.smoothing import SmoothingTrainer
from hf_xlt.training.losses import labels_of


class RobustTrainer(SmoothingTrainer):
    """Trains on perturbed word embeddings; takes a `RobustConfig`.

    ADV: K inner passes on the bare model find, per example, a perturbation in the ball that raises the loss; only
    the perturbation gets a gradient there. One pass on the wrapped model then trains on it. FreeLB: K training passes
    follow the ascent, whose gradient comes from their own backward passes. RS-RP: n training passes, each on a draw.

    Several training passes of an update are back-propagated one by one, so peak memory is that of plain training;
    processes exchange gradients in the last. With a consistency term the clean and the perturbed passes are coupled:
    their activations are kept until one backward pass.

    Raises:
        ConfigError: as `PerturbingTrainer`.
    """

    _backward_at_once = False

    # ---- Training

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Do one micro-batch as `XLTTrainer.training_step`; passes before the last have a backward pass of their own.

        Returns:
            Detached scalar: this micro-batch's share of the update's loss, times the number of processes.
        """
        self._backward_at_once = True
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._backward_at_once = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the loss on perturbed embeddings; outside training, and while inactive, the plain one.

        Args:
            model: wrapped or bare.
            inputs: one batch; it is not changed.
            return_outputs: also return the outputs of the last perturbed pass, or of the clean one with a consistency
                term.
            num_items_in_batch: as in `XLTTrainer.compute_loss`.

        Returns:
            Scalar loss, or (loss, outputs). Called by `training_step`, the loss has the value of all passes and the
            gradient of those that are not yet back-propagated.
        """
        active = self.args.perturbs and self.state.global_step >= self.args.start_step
        if not (model.training and active):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._statistics.start_batch(first_of_update=self.window is None or self.window.current == 0)
        train = self._loss_over_passes if self.args.consistency == "none" else self._loss_and_divergence
        # Entered once around all passes, so that they share the cast copies of the weights.
        with self.accelerator.autocast():
            loss, outputs = train(model, self.bare_model(), inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _pass(
        self,
        model: nn.Module,
        bare: nn.Module,
        inputs: dict[str, Any],
        units: Tensor | None,
        perturbation: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Return the task loss and the outputs of one training pass."""
        if perturbation is None:
            return super().compute_loss(model, inputs, True, units)
        with perturbed_embeddings(bare, inputs, perturbation) as perturbed:
            return super().compute_loss(model, perturbed, True, units)

    def _early_pass(
        self,
        model: nn.Module,
        bare: nn.Module,
        inputs: dict[str, Any],
        units: Tensor | None,
        perturbation: Tensor | None,
        *,
        share: float,
        purpose: str,
    ) -> Tensor:
        """Do a training pass before the last one.

        Returns:
            Scalar: `share` of its loss; without history when it is already back-propagated. A perturbation that
            requires a gradient has it in `.grad`.
        """
        # DDP decides in the forward pass whether the backward pass exchanges gradients.
        exchange = self.accelerator.no_sync(model) if self._backward_at_once else nullcontext()
        with exchange, self._side_pass(bare, purpose, trains=True):
            loss = share * self._pass(model, bare, inputs, units, perturbation)[0]
            if self._backward_at_once:
                with torch.autocast(loss.device.type, enabled=False):
                    self.accelerator.backward(loss)
                return loss.detach()
            if perturbation is not None and perturbation.requires_grad:
                perturbation.grad = gradient_to(perturbation, loss, keep_graph=True)
        return loss

    def _loss_over_passes(
        self, model: nn.Module, bare: nn.Module, inputs: dict[str, Any], units: Tensor | None
    ) -> tuple[Tensor, Any]:
        """Mix the clean loss and the mean over perturbed passes; the last pass draws from the global generators."""
        config, place = self.args, self._place(bare, inputs)
        clean, first_gradient = None, None
        if config.clean_weight > 0:
            start = self._next_perturbation(place).requires_grad_() if self._reuses_clean_pass() else None
            early = {"share": config.clean_weight, "purpose": "clean"}
            clean = self._early_pass(model, bare, inputs, units, start, **early)
            first_gradient = None if start is None else maths.rescale_rows(start.grad)
            self._statistics.add("clean_loss", clean / config.clean_weight)
        if config.method == "adv":
            reference = self._clean_prediction(bare, inputs) if config.inner_loss == "kl" else None
            gradients = {"first_gradient": first_gradient, "reference": reference}
            delta = self._ascend(bare, inputs, place, units=units, **gradients)
        else:
            delta = self._next_perturbation(place)
        losses, share = [], (1.0 - config.clean_weight) / config.training_passes
        for number in range(config.training_passes - 1):
            delta.requires_grad_(config.method == "freelb")
            early = {"share": share, "purpose": f"pass {number}"}
            losses.append(self._early_pass(model, bare, inputs, units, delta, **early))
            if config.method == "freelb":
                delta = self._climb(delta, maths.rescale_rows(delta.grad), place)
            else:
                delta = self._next_perturbation(place)
        loss, outputs = self._pass(model, bare, inputs, units, delta)
        loss = sum(losses, share * loss)
        self._note_loss(loss / (1.0 - config.clean_weight), losses, share)
        self._note_norm(delta, place)
        return (loss if clean is None else loss + clean), outputs

    def _reuses_clean_pass(self) -> bool:
        return self.args.reuses_clean_pass and self.compute_loss_func is None

    def _loss_and_divergence(
        self, model: nn.Module, bare: nn.Module, inputs: dict[str, Any], units: Tensor | None
    ) -> tuple[Tensor, Any]:
        """Add the divergence of perturbed predictions from the clean one to the clean loss.

        The wrapped model runs once, in the clean pass, which draws from the global generators: with a second pass
        that does not reach the word embeddings DDP would take them for unused.
        """
        config = self.args
        with main_pass_first(self.args.device) as rewind:
            if labels_of(inputs) or self.compute_loss_func is not None:
                loss, outputs = self._pass(model, bare, inputs, units)
            else:
                outputs, loss = model(**inputs), 0.0
            rewind()
            clean, place = logits_of(outputs), self._place(bare, inputs)
            reference = detached(clean) if config.inner_loss == "kl" else None
            found, unlabelled = [], without_labels(inputs)
            for number in range(config.training_passes):
                if config.method == "adv":
                    delta = self._ascend(bare, inputs, place, reference=reference)
                else:
                    delta = self._next_perturbation(place)
                noised_inputs = perturbed_embeddings(bare, unlabelled, delta, detach=config.detach_noised)
                with self._side_pass(bare, f"noised {number}", trains=True), noised_inputs as noised:
                    prediction = logits_of(bare(**noised))
                found.append(self._divergences(bare, clean, prediction, inputs, symmetric=True))
        divergence = self._share_of_update(torch.stack(found).mean(dim=0), inputs, units)
        self._statistics.add("clean_loss", torch.as_tensor(loss, device=divergence.device))
        self._statistics.add("consistency_loss", divergence)
        self._note_norm(delta, place)
        return loss + config.consistency_weight * divergence, outputs

    # ---- Log

    def _note_loss(self, loss: Tensor, early: list[Tensor], share: float) -> None:
        """Note the mean loss of the perturbed passes; FreeLB's first one is clean when it starts at zero."""
        config = self.args
        self._statistics.add("perturbed_loss", loss)
        if config.method == "freelb" and config.init == "zero" and config.clean_weight == 0 and early:
            self._statistics.add("clean_loss", early[0] / share)

    def _note_norm(self, delta: Tensor, place: Place) -> None:
        noise = self.args.noise if self.args.method == "rs_rp" else None
        self._statistics.add("norm_ratio", maths.norm_ratio(delta, place.mask, self._ball(), noise))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `XLTTrainer.log`; with the training loss also what was perturbed since the last time.

        `robust_clean_loss` (where a pass at zero perturbation is made anyway), `robust_perturbed_loss`,
        `robust_consistency_loss` (before its weight), `robust_norm_ratio` (mean norm / radius in the last perturbed
        pass), `robust_skipped_rows` (examples without a usable gradient, summed over ascent steps).
        """
        if "loss" in logs:
            reduce = self.accelerator.reduce
            logs.update(self._statistics.drain(lambda sums: reduce(sums, reduction="sum"), self.args.world_size))
        super().log(logs, start_time)
