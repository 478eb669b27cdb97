"""`hf-xlt average`: average checkpoints and runs on disk into one model."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hf_xlt.cli.command import output_option, overwrite_option
from hf_xlt.registry import dependent

if TYPE_CHECKING:
    from hf_xlt.averaging.greedy import SourceScorer


DEPENDENT = (
    dependent(
        "dataset source_languages validation_split task text_column text_pair_column label_column tokens_column "
        "tags_column question_column context_column answers_column language_column language_map max_length batch_size",
        lambda asked: asked.greedy,
        "`--greedy`, which scores",
    ),
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("average")
    def average(
        inputs: list[str] = typer.Argument(
            None, metavar="[CKPT]...", help="Checkpoint folders, run folders, weight files, or adapter folders."
        ),
        output_dir: str = output_option("Folder to write."),
        run: list[str] = typer.Option(None, help="Run whose checkpoints are averaged, or else its model; repeatable."),
        per_run: bool = typer.Option(False, "--per-run", help="Let runs count the same, not their snapshots."),
        weights: str = typer.Option(None, help="Weights of the snapshots as given, separated by commas."),
        last: int = typer.Option(None, help="Take only the last so many snapshots of each run."),
        window: str = typer.Option(
            None, help="Take only snapshots between two steps, or fractions of a run: 500:2000, 0.2:1.0."
        ),
        ema: float = typer.Option(None, help="Exponential mean in each run: what the mean keeps at each snapshot."),
        greedy: bool = typer.Option(
            False, "--greedy", help="Keep only snapshots that do not lower the score on source-language validation."
        ),
        dtype: str = typer.Option(None, help="Weights of the output: float32, bfloat16, ... Default: as the inputs."),
        accumulate: str = typer.Option("auto", help="Precision of sums: auto, float32 or float64."),
        head: str = typer.Option(
            None, help="require-equal (default for several runs), take-first or average: what to do with the heads."
        ),
        lora_mode: str = typer.Option("error", help="How to average LoRA adapters: merge, concat, factors or svd."),
        base: str = typer.Option(None, help="Model to merge adapters into. Default: the one that they name."),
        max_shard_size: str = typer.Option(None, help="Most bytes per weight file, such as 5GB. Default: one file."),
        check_only: bool = typer.Option(False, "--check-only", help="Compare the inputs and write nothing."),
        overwrite: bool = overwrite_option("an average"),
        allow_negative: bool = typer.Option(False, "--allow-negative", help="Permit weights below 0."),
        allow_non_finite: bool = typer.Option(False, "--allow-non-finite", help="Permit NaN and infinity in inputs."),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of text."),
        dataset: str = typer.Option(None, help="Data of --greedy, as for `hf-xlt run`. Default: the embedded task."),
        source_languages: str = typer.Option("en", help="Source languages of --greedy, separated by commas."),
        validation_split: str = typer.Option("validation", help="Split that --greedy scores on."),
        task: str = typer.Option(None, help="Kind of task of --greedy. Default: that of the run."),
        text_column: str = typer.Option(None, help="Column of the text, for --greedy."),
        text_pair_column: str = typer.Option(None, help="Column of the second text of a pair, for --greedy."),
        label_column: str = typer.Option(None, help="Column of the label, for --greedy."),
        labels: str = typer.Option(
            None,
            help="Class names in the order in which numbers in the data count them, for --greedy. Default: as in the "
            "run.",
        ),
        tokens_column: str = typer.Option(None, help="Column of a sentence's words, for --greedy."),
        tags_column: str = typer.Option(None, help="Column of the words' tags, for --greedy."),
        question_column: str = typer.Option(None, help="Column of the question, for --greedy."),
        context_column: str = typer.Option(None, help="Column of the text that answers it, for --greedy."),
        answers_column: str = typer.Option(None, help="Column of the answers, for --greedy."),
        language_column: str = typer.Option(None, help="Column of the language, for --greedy."),
        language_map: str = typer.Option(None, help="Codes of languages that the data call by name, for --greedy."),
        max_length: int = typer.Option(None, help="Longest input in tokens, for --greedy. Default: as in the run."),
        batch_size: int = typer.Option(64, help="Examples per batch, for --greedy."),
    ) -> None:
        """Average checkpoints and runs into a model that `from_pretrained` loads, in fixed memory."""
        from hf_xlt.averaging.average import average_checkpoints
        from hf_xlt.averaging.weights import parse_weights

        data = {
            "task": task,
            "dataset": dataset,
            "source_languages": [source_languages],
            "validation_split": validation_split,
            "text_column": text_column,
            "text_pair_column": text_pair_column,
            "label_column": label_column,
            "labels": [labels] if labels else None,
            "tokens_column": tokens_column,
            "tags_column": tags_column,
            "question_column": question_column,
            "context_column": context_column,
            "answers_column": answers_column,
            "language_column": language_column,
            "language_map": [language_map] if language_map else None,
            "max_length": max_length,
        }
        with _progress() as progress, _interruptible():
            report = average_checkpoints(
                inputs or [],
                output_dir,
                runs=run or [],
                check_only=check_only,
                score=_scorer([*(inputs or []), *(run or [])], data, batch_size) if greedy else None,
                mode="greedy" if greedy else "uniform",
                weights=parse_weights(weights) if weights is not None else None,
                last_k=last,
                window=window,
                ema_decay=ema,
                per_run=per_run,
                dtype=dtype,
                accumulate=accumulate,
                head=head,
                lora_mode=lora_mode,
                base=base,
                max_shard_size=max_shard_size,
                overwrite=overwrite,
                allow_negative=allow_negative,
                allow_non_finite=allow_non_finite,
                command=_command([*(inputs or []), *(run or [])]),
                progress=progress,
            )
        if as_json:
            print(json.dumps({**report.to_dict(), "check_only": check_only}, ensure_ascii=False))
            return
        print(report.describe())
        print("The inputs fit together; nothing was written." if check_only else f"Saved in {report.output}.")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Yield what shows a bar of bytes on a terminal; None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, desc="Averaging", leave=False) as bar:

        def advance(count: int, total: int) -> None:
            bar.total = total
            bar.update(count)

        yield advance


@contextmanager
def _interruptible() -> Iterator[None]:
    """Say what an interrupted average leaves behind.

    Raises:
        Interrupted: the user stopped it.
    """
    from hf_xlt.errors import Interrupted

    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("nothing was written, and what was there before is untouched.") from error


def _scorer(places: list[str], data: dict[str, Any], batch_size: int) -> SourceScorer:
    """Make the scorer of `--greedy`; what was not given is that of the run, where there is one."""
    from hf_xlt.arguments import DataArguments
    from hf_xlt.averaging.greedy import SourceScorer
    from hf_xlt.data.sources import EMBEDDED
    from hf_xlt.errors import ConfigError
    from hf_xlt.record import RECORD_NAME, RunRecord
    from hf_xlt.scoring import division_of

    folders = [folder for place in map(Path, places) for folder in (place, place.parent)]
    home = next((folder for folder in folders if (folder / RECORD_NAME).is_file()), None)
    record = RunRecord.read(home) if home is not None else None
    data["task"] = data["task"] or (record.task["name"] if record else "text-classification")
    if data["max_length"] is None and record is not None:
        data["max_length"] = record.arguments.get("max_length")
    if data["dataset"] is None:
        if record is None or not record.demo:
            raise ConfigError("a greedy average needs data to score on: give source-language data with `--dataset`.")
        data["dataset"] = EMBEDDED
    for name in ("language_map", "labels"):
        if not data[name] and record is not None:
            data[name] = record.arguments.get(name)
    return SourceScorer(DataArguments(**data), batch_size, division_of(record) if record is not None else None)


def _command(places: list[str]) -> str:
    """Write the command with the names of its inputs alone, and without where its output lies."""
    flags, names = [], {place: Path(place).name for place in places}
    skip = False
    for token in sys.argv[2:] if sys.argv[1:2] == ["average"] else []:
        if skip or token.startswith(("--output-dir=", "--base=")):
            skip = False
        elif token in ("-o", "--output-dir", "--base"):
            skip = True
        elif token not in ("--overwrite", "--json", "--traceback"):
            flags.append(names.get(token, token.rpartition("/")[2] if "/" in token else token))
    return shlex.join(["hf-xlt", "average", *(flags or names.values())])
