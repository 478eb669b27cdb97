"""A whole job against the stock recipe: tokenise, train N updates, score twelve languages; wall time, in one run.

    python benchmarks/whole_job.py --data "DATA/topic_sib200/{split}.{lang}.parquet"

Peer: the recipe of the text-classification examples of `transformers`: `Dataset.map` with padding to the maximum
length, `Trainer`, one `Trainer.evaluate` per language. Ours: the task's encoding, dynamic padding, `XLTTrainer`, one
length-sorted pass over all languages. Same data, model, batch, updates, precision and threads; loading the model and
importing libraries count for neither. Jobs alternate; the figures are medians over pairs. Accuracies are printed: both
sides must have learnt and scored the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import disable_caching, disable_progress_bars
from stepping import model_place
from transformers import (
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hf_xlt.arguments import DataArguments
from hf_xlt.data.roles import SOURCE_TEST, TARGET_TEST, TRAINING, DataPlan, resolve_data
from hf_xlt.evaluation import encode, read_tests, score
from hf_xlt.models import load_tokenizer
from hf_xlt.tasks import get_task
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.trainer import XLTTrainer

LANGUAGES = "de es fr id ja ru sw ta tr vi zh"


def settings(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Training arguments of both sides."""
    return {
        "output_dir": folder,
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch,
        "per_device_eval_batch_size": options.evaluation_batch,
        "learning_rate": 1e-4,
        "bf16": options.bf16,
        "bf16_full_eval": False,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 10**6,
        "seed": 0,
    }


def make_model(options: argparse.Namespace, classes: int) -> torch.nn.Module:
    """Load the encoder with a new head."""
    set_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=classes, dtype=torch.float32, attn_implementation=options.attention
    )


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of right classes."""
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, -1) == prediction.label_ids))}


def run_peer(options: argparse.Namespace, plan: DataPlan, tokenizer: Any, classes: int) -> tuple[float, float, float]:
    """Return seconds of the job, seconds of scoring, mean accuracy."""
    model = make_model(options, classes)
    tests = {entry.language: entry.read() for entry in plan.of_role(SOURCE_TEST, TARGET_TEST)}
    training = plan.of_role(TRAINING)[0].read()

    def features(rows: dict[str, list]) -> dict[str, list]:
        made = tokenizer(rows["text"], padding="max_length", truncation=True, max_length=options.length)
        return {**made, "labels": rows["label"]}

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**settings(options, folder)),
            train_dataset=training.map(features, batched=True, remove_columns=training.column_names),
            data_collator=default_data_collator,
            compute_metrics=accuracy,
        )
        trainer.train()
        tests = {
            code: rows.map(features, batched=True, remove_columns=rows.column_names) for code, rows in tests.items()
        }
        middle = time.perf_counter()
        scores = [trainer.evaluate(rows)["eval_accuracy"] for rows in tests.values()]
    end = time.perf_counter()
    return end - start, end - middle, statistics.mean(scores)


def run_ours(options: argparse.Namespace, plan: DataPlan, tokenizer: Any, classes: int) -> tuple[float, float, float]:
    """Return seconds of the job, seconds of scoring, mean accuracy."""
    model = make_model(options, classes)
    tables, inventory = plan.read_training()
    entry = plan.of_role(TRAINING)[0]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = XLTTrainer(
            model=model,
            args=XLTConfig(**settings(options, folder)),
            train_dataset=encode(entry, tables[entry.language], plan, tokenizer, inventory, options.length),
            data_collator=plan.task.collator(tokenizer),
            processing_class=tokenizer,
            compute_metrics=plan.task.compute_metrics(inventory),
        )
        trainer.train()
        tests = read_tests(plan, tokenizer, inventory, options.length)
        middle = time.perf_counter()
        results = score(trainer, tests, plan.task, plan.source_languages)
    end = time.perf_counter()
    return end - start, end - middle, statistics.mean(entry.metrics["accuracy"] for entry in results.scores)


def main() -> None:
    """Run the pairs and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="pattern of a text classification set with English")
    parser.add_argument("--languages", default=LANGUAGES, help="target languages")
    parser.add_argument("--model", default="embedded", help="directory, Hub id or `embedded`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--evaluation-batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    options = parser.parse_args()
    options.model = model_place(options.model)
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    # A second job on the same data must tokenise again, on either side.
    disable_caching()
    data = DataArguments(dataset=options.data, target_languages=options.languages.split(), source_languages=["en"])
    plan = resolve_data(data, get_task("text-classification"), needs_validation=False)
    tokenizer, classes = load_tokenizer(options.model), len(plan.read_training()[1])
    jobs: list[tuple[tuple, tuple]] = []
    for number in range(options.rounds):
        order = (run_peer, run_ours) if number % 2 == 0 else (run_ours, run_peer)
        done = {job: job(options, plan, tokenizer, classes) for job in order}
        jobs.append((done[run_peer], done[run_ours]))
    examples = sum(entry.size for entry in plan.of_role(SOURCE_TEST, TARGET_TEST))
    name, languages = plan.of_role(TRAINING)[0].source.name, len(plan.target_languages) + 1
    print(
        f"{Path(options.model).name}, {name}, {languages} languages "
        f"({examples:,} test examples), {options.steps} updates of {options.batch}, evaluation batch "
        f"{options.evaluation_batch}, length {options.length}, {'bfloat16' if options.bf16 else 'float32'}, "
        f"{options.attention}, {options.threads} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {options.rounds} pairs"
    )
    for name, side in (("stock recipe", 0), ("hf_xlt", 1)):
        whole, scoring = (statistics.median(pair[side][part] for pair in jobs) for part in (0, 1))
        mean = statistics.mean(pair[side][2] for pair in jobs)
        print(
            f"{name:<13} job {whole:6.1f} s, scoring {examples / scoring:6.0f} examples/s, accuracy {100 * mean:.2f}"
        )
    for name, part, invert, target in (
        ("job time", 0, False, "0.67 or less"),
        ("scoring speed", 1, True, "1.5 or more"),
    ):
        ratios = sorted(p[0][part] / p[1][part] if invert else p[1][part] / p[0][part] for p in jobs)
        print(
            f"{name}, ours to stock: median {statistics.median(ratios):.2f} (lowest {ratios[0]:.2f}, highest "
            f"{ratios[-1]:.2f}; target {target})"
        )


if __name__ == "__main__":
    main()
