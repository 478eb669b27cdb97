"""Plain fine-tuning on the source language: the baseline that every strategy is measured against.

Nothing is added to the stock Trainer's arithmetic: with one process and no gradient accumulation the weights are
bit-identical to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hf_xlt.registry import Strategy
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.trainer import XLTTrainer


@dataclass
class FinetuneConfig(XLTConfig):
    """Settings of plain fine-tuning: those of `XLTConfig`."""


class FinetuneTrainer(XLTTrainer):
    """Trains on the task loss alone."""


STRATEGY = Strategy(
    name="finetune",
    title="Plain fine-tuning",
    config_cls=FinetuneConfig,
    trainer_cls=FinetuneTrainer,
    summary="Fine-tune on the source language and apply the model to the target languages as it is.",
    peft=True,
)
