"""Small trainers for soft layer selection."""

from __future__ import annotations

from pathlib import Path

from contexts import STILL
from tiny import make_features, make_model, make_tokenizer
from transformers import DataCollatorWithPadding

from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer
from hf_xlt.strategies.soft_layers import SoftLayerSelectionConfig, SoftLayerSelectionTrainer

SETTINGS = {
    "per_device_train_batch_size": 8,
    "max_steps": 6,
    "learning_rate": 1e-3,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "logging_steps": 1,
}
DATA = make_features(44)
AUXILIARY = {
    "de": make_features(20, seed=3, language="de"),
    "sw": make_features(17, seed=4, language="sw"),
}


def config_of(folder: Path, cls=SoftLayerSelectionConfig, **changes):
    return cls(output_dir=str(folder), **{**SETTINGS, **changes})


def soft(folder: Path, *, model=None, data=None, auxiliary=None, still=True, trainer=None, **changes):
    """A trainer with gates; dropout off unless asked for."""
    model = make_model(**(STILL if still else {})) if model is None else model
    arguments = {"gates": None, "group_of": None, "in_phases": True, **(trainer or {})}
    return SoftLayerSelectionTrainer(
        model=model,
        args=config_of(folder, **changes),
        train_dataset=DATA if data is None else data,
        data_collator=DataCollatorWithPadding(make_tokenizer()),
        processing_class=make_tokenizer(),
        source_languages=("en",),
        role_datasets={"auxiliary": AUXILIARY if auxiliary is None else auxiliary},
        **arguments,
    )


def plain(folder: Path, *, still=True, **changes):
    """Plain fine-tuning with the same settings."""
    return FinetuneTrainer(
        model=make_model(**(STILL if still else {})),
        args=config_of(folder, FinetuneConfig, **changes),
        train_dataset=DATA,
        data_collator=DataCollatorWithPadding(make_tokenizer()),
        processing_class=make_tokenizer(),
    )
