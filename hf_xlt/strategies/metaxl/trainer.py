"""`MetaXLTrainer`: source representations are transformed so that training on them helps the target most.

Source: Xia, Zheng, Mukherjee, Shokouhi, Neubig and Awadallah (2021), and their published code for what the abstract
leaves open. An update is

1. a virtual SGD step of the model on L_S(θ, φ) + L_G(θ), where the RTN φ transforms the source batch S,
2. the gradient of L_E at the virtual weights with respect to φ, and a step of φ,
3. the model's own step on L_S(θ, φ) + L_G(θ), with the new φ (`sequential`) or with the gradient of 1 (`reuse`).

The main pass draws the dropout masks of joint training; the meta passes have generators of their own. The RTN is no
part of the model, so what is saved is the plain encoder with its head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_xlt.errors import ConfigError
from hf_xlt.randomness import derive_seed, keyed_generator
from hf_xlt.strategies.metaxl.config import MetaXLConfig
from hf_xlt.strategies.metaxl.diagnostics import measure_and_draw, save_rtn
from hf_xlt.strategies.metaxl.evograd import EvoGrad, head_names
from hf_xlt.strategies.metaxl.meta_step import EVOGRAD, EXACT, NONE, MetaGradient, MetaStep, MetaWindow
from hf_xlt.strategies.metaxl.placement import Injection, plain_model
from hf_xlt.strategies.metaxl.rtn import RepresentationTransformation
from hf_xlt.strategies.metaxl.rtn_optimizer import RTNOptimizer
from hf_xlt.strategies.metaxl.statistics import MetaStatistics
from hf_xlt.strategies.metaxl.two_loaders import SourceAndTargetTrainer

logger = logging.get_logger(__name__)

_TWICE_DIFFERENTIABLE = (None, "eager", "sdpa")
# Above these rates the gradient of the virtual step is a poor stand-in for the model's own (measured).
_REUSE_RTN_RATE, _REUSE_RATE = 1e-4, 1e-3


def make_injection(bare: nn.Module, config: MetaXLConfig) -> Injection:
    """Make the RTN that a config asks for, and find its places in a model.

    Raises:
        ConfigError: a place is not found, or the model's attention cannot be differentiated twice.
    """
    attention = getattr(plain_model(bare).config, "_attn_implementation", None)
    if config.hypergrad == EXACT and attention not in _TWICE_DIFFERENTIABLE:
        raise ConfigError(
            f"attention `{attention}` cannot be differentiated twice. Load the model with "
            "`attn_implementation` sdpa or eager, or set `hypergrad` to finite_difference."
        )
    if config.hypergrad == EVOGRAD and not head_names(
        bare, [n for n, p in bare.named_parameters() if p.requires_grad]
    ):
        raise ConfigError("`hypergrad` evograd varies the head, and this model trains none. Choose exact.")
    rtn = RepresentationTransformation(
        plain_model(bare).config.get_text_config().hidden_size,
        len(config.places),
        bottleneck=config.rtn_bottleneck,
        gate=config.rtn_gate,
        activation=config.rtn_activation,
        init=config.rtn_init,
        generator=keyed_generator(config.seed, "metaxl", "rtn"),
    )
    # Float32, or wider where the model is.
    widest = torch.promote_types(torch.float32, next(bare.parameters()).dtype)
    rtn = rtn.to(config.device, widest).requires_grad_(config.hypergrad == NONE)
    return Injection(bare, rtn, config.places, config.rtn_detach_input)


@contextmanager
def trial(model: nn.Module, config: MetaXLConfig, batch: Mapping[str, Any]) -> Iterator[None]:
    """Transform the hidden states of all places in the pass that is made inside.

    Raises:
        ConfigError: as `make_injection`, or a place is not one module that runs once.
    """
    with ExitStack() as stack:
        if config.method == "metaxl":
            injection = make_injection(model, config)
            for slot in range(len(injection.places)):
                stack.enter_context(injection.active(slot))
        yield


class MetaXLTrainer(SourceAndTargetTrainer):
    """Trains with an RTN; takes a `MetaXLConfig`. With another `method` than metaxl it is the baseline.

    Raises:
        ConfigError: as `SourceAndTargetTrainer`; the RTN's place is not found, or the model's attention cannot be
            differentiated twice.
    """

    def __init__(self, model: nn.Module, args: Any, **kwargs: Any) -> None:
        """Build a trainer; arguments as for `SourceAndTargetTrainer`."""
        super().__init__(model, args, **kwargs)
        self.rtn_optimizer: RTNOptimizer | None = None
        self._reused: Tensor | None = None
        self._sources: list[dict[str, Any]] = []
        self._units: Tensor | None = None
        self.statistics = MetaStatistics()
        if args.method == "metaxl":
            self._add_rtn()

    def _add_rtn(self) -> None:
        config = self.args
        self.passes.injection = make_injection(self.model, config)
        self.rtn_optimizer = RTNOptimizer(
            self.passes.injection.rtn,
            rate=config.rtn_lr,
            weight_decay=config.rtn_weight_decay,
            warmup_ratio=config.rtn_warmup_ratio,
            max_grad_norm=config.rtn_max_grad_norm,
        )
        rates = (config.rtn_lr > _REUSE_RTN_RATE, config.learning_rate > _REUSE_RATE)
        if config.update_order == "reuse" and any(rates):
            logger.warning(
                f"`update_order` reuse takes the model's gradient before the RTN's step; at `rtn_lr` {config.rtn_lr} "
                f"and `learning_rate` {config.learning_rate} it differs from the sequential one. Lower them, or leave "
                "it at sequential."
            )

    @property
    def rtn(self) -> RepresentationTransformation | None:
        """The RTN; None in a baseline."""
        return self.passes.injection.rtn if self.passes.injection else None

    # ---- Training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `XLTTrainer.train`; the RTN is saved beside the model where `save_rtn` asks for it."""
        output = super().train(*args, **kwargs)
        if self.args.save_rtn and self.rtn is not None and self.args.should_save:
            save_rtn(self.rtn, self.args)
        return output

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Do one micro-batch; before the first of an update, the meta step over all of them.

        Returns:
            Detached scalar: this micro-batch's share of the update's loss, times the number of processes. With
            `reuse` the first micro-batch has the loss of all.
        """
        if self.window.current == 0:
            self._reused = self._meta_update(model) if self.args.bilevel else None
        if self._reused is not None:
            loss = self._reused if self.window.current == 0 else torch.zeros_like(self._reused)
            self.window.advance()
            return loss
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.args.method == "metaxl" and self.args.hypergrad == NONE and self.accelerator.sync_gradients:
            self._step_jointly()
        return loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Tensor]:
        """Return the micro-batches of one update as `SourceAndTargetTrainer`, and keep them for the meta step."""
        self._sources, self._units = super().get_batch_samples(*args, **kwargs)
        return self._sources, self._units

    def virtual_rate(self) -> float:
        """Return η, the length of the virtual step: the model's learning rate at this update, unless given."""
        if self.args.inner_lr is not None:
            return self.args.inner_lr
        return float(self.optimizer.param_groups[0]["lr"])

    def _meta_update(self, model: nn.Module) -> Tensor | None:
        """Step the RTN; return this process's loss when the model's gradients are set as well, else None."""
        config, update = self.args, self.state.global_step
        rate = self.virtual_rate()
        # A virtual step of length 0 says nothing of the RTN; Adam would be fed its weight decay alone.
        if rate == 0 or update % config.meta_every:
            return None
        model.train()
        found = self.meta_gradient(rate)
        scale = rate if config.meta_grad_scale == "eta" and config.hypergrad != EVOGRAD else 1.0
        gradients = [None if value is None else scale * value for value in found.phi]
        norm = self._step_rtn(gradients)
        self.statistics.add(found.losses, found.traces, norm)
        if self.sampler is not None:
            self.sampler.reward(self.update_language, float(found.losses["meta"]))
        if config.update_order != "reuse":
            return None
        found.weights.set_gradients(found.inner)
        return found.own_inner_loss.detach() * self.args.world_size

    def meta_gradient(self, rate: float) -> MetaGradient:
        """Compute the meta gradient of the update whose batches were drawn last.

        Args:
            rate: η.
        """
        config, update, rank = self.args, self.state.global_step, self.args.process_index
        window = MetaWindow(
            [self._prepare_inputs(batch) for batch in self._sources],
            self.target_window.trains,
            self.target_window.metas,
            (self._units[0], *self.target_window.units),
            config.loss_shares,
        )
        step = MetaStep(
            self.passes,
            config.hypergrad,
            config.fd_scale,
            EvoGrad(
                config.evograd_population,
                config.evograd_sigma,
                config.evograd_temperature,
                (config.seed, "metaxl", update),
            ),
            self.over_processes,
        )
        # The reused gradient is the model's own, so its masks are those that plain training would draw.
        inner = None if config.update_order == "reuse" else derive_seed(config.seed, "metaxl", "inner", update, rank)
        meta = derive_seed(config.seed, "metaxl", "meta", update, rank)
        return step.run(window, rate, inner_seed=inner, meta_seed=meta)

    def _step_rtn(self, gradients: list[Tensor | None]) -> Tensor | None:
        return self.rtn_optimizer.step(gradients, self.state.global_step, self.state.max_steps)

    def _step_jointly(self) -> None:
        """Step the RTN with the gradient that the main backward passes left in it."""
        gradients = [parameter.grad for parameter in self.rtn.parameters()]
        if self.args.world_size > 1:
            gradients = [None if value is None else self.over_processes(value) for value in gradients]
            gradients = [None if value is None else value / self.args.world_size for value in gradients]
        self.statistics.add({}, [], self._step_rtn(gradients))

    # ---- Log and state

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `XLTTrainer.log`; with the training loss also what the meta updates did since the last time.

        `metaxl_loss_source`, `metaxl_loss_target_train`, `metaxl_loss_meta`, `metaxl_gradient_norm` (of ∇φJ),
        `metaxl_gate` (mean), `metaxl_change_ratio` (‖f(u)‖ / ‖h‖), `metaxl_rtn_lr`, `metaxl_skipped` (RTN steps whose
        gradient was not finite, in all), `metaxl_decay_ratio` (‖decay · φ‖ / ‖∇φJ‖).
        """
        if "loss" in logs and self.rtn_optimizer is not None:
            logs |= self.statistics.drain(self.rtn_optimizer, self.state.global_step, self.state.max_steps)
        super().log(logs, start_time)

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the RTN, its moments and counters, and the sampler's state."""
        tensors, values = super().strategy_state()
        if self.rtn_optimizer is None:
            return tensors, values
        own_tensors, own_values = self.rtn_optimizer.state()
        return tensors | own_tensors, values | own_values

    def load_strategy_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `strategy_state` returned."""
        super().load_strategy_state(tensors, values)
        if self.rtn_optimizer is not None:
            self.rtn_optimizer.load(tensors, values)

    def phase_facts(self) -> dict[str, Any]:
        """Return what the RTN is and how often it was stepped; with `diagnostics` the distances it made."""
        facts = super().phase_facts()
        if self.rtn_optimizer is None:
            return facts
        own = facts["metaxl"]
        own["rtn_parameters"] = sum(parameter.numel() for parameter in self.rtn.parameters())
        own["rtn_steps"], own["rtn_skipped"] = self.rtn_optimizer.steps, self.rtn_optimizer.skipped
        own["slot_weights"] = [round(value, 4) for value in self.rtn.mixture().tolist()]
        if self.args.diagnostics:
            own["diagnostics"] = measure_and_draw(self)
        return facts
