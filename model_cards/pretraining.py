"""The card of an encoder that was pre-trained: what its text was, how it was made, how to use it.

Such a record has the task `fill-mask` and no scores. Source: `hf-xlt pretrain`, phase by phase.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from hf_xlt.languages import describe_language
from hf_xlt.model_cards import trimming
from hf_xlt.model_cards.metadata import base_model, build, model_name
from hf_xlt.model_cards.text import example, facts, listed, plain_name, table_cell
from hf_xlt.model_cards.transfer import strategy_words
from hf_xlt.pretraining.plan import CONTRASTIVE, DISTILL, MLM, TLM, Phase, Source
from hf_xlt.record import RunRecord
from hf_xlt.results import markdown

TEMPLATE_NAME = "pretraining_card.md.jinja"
TASK_NAME = "fill-mask"

_OBJECTIVES = {
    MLM: "masked tokens are predicted from the rest of their row.",
    TLM: "masked tokens are predicted in rows that hold a text and its translation.",
    CONTRASTIVE: "a text comes closer to its translation than to the other texts of a batch. This objective is our "
    "addition to the method.",
    DISTILL: "the vectors of sentences and, where both cut a text alike, of tokens come close to those of a teacher. "
    "This objective is our addition to the method.",
}
# Resolved arguments that decide the result; a plan is given with them, whether they were typed or not.
_DECISIVE = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "row_length",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta2",
    "adam_epsilon",
)
# Settings that say only what is shown while training.
_SHOWN = frozenset(
    ("phases", "student_layers", "seed", "disable_tqdm", "report_to", "logging_steps", "logging_strategy")
)
# Longer tables of languages are folded.
_LONG_TABLE = 24


def is_pretraining(record: RunRecord) -> bool:
    """Say whether a record is that of a pre-training without a task."""
    return record.task["name"] == TASK_NAME


def describe(record: RunRecord, repo_id: str | None) -> dict[str, Any]:
    """Return what the template of a pre-trained encoder says beside the record.

    Args:
        record: a pre-training.
        repo_id: where the encoder will be on the Hub, or None.
    """
    if "text" not in record.languages:
        codes = dict.fromkeys(code for entry in record.data.values() for code in sorted(entry.get("tokens") or {}))
        record = dataclasses.replace(record, languages={"text": [describe_language(code) for code in codes]})
    kind = record.model.get("model_type")
    languages = _language_rows(record)
    return {
        "metadata": build(record, repo_id, [kind] if kind else []).to_yaml(line_break="\n"),
        "title": model_name(record, repo_id),
        "introduction": _introduction(record),
        "strategy_notes": strategy_words(record)[1],
        "schedule": _schedule(record),
        "phases": _phase_table(record),
        "remarks": _remarks(record),
        "languages": markdown(languages) if len(languages) > 1 else "",
        "is_long": len(languages) > _LONG_TABLE,
        "has_estimates": any(entry.get("estimated") for entry in record.data.values()),
        "snippet": snippet(record, repo_id or "."),
        "finetuning": _finetuning(record, repo_id or "."),
        "is_local": repo_id is None,
        "plan": plan_yaml(record),
        "placeholders": _placeholders(record),
        "facts": [*_seeds(record), *facts(record, "training")],
        "limits": [*_limits(record), *([trimming.limit(record.trimming)] if record.trimming else [])],
        "trimming": trimming.section(record.trimming) if record.trimming else "",
    }


def _phases(record: RunRecord) -> list[dict[str, Any]]:
    return record.settings.get("phases") or []


def _text(record: RunRecord, phase: Mapping[str, Any]) -> dict[str, Any]:
    return record.data.get(phase["name"]) or {}


def _introduction(record: RunRecord) -> str:
    """Say in plain words what the encoder is."""
    base, count, kind = base_model(record), record.model.get("parameters"), record.model.get("model_type")
    size = f" with {count:,} parameters" if count else ""
    if record.model.get("new"):
        start = f"An encoder of type `{kind}`{size}, pre-trained from random weights"
    elif base:
        start = f"[{base}](https://huggingface.co/{base}), an encoder{f' of type `{kind}`' if kind else ''}{size}, "
        start += "pre-trained further"
    else:
        start = f"{plain_name(record)}{size}, pre-trained further"
    names = [language["name"] for language in record.languages["text"]]
    where = f" in {names[0]}" if len(names) == 1 else f" in {len(names)} languages: {listed(names)}" if names else ""
    return (
        f"{start} on unlabelled text{where}. "
        + (
            "The mean of its last states is the vector of a sentence; it is meant"
            if _follows_only(record)
            else "It predicts masked words, and is meant"
        )
        + " to be fine-tuned for a task in one language and used in others."
    )


def _follows_only(record: RunRecord) -> bool:
    """Say whether a teacher was followed and no masked word predicted."""
    used = {name for phase in _phases(record) for name in phase["objectives"]}
    return DISTILL in used and not used & {MLM, TLM}


def _schedule(record: RunRecord) -> str:
    """Say whether the phases are the paper's."""
    counts = [len(_text(record, phase).get("tokens") or {}) for phase in _phases(record)]
    if len(counts) == 2 and counts[0] == 1 < counts[1]:
        return "The two phases here are the paper's, one language and then many; all else is our choice."
    if not any(counts):
        return ""
    which = "the one phase here is" if len(counts) == 1 else f"the {len(counts)} phases here are"
    return f"The paper has one phase in one language and then one in many; {which} a plan of our own."


def _phase_table(record: RunRecord) -> str:
    if not _phases(record):
        return ""
    rows = [["phase", "objectives", "text", "updates", "peak learning rate", "alpha", "languages", "tokens"]]
    for phase in _phases(record):
        text = _text(record, phase)
        rate = phase.get("learning_rate") or record.arguments.get("learning_rate")
        tokens = text.get("row_tokens")
        rows.append(
            [
                phase["name"],
                ", ".join(f"`{name}` × {weight:g}" for name, weight in phase["objectives"].items()),
                table_cell(_sources(text)),
                f"{phase['steps']:,}",
                f"{rate:g}" if rate else "",
                f"{phase['alpha']:g}",
                f"{len(text.get('tokens') or {}):,}",
                f"{tokens:,}" if tokens else "",
            ]
        )
    return markdown(rows)


def _sources(text: Mapping[str, Any]) -> str:
    hub_ids = text.get("hub_ids") or ()
    return ", ".join(
        f"[{source}](https://huggingface.co/datasets/{source.partition(':')[0]})"
        if source.partition(":")[0] in hub_ids
        else f"`{source}`"
        for source in text.get("sources") or ()
    )


def _remarks(record: RunRecord) -> list[str]:
    """Explain the objectives that were used, and changes of the vocabulary."""
    used = {name for phase in _phases(record) for name in phase["objectives"]}
    remarks = [f"`{name}`: {meaning}" for name, meaning in _OBJECTIVES.items() if name in used]
    remarks += [
        f"The teacher of phase `{phase['name']}` is {_teacher(_text(record, phase)['teacher'])}."
        for phase in _phases(record)
        if _text(record, phase).get("teacher")
    ]
    layers = record.settings.get("student_layers")
    if layers is not None:
        which = (
            f"{layers} layers, spread evenly,"
            if isinstance(layers, int)
            else f"layers {listed(list(map(str, layers)))}"
        )
        remarks.append(f"It started from {which} of the encoder that pre-training continued.")
    remarks += [
        f"Phase `{phase['name']}` begins with another tokenizer, `{phase['tokenizer']}`; the embeddings of new pieces "
        f"start by `{phase['embedding_init']}`."
        for phase in _phases(record)
        if phase.get("tokenizer")
    ]
    return remarks


def _teacher(entry: Mapping[str, str]) -> str:
    known = f", license: {entry['license']}" if entry.get("license") else ", whose license is not recorded"
    return f"`{entry['name']}`{known}"


def _language_rows(record: RunRecord) -> list[list[str]]:
    """Return one row per phase and language, header first."""
    names = {language["code"]: language["name"] for language in record.languages["text"]}
    rows = [["phase", "language", "code", "tokens of text", "share", "epochs"]]
    for phase in _phases(record):
        text = _text(record, phase)
        for code, count in sorted((text.get("tokens") or {}).items()):
            mark = "~" if code in (text.get("estimated") or ()) else ""
            share, epochs = (text.get("shares") or {}).get(code), (text.get("epochs") or {}).get(code)
            shown = f"{epochs:.2f}" if MLM in phase["objectives"] and epochs is not None else ""
            cells = [phase["name"], names.get(code, code), code, f"{mark}{count:,}"]
            rows.append([*cells, "" if share is None else f"{share:.2%}", shown])
    return rows


def snippet(record: RunRecord, name: str) -> str:
    """Return Python code that loads the encoder and fills in a masked word in one of its languages.

    Args:
        record: a pre-training.
        name: Hub id, or a folder.
    """
    if _follows_only(record):
        return _vectors_snippet(record, name)
    text, word, language = example(record.languages.get("text") or [])
    before, after = text.split(word, 1) if word else (f"{text} ", "")
    # The halves stand in an f-string.
    before, after = (
        json.dumps(half, ensure_ascii=False)[1:-1].replace("{", "{{").replace("}", "}}") for half in (before, after)
    )
    auto = record.task["auto_model"]
    return "\n".join(
        [
            f"from transformers import {auto}, AutoTokenizer, pipeline",
            "",
            f"name = {json.dumps(name)}",
            "tokenizer = AutoTokenizer.from_pretrained(name)",
            f"model = {auto}.from_pretrained(name)",
            'fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)',
            f'text = f"{before}{{tokenizer.mask_token}}{after}"  # {language}',
            'print([guess["token_str"] for guess in fill(text)])',
        ]
    )


def _vectors_snippet(record: RunRecord, name: str) -> str:
    text, _, language = example(record.languages.get("text") or [])
    return "\n".join(
        [
            "from transformers import AutoModel, AutoTokenizer",
            "",
            f"name = {json.dumps(name)}",
            "tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()",
            f'inputs = tokenizer([{json.dumps(text, ensure_ascii=False)}], return_tensors="pt")  # {language}',
            'mask = inputs["attention_mask"][..., None]',
            "states = model(**inputs).last_hidden_state",
            "print((states * mask).sum(1) / mask.sum(1))",
        ]
    )


def _finetuning(record: RunRecord, name: str) -> str:
    """Return the command that fine-tunes the encoder on one of its languages, for use in others."""
    codes = [language["code"] for language in record.languages["text"]]
    source = "en" if "en" in codes or not codes else codes[0]
    targets = [code for code in codes if code != source][:3]
    command = f"hf-xlt run --model {name} --dataset 'DATA/{{split}}.{{lang}}.jsonl' --source-languages {source}"
    return command + (f" --target-languages {','.join(targets)}" if targets else "")


def plan_yaml(record: RunRecord) -> str:
    """Return the plan as YAML that `hf-xlt pretrain --config` reads, with what the command line changed.

    Fields of phases and sources that have their default are left out.
    """
    import yaml

    if not _phases(record):
        return ""
    phases = [_given(Phase, phase) for phase in _phases(record)]
    for phase in phases:
        given = [_given(Source, source) for source in phase.pop("sources", ())]
        phase["sources"] = [source["text"] if len(source) == 1 else source for source in given]
    shared = phases[0]["sources"] if all(phase["sources"] == phases[0]["sources"] for phase in phases) else None
    placeholders = _placeholders(record)
    plan = {
        "model": record.model.get("new") or record.model.get("name") or "MODEL",
        "tokenizer": "TOKENIZER" if "TOKENIZER" in placeholders else record.model.get("tokenizer"),
        "student_layers": record.settings.get("student_layers"),
        "attn_implementation": record.arguments.get("attn_implementation"),
        "threads": record.hardware.get("threads"),
        "training": _training(record),
        "sources": shared,
        "phases": [
            {key: value for key, value in phase.items() if key != "sources" or shared is None} for phase in phases
        ],
    }
    plan = {key: value for key, value in plan.items() if value is not None}
    return yaml.safe_dump(plan, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110).rstrip()


def _placeholders(record: RunRecord) -> dict[str, str]:
    """Return the words that stand in the plan for what has no name that a reader could use."""
    found = {}
    if not record.model.get("new") and not record.model.get("name"):
        found["MODEL"] = "the encoder to continue, which lay in a local folder"
    if record.model.get("new") and not record.model.get("tokenizer"):
        found["TOKENIZER"] = "the tokenizer that lies beside this card"
    return found


def _given(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a phase or a source what differs from its default, and a phase's objectives and mixture."""
    kept = {}
    for entry in dataclasses.fields(cls):
        default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else entry.default
        default = list(default) if isinstance(default, tuple) else default
        if entry.name in values and (values[entry.name] != default or entry.name in ("objectives", "alpha")):
            kept[entry.name] = values[entry.name]
    return kept


def _training(record: RunRecord) -> dict[str, Any]:
    own = all(phase.get("learning_rate") for phase in _phases(record))
    resolved = {name: record.arguments[name] for name in _DECISIVE if name in record.arguments}
    if own:
        resolved.pop("learning_rate", None)
    typed = {name: value for name, value in record.settings.items() if name not in _SHOWN}
    return {**record.seeds, **resolved, **typed}


def _seeds(record: RunRecord) -> list[tuple[str, str]]:
    return [("Seeds", ", ".join(f"`{name}` {value}" for name, value in record.seeds.items()))] if record.seeds else []


def _limits(record: RunRecord) -> list[str]:
    """Say what is not known about the encoder, as far as the record tells."""
    limits = []
    done, phases = {entry["name"] for entry in record.phases}, _phases(record)
    if any(phase["name"] not in done for phase in phases):
        limits.append(f"Pre-training is not finished: {len(done)} of {len(phases)} phases are done.")
    if record.results is None:
        limits.append("The encoder was not evaluated: nothing is known about its quality in any language.")
    sizes: dict[str, int] = {}
    for entry in record.data.values():
        for code, count in (entry.get("tokens") or {}).items():
            sizes[code] = max(count, sizes.get(code, 0))
    if len(sizes) > 1:
        least = min(sizes, key=lambda code: (sizes[code], code))
        name = next((x["name"] for x in record.languages["text"] if x["code"] == least), least)
        limits.append(f"Text is scarcest in {name}: {sizes[least]:,} tokens.")
    terms = "The licences of the text are not recorded: check the terms of every source before you share the weights."
    if record.model.get("license"):
        terms += " The license above is that of the encoder that pre-training continued."
    limits.append(terms)
    limits.append(
        "Without fine-tuning it gives vectors of sentences and tokens, and nothing else."
        if _follows_only(record)
        else "Without fine-tuning it fills in masked words, and nothing else."
    )
    return limits
