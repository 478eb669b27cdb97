"""`hf-xlt doctor`: what is installed here, what it can do, and how to start several processes."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("doctor")
    def doctor(
        try_launch: bool = typer.Option(
            False, "--try-launch", help="Also start two or more processes as advised, and see whether they meet."
        ),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of text."),
    ) -> int:
        """Check versions, devices, the Hub, caches and launchers; says what to mend."""
        from hf_xlt.doctor import describe, examine
        from hf_xlt.streams import print_document

        found = examine(try_launch)
        if as_json:
            print_document(found.to_dict())
        else:
            print(describe(found))
        return 1 if found.broken else 0
