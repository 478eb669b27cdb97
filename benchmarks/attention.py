"""Eager attention against `scaled_dot_product_attention` on a CPU: CPU time of training and of scoring, by length.

Forward and backward of a classifier, or forward alone in evaluation mode, on batches of as many tokens at every
length, a quarter of half of the rows being padding. The kernels take turns; the ratio is the median over rounds, eager
over sdpa: below 1, eager is quicker. What a run chooses (`hf_xlt/modelling/attention.py`) follows from this table.

    python benchmarks/attention.py
    python benchmarks/attention.py --model runs/e5 --dtype bf16 --lengths 32 64 128 256 384
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

from stepping import add_model_argument, make_model, model_config, model_name  # noqa: E402

KERNELS = ("eager", "sdpa")


def pass_over(model: Any, batch: dict[str, torch.Tensor], trains: bool, dtype: str) -> float:
    """Go over a batch once and return the CPU time in seconds."""
    start = time.process_time()
    with torch.set_grad_enabled(trains), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        loss = model(**batch).loss
    if trains:
        loss.backward()
        model.zero_grad()
    return time.process_time() - start


def measure(models: dict[str, Any], options: argparse.Namespace, length: int, trains: bool) -> tuple[float, float]:
    """Return the median CPU time of sdpa in seconds, and the median ratio of eager to it."""
    rows = max(2, options.tokens // length)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, next(iter(models.values())).config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, length * 3 // 4 :] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(rows, dtype=torch.long)}
    times: dict[str, list[float]] = {name: [] for name in KERNELS}
    for number in range(options.repeats + 1):
        for name in KERNELS if number % 2 else reversed(KERNELS):
            taken = pass_over(models[name].train(trains), batch, trains, options.dtype)
            if number:
                times[name].append(taken)
    ratios = [eager / other for eager, other in zip(times["eager"], times["sdpa"], strict=True)]
    return statistics.median(times["sdpa"]), statistics.median(ratios)


def main() -> None:
    """Print one row per length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 256, 384])
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a batch")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help="bf16 is autocast on fp32 weights")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vars(options).update(vocabulary=5_000, hidden=384, layers=6, heads=12, length=max(options.lengths))
    models = {}
    for name in KERNELS:
        config = model_config(options, name, 3)
        models[name] = make_model(options, AutoModelForSequenceClassification, config, name)
        # Updating a large vocabulary costs the same with both, and would hide the difference.
        models[name].get_input_embeddings().requires_grad_(False)
    name = model_name(options, "XLM-R 6 x 384")
    print(f"{name}, {options.dtype}, dropout {options.dropout:g}, threads: {options.threads}")
    print("length  training: sdpa s  eager/sdpa  scoring: sdpa s  eager/sdpa")
    for length in options.lengths:
        training, scoring = (measure(models, options, length, trains) for trains in (True, False))
        print(
            f"{length:6}  {training[0]:16.2f}  {training[1]:10.2f}  {scoring[0]:15.2f}  {scoring[1]:10.2f}", flush=True
        )


if __name__ == "__main__":
    main()
