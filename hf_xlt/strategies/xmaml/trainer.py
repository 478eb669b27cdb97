"""`XMAMLTrainer`: meta-updates of the initial weights on auxiliary languages.

Source: Nooralahzadeh et al. (2020) and their code. Departures from the code, each for a reason: query batches never
run dry, an example is never in both halves of an episode, there may be several inner steps, and the meta-gradient is
compared with the plain one in the log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_xlt.errors import ConfigError
from hf_xlt.randomness import derive_seed, generators
from hf_xlt.strategies.soft_layers.groups import HEAD as HEAD_GROUP
from hf_xlt.strategies.soft_layers.groups import find_groups
from hf_xlt.strategies.soft_layers.query import AUXILIARY, own_rows
from hf_xlt.strategies.soft_layers.replay import check_attention
from hf_xlt.strategies.xmaml.card import PLAIN, REPTILE
from hf_xlt.strategies.xmaml.config import ALL, HEAD, REFUSALS, XMAMLConfig
from hf_xlt.strategies.xmaml.episodes import cosine, meta_gradient
from hf_xlt.training.losses import count_units, labels_of
from hf_xlt.training.trainer import XLTTrainer

SUPPORT = "support"


class XMAMLTrainer(XLTTrainer):
    """Takes one meta-update per training step; takes an `XMAMLConfig`.

    The main loader's batches only count updates. Each step draws a task of every auxiliary language
    (`role_datasets["auxiliary"]`), adapts to its support, and adds up the gradients of the query losses with respect
    to the weights before; the optimizer does the rest. Processes work on their shares of a task, and gradients are
    averaged over them.

    Raises:
        ConfigError: activations are checkpointed, there are no auxiliary data, the inner scope names no weight, or the
            attention kernel has no second derivative.
    """

    config_cls = XMAMLConfig
    refusals = REFUSALS
    settings_of_phases = {
        "meta_steps": "set `max_steps` to the number of meta-updates.",
        "meta_learning_rate": "set `learning_rate`.",
        "meta_optimizer": "set `optim`.",
        "meta_max_grad_norm": "set `max_grad_norm`.",
        "few_shot_steps": "train on the shots afterwards with a `FinetuneTrainer`.",
        "few_shot_learning_rate": "it is that of a stage which the trainer does not make.",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build a trainer; arguments as for `XLTTrainer`."""
        super().__init__(*args, **kwargs)
        config: XMAMLConfig = self.args
        if config.gradient_checkpointing:
            raise ConfigError(
                "activation checkpointing runs forward passes again on the model's own weights, where inner steps "
                "need the adapted ones. Leave it off for `XMAMLTrainer`."
            )
        if not self.role_datasets.get(AUXILIARY):
            raise ConfigError(
                "there are no auxiliary languages to learn from: give labelled data of some in "
                "`role_datasets['auxiliary']` (`auxiliary_dataset` of a run)."
            )
        if config.episode == "cross_language":
            self.role_datasets[SUPPORT] = {"source": self.train_dataset}
        if config.needs_second_derivatives:
            check_attention(self.model)
        named = [(name, tensor) for name, tensor in self.model.named_parameters() if tensor.requires_grad]
        self._names, self._weights = [name for name, _ in named], [tensor for _, tensor in named]
        self._scope = self._find_scope()
        self._cosines: list[float] = []
        self._sums: list[Tensor] = []

    def _check_alone(self, config: XMAMLConfig, arguments: Mapping[str, Any]) -> None:
        super()._check_alone(config, arguments)
        problem = None
        if config.fine_tune_first:
            problem = (
                "`fine_tune_first` is on, and the trainer only meta-learns. Fine-tune on the source with a "
                "`FinetuneTrainer` before, and set it to False"
            )
        elif config.max_steps <= 0:
            problem = "`max_steps` is not set, which is the number of meta-updates"
        elif config.gradient_accumulation_steps > 1:
            problem = (
                f"`gradient_accumulation_steps` is {config.gradient_accumulation_steps}, which would add the same "
                "meta-gradient up so many times. Leave it at 1, and set `task_batch_size`"
            )
        elif arguments.get("joint_datasets"):
            problem = "`joint_datasets` would be ignored: tasks are drawn from `role_datasets['auxiliary']`"
        if problem:
            raise ConfigError(f"`XMAMLTrainer` alone: {problem}. `hf-xlt run --strategy xmaml` makes all stages.")

    def _find_scope(self) -> list[bool]:
        scope = self.args.inner_scope
        if scope == ALL:
            return [True] * len(self._names)
        if scope == HEAD:
            head = set(find_groups(self.model).members.get(HEAD_GROUP, ()))
            chosen = [name in head for name in self._names]
        else:
            chosen = [bool(re.search(scope, name)) for name in self._names]
        if not any(chosen):
            raise ConfigError(f"`inner_scope` {scope!r} names no weight of the model that is trained.")
        return chosen

    # ---- Training

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Compute the meta-gradient of all languages into `.grad`.

        Returns:
            Detached scalar: mean over languages of the loss that the meta-gradients descend on.
        """
        config, step = self.args, self.state.global_step
        model.train()
        languages = list(self.role_datasets[AUXILIARY])
        scale = 1.0 if config.aggregate == "sum" else 1.0 / len(languages)
        total: list[Tensor] | None = None
        losses, plain = [], None
        compares = config.cosine_steps > 0 and step % config.cosine_steps == 0 and config.order not in (PLAIN, REPTILE)
        for language in languages:
            task = _Task(self, language, step)
            # Each language's graph is freed before the next one's is built.
            with self._kernels():
                found, loss = meta_gradient(
                    self._weights,
                    task.support,
                    task.query,
                    order=config.order,
                    rate=config.inner_learning_rate,
                    steps=config.inner_steps,
                    scope=self._scope,
                    mean=self._mean,
                )
                if compares:
                    own, _ = meta_gradient(
                        self._weights, task.query, task.query, order=PLAIN, rate=0.0, mean=self._mean
                    )
                    plain = own if plain is None else [a.add_(b) for a, b in zip(plain, own, strict=True)]
            total = found if total is None else [a.add_(b) for a, b in zip(total, found, strict=True)]
            losses.append(loss)
        if plain is not None:
            self._cosines.append(cosine(total, plain))
        for weight, gradient in zip(self._weights, total, strict=True):
            weight.grad = gradient.mul_(scale) if scale != 1.0 else gradient
        self.window.advance()
        return torch.stack(losses).mean()

    def _kernels(self) -> Any:
        # Fused attention has no second derivative; the plain kernel is entered around this part only.
        return sdpa_kernel(SDPBackend.MATH) if self.args.needs_second_derivatives else nullcontext()

    def _mean(self, tensors: list[Tensor]) -> list[Tensor]:
        if self.args.world_size == 1:
            return tensors
        return [self.accelerator.reduce(tensor.contiguous(), reduction="mean") for tensor in tensors]

    @property
    def task_size(self) -> int:
        """Examples of a task, over all processes."""
        config = self.args
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
        return max(config.task_batch_size or batch, 2)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `XLTTrainer.log`; with the training loss also `meta_cosine`, where it was computed since."""
        if "loss" in logs and self._cosines:
            logs["meta_cosine"] = sum(self._cosines) / len(self._cosines)
            self._sums += [torch.tensor(value) for value in self._cosines]
            self._cosines = []
        super().log(logs, start_time)

    def phase_facts(self) -> dict[str, Any]:
        """Return what the record is to say: the order, the tasks, the mean cosine with plain gradients."""
        config = self.args
        values = [float(value) for value in self._sums] + self._cosines
        facts = {
            "order": config.order,
            "inner_steps": config.inner_steps,
            "inner_scope": config.inner_scope,
            "episode": config.episode,
            "auxiliary_languages": list(self.role_datasets[AUXILIARY]),
            "task_size": self.task_size,
            "mean_cosine_with_plain_gradient": round(sum(values) / len(values), 6) if values else None,
        }
        return {"xmaml": facts}

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the cosines so far; what is drawn is a function of the number of updates."""
        return {}, {"cosines": self._cosines, "sums": [float(value) for value in self._sums]}

    def load_strategy_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `strategy_state` returned."""
        self._cosines = list(values["cosines"])
        self._sums = [torch.tensor(value) for value in values["sums"]]


class _Task:
    """One language's examples of a meta-update, and their losses as functions of the weights."""

    def __init__(self, trainer: XMAMLTrainer, language: str, step: int) -> None:
        self.trainer, self.language, self.step = trainer, language, step
        config, size = trainer.args, trainer.task_size
        supports = min(max(round(size * config.support_share), 1), size - 1)
        whole = config.order in (PLAIN, REPTILE) and config.episode == "same_language"
        if config.episode == "cross_language":
            self._support = self._draw(SUPPORT, "source", step * supports, supports)
            self._query = self._draw(AUXILIARY, language, step * (size - supports), size - supports)
            if config.order == PLAIN:
                # The baseline trains on the same auxiliary examples.
                self._support = self._query
        elif whole:
            self._support = self._query = self._draw(AUXILIARY, language, step * size, size)
        else:
            start = step * size
            self._support = self._draw(AUXILIARY, language, start, supports)
            self._query = self._draw(AUXILIARY, language, start + supports, size - supports)
        self._passes = 0

    def _draw(self, role: str, language: str, start: int, size: int) -> tuple[dict[str, Any] | None, Tensor]:
        """Return this process's share of some examples, and the units of all of them."""
        trainer, args = self.trainer, self.trainer.args
        loader = trainer.endless_loader(role, language)
        place, count = own_rows(start, size, args.process_index, args.world_size)
        batch = trainer._prepare_inputs(loader.draw(place, count)) if count else None
        units = torch.zeros(1, device=args.device)
        if batch is not None:
            units += count_units(labels_of(batch)).to(args.device)
        if args.world_size > 1:
            units = trainer.accelerator.reduce(units, reduction="sum")
        return batch, units.clamp(min=1.0)

    def support(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the loss on the support."""
        self._passes += 1
        return self._loss(self._support, weights, f"support {self._passes}")

    def query(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the loss on the query."""
        return self._loss(self._query, weights, "query")

    def _loss(self, part: tuple[dict[str, Any] | None, Tensor], weights: Sequence[Tensor], purpose: str) -> Tensor:
        trainer, (batch, units) = self.trainer, part
        if batch is None:
            return sum((weight.sum() * 0.0 for weight in weights), torch.zeros((), device=units.device))
        args = trainer.args
        shadow = _Shadow(trainer.bare_model(), dict(zip(trainer._names, weights, strict=True)))
        seed = derive_seed(args.seed, "xmaml", self.step, self.language, purpose, args.process_index)
        with generators(args.device, seed), trainer.compute_loss_context_manager():
            return trainer.compute_loss(shadow, batch, num_items_in_batch=units)


class _Shadow:
    """The model with other weights, called as the model is."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        self.model, self.weights, self.config, self.training = model, weights, model.config, model.training

    def __call__(self, **inputs: Any) -> Any:
        return functional_call(self.model, self.weights, (), inputs)
