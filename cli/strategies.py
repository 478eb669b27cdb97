"""`hf-xlt strategies`: what there is, and each one's settings."""

from __future__ import annotations

import dataclasses

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("strategies")
    def strategies(
        name: str = typer.Argument(None, help="Show one strategy with its settings."),
    ) -> None:
        """List the strategies, or one strategy's settings."""
        from hf_xlt.registry import STRATEGIES, get_strategy

        if name is None:
            for known in STRATEGIES:
                print(f"{known:<16} {get_strategy(known).summary}")
            return
        print(_describe(get_strategy(name)))


def _describe(strategy: object) -> str:
    from hf_xlt.training.config import XLTConfig

    lines = [f"{strategy.title} (`--strategy {strategy.name}`)", strategy.summary]
    if strategy.paper is not None:
        lines.append(f"{strategy.paper.authors}: {strategy.paper.title}. {strategy.paper.venue}. {strategy.paper.url}")
    if strategy.notes:
        lines.append(strategy.notes)
    shared = {entry.name for entry in dataclasses.fields(XLTConfig)}
    lines.append("Needs: " + ", ".join(strategy.roles) + " data")
    for entry in dataclasses.fields(strategy.config_cls):
        if entry.name not in shared:
            flag = "--" + entry.name.replace("_", "-")
            lines.append(f"  {flag:<26} {entry.metadata.get('help', '')} (default: {entry.default})")
    return "\n".join(lines)
