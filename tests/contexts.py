"""A run's context over tiny data, for any entry of the registry."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tiny import CLASSES, make_config, make_features, make_model, make_rows, make_tokenizer
from transformers import BertForMaskedLM, BertForSequenceClassification, set_seed

from hf_xlt.adapters import wrap
from hf_xlt.data.labels import LabelInventory
from hf_xlt.peft_arguments import PeftArguments
from hf_xlt.registry import Strategy
from hf_xlt.tasks import get_task
from hf_xlt.training.interruption import InterruptionFlag
from hf_xlt.training.phases import RunContext

LORA = PeftArguments(peft="lora", lora_rank=4, lora_alpha=16, lora_dropout=0.1)
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_context(
    strategy: Strategy,
    folder: Path,
    *,
    dropout: bool = True,
    model: dict | None = None,
    peft: PeftArguments | None = None,
    **changes: Any,
) -> RunContext:
    """Build a context; `changes` are fields of the strategy's config, and `peft` puts adapters into its model."""
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
    if "meta_steps" in {entry.name for entry in dataclasses.fields(strategy.config_cls)}:
        settings |= {"meta_steps": changes.get("max_steps", 6), "meta_learning_rate": 1e-3}
        settings["meta_optimizer"] = changes.get("optim", "adamw_torch")
        # The adapters of one stage are merged into the weights that the next one freezes; one stage shows what moves.
        settings["fine_tune_first"] = peft is None
    if "text" in strategy.roles:
        settings |= {"total_steps": 4, "row_length": 16, "pretraining_batch_size": 4}
    torch.set_num_threads(1)
    task = get_task("text-classification")
    inventory = LabelInventory(CLASSES)
    architecture = {**({} if dropout else STILL), **(model or {})}

    def load_model(previous: Path | None) -> BertForSequenceClassification:
        if previous is None:
            loaded = make_model(**architecture)
            return loaded if peft is None else wrap(loaded, peft, task, seed=changes.get("seed", 42))
        # A new head comes from the global generator, wherever the phase before left it.
        set_seed(0)
        found = BertForSequenceClassification.from_pretrained(previous)
        return found if peft is None else wrap(found, peft, task, seed=changes.get("seed", 42))

    def load_masked_lm(previous: Path | None) -> BertForMaskedLM:
        if previous is None:
            set_seed(0)
            return BertForMaskedLM(make_config(**architecture))
        return BertForMaskedLM.from_pretrained(previous)

    shots = {language: make_features(9, seed=3, language=language) for language in ("de", "sw")}
    roles = {role: shots for role in strategy.roles if role not in ("source", "text")}
    if "text" in strategy.roles:
        roles["text"] = {
            language: Dataset.from_list(
                [{key: row[key] for key in ("id", "text")} for row in make_rows(language, 30, 7)]
            )
            for language in ("en", "de", "sw")
        }
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
        roles=roles,
        compute_metrics=task.compute_metrics(inventory),
        flag=InterruptionFlag(),
        load_masked_lm=load_masked_lm,
    )
