"""Scoring a model that is there already: the work of `hf-xlt evaluate`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_xlt.arguments import DataArguments
from hf_xlt.data.generalized import choose_pair_sets, join_pairs
from hf_xlt.data.labels import LabelInventory
from hf_xlt.data.roles import AUXILIARY, AUXILIARY_TEST, SOURCE_TEST, TARGET_TEST, DataPlan, resolve_data
from hf_xlt.data.sources import EMBEDDED
from hf_xlt.errors import ConfigError
from hf_xlt.evaluation import RESULTS_NAME, longest_input, read_tests, score, write_results
from hf_xlt.files import write_text
from hf_xlt.generalized import replace_generalized, score_generalized
from hf_xlt.generalized_results import GeneralizedResults
from hf_xlt.items import ItemScores
from hf_xlt.models import ModelSource
from hf_xlt.record import FINISHED, RECORD_NAME, RunRecord
from hf_xlt.results import Results
from hf_xlt.tasks import Encoding, Task, get_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_xlt.training.trainer import XLTTrainer


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        results: the scores per language.
        generalized: the scores of all ordered pairs of languages, where they were asked for.
        folder: where they were written to.
        written: names of the files.
        notes: what the user should know, in sentences.
    """

    results: Results
    generalized: GeneralizedResults | None
    folder: Path
    written: list[str]
    notes: list[str]


def evaluate_model(
    model: str,
    data: DataArguments,
    *,
    batch_size: int = 64,
    revision: str | None = None,
    output_dir: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Score a model with a trained head on the languages of a data set.

    Args:
        model: run directory, model directory, or Hub id.
        data: what to score on; without a data set, the embedded task where the run was made on it.
        batch_size: examples per batch.
        revision: branch, tag or commit on the Hub.
        output_dir: where to write; None chooses a folder beside the run, or under `evaluations/`.
        overwrite: replace results that are there.
        progress: show a progress bar while pairs of languages are scored.

    Raises:
        ConfigError: model or data cannot be used, or there are results already.
    """
    record = RunRecord.read(model) if (Path(model) / RECORD_NAME).is_file() else None
    plan = _plan(record, data)
    task = plan.task
    folder = _output_folder(
        model, record, plan.of_role(TARGET_TEST, AUXILIARY_TEST, SOURCE_TEST)[0].source.name, output_dir
    )
    if (folder / RESULTS_NAME).is_file() and not overwrite:
        raise ConfigError(f"`{folder}` holds results already; add `--overwrite`, or give another `--output-dir`.")
    if data.generalized:
        choose_pair_sets(plan, data)

    source = ModelSource.find(model, revision=revision)
    loaded = source.load_trained(task)
    tokenizer = source.load_tokenizer()
    inventory = _inventory(task, loaded.config)
    if inventory is not None:
        plan.task = task.given_labels(inventory)
    asked = data.max_length or (record.arguments.get("max_length") if record else None) or task.max_length
    max_length = longest_input(asked, tokenizer, loaded.config)
    tests = read_tests(plan, tokenizer, inventory, max_length)
    pairs = join_pairs(plan, data, inventory) if data.generalized else None
    encoding = Encoding(tokenizer, {}, inventory, max_length, "")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = scoring_trainer(loaded, tokenizer, task, inventory, scratch, batch_size)
        items = ItemScores(plan.task, inventory)
        results = score(trainer, tests, plan.task, plan.source_languages, items.add, plan.auxiliary_languages)
        generalized = score_generalized(trainer, pairs, plan.task, encoding, results, progress) if pairs else None
    folder.mkdir(parents=True, exist_ok=True)
    written = write_results(folder, results) + [items.write(folder)] + replace_generalized(folder, generalized)
    if _is_unscored_average(record) and folder == Path(model):
        written += _complete(record, plan, results, generalized, folder)
    return Evaluation(results, generalized, folder, written, plan.notes)


def _is_unscored_average(record: RunRecord | None) -> bool:
    return record is not None and bool(record.parents) and record.results is None


def _complete(
    record: RunRecord, plan: DataPlan, results: Results, generalized: GeneralizedResults | None, folder: Path
) -> list[str]:
    """Put scores into the record of an average, which has none of its own, and make its card."""
    from hf_xlt.bookkeeping import add_test_fingerprints, describe_data, describe_languages
    from hf_xlt.model_cards.card import CARD_NAME, render

    record.data |= describe_data(plan)
    record.languages |= describe_languages(plan)
    add_test_fingerprints(record, plan)
    record.results, record.status = results.to_dict(), FINISHED
    record.generalized = generalized.to_dict() if generalized else None
    record.plots = record.with_plots(folder).plots
    record.write(folder)
    write_text(folder / CARD_NAME, render(record))
    return [RECORD_NAME, CARD_NAME]


def _plan(record: RunRecord | None, data: DataArguments) -> DataPlan:
    """Find the data to score on; a run's record says what its task and windows were."""
    if data.dataset is None:
        if record is None or not record.demo:
            raise ConfigError("no data: give `--dataset` (a pattern, a Hub id, or `embedded`).")
        data.dataset = EMBEDDED
    task = get_task(record.task["name"] if record else data.task)
    plan = resolve_data(data, task, needs_validation=False, trains=False)
    if record is not None:
        # The windows are those of the run, so that its scores come out again.
        plan.window_overlap = record.arguments.get("window_overlap", plan.window_overlap)
        plan.set_apart({language["code"] for language in record.languages.get(AUXILIARY, [])})
    return plan


def _inventory(task: Task, config: Any) -> LabelInventory | None:
    """Return the labels that a model's config names, for tasks that have labels."""
    if task.find_labels is None:
        return None
    return LabelInventory(tuple(config.id2label[index] for index in sorted(config.id2label)))


def scoring_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    inventory: LabelInventory | None,
    scratch: str,
    batch_size: int,
) -> XLTTrainer:
    """Build a trainer that only scores.

    Args:
        model: with a trained head.
        tokenizer: its tokenizer.
        task: what it is scored on.
        inventory: labels, or None for tasks without.
        scratch: a folder that may be deleted afterwards.
        batch_size: examples per batch.
    """
    import torch

    from hf_xlt.training.config import XLTConfig
    from hf_xlt.training.trainer import XLTTrainer

    config = XLTConfig(
        output_dir=scratch,
        per_device_eval_batch_size=batch_size,
        use_cpu=not torch.cuda.is_available() and not torch.backends.mps.is_available(),
        disable_tqdm=True,
    )
    return XLTTrainer(
        model=model,
        args=config,
        data_collator=task.collator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=task.compute_metrics(inventory),
    )


def _output_folder(model: str, record: RunRecord | None, data_name: str, asked: str | None) -> Path:
    if asked is not None:
        return Path(asked)
    label = "".join(char if char.isalnum() or char in "-_" else "-" for char in data_name.split("/")[0])
    if _is_unscored_average(record):
        return Path(model)
    if record is not None:
        return Path(model) / "evaluations" / label
    name = Path(model).name if Path(model).is_dir() else model.replace("/", "--")
    return Path("evaluations") / name / label
