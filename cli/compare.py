"""`hf-xlt compare`: many runs in one table, with paired differences and what they are worth."""

from __future__ import annotations

from pathlib import Path

import typer

from hf_xlt.cli.command import output_option, overwrite_option


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("compare")
    def compare(
        runs: list[str] = typer.Argument(..., metavar="RUN|DIR...", help="Finished runs, or folders with runs."),
        baseline: str = typer.Option(
            None, help="Condition that the others are compared with, or how its name begins. Default: finetune."
        ),
        output_dir: str = output_option("Folder for comparison.md, .json, .csv, .html and, with matplotlib, .png."),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of tables."),
        overwrite: bool = overwrite_option("a comparison"),
    ) -> None:
        """Compare finished runs: mean and spread over seeds, paired differences, intervals and tests."""
        from hf_xlt.comparing.comparison import compare_runs
        from hf_xlt.comparing.report import as_text, check_output, write_comparison
        from hf_xlt.streams import print_document

        if output_dir:
            check_output(Path(output_dir), overwrite)
        comparison = compare_runs(runs, baseline)
        written = write_comparison(comparison, Path(output_dir), overwrite) if output_dir else []
        if as_json:
            print_document(comparison.to_dict())
            return
        print(as_text(comparison))
        if written:
            print(f"\nSaved in {output_dir}: {', '.join(written)}.")
        else:
            print("\n`-o FOLDER` writes this as Markdown, JSON, CSV, a plot, and an HTML file to mail.")
