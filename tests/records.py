"""Run records built in code."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

from hf_xlt.languages import english_name, iso_code
from hf_xlt.record import FINISHED, LAST_CHECKPOINT, TARGET_VALIDATION, RunRecord
from hf_xlt.results import AUXILIARY, SOURCE, TARGET, LanguageScore, Results

ROBUST_PAPER = {
    "title": "Improving Zero-Shot Cross-Lingual Transfer Learning via Robust Training",
    "authors": "Kuan-Hao Huang, Wasi Uddin Ahmad, Nanyun Peng, Kai-Wei Chang",
    "venue": "EMNLP 2021, pages 1684-1697",
    "url": "https://arxiv.org/abs/2104.08645",
    "bibtex": "@inproceedings{huang-etal-2021-improving-zero,\n  title = {Improving Zero-Shot Cross-Lingual Transfer "
    "Learning via Robust Training},\n  year = {2021},\n}",
}
ACCURACY = {"en": 0.8125, "de": 0.7421875, "sw": 0.5, "quy": 0.40625}


def make_results(
    accuracy: dict[str, float] | None = None, source: str = "en", auxiliary: Collection[str] = ()
) -> Results:
    """Scores with accuracy, a macro F1 a little below, and a loss."""
    accuracy = ACCURACY if accuracy is None else accuracy
    return Results(
        "accuracy",
        tuple(
            LanguageScore(
                language,
                SOURCE if language == source else AUXILIARY if language in auxiliary else TARGET,
                1000 + 8 * number,
                {"accuracy": value, "macro_f1": value - 0.0078125, "loss": 1.25},
            )
            for number, (language, value) in enumerate(accuracy.items())
        ),
    )


def named(*codes: str) -> list[dict[str, str]]:
    """Languages as the record describes them."""
    return [{"code": code, "iso": iso_code(code), "name": english_name(code)} for code in codes]


def make_record(**changes: Any) -> RunRecord:
    """A finished zero-shot run of robust training from English into German, Swahili and Cusco Quechua."""
    pattern = "topic/{split}.{lang}.parquet"
    test = {"sources": [pattern], "hub_ids": [], "split": "test"}
    values: dict[str, Any] = {
        "strategy": {
            "name": "robust",
            "title": "Robust training",
            "summary": "Fine-tune on the source language against noise in the embeddings.",
            "notes": "In the spirit of the paper; no published number is reproduced.",
            "paper": ROBUST_PAPER,
        },
        "task": {
            "name": "text-classification",
            "pipeline_tag": "text-classification",
            "auto_model": "AutoModelForSequenceClassification",
            "metric": "accuracy",
        },
        "arguments": {"method": "adv", "epsilon": 0.01, "learning_rate": 2e-05, "seed": 7},
        "settings": {"strategy": "robust", "learning_rate": 2e-05, "bf16": False, "seed": 7},
        "model": {
            "name": "FacebookAI/xlm-roberta-base",
            "revision": None,
            "parameters": 278045955,
            "model_type": "xlm-roberta",
            "license": "mit",
        },
        "data": {
            "source": {
                "sources": [pattern],
                "hub_ids": [],
                "split": "train",
                "examples": {"en": 12000},
                "fingerprints": {"en": "0a1b2c3d4e5f60718293a4b5c6d7e8f9"},
            },
            "source test": {**test, "examples": {"en": 1000}, "fingerprints": {"en": "11" * 16}},
            "target": {
                **test,
                "examples": {"de": 1008, "sw": 1016, "quy": 1024},
                "fingerprints": {"de": "22" * 16, "sw": "33" * 16, "quy": "44" * 16},
            },
        },
        "languages": {"source": named("en"), "target": named("de", "sw", "quy")},
        "labels": ["bad", "good", "plain"],
        "seeds": {"seed": 7},
        "selection": {"protocol": LAST_CHECKPOINT, "metric": None, "languages": [], "oracle": False},
        "phases": [{"name": "train", "updates": 1125, "seconds": 610.5}],
        "versions": {"hf_xlt": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
        "hardware": {"device": "CPU", "processor": "x86_64, 2 logical cores", "processes": 1, "threads": 1},
        "wall_time_seconds": 650.0,
        "command": "hf-xlt run --strategy robust --model FacebookAI/xlm-roberta-base --dataset "
        "'topic/{split}.{lang}.parquet' --seed 7",
        "results": make_results().to_dict(),
        "status": FINISHED,
        "created": "2026-03-01",
    }
    return RunRecord(**{**values, **changes})


def make_oracle_record() -> RunRecord:
    """The same run, its checkpoint chosen on target-language labels."""
    return make_record(
        selection={"protocol": TARGET_VALIDATION, "metric": "target_avg_accuracy", "languages": [], "oracle": True}
    )


def make_demo_record() -> RunRecord:
    """A run of the embedded task, with its floor."""
    floor = make_results({"en": 0.75, "de": 0.25, "sw": 0.25, "quy": 0.125})
    test = {"sources": ["hf-xlt-cldr-phrases"], "hub_ids": [], "split": "test", "examples": {}, "fingerprints": {}}
    return make_record(
        model={
            "name": "hf-xlt-embedded-encoder",
            "revision": None,
            "parameters": 1_100_000,
            "model_type": "modernbert",
        },
        data={"source test": test, "target": test},
        floor=floor.to_dict(),
        demo=True,
    )


# What a run leaves in its folder and a push sends; README.md and xlt_run.json besides.
SENT = ("config.json", "model.safetensors", "results.json", "results.md", "tokenizer.json", "tokenizer_config.json")
# What a run or its user leaves there and a push does not send.
KEPT = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "pytorch_model.bin",
    "model.pkl",
    "trainer_state.json",
    "phases.json",
    "train.log",
    ".env",
    "checkpoint-5/model.safetensors",
    "phase-0-train/final/config.json",
    "last/model.safetensors",
    "runs/events.out",
    "evaluations/topic/results.json",
)


def make_run(folder: Path, record: RunRecord | None = None) -> Path:
    """A run's folder with small files, its card and its record, and everything that must stay where it is."""
    from hf_xlt.model_cards.card import render

    record = record or make_record()
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"stays here")
    for name in SENT:
        (folder / name).write_text(json.dumps({"file": name}))
    save_file({"weight": numpy.arange(600, dtype=numpy.float32)}, folder / "model.safetensors", {"format": "pt"})
    record.write(folder)
    (folder / "README.md").write_text(render(record), encoding="utf-8")
    return folder


PRETRAINING_PAPER = {
    "title": "Cross-Lingual Language Model Meta-Pretraining",
    "authors": "Zewen Chi, Heyan Huang, Luyang Liu, Yu Bai, Xian-Ling Mao",
    "venue": "arXiv 2109.11129, 2021",
    "url": "https://arxiv.org/abs/2109.11129",
    "bibtex": "@article{chi-etal-2021-meta-pretraining,\n  title = {Cross-Lingual Language Model Meta-Pretraining},\n"
    "  year = {2021},\n}",
}


def make_pretraining_phases() -> list[Any]:
    """One language, then three, the last of them from the Hub."""
    from hf_xlt.pretraining.plan import Phase, Source

    english, many = Source("text/{lang}.jsonl", ("en",)), Source("text/{lang}.jsonl", ("en", "de"))
    quechua = Source("org/quechua:{lang}", ("quy",), streaming=True)
    return [
        Phase("meta", 500, (english,), learning_rate=1e-3),
        Phase("cross", 1500, (many, quechua), {"mlm": 1.0}, alpha=0.4, floors={"en": 0.1}, whole_words=True),
    ]


def make_pretraining_record(**changes: Any) -> RunRecord:
    """A finished pre-training from random weights: English, then English, German and Ayacucho Quechua."""
    local = {"sources": ["text/{lang}.jsonl"], "hub_ids": [], "estimated": [], "row_tokens": 2_032_000}
    values: dict[str, Any] = {
        "strategy": {
            "name": "meta-pretrain",
            "title": "Meta-pretraining",
            "summary": "Pre-train on unlabelled text in two phases, and fine-tune on the source.",
            "notes": "From the abstract: the paper's two phases. All else is our choice.",
            "paper": PRETRAINING_PAPER,
        },
        "task": {
            "name": "fill-mask",
            "pipeline_tag": "fill-mask",
            "auto_model": "AutoModelForMaskedLM",
            "metric": "loss",
        },
        "arguments": {
            "per_device_train_batch_size": 32,
            "gradient_accumulation_steps": 1,
            "row_length": 128,
            "learning_rate": 5e-4,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.06,
            "weight_decay": 0.01,
            "adam_beta2": 0.98,
            "adam_epsilon": 1e-6,
            "attn_implementation": "eager",
        },
        "settings": {
            "learning_rate": 5e-4,
            "per_device_train_batch_size": 32,
            "held_out_share": 0.005,
            "disable_tqdm": True,
            "phases": [phase.definition() for phase in make_pretraining_phases()],
        },
        "model": {
            "name": None,
            "new": {"model_type": "modernbert", "hidden_size": 128, "num_hidden_layers": 2},
            "revision": None,
            "parameters": 1_234_567,
            "model_type": "modernbert",
            "tokenizer": "tokenizer",
        },
        "data": {
            "meta": {**local, "tokens": {"en": 5_000_000}, "shares": {"en": 1.0}, "epochs": {"en": 0.406}},
            "cross": {
                "sources": ["org/quechua:{lang}", "text/{lang}.jsonl"],
                "hub_ids": ["org/quechua"],
                "estimated": ["quy"],
                "row_tokens": 6_096_000,
                "tokens": {"en": 5_000_000, "de": 2_500_000, "quy": 90_000},
                "shares": {"en": 0.4819, "de": 0.3652, "quy": 0.1529},
                "epochs": {"en": 0.588, "de": 0.891, "quy": 10.356},
            },
        },
        "languages": {"text": named("en", "de", "quy")},
        "seeds": {"seed": 3},
        "phases": [
            {"name": "meta", "updates": 500, "seconds": 210.5},
            {"name": "cross", "updates": 1500, "seconds": 640.0},
        ],
        "versions": {"hf_xlt": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
        "hardware": {"device": "CPU", "processor": "x86_64, 2 logical cores", "processes": 1, "threads": 2},
        "wall_time_seconds": 870.0,
        "command": "hf-xlt pretrain --config plan.yaml --seed 3",
        "status": FINISHED,
        "created": "2026-03-01",
    }
    return RunRecord(**{**values, **changes})
