"""The phases of a run: learn the gates, then fine-tune from the pre-trained weights with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import SchedulerType
from transformers.trainer_utils import IntervalStrategy

from hf_xlt.strategies.soft_layers.card import GATES_NAME
from hf_xlt.strategies.soft_layers.config import SoftLayerSelectionConfig
from hf_xlt.strategies.soft_layers.cost import learning_cost
from hf_xlt.strategies.soft_layers.gates_file import GatesFile
from hf_xlt.strategies.soft_layers.trainer import SoftLayerSelectionTrainer
from hf_xlt.training.interruption import InterruptionCallback
from hf_xlt.training.phases import TRAIN, RunContext, RunPhase, single_phase

LEARN = "gates"


def soft_layer_phases(config: SoftLayerSelectionConfig) -> Sequence[RunPhase]:
    """Return the phases: one where gates are known or learned online, else two."""
    if not config.learns or config.mode == "online":
        return [RunPhase(TRAIN, single_phase(SoftLayerSelectionTrainer))]
    learning = learning_cost(config)
    return [
        RunPhase(LEARN, _learn, updates=config.gate_updates, cost=lambda languages: learning),
        RunPhase(TRAIN, _fine_tune, cost=lambda languages: 1.0),
    ]


def _learn(context: RunContext, folder: Path, previous: Path | None) -> SoftLayerSelectionTrainer:
    # Its model is thrown away: nothing of it is evaluated or selected.
    changes: dict[str, Any] = {"eval_strategy": IntervalStrategy.NO, "load_best_model_at_end": False}
    if context.config.gate_updates is not None:
        changes["max_steps"] = context.config.gate_updates
    if context.config.mode == "episodic":
        # Every episode is the start of a fine-tuning; a schedule over all of them would still the late ones.
        changes |= {"lr_scheduler_type": SchedulerType.CONSTANT, "warmup_steps": 0}
    config = context.config_for(folder, **changes)
    callbacks = [InterruptionCallback(context.flag), *context.extra_callbacks()]
    return context.build_trainer(
        SoftLayerSelectionTrainer, config, context.load_model(None), callbacks=callbacks, eval_dataset=None
    )


def _fine_tune(context: RunContext, folder: Path, previous: Path | None) -> SoftLayerSelectionTrainer:
    gates = GatesFile.read(previous / GATES_NAME)
    config = context.config_for(folder)
    return context.build_trainer(SoftLayerSelectionTrainer, config, context.load_model(None), gates=gates)
