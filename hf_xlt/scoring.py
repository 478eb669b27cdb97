"""Scoring a model that is there already: the work of `hf-xlt evaluate`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hf_xlt.arguments import DataArguments
from hf_xlt.data.labels import LabelInventory
from hf_xlt.data.roles import resolve_data
from hf_xlt.data.sources import EMBEDDED
from hf_xlt.errors import ConfigError
from hf_xlt.evaluation import RESULTS_NAME, longest_input, read_tests, score, write_results
from hf_xlt.models import ModelSource
from hf_xlt.record import RECORD_NAME, RunRecord
from hf_xlt.results import Results
from hf_xlt.tasks import Task, get_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_xlt.training.trainer import XLTTrainer


def evaluate_model(
    model: str,
    data: DataArguments,
    *,
    batch_size: int = 64,
    revision: str | None = None,
    output_dir: str | None = None,
    overwrite: bool = False,
) -> tuple[Results, Path, list[str]]:
    """Score a model with a trained head on the languages of a data set.

    Args:
        model: run directory, model directory, or Hub id.
        data: what to score on; without a data set, the embedded task where the run was made on it.
        batch_size: examples per batch.
        revision: branch, tag or commit on the Hub.
        output_dir: where to write; None chooses a folder beside the run, or under `evaluations/`.
        overwrite: replace results that are there.

    Returns:
        The scores, the folder they were written to, and notes for the user.

    Raises:
        ConfigError: model or data cannot be used, or there are results already.
    """
    record = RunRecord.read(model) if (Path(model) / RECORD_NAME).is_file() else None
    if data.dataset is None:
        if record is None or not record.demo:
            raise ConfigError("no data: give `--dataset` (a pattern, a Hub id, or `embedded`).")
        data.dataset = EMBEDDED
    task = get_task(record.task["name"] if record else data.task)
    plan = resolve_data(data, task, needs_validation=False, trains=False)
    folder = _output_folder(model, record, plan.of_role("target")[0].source.name, output_dir)
    if (folder / RESULTS_NAME).is_file() and not overwrite:
        raise ConfigError(f"`{folder}` holds results already; add `--overwrite`, or give another `--output-dir`.")

    source = ModelSource.find(model, revision=revision)
    loaded = source.load_trained(task)
    tokenizer = source.load_tokenizer()
    inventory = LabelInventory(tuple(loaded.config.id2label[index] for index in sorted(loaded.config.id2label)))
    tests = read_tests(plan, tokenizer, inventory, longest_input(data.max_length, tokenizer, loaded.config))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _scoring_trainer(loaded, tokenizer, task, inventory, scratch, batch_size)
        results = score(trainer, tests, task.metric, plan.source_languages)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder, results)
    return results, folder, plan.notes


def _scoring_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    inventory: LabelInventory,
    scratch: str,
    batch_size: int,
) -> XLTTrainer:
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
    if record is not None:
        return Path(model) / "evaluations" / label
    name = Path(model).name if Path(model).is_dir() else model.replace("/", "--")
    return Path("evaluations") / name / label
