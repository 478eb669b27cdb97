"""A tiny phase, its text and its trainer; a plan for the command, and the text that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from tiny import SPECIAL, WORDS, make_rows, make_tokenizer, write_rows
from transformers import AutoModelForMaskedLM, BertConfig, ModernBertConfig, XLMRobertaConfig, set_seed

from hf_xlt.pretraining.batches import PhaseText
from hf_xlt.pretraining.corpus import build_corpus
from hf_xlt.pretraining.loading import phase_text
from hf_xlt.pretraining.plan import Phase, Source
from hf_xlt.strategies.meta_pretraining import MetaPretrainingConfig, MetaPretrainingTrainer

TOKENIZER = make_tokenizer()
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHAPE = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
TRAINING = {"per_device_train_batch_size": 4, "row_length": 16, "learning_rate": 1e-3, "save_steps": 2}
ALL_OBJECTIVES = {"mlm": 1.0, "tlm": 0.5, "contrastive": 0.7}


def make_text(languages=("en", "de", "sw"), documents: int = 40, held_out_share: float = 0.0) -> PhaseText:
    """Parallel documents in several languages."""
    corpora = {
        language: build_corpus([make_rows(language, documents, seed=index)], TOKENIZER, f"the text of `{language}`")
        for index, language in enumerate(languages)
    }
    return phase_text(corpora, 0, held_out_share)


def make_encoder(kind: str = "bert", dropout: bool = True, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """A masked-LM model of two layers and width 32."""
    sizes = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }
    set_seed(seed)
    if kind == "modernbert":
        own = {"local_attention": 16, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
        return AutoModelForMaskedLM.from_config(ModernBertConfig(**{**sizes, **own, **changes}))
    still = {} if dropout else STILL
    config = {"bert": BertConfig, "xlm-roberta": XLMRobertaConfig}[kind]
    return AutoModelForMaskedLM.from_config(config(**{**sizes, **still, **changes}))


def make_config(folder: Path, **changes: Any) -> MetaPretrainingConfig:
    """Settings of a tiny phase."""
    settings = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "row_length": 16,
        "learning_rate": 1e-3,
        "save_steps": 3,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": [],
    }
    return MetaPretrainingConfig(**{**settings, **changes})


def make_phase(**changes: Any) -> Phase:
    """A phase over `make_text`."""
    settings = {"name": "cross", "steps": 8, "sources": (Source("text"),), "pairs": 4, "pair_length": 16}
    return Phase(**{**settings, **changes})


def make_trainer(
    folder: Path,
    phase: Phase | None = None,
    text: PhaseText | None = None,
    model: Any = None,
    moments: Any = None,
    **changes: Any,
) -> MetaPretrainingTrainer:
    """The trainer of a tiny phase."""
    torch.set_num_threads(1)
    phase = phase or make_phase()
    return MetaPretrainingTrainer(
        model=model if model is not None else make_encoder(),
        args=make_config(folder, **{"max_steps": phase.steps, **changes}),
        phase=phase,
        text=text or make_text(),
        processing_class=TOKENIZER,
        moments=moments,
    )


def make_world(root: Path) -> Path:
    """Write parallel text in three languages, and a tokenizer."""
    TOKENIZER.save_pretrained(root / "tokenizer")
    (root / "text").mkdir()
    for seed, language in enumerate(("en", "de", "sw")):
        write_rows(root / "text" / f"{language}.jsonl", make_rows(language, 40, seed))
    return root


def make_plan(world: Path, folder: Path, **changes: Any) -> str:
    """Write a plan of two phases; return its path."""
    plan = {
        "model": SHAPE,
        "tokenizer": str(world / "tokenizer"),
        "output_dir": str(folder / "out"),
        "threads": 1,
        "sources": [str(world / "text" / "{lang}.jsonl")],
        "training": {**TRAINING, "disable_tqdm": True, "logging_steps": 2},
        "phases": [
            {"name": "meta", "steps": 4, "sources": [{"text": str(world / "text/{lang}.jsonl"), "languages": "en"}]},
            {"name": "cross", "steps": 6, "objectives": ["mlm", "tlm", "contrastive"], "pairs": 4, "alpha": 0.5},
        ],
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**plan, **changes}), encoding="utf-8")
    return str(path)
