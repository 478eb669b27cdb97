"""`hf-xlt run`: train and score; its flags are those of `python -m hf_xlt.run`."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from hf_xlt.cli.command import RunCommand, chosen_strategy


def main(argv: Sequence[str]) -> int:
    """Print the help without torch where that is possible, or hand the arguments to `hf_xlt.run`."""
    argv = ["--help" if word == "-h" else word for word in argv]
    if "--help" in argv:
        from hf_xlt.flags import flags_of, render_help

        strategy = chosen_strategy(argv)
        flags = flags_of(strategy)
        if flags is not None:
            print(render_help(strategy, flags), end="")
            return 0
    from hf_xlt.run import main as run_main

    return run_main(argv)


def register(app: typer.Typer) -> None:
    """Add the command; its flags depend on the strategy, so they are parsed by `hf_xlt.run` itself."""

    @app.command("run", cls=RunCommand)
    def run() -> None:
        """Train on source languages and score on target languages."""
