"""How the transfer was done, in words: languages, selection, adapters, averages, the strategy's own facts."""

from __future__ import annotations

import json
from typing import Any

from hf_xlt import flags
from hf_xlt.averaging import summary
from hf_xlt.card_block import card_blocks
from hf_xlt.languages import find_same
from hf_xlt.model_cards.text import listed, table_cell
from hf_xlt.record import LAST_CHECKPOINT, RunRecord
from hf_xlt.results import markdown, percent

# Settings that a row of their own tells already, or that change nothing in the model.
_TOLD = frozenset(
    "strategy seed shots shot_seed few_shot_mode source_languages target_languages auxiliary_languages text_languages "
    "save_strategy save_steps save_total_limit eval_on_start checkpoints weights".split()
)
_MODES = {
    "concat": "added to the source examples",
    "joint": "each update takes a batch of every language, and the mean of their losses",
}
_MADE_OF_NOTES = "Which checkpoints and how much each counts stands in `averaging.json`."
_BY_STRATEGY = "used by the strategy in its own way"


def settings(record: RunRecord) -> list[tuple[str, str]]:
    """Return the transfer settings as rows of name and value, without those left at their defaults."""
    rows = [
        ("Strategy", f"{record.strategy['title']} (`{record.strategy['name']}`)"),
        ("Source languages (labelled)", _coded(record, "source")),
        ("Target languages", _coded(record, "target")),
        ("Auxiliary languages (labelled)", _coded(record, "auxiliary")),
        ("Unlabelled text", _coded(record, "text")),
        ("Transfer", _transfer(record)),
        ("Checkpoint", _selection(record)),
        ("Seeds", ", ".join(f"`{name}` {value}" for name, value in record.seeds.items())),
    ]
    rows += [("Made from", row) for row in _made_from(record)]
    unchanged = set(record.strategy.get("defaults") or ())
    rows += [
        (f"`{name}`", _value(value))
        for name, value in record.settings.items()
        if name not in _TOLD and name not in unchanged
    ]
    return [(name, table_cell(value)) for name, value in rows if value]


def default_settings(record: RunRecord) -> list[tuple[str, str]]:
    """Return the strategy's own settings that were left at their defaults, as rows of name and value."""
    names = record.strategy.get("defaults") or ()
    return [(f"`{name}`", table_cell(_value(record.settings[name]))) for name in names if name in record.settings]


def strategy_words(record: RunRecord) -> tuple[str, str]:
    """Say in sentences what the strategy does, and how that stands to its paper (which may be nothing)."""
    strategy = record.strategy
    if summary.MADE_OF in strategy:
        return summary.describe_made(strategy[summary.MADE_OF]), _MADE_OF_NOTES
    if "summary" in strategy:
        # Older records hold the words themselves, which were true of the code that made the run.
        return strategy["summary"], strategy.get("notes") or ""
    words, notes = flags.strategy_words(strategy["name"])
    return words or f"{strategy['title']}.", notes


def shots(record: RunRecord) -> str:
    """Say how many labelled examples of target languages took part."""
    count = record.few_shot["shots"]
    return f"{count:,} labelled example{'s' * (count > 1)} of each target language"


def is_oracle(record: RunRecord) -> bool:
    """Say whether target-language labels chose the model."""
    return summary.is_oracle(record.selection, record.phases)


def labelled_targets(record: RunRecord) -> list[str]:
    """Name the target languages that had labels in training as auxiliary languages."""
    taught = [language["code"] for language in record.languages.get("auxiliary", [])]
    return [entry["name"] for entry in record.languages.get("target", []) if find_same(entry["code"], taught)]


def _transfer(record: RunRecord) -> str:
    if record.few_shot:
        mode = _MODES.get(record.few_shot.get("mode") or "concat", _BY_STRATEGY)
        return f"few-shot: {shots(record)} ({mode})"
    taught = labelled_targets(record)
    if taught:
        return f"not zero-shot for {listed(taught)}: labelled in training, as auxiliary languages"
    if is_oracle(record):
        return "not zero-shot: target-language labels chose the checkpoint"
    if record.selection.get("oracle"):
        return "zero-shot: target-language labels served validation alone, and chose nothing in these weights"
    return "zero-shot: no labelled example of a target language in training"


def _coded(record: RunRecord, role: str) -> str:
    return ", ".join(f"{language['name']} ({language['code']})" for language in record.languages.get(role, []))


def _selection(record: RunRecord) -> str:
    protocol, average = record.selection.get("protocol"), summary.averaged(record.phases)
    if not protocol:
        return ""
    if average is not None and average["snapshots"]:
        chosen = "" if protocol == LAST_CHECKPOINT else f"; the one chosen on {protocol} is another model"
        return f"none; an average of {average['snapshots']} snapshots of the run{chosen}"
    if protocol == LAST_CHECKPOINT:
        return "the last one; nothing was selected"
    text = f"chosen on {protocol}"
    if record.selection.get("metric"):
        text += f" by `{record.selection['metric']}`"
    return text


def _made_from(record: RunRecord) -> list[str]:
    """Say of an average what was averaged: each run, and each checkpoint with its weight."""
    rows = [_parent(parent) for parent in record.parents]
    names, weights = record.settings.get("checkpoints") or [], record.settings.get("weights") or []
    if len(names) == len(weights) and names:
        equal = len(set(weights)) == 1
        if equal:
            rows.append(f"checkpoints {', '.join(f'`{name}`' for name in names)}, each with weight {weights[0]:g}")
        else:
            pairs = (f"`{name}` {weight:g}" for name, weight in zip(names, weights, strict=True))
            rows.append(f"checkpoints with weights: {', '.join(pairs)}")
    return rows


def _parent(parent: dict[str, Any]) -> str:
    strategy = (parent.get("strategy") or {}).get("name")
    seeds = ", ".join(f"`{name}` {value}" for name, value in (parent.get("seeds") or {}).items())
    alone = parent.get("target_average")
    score = f"target average by itself {percent(alone)}" if alone is not None else ""
    return ", ".join(filter(None, [f"a run of `{strategy}`" if strategy else "a run", seeds, score]))


def commands(record: RunRecord) -> str:
    """Return what was typed; of an average the commands of its runs come first."""
    runs = [parent["command"] for parent in record.parents if parent.get("command")]
    return "\n".join([*runs, *([record.command] if record.command else [])])


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    return json.dumps(value, ensure_ascii=False)


def adapter(record: RunRecord, pushed: bool = False) -> str:
    """Say which weights were trained, where these are not all.

    Args:
        record: a run.
        pushed: whether the card is that of the adapter, not of the model that it is merged into.
    """
    facts = record.model.get("adapter")
    if not facts:
        return ""
    count = facts["trainable_parameters"]
    share = f", {count / record.model['parameters']:.2%} of the model's size" if record.model.get("parameters") else ""
    here = (
        "These are the weights here"
        if pushed
        else "The weights here are those of the model with the adapters merged in"
    )
    return (
        f"Only adapters and the head were trained: [LoRA](https://arxiv.org/abs/2106.09685) of rank {facts['rank']} "
        f"(alpha {facts['alpha']}, dropout {facts['dropout']:g}) on {_modules(facts['target_modules'])}, and "
        f"{_modules(facts['modules_to_save'])} in full: {count:,} parameters{share}. {here}."
    )


def average(record: RunRecord) -> str:
    """Say what the weights are the mean of, where they are one."""
    facts = summary.averaged(record.phases)
    if facts is None:
        return ""
    text = summary.describe(facts)
    if facts["snapshots"] and record.model.get("adapter"):
        text += (
            " Each factor of the adapters was averaged by itself and merged then, which is not quite the mean of "
            "merged models."
        )
    return text


def _modules(names: list[str]) -> str:
    return listed([f"`{name}`" for name in names])


def blocks(record: RunRecord) -> list[dict[str, Any]]:
    """Return what the strategy adds: heading, text, table, notes and plot."""
    return [
        {
            **block,
            "table": markdown([[table_cell(cell) for cell in row] for row in block["table"]], left=1)
            if block["table"]
            else "",
            "plot": block["plot"] if block.get("plot") in record.plots else None,
        }
        for block in card_blocks(record.strategy["name"], record.phases)
    ]
