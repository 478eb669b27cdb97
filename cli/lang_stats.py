"""`hf-xlt lang-stats`: count rows, bytes and tokens of every language into a manifest."""

from __future__ import annotations

from pathlib import Path

import typer

from hf_xlt.cli.command import output_option, overwrite_option
from hf_xlt.errors import ConfigError
from hf_xlt.registry import dependent

DEPENDENT = (dependent("alpha", lambda asked: not asked.as_json, "the table of shares, which `--json` leaves out"),)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("lang-stats")
    def lang_stats(
        text: list[str] = typer.Option(
            ..., help="Text: pattern such as `DIR/{lang}.parquet`, file, or Hub id; repeatable."
        ),
        tokenizer: str = typer.Option(..., help="Tokenizer: directory or Hub id."),
        output: str = output_option(
            "Folder for languages.json, or file such as `my.json`. Default: nowhere.", "--output"
        ),
        languages: str = typer.Option("all", help="Languages, separated by commas, or `all` that the text has."),
        text_split: str = typer.Option("train", help="Split to read."),
        text_column: str = typer.Option("text", help="Column of the text."),
        language_column: str = typer.Option(None, help="Column of the language, where the pattern has no {lang}."),
        language_map: str = typer.Option(
            None, help="Codes of languages that the data call by name: indonesian=id,toba_batak=bbc."
        ),
        alpha: float = typer.Option(0.7, help="Temperature for the shares shown: 1 follows the data, 0 is uniform."),
        sample_documents: int = typer.Option(
            10_000, help="Documents of a language up to which tokens are counted; above, so many are sampled."
        ),
        seed: int = typer.Option(0, help="Chooses the sampled documents."),
        as_json: bool = typer.Option(False, "--json", help="Print the manifest instead of the table."),
        overwrite: bool = overwrite_option("a manifest"),
        trust_remote_code: bool = typer.Option(
            False, "--trust-remote-code", help="Run Python code that comes with it."
        ),
    ) -> None:
        """Count each language's text, and show its share at a temperature."""
        from hf_xlt.files import write_json
        from hf_xlt.models import load_tokenizer
        from hf_xlt.pretraining import statistics
        from hf_xlt.pretraining.mixture import temperature_distribution
        from hf_xlt.pretraining.texts import read_texts
        from hf_xlt.streams import print_document, track

        path = _output_path(output, overwrite)
        fitted = load_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
        name = Path(tokenizer).resolve().name if Path(tokenizer).is_dir() else tokenizer
        texts = read_texts(
            text,
            languages,
            split=text_split,
            text_column=text_column,
            language_column=language_column,
            language_map=[language_map] if language_map else None,
            tell=lambda note: typer.echo(f"Note: {note}", err=True),
        )
        measured = {
            code: statistics.measure(entry, fitted, sample_documents, seed)
            for code, entry in track(texts.items(), "Languages")
        }
        shares = temperature_distribution({code: entry.tokens for code, entry in measured.items()}, alpha)
        content = statistics.manifest(measured, fitted, name)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
        if as_json:
            print_document(content)
        else:
            for line in statistics.statistics_table(measured, shares):
                print(line)
            print(f"\nShares at alpha {alpha:g}, by tokens.")
        for line in statistics.warnings(measured):
            typer.echo(f"Warning: {line}", err=True)
        if path and not as_json:
            print(f"Saved in {path}.")


def _output_path(output: str | None, overwrite: bool) -> Path | None:
    from hf_xlt.files import has_keys
    from hf_xlt.output import check_folder, output_file
    from hf_xlt.written import LANGUAGES_KEYS, LANGUAGES_NAME

    path = output_file(output, LANGUAGES_NAME) if output else None
    if path is None:
        return None
    if path.is_dir():
        raise ConfigError(f"`{path}` is a directory; give another `--output-dir`.")
    check_folder(path.parent)
    if path.exists() and not has_keys(path, LANGUAGES_KEYS):
        raise ConfigError(f"`{path}` is no manifest of `hf-xlt lang-stats`, so it is left alone; give another name.")
    if path.exists() and not overwrite:
        raise ConfigError(f"`{path}` is there already. Add `--overwrite` to replace it, or give another name.")
    return path
