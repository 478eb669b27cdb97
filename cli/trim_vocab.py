"""`hf-xlt trim-vocab`: a smaller model, with the tokens that some text needs."""

from __future__ import annotations

import typer

from hf_xlt.cli.command import output_option, overwrite_option


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("trim-vocab")
    def trim_vocab(
        model: str = typer.Argument(..., help="Run directory, model directory, Hub id, or `embedded`."),
        text: list[str] = typer.Option(
            ..., help="Text whose tokens are kept: pattern such as `DIR/{lang}.parquet`, file, or Hub id; repeatable."
        ),
        languages: str = typer.Option("all", help="Languages, separated by commas, or `all` that the text has."),
        output_dir: str = output_option("Where to save the model.", required=True),
        limit: int = typer.Option(None, help="Keep only so many tokens of the text, the most frequent. Default: all."),
        keep_characters: str = typer.Option(
            "text",
            help="Single characters to keep as well: those of the `text`, `all` of the vocabulary, `none`, or the "
            "characters themselves.",
        ),
        check_text: list[str] = typer.Option(
            None, help="Other text: tell how it is cut by the smaller vocabulary; repeatable."
        ),
        check_documents: int = typer.Option(4, help="Texts of each language on which outputs are compared."),
        text_split: str = typer.Option("train", help="Split to read."),
        text_column: str = typer.Option("text", help="Column of the text."),
        language_column: str = typer.Option(None, help="Column of the language, where the pattern has no {lang}."),
        language_map: str = typer.Option(
            None, help="Codes of languages that the data call by name: indonesian=id,toba_batak=bbc."
        ),
        revision: str = typer.Option(None, help="Branch, tag or commit of the model on the Hub."),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of text."),
        overwrite: bool = overwrite_option("a trimmed model"),
        trust_remote_code: bool = typer.Option(
            False, "--trust-remote-code", help="Run Python code that comes with the model."
        ),
    ) -> None:
        """Cut the vocabulary of a model down to the tokens that a text needs, and check that nothing else changes."""
        from functools import partial
        from pathlib import Path

        from hf_xlt.models import ModelSource
        from hf_xlt.pretraining.texts import read_texts
        from hf_xlt.streams import print_document
        from hf_xlt.trimming.trim import Options, check_output, summary, trim_vocabulary

        folder, options = Path(output_dir), Options(limit, keep_characters, check_documents)
        check_output(folder, model, overwrite)
        read = partial(
            read_texts,
            split=text_split,
            text_column=text_column,
            language_column=language_column,
            language_map=[language_map] if language_map else None,
            tell=lambda note: typer.echo(f"Note: {note}", err=True),
        )
        texts = read(text, languages)
        other = read(check_text, languages) if check_text else {}
        source = ModelSource.find(model, revision=revision, trust_remote_code=trust_remote_code)
        report = trim_vocabulary(source, texts, folder, options, other)
        if as_json:
            print_document({"folder": str(folder), **report.to_dict()})
            return
        for line in summary(report):
            print(line)
        print(f"\nSaved in {folder}.")
