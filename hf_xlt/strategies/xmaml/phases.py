"""The stages of X-MAML as phases: fine-tune on the source, meta-train on auxiliary languages, perhaps few shots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import SchedulerType
from transformers.trainer_utils import IntervalStrategy

from hf_xlt.data.augmentation import join_features
from hf_xlt.errors import ConfigError, setting
from hf_xlt.strategies.xmaml.config import XMAMLConfig
from hf_xlt.strategies.xmaml.cost import meta_cost
from hf_xlt.strategies.xmaml.trainer import XMAMLTrainer
from hf_xlt.training.interruption import InterruptionCallback
from hf_xlt.training.phases import SHOTS, RunContext, RunPhase
from hf_xlt.training.trainer import XLTTrainer

SOURCE, META, FEW_SHOT = "source", "meta", "few-shot"


def xmaml_phases(config: XMAMLConfig) -> Sequence[RunPhase]:
    """Return the stages that a config asks for."""

    def plain(languages: int) -> float:
        return 1.0

    def meta(languages: int) -> float:
        return languages * meta_cost(config) * (config.task_batch_size or _update_size(config)) / _update_size(config)

    phases = [RunPhase(SOURCE, _on_source, cost=plain)] if config.fine_tune_first else []
    phases.append(RunPhase(META, _meta_train, updates=config.meta_steps, cost=meta))
    if config.few_shot_steps:
        phases.append(RunPhase(FEW_SHOT, _on_shots, updates=config.few_shot_steps, cost=plain, examples=SHOTS))
    return phases


def _check_shots(context: RunContext) -> None:
    if context.config.few_shot_steps and not context.joint:
        raise ConfigError(
            f"{setting('few_shot_steps')} trains on shots of their own: add {setting('shots', '100')} with "
            f"{setting('few_shot_mode', 'joint')}."
        )


def _on_source(context: RunContext, folder: Path, previous: Path | None) -> XLTTrainer:
    _check_shots(context)
    # Shots are for the last stage where there is one.
    joint = {} if context.config.few_shot_steps else context.joint
    return context.build_trainer(
        XLTTrainer, context.config_for(folder), context.load_model(previous), joint_datasets=joint
    )


def _later(context: RunContext, folder: Path, **changes: Any) -> Any:
    """Copy the config for a stage of fixed length, at a constant rate, that selects nothing."""
    return context.config_for(
        folder,
        weight_decay=0.0,
        lr_scheduler_type=SchedulerType.CONSTANT,
        warmup_steps=0,
        eval_strategy=IntervalStrategy.NO,
        load_best_model_at_end=False,
        **changes,
    )


def _meta_train(context: RunContext, folder: Path, previous: Path | None) -> XMAMLTrainer:
    _check_shots(context)
    config = context.config
    own = _later(
        context,
        folder,
        max_steps=config.meta_steps,
        learning_rate=config.meta_learning_rate,
        optim=config.meta_optimizer,
        max_grad_norm=config.meta_max_grad_norm,
        # A task is as large as an update of the stage before; it is not cut into micro-batches.
        task_batch_size=config.task_batch_size or _update_size(config),
        gradient_accumulation_steps=1,
        # Its forward passes would be run again on the model's own weights in place of the adapted ones.
        gradient_checkpointing=False,
        activation_checkpointing=False,
    )
    return context.build_trainer(
        XMAMLTrainer,
        own,
        context.load_model(previous),
        joint_datasets={},
        eval_dataset=None,
        callbacks=[InterruptionCallback(context.flag), *context.extra_callbacks()],
    )


def _update_size(config: XMAMLConfig) -> int:
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size


def _on_shots(context: RunContext, folder: Path, previous: Path | None) -> XLTTrainer:
    config = context.config
    # As in the authors' scripts: AdamW with linear decay and clipping.
    own = context.config_for(
        folder,
        max_steps=config.few_shot_steps,
        learning_rate=config.few_shot_learning_rate,
        warmup_steps=0,
        eval_strategy=IntervalStrategy.NO,
        load_best_model_at_end=False,
    )
    return context.build_trainer(
        XLTTrainer,
        own,
        context.load_model(previous),
        train_dataset=join_features(list(context.joint.values())),
        joint_datasets={},
        eval_dataset=None,
        callbacks=[InterruptionCallback(context.flag), *context.extra_callbacks()],
    )
