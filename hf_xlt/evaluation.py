"""Scoring a model on languages: one pass over all of them, then a table, a file and a plot."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.data.labels import LabelInventory
from hf_xlt.data.roles import AUXILIARY_TEST, SOURCE_TEST, TARGET_TEST, DataPlan, DataSet
from hf_xlt.files import write_json, write_text
from hf_xlt.languages import english_name, find_same
from hf_xlt.plotting import load_pyplot, save_figure
from hf_xlt.results import AUXILIARY, FLOOR, ROLES, SOURCE, TARGET, LanguageScore, Results, markdown
from hf_xlt.tasks import Encoding, Task
from hf_xlt.training.languages import language_metrics

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

    from hf_xlt.training.trainer import XLTTrainer

RESULTS_NAME = "results.json"
TABLE_NAME = "results.md"
PLOT_NAME = "results.png"
_COLOURS = {SOURCE: "tab:orange", TARGET: "tab:blue", AUXILIARY: "tab:green"}


def encode(
    entry: DataSet, table: Any, plan: DataPlan, tokenizer: PreTrainedTokenizerBase, inventory: Any, max_length: int
) -> Any:
    """Turn one data set's rows into features of the plan's task.

    Raises:
        ConfigError: a text or label cannot be used; the message names data set and row.
    """
    return encoder(entry, plan, tokenizer, inventory, max_length)(table)


def encoder(
    entry: DataSet, plan: DataPlan, tokenizer: PreTrainedTokenizerBase, inventory: Any, max_length: int
) -> Callable[[Any], Any]:
    """Return what turns rows of a data set into features; it pickles, for the workers of data loaders."""
    encoding = Encoding(
        tokenizer, entry.columns, inventory, max_length, entry.where, entry.language, plan.window_overlap
    )
    return functools.partial(plan.task.encode, encoding=encoding)


def read_tests(
    plan: DataPlan,
    tokenizer: PreTrainedTokenizerBase,
    inventory: LabelInventory | None,
    max_length: int,
    roles: tuple[str, ...] = (SOURCE_TEST, TARGET_TEST, AUXILIARY_TEST),
) -> dict[str, Any]:
    """Read and encode every test set, or the sets of other roles; a model is shown test rows from here on.

    Returns:
        Features by language, source languages first.
    """
    return {
        entry.language: encode(entry, entry.read(), plan, tokenizer, inventory, max_length)
        for entry in plan.of_role(*roles)
    }


def settle_threshold(
    trainer: XLTTrainer, task: Task, inventory: LabelInventory | None, validation: Mapping[str, Any]
) -> tuple[Task, float | None]:
    """Choose the probability from which a trainer's model says a label, where the task has such a threshold.

    Args:
        trainer: its `compute_metrics` is set.
        task: what it is scored on.
        inventory: labels.
        validation: features of the source languages by language; without any the threshold stays the task's own.

    Returns:
        The task at the threshold, and the threshold; None for other tasks, and where there is nothing to choose by.
    """
    if task.find_threshold is None or not validation:
        return task, None
    predictions = trainer.predict_languages(validation)
    trainer.callback_handler.on_predict(trainer.args, trainer.state, trainer.control, {})
    threshold = task.find_threshold(list(predictions.values()))
    task = task.at_threshold(task, threshold)
    trainer.compute_metrics = task.compute_metrics(inventory)
    return task, threshold


def score(
    trainer: XLTTrainer,
    datasets: Mapping[str, Any],
    task: Task,
    source_languages: tuple[str, ...],
    keep_items: Callable[[str, EvalPrediction], None] | None = None,
    auxiliary_languages: tuple[str, ...] = (),
) -> Results:
    """Score a trainer's model on test sets by language.

    Args:
        trainer: any `XLTTrainer`; its `compute_metrics` gives the metrics.
        datasets: features by language; none empty.
        task: what they are scored on.
        source_languages: which of them are source languages.
        keep_items: called with each language and its predictions.
        auxiliary_languages: which of them had labels in training beside the source; the rest are targets.

    Returns:
        The scores, source languages first, auxiliary ones last.
    """
    predictions = trainer.predict_languages(datasets)
    # Closes the progress bar, and tells callbacks that this was no evaluation to select by.
    trainer.callback_handler.on_predict(trainer.args, trainer.state, trainer.control, {})
    config = trainer.bare_model().config
    for language, prediction in predictions.items():
        if keep_items is not None:
            keep_items(language, prediction)
    scores = [
        LanguageScore(
            language,
            _role(language, source_languages, auxiliary_languages),
            task.count_examples(datasets[language]),
            language_metrics(prediction, trainer.compute_metrics, config),
        )
        for language, prediction in predictions.items()
    ]
    return Results(task.metric, tuple(sorted(scores, key=lambda entry: ROLES.index(entry.role))))


def _role(language: str, sources: tuple[str, ...], auxiliary: tuple[str, ...]) -> str:
    """Return a language's role, whichever code it goes by."""
    return SOURCE if find_same(language, sources) else AUXILIARY if find_same(language, auxiliary) else TARGET


def write_results(folder: Path, results: Results, beside: Mapping[str, Results] | None = None) -> list[str]:
    """Write `results.json`, `results.md` and, where matplotlib is installed, `results.png`.

    Args:
        folder: where.
        results: of the model.
        beside: of other models, by name.

    Returns:
        Names of the files written.
    """
    beside = dict(beside or {})
    written = [RESULTS_NAME, TABLE_NAME]
    others = {name.replace("-", "_"): scores.to_dict() for name, scores in beside.items()}
    write_json(folder / RESULTS_NAME, {**results.to_dict(), FLOOR: None, **others})
    summary = "\n".join(f"- {' '.join(line.split())}" for line in results.summary_lines(beside))
    write_text(folder / TABLE_NAME, f"{markdown(results.table(beside))}\n\n{summary}\n")
    if plot(folder / PLOT_NAME, results):
        written.append(PLOT_NAME)
    return written


def plot(path: Path, results: Results) -> bool:
    """Draw one bar per language, sorted by score, the source marked.

    Returns:
        False when matplotlib is not installed, and nothing was drawn.
    """
    pyplot = load_pyplot()
    if pyplot is None:
        return False
    scores = sorted(results.scores, key=lambda entry: entry.metrics[results.metric])
    values = [100 * entry.metrics[results.metric] for entry in scores]
    colours = [_COLOURS[entry.role] for entry in scores]
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.28 * len(scores)), layout="constrained")
    bars = axes.barh([f"{english_name(entry.language)} ({entry.language})" for entry in scores], values, color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set(xlabel=f"{results.metric.replace('_', ' ')} (%)", xlim=(0, 105))
    axes.margins(y=0.01)
    present = [role for role in ROLES if role == TARGET or results.of_role(role)]
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=_COLOURS[role]) for role in present]
    labels = [f"{role} language{'s' * (role != SOURCE)}" for role in present]
    figure.legend(handles, labels, loc="outside upper center", ncols=len(present), frameon=False)
    save_figure(figure, path)
    return True
