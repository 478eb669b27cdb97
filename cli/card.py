"""`hf-xlt card`: render the model card of a run or a pre-training from its record, or check the one that is there."""

from __future__ import annotations

from pathlib import Path

import typer

from hf_xlt.cli.command import output_option, overwrite_option
from hf_xlt.registry import dependent

DEPENDENT = (dependent("output", lambda asked: not asked.check, "a card that is written: leave `--check` out"),)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("card")
    def card(
        run: str = typer.Argument(..., help="Output directory of a run or a pre-training."),
        check: bool = typer.Option(False, "--check", help="Check the card that is there, and write nothing."),
        output: str = output_option(
            "Folder for README.md, or file such as `card.md`. Default: the run's directory.", "--output"
        ),
        overwrite: bool = overwrite_option("a card, one edited by hand too,"),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of text."),
    ) -> None:
        """Write README.md, the model card, from xlt_run.json."""
        from hf_xlt.streams import print_document

        if check:
            path, state = _check(Path(run))
            text, facts = f"{path} is ready to push, {state}.", {"ready": True, "state": state}
        else:
            path = _write(Path(run), output, overwrite)
            text, facts = f"Card written to {path}", {"written": True}
        if as_json:
            print_document({"card": str(path), **facts})
        else:
            print(text)


def _check(folder: Path) -> tuple[Path, str]:
    from hf_xlt.errors import ConfigError
    from hf_xlt.model_cards.card import CARD_NAME, check, is_generated, render
    from hf_xlt.model_cards.checks import contradictions
    from hf_xlt.record import RunRecord

    path = folder / CARD_NAME
    record = RunRecord.read(folder)
    if not path.is_file():
        raise ConfigError(f"`{folder}` holds no card; `hf-xlt card {folder}` writes one.")
    text = path.read_text(encoding="utf-8")
    problems = check(text) or contradictions(text, record)
    if problems:
        raise ConfigError(f"`{path}` cannot be pushed: {'; '.join(problems)}.")
    state = "as rendered" if is_generated(text) else "edited by hand"
    if is_generated(text) and text != render(record.with_plots(folder)):
        state = f"but older than its record; `hf-xlt card {folder}` renders it anew, and a push does so by itself"
    return path, state


def _write(folder: Path, output: str | None, overwrite: bool) -> Path:
    from hf_xlt.errors import ConfigError, is_disk_full
    from hf_xlt.files import write_text
    from hf_xlt.model_cards.card import CARD_NAME, render
    from hf_xlt.output import output_file
    from hf_xlt.record import RunRecord

    text = render(RunRecord.read(folder).with_plots(folder))
    path = output_file(output, CARD_NAME) if output else folder / CARD_NAME
    _check_place(path, path.absolute() == (folder / CARD_NAME).absolute(), overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ConfigError(f"`{path}` cannot be written ({error.strerror}); give another `--output-dir`.") from error
    return path


def _check_place(path: Path, own: bool, overwrite: bool) -> None:
    """Refuse to replace what may not be replaced.

    Args:
        path: of the card.
        own: it is the place of the run's own card, which is rendered anew unless somebody has edited it.
        overwrite: a card there may be replaced.
    """
    from hf_xlt.errors import ConfigError
    from hf_xlt.model_cards.card import is_card, is_generated

    if path.is_dir():
        raise ConfigError(f"`{path}` is a directory; give another `--output-dir`.")
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    if overwrite and not own and not is_card(text):
        raise ConfigError(f"`{path}` is no card of a run, so it is left alone; give another `--output-dir`.")
    if overwrite or (own and is_generated(text)):
        return
    state = "was edited by hand and is left alone" if not is_generated(text) else "is there already"
    raise ConfigError(f"`{path}` {state}. Replace it with `--overwrite`, or give another `--output-dir`.")
