"""`hf-xlt make-pairs`: a task of sentence pairs from parallel sentences with labels."""

from __future__ import annotations

from pathlib import Path

import typer

from hf_xlt.cli.command import output_option, overwrite_option
from hf_xlt.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("make-pairs")
    def make_pairs(
        dataset: str = typer.Option(
            ..., help="Parallel sentences with labels and ids: a pattern with {lang} and {split}, or a Hub id."
        ),
        output_dir: str = output_option(
            "Where to write {split}.{lang}.parquet, pairs.json and README.md.", required=True
        ),
        source_languages: str = typer.Option("en", help="Languages of every split, separated by commas."),
        languages: str = typer.Option("all", help="Languages of the target split, separated by commas, or `all`."),
        splits: str = typer.Option("train,validation,test", help="Splits to make, separated by commas."),
        target_split: str = typer.Option("test", help="The split that is made in all languages."),
        pairs_per_sentence: str = typer.Option(
            "2",
            help="Pairs in which each sentence stands first, an even number: half with the same label. By split: "
            "`train=8,test=2`.",
        ),
        seed: int = typer.Option(0, help="Decides which sentences are paired."),
        text_column: str = typer.Option("text", help="Column of the sentence."),
        label_column: str = typer.Option("label", help="Column of its label."),
        id_column: str = typer.Option("id", help="Column of its id, equal in every language."),
        language_column: str = typer.Option(None, help="Column of the language, where the pattern has no {lang}."),
        language_map: str = typer.Option(
            None, help="Codes of languages that the data call by name: indonesian=id,toba_batak=bbc."
        ),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of text."),
        overwrite: bool = overwrite_option("pairs"),
    ) -> None:
        """Pair sentences: have the two the same label? The same pairs in every language, for `run --generalized`."""
        from hf_xlt.arguments import split_codes, split_names
        from hf_xlt.make_pairs import Recipe, check_output, describe, notes, read_splits, write_pairs
        from hf_xlt.results import plain
        from hf_xlt.streams import print_document

        folder = Path(output_dir)
        check_output(folder, overwrite)
        recipe = Recipe(
            dataset,
            tuple(split_codes([source_languages])),
            tuple(split_codes([languages])),
            tuple(dict.fromkeys(split_names([splits]))),
            target_split,
            _numbers(pairs_per_sentence),
            seed,
            text_column,
            label_column,
            id_column,
            language_column,
            (language_map,) if language_map else (),
        )
        if not recipe.source_languages or not recipe.languages:
            raise ConfigError("`--source-languages` and `--languages` name one language or more each.")
        source, made = read_splits(recipe)
        manifest = write_pairs(folder, recipe, source, made)
        if as_json:
            print_document({"folder": str(folder), **manifest, "notes": list(notes(manifest))})
            return
        print(plain(describe(manifest), left=1) + "\n")
        print(f"  Target split in {', '.join(manifest['splits'][target_split]['languages'])}")
        for note in notes(manifest):
            print(f"  Note: {note}")
        print(f"  The sentences stay under the licence of {source.name}; see README.md beside them.")
        print(
            f"\nSaved in {folder}.\nNext: hf-xlt run --dataset '{folder}/{{split}}.{{lang}}.parquet' --generalized ..."
        )


def _numbers(text: str) -> dict[str, int]:
    """Read `2`, or `train=8,test=2`, as numbers by split."""
    numbers = {}
    for part in text.split(","):
        split, _, number = part.rpartition("=")
        try:
            numbers[split.strip()] = int(number)
        except ValueError as error:
            raise ConfigError(
                f"`--pairs-per-sentence` is {text!r}; give an even number, or one by split: `train=8,test=2`."
            ) from error
    return numbers
