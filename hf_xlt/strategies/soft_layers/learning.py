"""Learning gates along a run: episodes of k updates, each closed by a query batch and a meta-update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_xlt.errors import ConfigError
from hf_xlt.modelling.seen_rows import with_whole_norm
from hf_xlt.strategies.soft_layers import audit
from hf_xlt.strategies.soft_layers.episodes import Episode
from hf_xlt.strategies.soft_layers.learner import GateLearner
from hf_xlt.strategies.soft_layers.meta_gradient import carried_products, group_products, reverse_episode
from hf_xlt.strategies.soft_layers.query import AUXILIARY, language_of, query_gradient
from hf_xlt.strategies.soft_layers.rates import update_of
from hf_xlt.strategies.soft_layers.replay import MicroBatch, SourceReplay, check_attention
from hf_xlt.strategies.soft_layers.source import ComputedGates

if TYPE_CHECKING:
    from hf_xlt.strategies.soft_layers.trainer import SoftLayerSelectionTrainer


class Learning:
    """The meta-training of a trainer.

    Attributes:
        learner: gates and their optimizer.
        episode: the one under way.
        audits: what the audit found.
        goes_back: whether exact gradients over several updates are computed, ever.
    """

    def __init__(self, trainer: SoftLayerSelectionTrainer) -> None:
        """Start; the model's weights are those that episodes of mode `episodic` start from.

        Raises:
            ConfigError: weights are of low precision, or exact gradients are asked of an attention kernel without.
        """
        self.trainer, self.config = trainer, trainer.args
        config, setup = trainer.args, trainer.setup
        self.parameters, self.index = setup.trained()
        if any(parameter.dtype not in (torch.float32, torch.float64) for parameter in self.parameters):
            raise ConfigError(
                "gates cannot be learned on weights of less than 32 bits: an update is smaller than the distance "
                "between two weights. Load the model in float32 and use `bf16`."
            )
        self.languages = tuple(trainer.role_datasets[AUXILIARY])
        self.source: ComputedGates = setup.source
        self.learner = GateLearner(
            self.source.gates,
            self.languages,
            config.meta_learning_rate,
            prior_weight=config.prior_weight,
            freezing_bonus=config.freezing_bonus,
        )
        self.exact = config.inner_steps > 1 and config.meta_gradient == "exact"
        self.goes_back = self.exact or (config.inner_steps > 1 and config.audit_episodes > 0)
        if self.goes_back:
            check_attention(trainer.model)
        self.episode = Episode()
        self.origin: list[Tensor] | None = None
        self.audits: list[dict[str, Any]] = []

    # ---- Episodes

    def records(self) -> bool:
        """Say whether the update under way is kept for the exact gradient."""
        return self.exact or (self.config.inner_steps > 1 and self._is_audited())

    def _is_audited(self) -> bool:
        if self.exact:
            return False
        episodes = self.trainer.state.max_steps // self.config.inner_steps
        return audit.audited(self.learner.count, episodes, self.config.audit_episodes)

    def before_update(self) -> list[float]:
        """Begin an episode where one is due, keep the update where asked, and return the gates of all groups."""
        episode, trainer = self.episode, self.trainer
        if self.config.mode == "episodic" and self.origin is None:
            self.origin = self._weights()
        if episode.done == 0:
            episode.progress = trainer.progress
            episode.recorded = self.records()
            if self._needs_start():
                episode.start = self.origin if self.origin is not None else self._weights()
        # The gates are those of the episode's start, computed anew: after resuming there is no graph of them.
        values = self.source.choose(episode.progress, trainer.setup.members)
        if episode.recorded:
            episode.record(trainer.gated, self.parameters)
        self._moved = [parameter.grad is not None for parameter in self.parameters]
        return trainer.setup.spread(values)

    def _needs_start(self) -> bool:
        if self.exact and self.config.gradient_normalization == "raw":
            return False
        kind = type(self.trainer.gated.optimizer)
        rebuilt = kind in (torch.optim.Adam, torch.optim.AdamW) and not any(
            group.get("amsgrad") or group.get("maximize") for group in self.trainer.gated.optimizer.param_groups
        )
        return self.config.inner_steps > 1 or not rebuilt

    def _weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def after_update(self) -> None:
        """Count an update; at the end of the episode update the gates."""
        self.episode.done += 1
        if self.episode.done < self.config.inner_steps:
            return
        self._meta_update()
        if self.config.mode == "episodic":
            with torch.no_grad():
                for parameter, start in zip(self.parameters, self.origin, strict=True):
                    parameter.copy_(start)
            self.trainer.gated.forget()
        self.episode = Episode()

    # ---- The meta-update

    def _meta_update(self) -> None:
        config, number = self.config, self.learner.count
        language = language_of(number, len(self.languages), config.auxiliary_schedule, config.seed)
        rounds = len(self.languages) if config.auxiliary_schedule == "round_robin" else 1
        query = query_gradient(
            self.trainer,
            self.parameters,
            language=self.languages[language],
            number=number // rounds,
            size=self.query_size,
            dropout=config.query_dropout,
        )
        gates = torch.tensor(self.trainer.gated.gates, dtype=torch.float64)
        exact, first_order = None, None
        if self.episode.recorded or config.gradient_normalization == "cosine":
            query = self._mean(query)
        if not self.exact:
            first_order = self._mean([self._first_order(query, gates)])[0]
        if self.episode.recorded:
            exact = self._exact(query, gates)
        gradient = exact if self.exact else first_order
        if config.gradient_normalization == "cosine":
            gradient = gradient / self._sizes(query, gates)
        chosen = self.trainer.setup.gated_numbers()
        if self.episode.recorded and not self.exact:
            names, update = self.trainer.setup.gated, self.trainer.state.global_step
            self.audits.append(audit.compare(first_order[chosen], exact[chosen], names, update))
            if self.trainer.is_world_process_zero():
                audit.warn(self.audits[-1], config.inner_steps)
        self.learner.learn(self.source.last, gradient[chosen], language, self.trainer.state.global_step)

    @property
    def query_size(self) -> int:
        """Examples of a query batch, over all processes."""
        config = self.config
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
        return config.auxiliary_batch_size or batch

    def _updates(self) -> list[Tensor]:
        """Rebuild the updates of an episode of one step, a tensor at a time."""
        optimizer, rates = self.trainer.gated.optimizer, self.trainer.gated.rates_of(self.parameters)
        settings = self.trainer.gated.settings_of(self.parameters)
        for place, parameter in enumerate(self.parameters):
            gate = self.trainer.gated.gates[self.index[place]]
            made = self._moved[place]
            yield update_of(optimizer, parameter, settings[place], rates[place], gate) if made else None

    def _first_order(self, query: Sequence[Tensor], gates: Tensor) -> Tensor:
        if self.episode.start is not None:
            return carried_products(query, self.episode.start, self._current(), gates, self.index)
        total = torch.zeros(len(gates), dtype=torch.float64)
        for q, update, group in zip(query, self._updates(), self.index, strict=True):
            if update is not None:
                total += group_products([q], [update], [group], len(gates))
        return total

    def _current(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.parameters]

    def _sizes(self, query: Sequence[Tensor], gates: Tensor) -> Tensor:
        """Return the norm of query gradient times that of the ungated update, by group; 1 where either is 0."""
        count = len(gates)
        if self.episode.start is not None:
            trios = zip(self._current(), self.episode.start, self.parameters, strict=True)
            moves = [with_whole_norm(end - start, parameter) for end, start, parameter in trios]
            moved = group_products(moves, moves, self.index, count) / gates**2
        else:
            moved = torch.zeros(count, dtype=torch.float64)
            for update, group, parameter in zip(self._updates(), self.index, self.parameters, strict=True):
                if update is not None:
                    update = with_whole_norm(update, parameter)
                    moved += group_products([update], [update], [group], count)
        sizes = (group_products(query, query, self.index, count) * moved).sqrt()
        return torch.where(torch.isfinite(sizes) & (sizes > 0), sizes, 1.0)

    def _exact(self, query: list[Tensor], gates: Tensor) -> Tensor:
        """Go back through the episode, and leave weights, mode and generators as they were."""
        trainer, current = self.trainer, self._weights()
        bare = trainer.bare_model()
        training = bare.training
        bare.train(True)
        try:
            return reverse_episode(
                query,
                self.episode.steps,
                gates,
                self.index,
                type(trainer.gated.optimizer),
                lambda step: SourceReplay(trainer, self.parameters, step),
                self.config.max_grad_norm or 0.0,
            )
        finally:
            bare.train(training)
            with torch.no_grad():
                for parameter, value in zip(self.parameters, current, strict=True):
                    parameter.copy_(value)

    def _mean(self, tensors: list[Tensor]) -> list[Tensor]:
        if self.config.world_size == 1:
            return tensors
        device, reduce = self.config.device, self.trainer.accelerator.reduce
        return [reduce(tensor.to(device), reduction="mean").to(tensor.device) for tensor in tensors]

    # ---- Checkpoints

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and values to save."""
        tensors, values = self.learner.state()
        tensors = {f"learner/{name}": value for name, value in tensors.items()}
        begun, about = self.episode.state()
        tensors |= {f"episode/{name}": value.clone() for name, value in begun.items()}
        tensors |= {f"origin/{place}": value for place, value in enumerate(self.origin or ())}
        return tensors, {"learner": values, "episode": about, "audits": self.audits}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any], passes: Sequence[list[MicroBatch]]) -> None:
        """Restore `state`; `passes` are this process's own examples of an episode that was cut short."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self.learner.load(under("learner/"), values["learner"])
        saved = under("origin/")
        if saved:
            self.origin = [saved[str(place)].to(p.device) for place, p in enumerate(self.parameters)]
        parts = (under("episode/"), values["episode"])
        self.episode = Episode.restore(*parts, self.trainer.gated, self.parameters, passes)
        self.audits = list(values["audits"])
