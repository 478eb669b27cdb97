"""What the step benchmarks share: models of a shape, trainers ready to step, rounds of timed steps.

Wall ratios are medians over rounds; every round times each variant once, in an order that rotates, so that a noisy
machine hits all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from transformers import XLMRobertaConfig

# Fields of `XLMRobertaConfig` and of a batch, by the name of a shape.
Shapes = Mapping[str, Mapping[str, int]]


def add_shape_arguments(parser: argparse.ArgumentParser, shapes: Shapes, repeats: int) -> None:
    """Add the arguments that say what a step looks like and how often it is timed."""
    parser.add_argument("--shape", choices=shapes, default=next(iter(shapes)))
    for name in dict.fromkeys(name for shape in shapes.values() for name in shape):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast on fp32 weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", default="sdpa", help="kernel of the timed steps; FLOPs are counted with eager")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds; 0 only counts")
    parser.add_argument("--warmup", type=int, default=1, help="rounds that are not timed")
    parser.add_argument("--threads", type=int, default=1)


def fill_shape(options: argparse.Namespace, shapes: Shapes) -> argparse.Namespace:
    """Let the shape's values stand for what was not given."""
    for name, value in shapes[options.shape].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def model_config(options: argparse.Namespace, attention: str, labels: int) -> XLMRobertaConfig:
    """Return the config of an XLM-R of the asked shape."""
    return XLMRobertaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.hidden,
        max_position_embeddings=options.length + 4,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        type_vocab_size=1,
        num_labels=labels,
        attn_implementation=attention,
    )


def training_settings(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Return the training arguments that every variant shares."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": options.batch,
        "bf16": options.dtype == "bf16",
        "use_cpu": options.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
    }


def wrap(trainer: Any) -> Any:
    """Make a trainer's optimizer and wrap its model as `train` would; return the trainer."""
    trainer.create_optimizer()
    trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped.train()
    return trainer


def take_step(trainer: Any, batch: dict[str, torch.Tensor], training_step: Callable[..., Any] | None = None) -> None:
    """Do one update; `training_step` stands for the trainer's own."""
    micro_batches, units = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
    (training_step or trainer.training_step)(trainer.model_wrapped, micro_batches[0], units)
    trainer.optimizer.step()
    trainer.model_wrapped.zero_grad()
    trainer.state.global_step += 1


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.get_device_module(device).synchronize()


def time_rounds(options: argparse.Namespace, variants: Mapping[str, Callable[[int], None]]) -> dict[str, list[float]]:
    """Return seconds per call of each variant, one entry per round.

    Args:
        options: with `device`, `repeats` and `warmup`.
        variants: what to time, by name; called with the number of the round.
    """
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    names = list(variants)
    for number in range(options.warmup + options.repeats if options.repeats else 0):
        shift = number % len(names)
        for variant in names[shift:] + names[:shift]:
            synchronize(options.device)
            start = time.perf_counter()
            variants[variant](number)
            synchronize(options.device)
            if number >= options.warmup:
                seconds[variant].append(time.perf_counter() - start)
    return seconds


def headline(options: argparse.Namespace, model: str, peer: str) -> str:
    """Return what a figure needs beside it: shape, types, dropout, kernels, threads, versions, peer."""
    machine = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    return (
        f"XLM-R {model}, hidden {options.hidden}, layers {options.layers}, heads {options.heads}, vocabulary "
        f"{options.vocabulary}, length {options.length}, batch {options.batch}, {options.dtype}, dropout "
        f"{options.dropout}, attention {options.attention} (timed) and eager (counted), AdamW, {machine}, threads "
        f"{options.threads}, torch {torch.__version__}, transformers {transformers.__version__}; peer: {peer}; "
        f"medians of {options.repeats} rounds"
    )
