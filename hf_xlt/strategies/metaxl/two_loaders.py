"""`SourceAndTargetTrainer`: every update sees a source batch and a target batch; the baselines of MetaXL.

The source data drive the epochs. Joint training (JT) and target-only training are those of Xia et al. (2021), on the
batches of their published code (`baseline="published"`) or on those that MetaXL trains the model on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from hf_xlt.errors import ConfigError
from hf_xlt.strategies.metaxl.checks import REFUSALS
from hf_xlt.strategies.metaxl.config import MetaXLConfig
from hf_xlt.strategies.metaxl.passes import Passes
from hf_xlt.strategies.metaxl.placement import plain_model
from hf_xlt.strategies.metaxl.source_sampling import MIXED, SourceSampler
from hf_xlt.strategies.metaxl.target_batches import TargetDraw, target_pools
from hf_xlt.training.losses import count_group_units
from hf_xlt.training.refusals import check_arguments
from hf_xlt.training.trainer import XLTTrainer

TARGET, SOURCE = "target", "source"


@dataclass
class TargetWindow:
    """The target batches of an update on one process.

    Attributes:
        trains: G per micro-batch; None entries where the model sees no target batch.
        metas: E per micro-batch; None entries where the whole batch trains the model.
        units: (2,) of G and of E over all micro-batches and processes.
    """

    trains: list[dict[str, Any] | None] = field(default_factory=list)
    metas: list[dict[str, Any] | None] = field(default_factory=list)
    units: Tensor | None = None


class SourceAndTargetTrainer(XLTTrainer):
    """Trains on the weighted sum of a source and a target loss; takes a `MetaXLConfig`.

    Raises:
        ConfigError: there are no target examples or too few, or no source data by language for `source_sampling`.
    """

    config_cls = MetaXLConfig
    refusals = REFUSALS

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        *,
        train_dataset: Any = None,
        role_datasets: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Build a trainer; other arguments as for `XLTTrainer`.

        Args:
            model: as for `Trainer`.
            args: `MetaXLConfig`.
            train_dataset: source examples of all languages.
            role_datasets: `target`: labelled examples by target language; `source`: the source examples by language,
                which `source_sampling` other than mixed draws from.
            **kwargs: as for `XLTTrainer`.
        """
        check_arguments(type(self), args)
        roles = {role: dict(sets) for role, sets in (role_datasets or {}).items()}
        self.target_sizes = {language: len(dataset) for language, dataset in roles.get(TARGET, {}).items()}
        pools = target_pools(roles.get(TARGET, {}), None if args.target_resplit else args.split_portion)
        if args.trains_on_target_alone:
            train_dataset = next(iter(pools.values())) if len(pools) == 1 else ConcatDataset(list(pools.values()))
        super().__init__(model, args, train_dataset=train_dataset, role_datasets=roles | {TARGET: pools}, **kwargs)
        self.passes = Passes(plain_or_bare(self), None, self.compute_loss_context_manager)
        self.targets = TargetDraw(
            lambda pool, start, count: self.endless_loader(TARGET, pool).draw(start, count),
            size=args.target_size,
            portion=args.split_portion,
            rule=args.batch_split,
            resplit=args.target_resplit,
        )
        self.sampler = self._make_sampler(roles.get(SOURCE, {}))
        self.update_language: str | None = None
        self.target_window = TargetWindow()

    def _make_sampler(self, sources: Mapping[str, Any]) -> SourceSampler | None:
        config = self.args
        if config.source_sampling == MIXED:
            return None
        if len(sources) < 2:
            raise ConfigError(
                f"`source_sampling` {config.source_sampling} draws among source languages, and there are "
                f"{len(sources)} with data of their own. Give several in `role_datasets['source']` "
                "(`source_languages` of a run), or leave it at mixed."
            )
        return SourceSampler(
            {language: len(dataset) for language, dataset in sources.items()},
            config.source_sampling,
            seed=config.seed,
            temperature=config.sampling_temperature,
            exploration=config.exp3_gamma,
            reward_scale=config.exp3_reward_scale,
        )

    @property
    def sees_target(self) -> bool:
        """Whether an update draws a target batch; the published target-only baseline has it in the main loader."""
        return not self.args.trains_on_target_alone

    # ---- Batches

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Return the source micro-batches of one update and their units: (1,); draw the target batches beside them."""
        if self.sampler is not None:
            epoch_iterator = self._drawn_sources(epoch_iterator)
        batches, units = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.target_window = self._draw_targets(len(batches), device) if self.sees_target else TargetWindow()
        return batches, units

    def _slot(self, number: int) -> int:
        """Return the number of a micro-batch of this process among those of the update."""
        return number * self.args.world_size + self.args.process_index

    def _drawn_sources(self, epoch_iterator: Iterator) -> Iterator[dict[str, Any]]:
        """Let the main loader count the updates, and take the examples of one language instead of its own."""
        size = self._train_batch_size
        window = size * self.args.gradient_accumulation_steps * self.args.world_size
        self.update_language, start = self.sampler.draw(self.state.global_step, window)
        loader = self.endless_loader(SOURCE, self.update_language)
        for number, _ in enumerate(epoch_iterator):
            yield self._prepare_inputs(loader.draw(start + self._slot(number) * size, size))

    def _ignore_repeated(self, batch: dict[str, Any]) -> None:
        # Drawn batches are always full.
        if self.sampler is None:
            super()._ignore_repeated(batch)

    def _draw_targets(self, count: int, device: torch.device) -> TargetWindow:
        window, first = TargetWindow(), self.state.global_step * self.args.gradient_accumulation_steps
        whole = self.args.method != "metaxl" and self.args.split_portion is None
        for number in range(count):
            train, meta = self.targets.batch(first * self.args.world_size + self._slot(number))
            train, meta = (meta, None) if whole else (train, meta)
            window.trains.append(None if train is None else self._prepare_inputs(train))
            window.metas.append(None if meta is None else self._prepare_inputs(meta))
        units = torch.zeros(2, device=device)
        for place, group in enumerate((window.trains, window.metas)):
            for batch in group:
                if batch is not None:
                    units[place] += count_group_units(batch, None, 1).to(device)[0]
        window.units = self.over_processes(units).clamp(min=1.0)
        return window

    def over_processes(self, value: Tensor) -> Tensor:
        """Sum a tensor over processes."""
        return self.accelerator.reduce(value, reduction="sum") if self.args.world_size > 1 else value

    # ---- Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the source and target loss of a micro-batch; outside of training, the plain task loss.

        Args:
            model: wrapped or bare.
            inputs: source batch; it is not changed.
            return_outputs: only outside of training.
            num_items_in_batch: (1,) source units of the update.

        Returns:
            Scalar: this micro-batch's share of the update's loss, times the number of processes.
        """
        if not model.training or return_outputs or not self.sees_target:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        train = self.target_window.trains[self.window.current]
        source_share, target_share = self.args.loss_shares
        loss = 0.0
        if source_share:
            loss = source_share * self.passes.source(inputs, num_items_in_batch[0], model)
        if target_share:
            loss = loss + target_share * self.passes.target(train, self.target_window.units[0], model)
        return loss * self.args.world_size

    # ---- State

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the sampler's state; target batches are functions of the update's number."""
        return self.sampler.state() if self.sampler is not None else ({}, {})

    def load_strategy_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `strategy_state` returned."""
        if self.sampler is not None:
            self.sampler.load(tensors, values)

    def phase_facts(self) -> dict[str, Any]:
        """Return the target examples by language, and how often each source language was drawn.

        Where they are parted for good, also how many train the model and how many are the meta loss.
        """
        facts: dict[str, Any] = {
            "method": self.args.method,
            "target_examples": dict(self.target_sizes),
        }
        if len(self.role_datasets[TARGET]) > 1:
            facts["target_parts"] = {name: len(pool) for name, pool in self.role_datasets[TARGET].items()}
        if self.sampler is not None:
            facts["updates_by_source"] = dict(self.sampler.updates)
        return {"metaxl": facts}


def plain_or_bare(trainer: XLTTrainer) -> nn.Module:
    """Return the model as it is before any wrapping.

    Raises:
        ConfigError: it has no config to find its layers by.
    """
    if getattr(plain_model(trainer.model), "config", None) is None:
        raise ConfigError("this strategy needs a model of `transformers`, whose config says how many layers it has.")
    return trainer.model
