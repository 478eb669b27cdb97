"""`hf-xlt retrieve`: how well an encoder finds translations, in both directions, without labels or training."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from hf_xlt.cli.command import output_option, overwrite_option
from hf_xlt.registry import dependent

DEPENDENT = (
    dependent("source_language", lambda asked: asked.id_column, "`--id-column`"),
    dependent("pair_column", lambda asked: not asked.id_column, "rows that hold both sides: leave `--id-column` out"),
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("retrieve")
    def retrieve(
        model: str = typer.Argument(..., help="Run directory, model directory, Hub id, or `embedded`."),
        dataset: str = typer.Option(..., help="Parallel sentences: a pattern with {lang} and {split}, or a Hub id."),
        split: str = typer.Option("test", help="Split to read."),
        languages: str = typer.Option("all", help="Languages, separated by commas, or `all`."),
        text_column: str = typer.Option("text", help="Column of the text."),
        pair_column: str = typer.Option("text_en", help="Column of its translation in the same row."),
        id_column: str = typer.Option(
            None, help="Join each language with the source language by this column; `--pair-column` is not read then."
        ),
        source_language: str = typer.Option("en", help="The other side, with `--id-column`."),
        language_column: str = typer.Option(None, help="Column of the language, where the pattern has no {lang}."),
        language_map: str = typer.Option(
            None, help="Codes of languages that the data call by name: indonesian=id,toba_batak=bbc."
        ),
        layer: str = typer.Option("middle", help="Hidden state: `middle`, `last`, or a number; 0 is the embeddings."),
        pooling: str = typer.Option("mean", help="`mean` of the tokens that are not special, or `first` token."),
        max_length: int = typer.Option(128, help="Longest input in tokens."),
        batch_size: int = typer.Option(64, help="Sentences per batch."),
        threads: int = typer.Option(None, help="CPU threads."),
        revision: str = typer.Option(None, help="Branch, tag or commit on the Hub."),
        output_dir: str = output_option("Where to write retrieval.json and retrieval.md. Default: nowhere."),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of the table."),
        overwrite: bool = overwrite_option("results"),
    ) -> None:
        """Measure sentence retrieval per language; writes files only with --output-dir."""
        from hf_xlt.data.parallel import read_parallel
        from hf_xlt.results import plain
        from hf_xlt.retrieval import Pooling, check_output
        from hf_xlt.retrieval import retrieve as score
        from hf_xlt.streams import print_document

        began = time.monotonic()
        settings = Pooling(layer, pooling, max_length, batch_size)
        if threads is not None:
            _set_threads(threads)
        if output_dir is not None:
            check_output(Path(output_dir), overwrite)
        source, sets = read_parallel(
            dataset,
            split,
            languages,
            text_column=text_column,
            pair_column=pair_column,
            id_column=id_column,
            source_language=source_language,
            language_column=language_column,
            language_map=[language_map] if language_map else None,
        )
        other = source_language if id_column else pair_column.removeprefix(f"{text_column}_")
        results = score(model, source, sets, settings, split=split, other=other, revision=revision)
        if output_dir is not None:
            results.write(Path(output_dir), overwrite)
        if as_json:
            print_document(results.to_dict())
            return
        print(plain(results.table()) + "\n")
        for note in results.notes():
            print(f"  {note}")
        print(f"  {time.monotonic() - began:.1f} s")
        if output_dir is not None:
            print(f"\nSaved in {output_dir}: retrieval.json, retrieval.md.")


def _set_threads(threads: int) -> None:
    from hf_xlt.errors import ConfigError

    if threads < 1:
        raise ConfigError(f"`--threads` is {threads}; give 1 or more.")
    import torch

    torch.set_num_threads(threads)
