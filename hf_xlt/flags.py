"""The flags of `hf-xlt run` and the facts of each strategy, as a file: help and completion need no heavy library.

The flags come from dataclasses of transformers, which take seconds to import. `catalogue.json` holds what they say,
made by `python -m hf_xlt.flags`; with another version of transformers it is not used, and a test keeps it true.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.files import write_text
from hf_xlt.registry import STRATEGIES, Strategy, get_strategy

if TYPE_CHECKING:
    from argparse import ArgumentParser

CATALOGUE = Path(__file__).with_name("catalogue.json")
OWN, TRAINING = "strategy", "training"
# The short name of `--output-dir`, as with every command.
OUTPUT_FLAG = "-o"
# What most users look for stands first.
_GROUPS = ("run", "model", "data", OWN, "sweep", "average", "adapters", TRAINING)
_TITLES = {OWN: "settings of `{name}`", TRAINING: "training (transformers.TrainingArguments)"}
_FACTS = ("title", "summary", "roles", "optional_roles", "notes", "cost_note")


def build_catalogue() -> dict[str, Any]:
    """Read flags and facts off the code; imports transformers and every strategy."""
    from hf_xlt.parsing import build_parser
    from hf_xlt.tasks import TASKS

    facts, flags = {}, {}
    for name in STRATEGIES:
        strategy = get_strategy(name)
        facts[name], flags[name] = describe_strategy(strategy), describe_flags(build_parser(strategy), strategy)
    first, *rest = flags.values()
    shared = [entry for entry in first if all(entry in other for other in rest)]
    own = {
        name: [[place, entry] for place, entry in enumerate(entries) if entry not in shared]
        for name, entries in flags.items()
    }
    return {"transformers": _version(), "tasks": list(TASKS), "strategies": facts, "shared": shared, "own": own}


def describe_strategy(strategy: Strategy) -> dict[str, Any]:
    """Return the facts of a strategy: what it does and needs, its cost with default settings, its paper."""
    facts = {name: getattr(strategy, name) for name in _FACTS}
    facts |= {"roles": list(strategy.roles), "optional_roles": list(strategy.optional_roles)}
    paper = strategy.paper
    told = None if paper is None else {name: getattr(paper, name) for name in ("title", "authors", "venue", "url")}
    # Settings without an output directory warn; the cost does not depend on it.
    cost = strategy.cost(strategy.config_cls(output_dir="unused", use_cpu=True))
    return {**facts, "cost": round(cost, 4), "adapters": strategy.peft, "paper": told}


def describe_flags(parser: ArgumentParser, strategy: Strategy) -> list[dict[str, Any]]:
    """Return a parser's flags in the order of the help: spelling, group, help, default, choices."""
    import dataclasses

    from hf_xlt.training.config import XLTConfig

    shared = {entry.name for entry in dataclasses.fields(XLTConfig)}
    own = {entry.name for entry in dataclasses.fields(strategy.config_cls)} - shared
    entries = []
    for group in parser._action_groups:
        for action in group._group_actions:
            if isinstance(action, argparse._HelpAction):
                continue
            title = group.title if group.title in _GROUPS else OWN if action.dest in own else TRAINING
            entries.append(_entry(action, title))
    return sorted(entries, key=lambda entry: _GROUPS.index(entry["group"]))


def _entry(action: argparse.Action, group: str) -> dict[str, Any]:
    spelt = [flag for flag in action.option_strings if "_" not in flag] or action.option_strings
    # argparse wants `%` doubled, and some helps of `TrainingArguments` have it so.
    text = (action.help or "").strip().replace("%%", "%")
    entry: dict[str, Any] = {"flag": spelt[-1], "group": group, "help": text}
    if action.dest == "output_dir":
        entry["short"] = OUTPUT_FLAG
    if isinstance(action, argparse._StoreFalseAction):
        base = spelt[-1].removeprefix("--no-")
        return {**entry, "help": f"The opposite of `--{base}`.", "switch": True}
    if action.nargs == "?" and isinstance(action.const, bool) and (action.default in (None, False, True)):
        entry["switch"] = True
    elif action.nargs:
        entry["nargs"] = action.nargs
    if action.default is not None:
        entry["default"] = action.default if isinstance(action.default, (bool, int, float, str, list)) else "..."
    if action.choices:
        entry["choices"] = [str(choice) for choice in action.choices]
    return entry


def _version() -> str | None:
    try:
        return metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return None


@cache
def _read() -> dict[str, Any] | None:
    try:
        return json.loads(CATALOGUE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_catalogue() -> dict[str, Any] | None:
    """Return what the file holds; None where it does not describe what is installed."""
    found = _read()
    fits = found is not None and list(found["strategies"]) == list(STRATEGIES) and found["transformers"] == _version()
    return found if fits else None


def flags_of(strategy: str) -> list[dict[str, Any]] | None:
    """Return the flags of a run with a strategy, without importing it; None where the file does not say."""
    found = read_catalogue()
    if found is None or strategy not in found["own"]:
        return None
    entries = list(found["shared"])
    for place, entry in found["own"][strategy]:
        entries.insert(place, entry)
    return entries


def strategies_with(flag: str) -> list[str]:
    """Return the strategies that have a setting of their own by this flag, as far as the file says."""
    found = read_catalogue()
    wanted = flag.replace("_", "-")
    own = found["own"] if found else {}
    return [name for name, entries in own.items() if any(entry["flag"] == wanted for _, entry in entries)]


def strategy_facts() -> dict[str, dict[str, Any]]:
    """Return the facts of every strategy, from the file or else from the code."""
    found = read_catalogue()
    return found["strategies"] if found else {name: describe_strategy(get_strategy(name)) for name in STRATEGIES}


def strategy_words(name: str) -> tuple[str, str]:
    """Return what a strategy does and what is to be said of it, in sentences, without loading it.

    They depend on no version of a library, so the file holds them in any case.

    Args:
        name: of the strategy; of one that is not ours both are empty.
    """
    facts = ((_read() or {}).get("strategies") or {}).get(name, {})
    return facts.get("summary", ""), facts.get("notes", "")


class _Help(argparse.HelpFormatter):
    """Tells defaults, except where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").replace("%", "%%")
        shown = action.default not in (None, False, [], argparse.SUPPRESS)
        return f"{text} (default: %(default)s)" if shown else text


def render_help(strategy: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the help of `hf-xlt run` with one strategy.

    Args:
        strategy: its name.
        entries: its flags.
    """
    parser = argparse.ArgumentParser(
        prog="hf-xlt run",
        usage="hf-xlt run [--strategy NAME] [--model MODEL --dataset DATA] [flag ...]",
        add_help=False,
        formatter_class=_Help,
        description="Train on source languages, score on target languages. Without a model and data, the embedded "
        f"demo task. Strategies: {', '.join(STRATEGIES)}; this is the help of `{strategy}`, and `--strategy NAME "
        "--help` that of another. Flags may be written with `_` in place of `-`.",
        epilog="Exit codes: 0 done, 1 failure, 2 usage, 130 interrupted (--resume continues).",
    )
    groups = {
        name: parser.add_argument_group(_TITLES.get(name, name).format(name=strategy))
        for name in _GROUPS
        if any(entry["group"] == name for entry in entries)
    }
    groups["run"].add_argument("-h", "--help", action="store_true", help="Show this and stop.")
    for entry in entries:
        options = {"help": entry["help"], "default": entry.get("default")}
        if entry.get("switch"):
            options["action"] = "store_true"
        else:
            options |= {"nargs": entry.get("nargs"), "choices": entry.get("choices")}
            if len(entry.get("choices", ())) > 12:
                options["metavar"] = "NAME"
        names = [entry[name] for name in ("short", "flag") if name in entry]
        groups[entry["group"]].add_argument(*names, **options)
    return parser.format_help()


def write_catalogue() -> None:
    """Write the file anew, one flag to a line."""
    made = build_catalogue()

    def rows(entries: Sequence[Any]) -> str:
        return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]"

    facts = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in made["strategies"].items())
    own = ",\n".join(f"{json.dumps(name)}: {rows(value)}" for name, value in made["own"].items())
    head = ",\n".join(f"{json.dumps(name)}: {json.dumps(made[name])}" for name in ("transformers", "tasks"))
    parts = [head, f'"strategies": {{\n{facts}\n}}', f'"shared": {rows(made["shared"])}', f'"own": {{\n{own}\n}}']
    write_text(CATALOGUE, "{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    write_catalogue()
    sys.stdout.write(f"{CATALOGUE.name} written.\n")
