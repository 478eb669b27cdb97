"""`hf-xlt pretrain`: pre-train an encoder in phases, or continue one, from a YAML file."""

from __future__ import annotations

import sys

import typer

from hf_xlt.cli.command import output_option, overwrite_option
from hf_xlt.registry import dependent

DEPENDENT = (dependent("allow_phase_change", lambda asked: asked.resume, "`--resume`"),)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("pretrain")
    def pretrain(
        config: str = typer.Option(..., help="YAML file: model, tokenizer, sources, phases, training."),
        output_dir: str = output_option("Where to write. Default: the file's `output_dir`."),
        resume: bool = typer.Option(False, help="Continue from the newest complete checkpoint."),
        overwrite: bool = overwrite_option("a pre-training"),
        phase: str = typer.Option(None, help="Train only this phase; those before it must be done."),
        total_steps: int = typer.Option(None, help="T, updates of two phases together, in place of their `steps`."),
        meta_fraction: float = typer.Option(
            None, help="f, share of T for the first phase; 0 is the single-phase baseline at equal budget."
        ),
        seed: int = typer.Option(None, help="Seed, in place of the file's."),
        allow_phase_change: bool = typer.Option(
            False, help="Resume although the definition of the phase under way has changed."
        ),
        student_layers: str = typer.Option(
            None,
            help="Layers of the file's `model` to start from: numbers, such as 0,4,8,11, or how many, such as 4.",
        ),
        dry_run: bool = typer.Option(
            False, help="Print steps, mixture, effective epochs and memory, read one batch per language, and stop."
        ),
        as_json: bool = typer.Option(
            False, "--json", help="Print one JSON document, the record's phases, and all else on stderr."
        ),
    ) -> None:
        """Pre-train in phases: first one language, then many (or any other plan)."""
        from hf_xlt.errors import ConfigError
        from hf_xlt.pretrain import Pretraining, Request
        from hf_xlt.pretraining.plan_file import read_plan
        from hf_xlt.record import RunRecord
        from hf_xlt.streams import print_document, turned

        typed = sys.argv[2:] if sys.argv[1:2] == ["pretrain"] else ["--config", config]
        request = Request(
            resume=resume,
            overwrite=overwrite,
            only=phase,
            dry_run=dry_run,
            output_dir=output_dir,
            total_steps=total_steps,
            meta_fraction=meta_fraction,
            seed=seed,
            allow_phase_change=allow_phase_change,
            student_layers=student_layers,
            command=[part for part in typed if part not in ("--traceback", "--dry-run", "--json", "--quiet", "-q")],
        )
        if dry_run and as_json:
            raise ConfigError("`--dry-run` of a pre-training is text; leave `--json` out.")
        with turned(documents_only=as_json):
            run = Pretraining(read_plan(config), request)
            if dry_run:
                run.describe()
                return
            folder = run.go()
            if as_json:
                record = RunRecord.read(folder)
                print_document({"output_dir": str(folder), "status": record.status, "phases": record.phases})
