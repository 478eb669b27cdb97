"""The generalized cross-lingual setting: every ordered pair of languages, with the checkpoint of the standard one.

Source: Huang et al. 2021, "Improving Zero-Shot Cross-Lingual Transfer Learning via Robust Training". The two sentences
of a pair are in different languages; training is as before. The diagonal, where both are in one language, is the
standard scoring and is taken from it, not scored again. Whether the paper's averages include the diagonal is unknown,
so they are given with and without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from hf_xlt.data.generalized import COLUMNS, ParallelPairs
from hf_xlt.files import write_json, write_text
from hf_xlt.generalized_results import GeneralizedResults
from hf_xlt.languages import english_name
from hf_xlt.pair_tokenizer import fastest_tokenizer
from hf_xlt.plotting import load_pyplot, save_figure
from hf_xlt.results import Results, markdown
from hf_xlt.tasks import Encoding, Task
from hf_xlt.training.languages import language_metrics

if TYPE_CHECKING:
    from hf_xlt.training.trainer import XLTTrainer

JSON_NAME = "generalized.json"
TABLE_NAME = "generalized.md"
PLOT_NAME = "generalized.png"
FILES = (JSON_NAME, TABLE_NAME, PLOT_NAME)

# Examples that are encoded and sorted by length at a time, unless one pair of languages alone has more.
CHUNK = 8192
# Pairs on which the quick tokenizer must agree with the plain one.
_TRIED = 200
# Up to so many languages the heat map's cells carry their values.
_NUMBERED = 20


def score_generalized(
    trainer: XLTTrainer,
    pairs: ParallelPairs,
    task: Task,
    encoding: Encoding,
    standard: Results,
    progress: bool | None = None,
) -> GeneralizedResults:
    """Score a trainer's model on every ordered pair of languages.

    Args:
        trainer: any `XLTTrainer`; its `compute_metrics` gives the metrics.
        pairs: the joined test sets.
        task: a task of sentence pairs.
        encoding: tokenizer, inventory and length as in the standard scoring; its columns are not looked at.
        standard: the standard scores of the same model on the same test sets: the diagonal.
        progress: whether to show a progress bar; None shows one where the trainer shows its own.

    Returns:
        The scores of all ordered pairs.

    Raises:
        ConfigError: a text cannot be used.
    """
    scored = {score.language: score for score in standard.scores}
    found = {(code, code): scored[code].metrics for code in pairs.languages}
    config = trainer.bare_model().config
    ordered = pairs.ordered_pairs()
    encoding = _quickest(encoding, pairs, ordered[0])
    size = max(1, CHUNK // len(pairs.ids))
    with _one_bar(trainer, len(ordered) * len(pairs.ids), progress) as bar:
        for start in range(0, len(ordered), size):
            chunk = ordered[start : start + size]
            datasets = {" ".join(pair): _features(pairs, pair, task, encoding) for pair in chunk}
            bar.left = len(chunk) * len(pairs.ids)
            predictions = trainer.predict_languages(datasets)
            for pair in chunk:
                prediction = predictions[" ".join(pair)]
                found[pair] = language_metrics(prediction, trainer.compute_metrics, config)
    names = list(found[pairs.languages[0], pairs.languages[0]])
    matrix = {
        name: tuple(tuple(found[one, two][name] for two in pairs.languages) for one in pairs.languages)
        for name in names
    }
    return GeneralizedResults(task.metric, pairs.languages, pairs.source_languages, len(pairs.ids), matrix)


def _quickest(encoding: Encoding, pairs: ParallelPairs, pair: tuple[str, str]) -> Encoding:
    """Let each sentence be tokenised once, where that gives what the tokenizer gives."""
    first, second = pairs.first[pair[0]][:_TRIED], pairs.second[pair[1]][:_TRIED]
    tokenizer = fastest_tokenizer(encoding.tokenizer, first, second, encoding.max_length)
    return dataclasses.replace(encoding, tokenizer=tokenizer)


def _features(pairs: ParallelPairs, pair: tuple[str, str], task: Task, encoding: Encoding) -> Any:
    """Encode one ordered pair of languages as the standard scoring encodes its rows."""
    from datasets import concatenate_datasets

    table = pairs.table(*pair)
    # The pairs' labels are indices of the inventory already.
    inventory = dataclasses.replace(encoding.inventory, numbered=True)
    own = dataclasses.replace(encoding, columns=COLUMNS, inventory=inventory, where=f"the pairs {'-'.join(pair)}")
    # In parts: the features of large sets would go to the cache of `datasets`, once for each pair of languages.
    parts = [
        task.encode(table.select(range(start, min(start + CHUNK, len(table)))), own)
        for start in range(0, len(table), CHUNK)
    ]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


class _Bar(TrainerCallback):
    """Advances one progress bar over all chunks, batch by batch."""

    def __init__(self, bar: Any) -> None:
        self.bar, self.left = bar, 0

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: object) -> None:
        done = min(self.left, args.eval_batch_size * args.world_size)
        self.left -= done
        self.bar.update(done)


@contextlib.contextmanager
def _one_bar(trainer: XLTTrainer, total: int, progress: bool | None) -> Iterator[_Bar]:
    """Show one bar over all predictions in place of one per chunk."""
    from tqdm import tqdm

    shown = not trainer.args.disable_tqdm if progress is None else progress
    own = trainer.pop_callback(ProgressCallback)
    disable = not (shown and trainer.is_world_process_zero())
    with tqdm(total=total, desc="Pairs of languages", unit=" examples", disable=disable, leave=False) as bar:
        callback = _Bar(bar)
        trainer.add_callback(callback)
        try:
            yield callback
        finally:
            trainer.remove_callback(callback)
            if own is not None:
                trainer.add_callback(own)


def write_generalized(folder: Path, results: GeneralizedResults) -> list[str]:
    """Write `generalized.json`, `generalized.md` and, where matplotlib is installed, `generalized.png`.

    Returns:
        Names of the files written.
    """
    written = [JSON_NAME, TABLE_NAME]
    write_json(folder / JSON_NAME, results.to_dict())
    parts = [results.heading(), markdown(results.averages_table(), left=1), markdown(results.language_table(), left=2)]
    parts.append("First sentence's language down, second's across:")
    parts.append(markdown(results.matrix_table(), left=1))
    write_text(folder / TABLE_NAME, "\n\n".join(parts) + "\n")
    if plot(folder / PLOT_NAME, results):
        written.append(PLOT_NAME)
    return written


def replace_generalized(folder: Path, results: GeneralizedResults | None) -> list[str]:
    """Write the files, or remove those of an earlier scoring, which would not be of the same model.

    Returns:
        Names of the files written.
    """
    written = write_generalized(folder, results) if results else []
    for name in set(FILES) - set(written):
        (folder / name).unlink(missing_ok=True)
    return written


def plot(path: Path, results: GeneralizedResults) -> bool:
    """Draw the main metric as a heat map, first sentences' languages down, second sentences' across.

    Returns:
        False when matplotlib is not installed, and nothing was drawn.
    """
    pyplot = load_pyplot()
    if pyplot is None:
        return False
    values = [[100 * value for value in row] for row in results.matrix[results.metric]]
    count = len(results.languages)
    numbered = count <= _NUMBERED
    cell = 0.5 if numbered else 0.27
    figure, axes = pyplot.subplots(figsize=(3.4 + cell * count, 2.2 + cell * count), layout="constrained")
    image = axes.imshow(values, cmap="viridis")
    names = [f"{english_name(code)} ({code})" for code in results.languages]
    axes.set_xticks(range(count), names, rotation=90, fontsize=8)
    axes.set_yticks(range(count), names, fontsize=8)
    axes.set(xlabel="second sentence", ylabel="first sentence")
    if numbered:
        lowest, highest = image.get_clim()
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                # Light figures on the dark half of the colours.
                colour = "white" if value < (lowest + highest) / 2 else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, label=f"{results.metric.replace('_', ' ')} (%)", shrink=0.8)
    save_figure(figure, path)
    return True
