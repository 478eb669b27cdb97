"""`hf-xlt train-tokenizer`: train a multilingual tokenizer on a temperature mixture of languages."""

from __future__ import annotations

import typer

from hf_xlt.cli.command import output_option, overwrite_option


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("train-tokenizer")
    def train_tokenizer(
        text: list[str] = typer.Option(
            ..., help="Text: pattern such as `DIR/{lang}.parquet`, file, or Hub id; repeatable."
        ),
        output_dir: str = output_option("Where to save the tokenizer.", required=True),
        languages: str = typer.Option("all", help="Languages, separated by commas, or `all` that the text has."),
        text_split: str = typer.Option("train", help="Split to read."),
        text_column: str = typer.Option("text", help="Column of the text."),
        language_column: str = typer.Option(None, help="Column of the language, where the pattern has no {lang}."),
        language_map: str = typer.Option(
            None, help="Codes of languages that the data call by name: indonesian=id,toba_batak=bbc."
        ),
        model: str = typer.Option(
            "bpe", help="bpe, or unigram, whose trainer gives slightly other pieces in every process."
        ),
        vocab_size: int = typer.Option(32_000, help="Pieces, special tokens and byte pieces included."),
        alpha: float = typer.Option(
            0.5,
            help="Temperature of the mixture: 1 follows the data, 0 is uniform. The default lies below the 0.7 of "
            "pre-training, since a language split into letters stays so, while one with fewer pieces loses little.",
        ),
        sample_bytes: int = typer.Option(
            50_000_000, help="Bytes of text to train on; no language is repeated more than 3 times."
        ),
        character_coverage: float = typer.Option(
            0.9995, help="Share of each language's characters that get a piece; the rarest become bytes."
        ),
        lowercase: bool = typer.Option(False, "--lowercase", help="Lower-case all text."),
        split_digits: bool = typer.Option(True, help="Make every digit a piece of its own."),
        byte_fallback: bool = typer.Option(True, help="Spell characters without a piece in bytes, not as unknown."),
        max_length: int = typer.Option(512, help="Longest input in tokens that the tokenizer announces."),
        seed: int = typer.Option(0, help="Chooses the documents; equal seeds give equal tokenizers with bpe."),
        overwrite: bool = overwrite_option("a trained tokenizer"),
    ) -> None:
        """Train a tokenizer with XLM-R's special tokens; prints how well it fits each language."""
        from dataclasses import asdict
        from pathlib import Path

        from hf_xlt.pretraining.folders import check_folder, replaced_folder, write_report
        from hf_xlt.pretraining.texts import read_texts
        from hf_xlt.pretraining.tokenizers import FILES, TokenizerSettings, fit_report, sample_mixture
        from hf_xlt.pretraining.tokenizers import train_tokenizer as train
        from hf_xlt.written import TOKENIZER_NAME

        settings = TokenizerSettings(
            model, vocab_size, lowercase, split_digits, byte_fallback, character_coverage, max_length
        )
        folder = Path(output_dir)
        check_folder(folder, overwrite=overwrite, known=FILES, what="a trained tokenizer", marker=TOKENIZER_NAME)
        texts = read_texts(
            text,
            languages,
            split=text_split,
            text_column=text_column,
            language_column=language_column,
            language_map=[language_map] if language_map else None,
            tell=lambda note: typer.echo(f"Note: {note}", err=True),
        )
        mixture = sample_mixture(texts, alpha, sample_bytes, seed)
        tokenizer = train(mixture.documents, settings)
        with replaced_folder(folder) as part:
            tokenizer.save_pretrained(part)
            facts = {**asdict(settings), "alpha": alpha, "seed": seed, "languages": list(texts)}
            write_report(part, TOKENIZER_NAME, facts)
        for line in fit_report(tokenizer, texts, mixture, settings, seed):
            print(line)
        print(f"\nSaved in {folder}: {len(tokenizer):,} pieces, for `AutoTokenizer.from_pretrained`.")
