"""`hf-xlt run`: train and score; its flags are those of `python -m hf_xlt.run`."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def main(argv: Sequence[str]) -> int:
    """Hand the arguments to `hf_xlt.run`."""
    from hf_xlt.run import main as run_main

    return run_main(list(argv))


def register(app: typer.Typer) -> None:
    """Add the command; its flags depend on the strategy, so they are parsed by `hf_xlt.run` itself."""

    @app.command("run", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def run(context: typer.Context) -> int:
        """Train on source languages and score on target languages (`hf-xlt run --help` lists the flags)."""
        return main(context.args)
