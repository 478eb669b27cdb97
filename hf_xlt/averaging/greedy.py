"""Greedy soup (Wortsman et al. 2022): add a snapshot to the average if the score does not fall.

The score is on source-language validation data. Target data are never read for it, so the transfer stays zero-shot.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, setting

if TYPE_CHECKING:
    from hf_xlt.arguments import DataArguments
    from hf_xlt.averaging.average import Selection, Settings
    from hf_xlt.data.division import Division


def add_while_not_worse(
    count: int, score: Callable[[tuple[int, ...]], float]
) -> tuple[tuple[int, ...], list[tuple[tuple[int, ...], float]]]:
    """Choose members of an average: best first, each next one kept if the score does not fall.

    Args:
        count: number of candidates.
        score: of the average of some candidates, by their indices; higher is better.

    Returns:
        The members in ascending order, and everything that was scored.
    """
    trials = [((number,), score((number,))) for number in range(count)]
    # Of equal candidates the later one comes first: it was trained longer.
    ranking = sorted(range(count), key=lambda number: (-trials[number][1], -number))
    members, best = (ranking[0],), trials[ranking[0]][1]
    for number in ranking[1:]:
        candidate = tuple(sorted((*members, number)))
        value = score(candidate)
        trials.append((candidate, value))
        if value >= best:
            members, best = candidate, value
    return members, trials


def choose_greedily(
    selection: Selection, settings: Settings, output: Path | None, score: Callable[[Path], float] | None
) -> dict[str, Any]:
    """Reduce a selection to the members of the greedy soup, each counting the same.

    Args:
        selection: candidates; changed in place.
        settings: of the average.
        output: the folder to be; trial averages are written beside it and removed.
        score: scores a model folder.

    Returns:
        What was tried, for the report: `metric`, `languages`, `trials`.

    Raises:
        ConfigError: no scorer, or settings that do not go with it.
    """
    if score is None:
        raise ConfigError(
            f"a greedy average needs data to score on: give source-language data with {setting('dataset')}."
        )
    if output is None:
        raise ConfigError(f"a greedy average is scored, and not only checked: leave out {setting('check_only')}.")
    if settings.weights is not None or settings.ema_decay is not None or settings.per_run:
        raise ConfigError(
            f"a greedy average weighs its members equally: leave out weights, {setting('ema_decay', flag='ema')} and "
            f"{setting('per_run')}."
        )
    snapshots = list(selection.snapshots)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=output.absolute().parent, prefix=f".{output.name}.", suffix=".part", ignore_cleanup_errors=True
    ) as scratch:

        def score_members(members: tuple[int, ...]) -> float:
            return score(_average([snapshots[number].place for number in members], Path(scratch) / "trial", settings))

        kept, trials = add_while_not_worse(len(snapshots), score_members)
    selection.snapshots = [snapshots[number] for number in kept]
    selection.weights = [Fraction(1, len(kept))] * len(kept)
    return {
        "metric": getattr(score, "metric", None),
        "languages": list(getattr(score, "languages", ())),
        "trials": [
            {"names": [snapshots[number].place.name for number in members], "score": value}
            for members, value in trials
        ],
    }


def _average(places: Sequence[Path], folder: Path, settings: Settings) -> Path:
    from hf_xlt.averaging.average import average_checkpoints

    shutil.rmtree(folder, ignore_errors=True)
    average_checkpoints(
        places,
        folder,
        dtype=settings.dtype,
        accumulate=settings.accumulate,
        head=settings.head,
        strict=settings.strict,
        allow_non_finite=settings.allow_non_finite,
    )
    return folder


class SourceScorer:
    """Scores model folders on the validation data of the source languages.

    Attributes:
        metric: the task's main metric, whose unweighted mean over the source languages is the score.
        languages: the source languages.
    """

    def __init__(self, data: DataArguments, batch_size: int = 64, divided_before: Division | None = None) -> None:
        """Find the validation data; nothing of any target language is looked at.

        Args:
            data: what to score on; `target_languages` and `target_dataset` are left aside.
            batch_size: examples per batch.
            divided_before: how the run divided its data.

        Raises:
            ConfigError: the data are missing or do not fit the task.
        """
        import dataclasses

        from hf_xlt.data.roles import resolve_data
        from hf_xlt.tasks import get_task

        # Set past `__post_init__`, which would read an empty list as all languages.
        data = dataclasses.replace(data, target_dataset=None, target_split=data.validation_split)
        data.target_languages = []
        self._plan = resolve_data(
            data,
            get_task(data.task),
            needs_validation=True,
            scores=False,
            trains=False,
            divided_before=divided_before,
            strict=False,
        )
        self._data, self._batch_size = data, batch_size
        self.metric, self.languages = self._plan.task.metric, self._plan.source_languages

    def __call__(self, folder: Path) -> float:
        """Return a model folder's score.

        Raises:
            ConfigError: the model cannot be loaded or does not fit the data.
        """
        import dataclasses

        from hf_xlt.data.model_labels import match_labels
        from hf_xlt.data.roles import VALIDATION
        from hf_xlt.evaluation import encode, score
        from hf_xlt.modelling.tokens import fit_tokenizer
        from hf_xlt.models import ModelSource
        from hf_xlt.scoring import scoring_trainer

        # Each model may have its classes in an order of its own.
        source, plan = ModelSource.find(str(folder)), dataclasses.replace(self._plan, sets=dict(self._plan.sets))
        task = plan.task
        fitted = fit_tokenizer(source, task, self._data.max_length, resize=None)
        model, tokenizer, inventory = fitted.source.load_trained(task), fitted.tokenizer, None
        if task.find_labels is not None:
            classes = [str(model.config.id2label[index]) for index in sorted(model.config.id2label)]
            inventory = match_labels(plan, classes, self._data.labels)
        max_length = fitted.max_length
        entries = plan.of_role(VALIDATION)
        features = {
            entry.language: encode(entry, entry.read(), plan, tokenizer, inventory, max_length) for entry in entries
        }
        with tempfile.TemporaryDirectory() as scratch:
            trainer = scoring_trainer(model, tokenizer, task, inventory, scratch, self._batch_size)
            return score(trainer, features, task, plan.source_languages).source_average
