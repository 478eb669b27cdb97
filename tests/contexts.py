"""A run's context over tiny data, for any entry of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import CLASSES, make_features, make_model, make_tokenizer
from transformers import BertForSequenceClassification

from hf_xlt.data.labels import LabelInventory
from hf_xlt.registry import Strategy
from hf_xlt.tasks import get_task
from hf_xlt.training.interruption import InterruptionFlag
from hf_xlt.training.phases import RunContext

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_context(
    strategy: Strategy, folder: Path, *, dropout: bool = True, model: dict | None = None, **changes: Any
) -> RunContext:
    """Build a context; `changes` are fields of the strategy's config."""
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    torch.set_num_threads(1)
    task = get_task("text-classification")
    inventory = LabelInventory(CLASSES)
    architecture = {**({} if dropout else STILL), **(model or {})}

    def load_model(previous: Path | None) -> BertForSequenceClassification:
        if previous is None:
            return make_model(**architecture)
        return BertForSequenceClassification.from_pretrained(previous)

    shots = {language: make_features(9, seed=3, language=language) for language in ("de", "sw")}
    return RunContext(
        strategy=strategy,
        config=strategy.config_cls(**{**settings, **changes}),
        task=task,
        tokenizer=make_tokenizer(),
        load_model=load_model,
        training=make_features(44),
        validation={"en": make_features(9, seed=5)},
        source_languages=("en",),
        joint={},
        roles={role: shots for role in strategy.roles if role != "source"},
        compute_metrics=task.compute_metrics(inventory),
        flag=InterruptionFlag(),
    )
