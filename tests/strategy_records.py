"""One finished run of every strategy, as records built in code, and the golden cards that they give.

`PYTHONPATH=. python tests/strategy_records.py` writes the golden cards anew; read what has changed before committing.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from records import ACCURACY, make_record, make_results, named

from hf_xlt.averaging.report import PAPER
from hf_xlt.record import SOURCE_VALIDATION, RunRecord
from hf_xlt.registry import get_strategy
from hf_xlt.strategies.soft_layers.card import CLOSE, NO_EVIDENCE, OPEN

GOLDEN = Path(__file__).parent / "golden"
REPO = "user/topic-model"
_PATTERN = "topic/{split}.{lang}.parquet"
_CITATION = "@inproceedings{topic-2024,\n  title = {A Topic Data Set},\n  year = {2024},\n}"
# Five targets, of which the three lowest are named.
_ACCURACY = {"en": 0.8125, "de": 0.75, "fr": 0.71875, "sw": 0.5, "yo": 0.4375, "quy": 0.40625}


def _of(name: str, defaults: tuple[str, ...] = (), **changes: Any) -> RunRecord:
    """A record with a strategy's real names, words and paper."""
    entry = get_strategy(name)
    strategy = {
        "name": entry.name,
        "title": entry.title,
        "paper": dataclasses.asdict(entry.paper) if entry.paper else None,
        "defaults": list(defaults),
    }
    start = {"strategy": strategy, "command": f"hf-xlt run --strategy {name} --dataset '{_PATTERN}' --seed 7"}
    return make_record(**{**start, "plots": ["results.png"], "settings": {"learning_rate": 2e-05}, **changes})


def _with(role: str, languages: list[dict[str, str]], split: str = "train") -> dict[str, Any]:
    """The data and languages of the usual record, and one more role."""
    plain = make_record()
    codes = [language["code"] for language in languages]
    entry = {
        "sources": [_PATTERN],
        "hub_ids": [],
        "split": split,
        "examples": {code: 400 + number for number, code in enumerate(codes)},
        "fingerprints": {code: f"{number}c" * 16 for number, code in enumerate(codes)},
    }
    return {"data": {**plain.data, role: entry}, "languages": {**plain.languages, role: languages}}


def finetune() -> RunRecord:
    """Few-shot and joint, from data of the Hub that give licence and citation, selected on the source."""
    hub = {"sources": ["org/topic"], "hub_ids": ["org/topic"], "licenses": {"org/topic": "cc-by-4.0"}}
    data = {role: {**entry, **hub, "citations": [_CITATION]} for role, entry in make_record().data.items()}
    zero_shot = {language: value - 0.0625 for language, value in _ACCURACY.items()}
    return _of(
        "finetune",
        few_shot={"shots": 10, "shot_seed": 3, "mode": "joint"},
        seeds={"seed": 7, "shot_seed": 3},
        data=data,
        languages={"source": named("en"), "target": named("de", "fr", "sw", "yo", "quy", "so")},
        results=make_results(_ACCURACY).to_dict(),
        zero_shot=make_results(zero_shot).to_dict(),
        selection={"protocol": SOURCE_VALIDATION, "metric": "source_avg_accuracy", "languages": ["en"]},
    )


def robust() -> RunRecord:
    """Zero-shot, with one setting of its own changed."""
    settings = {"method": "adv", "epsilon": 0.02, "steps": 1, "learning_rate": 2e-05}
    return _of("robust", ("method", "steps"), settings=settings)


def meta_pretrain() -> RunRecord:
    """With unlabelled text in three languages, one of them not scored, and held-out losses."""
    losses = {"en": 2.125, "de": 2.5, "wo": 3.0625}
    phases = [
        {"name": "meta", "updates": 500, "seconds": 60.0, "held_out_loss": {"en": 2.25}},
        {"name": "cross", "updates": 1500, "seconds": 180.0, "held_out_loss": losses},
        {"name": "finetune", "updates": 1125, "seconds": 300.0},
    ]
    return _of("meta-pretrain", phases=phases, **_with("text", named("en", "de", "wo")))


def averaging() -> RunRecord:
    """The mean of four snapshots of one run."""
    facts = {"mode": "uniform", "every": 0.25, "snapshots": 4, "steps": [282, 563, 844, 1125], "beside": "last"}
    return _of("averaging", phases=[{"name": "train", "updates": 1125, "seconds": 610.5, "averaging": facts}])


def run_averaging() -> RunRecord:
    """The mean of three runs, as `hf-xlt average` and `hf-xlt evaluate` leave it."""
    parents = [
        {
            "strategy": {"name": "finetune"},
            "seeds": {"seed": seed},
            "target_average": 0.53125 + seed / 128,
            "command": f"hf-xlt run --strategy finetune --dataset '{_PATTERN}' --seed {seed}",
        }
        for seed in (1, 2, 3)
    ]
    settings = {"mode": "uniform", "checkpoints": ["run-1", "run-2", "run-3"], "weights": [0.333333] * 3}
    command = "hf-xlt average --run run-1 --run run-2 --run run-3"
    strategy = {
        "name": "averaging",
        "title": "Run averaging",
        "paper": PAPER,
        "made_of": {"checkpoints": 3, "runs": 3, "of_means": []},
    }
    empty = {"phases": [], "seeds": {}, "selection": {}}
    return _of("averaging", strategy=strategy, parents=parents, settings=settings, command=command, **empty)


def metaxl() -> RunRecord:
    """Few-shot, with measured distances and their picture."""
    facts = {
        "method": "metaxl",
        "target_examples": {"de": 10, "sw": 10, "quy": 10},
        "rtn_parameters": 295_104,
        "rtn_steps": 1100,
        "rtn_skipped": 25,
        "diagnostics": {
            "centroid_plain": 1.625,
            "centroid_transformed": 1.375,
            "hausdorff_plain": 8.5,
            "hausdorff_transformed": 8.25,
            "figure": "representations.png",
        },
    }
    phases = [{"name": "train", "updates": 1125, "seconds": 900.0, "metaxl": facts}]
    return _of(
        "metaxl",
        ("rtn_lr",),
        phases=phases,
        settings={"rtn_lr": 1e-06, "rtn_bottleneck": 96, "learning_rate": 2e-05},
        plots=["results.png", "representations.png"],
        few_shot={"shots": 10, "shot_seed": 0, "mode": "metaxl"},
        seeds={"seed": 7, "shot_seed": 0},
        **_with("few-shot", named("de", "sw", "quy")) | {"languages": make_record().languages},
    )


def soft_layers() -> RunRecord:
    """Gates learned on one auxiliary language: one open, one closed, two without evidence."""
    facts = {
        "gates": {"word_embeddings": 0.25, "layer_0": 0.515625, "layer_1": 0.484375, "layer_2": 0.875},
        "open_groups": ["head"],
        "mean_gate": 0.53125,
        "learned_here": True,
        "updates": 1125,
        "auxiliary_languages": ["hi"],
        "verdicts": {"word_embeddings": CLOSE, "layer_0": NO_EVIDENCE, "layer_1": NO_EVIDENCE, "layer_2": OPEN},
        "signal_to_noise": {"word_embeddings": 6.25, "layer_0": 0.5, "layer_1": 1.75, "layer_2": 4.5},
        "movement": {
            "word_embeddings": {"learning_rate": 5e-06, "displacement": 0.00125},
            "layer_0": {"learning_rate": 1.03e-05, "displacement": 0.0625},
            "layer_1": {"learning_rate": 9.69e-06, "displacement": 0.0375},
            "layer_2": {"learning_rate": 1.75e-05, "displacement": 0.125},
            "head": {"learning_rate": 2e-05, "displacement": None},
        },
    }
    phases = [{"name": name, "updates": 1125, "seconds": 400.0, "soft_layers": facts} for name in ("gates", "train")]
    plots = ["results.png", "gates.png"]
    own = _with("auxiliary", named("hi"))
    own["data"]["auxiliary test"] = {**own["data"]["auxiliary"], "split": "test"}
    results = make_results({**ACCURACY, "hi": 0.6875}, auxiliary=("hi",)).to_dict()
    return _of("soft-layers", ("mode",), phases=phases, plots=plots, results=results, **own)


def xmaml() -> RunRecord:
    """Meta-learned on two auxiliary languages."""
    facts = {"order": "second", "auxiliary_languages": ["hi", "fr"], "task_size": 16}
    facts["mean_cosine_with_plain_gradient"] = 0.9375
    phases = [
        {"name": "source", "updates": 1125, "seconds": 610.5},
        {"name": "meta", "updates": 200, "seconds": 90.0, "xmaml": facts},
    ]
    settings = {"inner_learning_rate": 1e-03, "meta_steps": 200, "order": "second"}
    return _of("xmaml", ("order",), phases=phases, settings=settings, **_with("auxiliary", named("hi", "fr")))


def lora() -> RunRecord:
    """Fine-tuned through adapters."""
    adapter = {
        "method": "lora",
        "rank": 8,
        "alpha": 16,
        "dropout": 0.0,
        "target_modules": ["query", "value"],
        "modules_to_save": ["classifier"],
        "trainable_parameters": 887_811,
    }
    return _of("finetune", settings={"peft": "lora"}, model={**make_record().model, "adapter": adapter})


# Of each golden card: the record, and whether the card is that of its adapter.
CARDS = {
    "finetune": (finetune, False),
    "robust": (robust, False),
    "meta-pretrain": (meta_pretrain, False),
    "averaging": (averaging, False),
    "metaxl": (metaxl, False),
    "soft-layers": (soft_layers, False),
    "xmaml": (xmaml, False),
    "run-averaging": (run_averaging, False),
    "lora-adapter": (lora, True),
}


def golden_path(name: str) -> Path:
    """Return where a golden card lies."""
    return GOLDEN / f"{name.replace('-', '_')}_card.md"


def render_golden(name: str) -> str:
    """Render what the golden card of that name should be."""
    from hf_xlt.model_cards.card import render

    make, adapter = CARDS[name]
    return render(make(), REPO, adapter)


if __name__ == "__main__":
    for card in CARDS:
        golden_path(card).write_text(render_golden(card), encoding="utf-8")
