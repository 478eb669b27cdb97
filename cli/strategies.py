"""`hf-xlt strategies`: what there is, what each needs and costs, where it comes from, and its settings."""

from __future__ import annotations

from typing import Any

import typer

from hf_xlt.cli.command import strategy_names

# What stands for a data role on a command line, and what it is.
_NEEDS = {
    "source": "labels in the source language",
    "target": "labelled target examples (--shots)",
    "auxiliary": "labelled auxiliary languages (--auxiliary-dataset)",
    "text": "unlabelled text (--text-dataset)",
}
_COST = "A plain step is an update of plain fine-tuning; costs are those of default settings."


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("strategies")
    def strategies(
        name: str = typer.Argument(None, help="Show one strategy with its settings.", autocompletion=strategy_names),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of text."),
    ) -> None:
        """List the strategies with their needs, cost and paper, or one strategy's settings."""
        from hf_xlt.flags import strategy_facts
        from hf_xlt.streams import print_document

        facts = strategy_facts()
        if name is not None and name not in facts:
            from hf_xlt.registry import get_strategy

            get_strategy(name)
        if as_json:
            shown = {name: {**facts[name], "settings": _settings(name)}} if name else facts
            print_document({"cost_unit": "plain fine-tuning steps per update, default settings", "strategies": shown})
        elif name is None:
            print("\n\n".join(_listed(known, entry) for known, entry in facts.items()))
            print(f"\n{_COST}\nSettings of one: hf-xlt strategies NAME. Compare them: hf-xlt run --strategies A,B.")
        else:
            print(_described(name, facts[name]))


def _needs(entry: dict[str, Any]) -> str:
    return ", ".join(_NEEDS[role] for role in entry["roles"])


def _cost(entry: dict[str, Any]) -> str:
    return f"{entry['cost']:.2f} plain steps per update" + (f"; {entry['cost_note']}" if entry["cost_note"] else "")


def _paper(entry: dict[str, Any]) -> str:
    paper = entry["paper"]
    return "none" if paper is None else f"{paper['title']} ({paper['venue']}), {paper['url']}"


def _listed(name: str, entry: dict[str, Any]) -> str:
    lines = [f"{name:<16} {entry['summary']}"]
    lines += [f"{'':<16} {label:<6} {text}" for label, text in _rows(entry)]
    return "\n".join(lines)


def _rows(entry: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("needs", _needs(entry)),
        ("cost", _cost(entry)),
        ("paper", _paper(entry)),
    ]


def _settings(name: str) -> list[dict[str, Any]]:
    """Return the flags that only this strategy's config has."""
    from hf_xlt.flags import OWN, describe_flags, flags_of

    flags = flags_of(name)
    if flags is None:
        from hf_xlt.parsing import build_parser
        from hf_xlt.registry import get_strategy

        flags = describe_flags(build_parser(get_strategy(name)), get_strategy(name))
    return [entry for entry in flags if entry["group"] == OWN]


def _described(name: str, entry: dict[str, Any]) -> str:
    lines = [f"{entry['title']} (`--strategy {name}`)", entry["summary"]]
    paper = entry["paper"]
    if paper is not None:
        lines.append(f"{paper['authors']}: {paper['title']}. {paper['venue']}. {paper['url']}")
    if entry["notes"]:
        lines.append(entry["notes"])
    lines.append(f"Needs: {_needs(entry)}")
    lines.append(f"Cost: {_cost(entry)}, with default settings")
    lines.append(f"Adapters: {'works with `--peft lora`' if entry['adapters'] else 'trains all weights only'}")
    settings = _settings(name)
    lines.append("Settings:" if settings else "Settings: those of `hf-xlt run --help`.")
    for flag in settings:
        choices = f" One of {', '.join(flag['choices'])}." if flag.get("choices") else ""
        default = "" if flag.get("default") is None else f" (default: {flag['default']})"
        lines.append(f"  {flag['flag']:<26} {flag['help']}{choices}{default}")
    return "\n".join(lines)
