"""Scoring a model that is there already: the work of `hf-xlt evaluate`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_xlt.arguments import DataArguments
from hf_xlt.data.division import ID_COLUMN, Division
from hf_xlt.data.generalized import choose_pair_sets, join_pairs
from hf_xlt.data.labels import LabelInventory
from hf_xlt.data.model_labels import match_labels
from hf_xlt.data.patterns import label_of
from hf_xlt.data.readings import settle_readings
from hf_xlt.data.roles import (
    AUXILIARY,
    AUXILIARY_TEST,
    SHOTS,
    SOURCE_TEST,
    TARGET_TEST,
    TRAINING,
    VALIDATION,
    DataPlan,
    resolve_data,
)
from hf_xlt.data.settings import check_data_used
from hf_xlt.data.sources import EMBEDDED
from hf_xlt.errors import ConfigError
from hf_xlt.evaluation import PLOT_NAME, RESULTS_NAME, TABLE_NAME, read_tests, score, settle_threshold, write_results
from hf_xlt.generalized import FILES as GENERALIZED_FILES
from hf_xlt.generalized import replace_generalized, score_generalized
from hf_xlt.generalized_results import GeneralizedResults
from hf_xlt.items import ITEMS_NAME, ItemScores
from hf_xlt.languages import find_same
from hf_xlt.modelling.settings import THRESHOLD_FIELD
from hf_xlt.modelling.tokens import fit_tokenizer
from hf_xlt.models import ModelSource, write_threshold
from hf_xlt.output import check_files, claim_output, write_card
from hf_xlt.record import FINISHED, RECORD_NAME, RunRecord
from hf_xlt.registry import dependent
from hf_xlt.results import Results, plain
from hf_xlt.tasks import TASKS, Encoding, Task, get_task
from hf_xlt.tasks.multi_label import DEFAULT_THRESHOLD, MULTI_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_xlt.training.trainer import XLTTrainer


_FILES = (RESULTS_NAME, TABLE_NAME, PLOT_NAME, ITEMS_NAME, *GENERALIZED_FILES)


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

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        more = {"generalized": self.generalized.to_dict()} if self.generalized else {}
        return {**self.results.to_dict(), **more, "folder": str(self.folder), "notes": self.notes}

    def describe(self) -> str:
        """Return the table, what is read off it, and where it lies."""
        lines = [plain(self.results.table()), "", *(f"  {line}" for line in self.results.summary_lines())]
        lines += [f"  Note: {note}" for note in self.notes]
        if self.generalized:
            lines += ["", self.generalized.describe()]
        return "\n".join([*lines, "", f"Saved in {self.folder}: {', '.join(self.written)}."])


def evaluate_model(
    model: str,
    data: DataArguments,
    *,
    batch_size: int = 64,
    revision: str | None = None,
    output_dir: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    languages: Sequence[str] | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Score a model with a trained head on the languages of a data set.

    The model may come from anywhere: where no record of a run tells task, languages and length, its config does.

    Args:
        model: run directory, model directory, or Hub id.
        data: what to score on; without a data set, the embedded task where the run was made on it.
        batch_size: examples per batch.
        revision: branch, tag or commit on the Hub.
        output_dir: where to write; None chooses a folder beside the run, or under `evaluations/`.
        overwrite: replace results that are there.
        progress: show progress bars.
        languages: score these alone, source languages among them as such; None scores source and target languages.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ConfigError: model or data cannot be used, or there are results already.
    """
    source = ModelSource.find(model, revision=revision, trust_remote_code=trust_remote_code)
    if not os.path.isdir(source.path):
        # A model that is not there is told of at once, and not after a record has been looked for over the network.
        source.load_config()
    record = find_record(source)
    plan = _plan(record, data, source, languages)
    folder = _claim_folder(model, record, plan, output_dir, overwrite)
    if data.generalized:
        choose_pair_sets(plan, data)
    results, generalized, items = _score(source, plan, data, record, batch_size, progress)
    claim_output(folder, overwrite=False)
    written = write_results(folder, results) + [items.write(folder)] + replace_generalized(folder, generalized)
    if _is_unscored_average(record) and folder == Path(model):
        written += _complete(record, plan, results, generalized, folder)
    return Evaluation(results, generalized, folder, written, plan.notes)


def _score(
    source: ModelSource, plan: DataPlan, data: DataArguments, record: RunRecord | None, batch_size: int, progress: bool
) -> tuple[Results, GeneralizedResults | None, ItemScores]:
    """Load the model and score it on the plan's test data.

    Raises:
        ConfigError: it has no trained head for the task, or its labels do not fit the data's.
    """
    task = plan.task
    asked = data.max_length or (record.arguments.get("max_length") if record else None)
    fitted = fit_tokenizer(source, task, asked, resize=None)
    tokenizer, max_length = fitted.tokenizer, fitted.max_length
    loaded = fitted.source.load_trained(task)
    inventory = _inventory(plan, loaded.config, data, record)
    if inventory is not None:
        plan.task = task.given_labels(inventory)
        # Bare numbers have names only now.
        settle_readings(plan, inventory.names)
    task = plan.task
    plan.notes.extend(fitted.notes)
    tests = read_tests(plan, tokenizer, inventory, max_length)
    pairs = join_pairs(plan, data, inventory) if data.generalized else None
    encoding = Encoding(tokenizer, {}, inventory, max_length, "")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = scoring_trainer(loaded, tokenizer, task, inventory, scratch, batch_size, progress)
        task = plan.task = _at_threshold(trainer, plan, tokenizer, inventory, max_length, record)
        items = ItemScores(task, inventory)
        results = score(trainer, tests, task, plan.source_languages, items.add, plan.auxiliary_languages)
        generalized = score_generalized(trainer, pairs, plan.task, encoding, results, progress) if pairs else None
    return results, generalized, items


def _at_threshold(
    trainer: XLTTrainer,
    plan: DataPlan,
    tokenizer: PreTrainedTokenizerBase,
    inventory: LabelInventory | None,
    max_length: int,
    record: RunRecord | None,
) -> Task:
    """Return the task at the threshold of the model, which its config names; else of a run's average, as of a run."""
    task, config = plan.task, trainer.bare_model().config
    if task.find_threshold is None:
        return task
    threshold = getattr(config, THRESHOLD_FIELD, None)
    if threshold is None and record is not None:
        validation = read_tests(plan, tokenizer, inventory, max_length, (VALIDATION,))
        _, threshold = settle_threshold(trainer, task, inventory, validation)
        if threshold is not None:
            plan.notes.append(f"labels count from probability {threshold:.4g}, chosen on source validation data.")
    if threshold is None:
        plan.notes.append(f"the model's config has no `{THRESHOLD_FIELD}`; labels count from probability 0.5.")
        threshold = DEFAULT_THRESHOLD
    if record is not None:
        record.task["threshold"] = threshold
    task = task.at_threshold(task, float(threshold))
    trainer.compute_metrics = task.compute_metrics(inventory)
    return task


def _claim_folder(model: str, record: RunRecord | None, plan: DataPlan, asked: str | None, overwrite: bool) -> Path:
    """Return the folder for the results.

    Raises:
        ConfigError: there is nothing to score, or the folder holds results already or cannot be written to.
    """
    scored = plan.of_role(TARGET_TEST, AUXILIARY_TEST, SOURCE_TEST)
    if not scored:
        raise ConfigError("there is nothing to score: none of the languages has test data.")
    folder = _output_folder(model, record, label_of(scored[0].place), asked)
    check_files(folder, _FILES, ("metric", "languages", "target_average"), overwrite=overwrite, what="results")
    return folder


def _is_unscored_average(record: RunRecord | None) -> bool:
    return record is not None and bool(record.parents) and record.results is None


def _complete(
    record: RunRecord, plan: DataPlan, results: Results, generalized: GeneralizedResults | None, folder: Path
) -> list[str]:
    """Put scores into the record of an average, which has none of its own, and make its card."""
    from hf_xlt.bookkeeping import add_test_fingerprints, describe_data, describe_languages
    from hf_xlt.model_cards.card import CARD_NAME

    record.data |= describe_data(plan)
    record.languages |= describe_languages(plan)
    add_test_fingerprints(record, plan)
    if "threshold" in record.task:
        write_threshold(folder, record.task["threshold"])
    record.results, record.status = results.to_dict(), FINISHED
    record.generalized = generalized.to_dict() if generalized else None
    record.plots = record.with_plots(folder).plots
    record.write(folder)
    # Words that the user has put into the average's card stay.
    edited = write_card(folder, record)
    plan.notes += edited
    return [RECORD_NAME, *(() if edited else (CARD_NAME,))]


def find_record(source: ModelSource) -> RunRecord | None:
    """Return the record of the run that made a model: beside it, or in its repository on the Hub; else None."""
    if os.path.isdir(source.path):
        return RunRecord.read(source.path) if (Path(source.path) / RECORD_NAME).is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(source.path, RECORD_NAME, revision=source.revision)
    except Exception:
        # Most models have none, and what keeps the Hub from answering is told when the model is loaded.
        return None
    return RunRecord.read(Path(found).parent)


def _plan(
    record: RunRecord | None, data: DataArguments, source: ModelSource, languages: Sequence[str] | None
) -> DataPlan:
    """Find the data to score on; a run's record says what its task, source languages and windows were."""
    if data.dataset is None:
        if record is None or not record.demo:
            raise ConfigError("no data: give `--dataset` (a pattern, a Hub id, or `embedded`).")
        data.dataset = EMBEDDED
    task = get_task(data.task or (record.task["name"] if record else task_of(source.load_config())))
    if record and task.name != record.task["name"]:
        raise ConfigError(f"the run was trained for {record.task['name']}, not for {task.name}; leave `--task` out.")
    check_data_used(
        data,
        task,
        None,
        dependent("validation_split", lambda data: task.find_threshold is not None, "multi-label-classification"),
    )
    known = [entry["code"] for entry in record.languages.get("source", ())] if record else []
    assumed = data.source_languages is None
    data.source_languages = data.source_languages or known or ["en"]
    if languages:
        known_sources = data.source_languages
        data.source_languages = [code for code in languages if find_same(code, known_sources)]
        data.target_languages = [code for code in languages if not find_same(code, known_sources)]
    # What the run was asked for need not fit other data; what is asked for now must.
    strict = bool(data.language_map or data.divide_split)
    if record is not None and not data.language_map:
        data.language_map = record.arguments.get("language_map")
    division = division_of(record) if record is not None and not data.divide_split else None
    plan = resolve_data(data, task, needs_validation=False, trains=False, divided_before=division, strict=strict)
    if record is not None:
        plan.notes += notes_of_run(record, plan)
    if assumed and not known and plan.of_role(SOURCE_TEST):
        plan.notes.append(
            f"nothing tells which language the model was trained on; {', '.join(plan.source_languages)} is taken as "
            "the source, and `--source-languages` names another."
        )
    if record is not None:
        # The windows are those of the run, so that its scores come out again.
        plan.window_overlap = record.arguments.get("window_overlap", plan.window_overlap)
        plan.set_apart({language["code"] for language in record.languages.get(AUXILIARY, [])})
    return plan


def division_of(record: RunRecord) -> Division | None:
    """Return how a run divided its data; only the very same sets are divided so again."""
    divided = [entry["divided"] for entry in record.data.values() if entry.get("divided")]
    if not divided:
        return None
    wholes = frozenset(whole for facts in divided for whole in facts["wholes"].values())
    ids = divided[0].get("id_column", ID_COLUMN)
    return Division(tuple(divided[0]["shares"].items()), divided[0]["seed"], wholes, ids)


def notes_of_run(record: RunRecord, plan: DataPlan) -> list[str]:
    """Say which sets to be scored are those that a run learned from, and which it divided and are others now."""
    notes = []
    for entry in plan.of_role(SOURCE_TEST, TARGET_TEST):
        for role in (TRAINING, AUXILIARY, SHOTS):
            facts = record.data.get(role) or {}
            known = facts.get("fingerprints", {}).get(entry.language)
            if known is None or known != entry.source.fingerprint(entry.language, entry.split):
                continue
            # The hash is that of a file, whose splits a column may tell apart.
            if entry.source.rows(entry.language, entry.split).split in (None, facts.get("split")):
                some = " (some of these rows)" * (role == SHOTS)
                notes.append(f"{entry.where} are the {role} data of the run{some}: the score is no test of it.")
    divided = {name for facts in record.data.values() if facts.get("divided") for name in facts.get("sources") or ()}
    others = [entry for entry in plan.of_role(SOURCE_TEST, TARGET_TEST) if not entry.is_part]
    for name in sorted({entry.source.name for entry in others} & divided):
        notes.append(f"`{name}` was divided by the run, but these are other files: they are not divided.")
    return notes


def task_of(config: Any) -> str:
    """Return the name of the task that a model's config says its head is for.

    Raises:
        ConfigError: the head is for nothing that is scored here.
    """
    names = [str(name) for name in getattr(config, "architectures", None) or ()]
    heads = {name: task.auto_model.removeprefix("AutoModel") for name, task in TASKS.items()}
    found = [task for task, head in heads.items() if any(name.endswith(head) for name in names)]
    # One kind of head serves several tasks, and the config says which.
    problem = getattr(config, "problem_type", None)
    found.sort(key=lambda name: TASKS[name].problem_type != problem)
    if found:
        return found[0]
    if any("For" in name for name in names):
        raise ConfigError(
            f"`{names[0]}` is no model with a head that is scored here; give one fine-tuned for "
            f"{', '.join(TASKS)}, or name the task with `--task`."
        )
    return DataArguments.task


def _inventory(plan: DataPlan, config: Any, data: DataArguments, record: RunRecord | None) -> LabelInventory | None:
    """Return the labels of a model, for tasks that have labels.

    Raises:
        ConfigError: it predicts no single class, or the data have other labels.
    """
    if plan.task.find_labels is None:
        return None
    classes = [str(config.id2label[index]) for index in sorted(config.id2label)]
    problem, several = getattr(config, "problem_type", None), plan.task.problem_type == MULTI_LABEL
    if several and problem != MULTI_LABEL:
        raise ConfigError(
            "the model predicts one class of each text, by its config, and no several labels; leave `--task` out."
        )
    # Of a run the record says what the head is for; what its base was for may still stand in an old config.
    problem = problem if record is None or several else plan.task.problem_type
    if len(classes) < 2 or problem == "regression" or (problem == MULTI_LABEL and not several):
        kind = problem or "regression"
        raise ConfigError(
            f"the model predicts no single class ({kind.replace('_', ' ')}, {len(classes)} output"
            f"{'s' * (len(classes) != 1)}), which is not scored here."
        )
    named = record is not None and bool(record.arguments.get("labels"))
    return match_labels(plan, classes, data.labels, named)


def scoring_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    inventory: LabelInventory | None,
    scratch: str,
    batch_size: int,
    progress: bool = False,
) -> XLTTrainer:
    """Build a trainer that only scores.

    Args:
        model: with a trained head.
        tokenizer: its tokenizer.
        task: what it is scored on.
        inventory: labels, or None for tasks without.
        scratch: a folder that may be deleted afterwards.
        batch_size: examples per batch.
        progress: show a progress bar.
    """
    import torch

    from hf_xlt.training.config import XLTConfig
    from hf_xlt.training.trainer import XLTTrainer

    config = XLTConfig(
        output_dir=scratch,
        per_device_eval_batch_size=batch_size,
        use_cpu=not torch.cuda.is_available() and not torch.backends.mps.is_available(),
        disable_tqdm=not progress,
    )
    return XLTTrainer(
        model=model,
        args=config,
        data_collator=task.collator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=task.compute_metrics(inventory),
    )


def _output_folder(model: str, record: RunRecord | None, label: str, asked: str | None) -> Path:
    if asked is not None:
        return Path(asked)
    if _is_unscored_average(record):
        return Path(model)
    if record is not None and Path(model).is_dir():
        return Path(model) / "evaluations" / label
    name = Path(model).name if Path(model).is_dir() else model.replace("/", "--")
    return Path("evaluations") / name / label
