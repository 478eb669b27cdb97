"""`hf-xlt evaluate`: score a run, a model directory or a Hub model on the languages of a data set."""

from __future__ import annotations

import typer

from hf_xlt.cli.command import output_option, overwrite_option, task_names
from hf_xlt.registry import dependent

DEPENDENT = (
    dependent("target_languages", lambda asked: not asked.languages, "all languages: leave `--languages` out"),
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("evaluate")
    def evaluate(
        model: str = typer.Argument(..., help="Run directory, model directory, or Hub id."),
        dataset: str = typer.Option(None, help="Data, as for `hf-xlt run`. Default: the embedded task of a demo run."),
        target_dataset: list[str] = typer.Option(None, help="Target data where they differ; repeatable."),
        languages: str = typer.Option(None, help="Score these languages alone, separated by commas. Default: all."),
        source_languages: str = typer.Option(
            None, help="Languages that the model was trained on, separated by commas. Default: as in the run, or en."
        ),
        target_languages: str = typer.Option("all", help="Target languages, separated by commas, or `all`."),
        target_split: str = typer.Option("test", help="Split to score."),
        task: str = typer.Option(
            None, help="Kind of task. Default: as in the run, or in the model's config.", autocompletion=task_names
        ),
        labels: str = typer.Option(
            None,
            help="What the data call the model's classes, in the model's order, separated by commas; the model's own "
            "names in the order in which numbers in the data count them. Default: as the model's config names them.",
        ),
        text_column: str = typer.Option(None, help="Column of the text."),
        text_pair_column: str = typer.Option(None, help="Column of the second text of a pair."),
        label_column: str = typer.Option(None, help="Column of the label."),
        label_columns: str = typer.Option(
            None, help="Columns of 0 and 1, one for each of several labels, separated by commas."
        ),
        validation_split: str = typer.Option(
            "validation", help="Split that a threshold for several labels is chosen on, where the model has none."
        ),
        tokens_column: str = typer.Option(None, help="Column of a sentence's words."),
        tags_column: str = typer.Option(None, help="Column of the words' tags."),
        question_column: str = typer.Option(None, help="Column of the question."),
        context_column: str = typer.Option(None, help="Column of the text that answers it."),
        answers_column: str = typer.Option(None, help="Column of the answers."),
        language_column: str = typer.Option(None, help="Column of the language."),
        language_map: str = typer.Option(
            None,
            help="Codes of languages that the data call by name: indonesian=id,toba_batak=bbc. Default: as in the "
            "run.",
        ),
        divide_split: str = typer.Option(
            None,
            help="Divide data that have one split, or none: train=0.8,test=0.2. Default: what the run divided, as it "
            "did.",
        ),
        divide_seed: int = typer.Option(0, help="Seed of --divide-split."),
        allow_shared_rows: bool = typer.Option(
            False, "--allow-shared-rows", help="Let rows serve in two roles, as both of validation and test."
        ),
        max_length: int = typer.Option(None, help="Longest input in tokens. Default: as in the run, or the task's."),
        batch_size: int = typer.Option(64, help="Examples per batch."),
        revision: str = typer.Option(None, help="Branch, tag or commit on the Hub."),
        trust_remote_code: bool = typer.Option(
            False, "--trust-remote-code", help="Run Python code that comes with the model. Only for authors you trust."
        ),
        output_dir: str = output_option("Where to write. Default: beside the run, or `evaluations/`."),
        generalized: bool = typer.Option(
            False, "--generalized", help="Also score every ordered pair of languages, for tasks of sentence pairs."
        ),
        generalized_languages: str = typer.Option(
            None, help="Languages of --generalized, separated by commas. Default: all that are scored."
        ),
        id_column: str = typer.Option("id", help="Column of the id, by which --generalized joins languages."),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of the table."),
        overwrite: bool = overwrite_option("results"),
    ) -> None:
        """Score any model with a trained head; writes results.json, results.md and, with matplotlib, results.png."""
        from hf_xlt.arguments import DataArguments, split_codes
        from hf_xlt.scoring import evaluate_model
        from hf_xlt.streams import print_document, shows_progress, turned

        data = DataArguments(
            task=task,
            dataset=dataset,
            target_dataset=target_dataset or None,
            source_languages=[source_languages] if source_languages else None,
            target_languages=[target_languages],
            labels=[labels] if labels else None,
            target_split=target_split,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            label_columns=[label_columns] if label_columns else None,
            validation_split=validation_split,
            tokens_column=tokens_column,
            tags_column=tags_column,
            question_column=question_column,
            context_column=context_column,
            answers_column=answers_column,
            language_column=language_column,
            language_map=[language_map] if language_map else None,
            divide_split=[divide_split] if divide_split else None,
            divide_seed=divide_seed,
            allow_shared_rows=allow_shared_rows,
            max_length=max_length,
            generalized=generalized,
            generalized_languages=[generalized_languages] if generalized_languages else None,
            id_column=id_column,
        )
        if not source_languages:
            # Left to the record of the run.
            data.source_languages = None
        with turned(documents_only=as_json):
            found = evaluate_model(
                model,
                data,
                batch_size=batch_size,
                revision=revision,
                output_dir=output_dir,
                overwrite=overwrite,
                progress=shows_progress(),
                languages=split_codes([languages]) if languages else None,
                trust_remote_code=trust_remote_code,
            )
        if as_json:
            print_document(found.to_dict())
        else:
            print(found.describe())
