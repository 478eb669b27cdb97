"""What the step benchmarks share: models of a shape, trainers ready to step, rounds of timed steps.

Wall ratios are medians over rounds; every round times each variant once, in an order that rotates, so that a noisy
machine hits all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers import AutoConfig, XLMRobertaConfig

# Fields of `XLMRobertaConfig` and of a batch, by the name of a shape.
Shapes = Mapping[str, Mapping[str, int]]


# What a model's config says of its shape, by the name of the argument.
CONFIG_NAMES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "vocabulary": "vocab_size",
    "memory-vocabulary": "vocab_size",
}


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, for benchmarks that make a model of a shape themselves where none is named."""
    parser.add_argument(
        "--model",
        help="directory, Hub id or `embedded`: time this model instead of one of random weights; the shape is its own",
    )


def model_place(name: str) -> str:
    """Return what `from_pretrained` is to load."""
    if name != "embedded":
        return name
    from hf_xlt.embedded import encoder_directory

    return str(encoder_directory())


def take_shape(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Let the config of `--model` stand for arguments of its shape.

    Raises:
        SystemExit: one of them was given besides.
    """
    if not options.model:
        return
    config = AutoConfig.from_pretrained(model_place(options.model))
    for name in names:
        if name in CONFIG_NAMES:
            if getattr(options, name.replace("-", "_")) is not None:
                raise SystemExit(f"--{name} is that of --model; leave it out")
            setattr(options, name.replace("-", "_"), getattr(config, CONFIG_NAMES[name]))


def make_model(
    options: argparse.Namespace, auto: Any, config: Any, attention: str, **settings: Any
) -> transformers.PreTrainedModel:
    """Return `--model`, or one of random weights, the same every time, in float32.

    Args:
        options: with `model`, and `dropout` where it may be chosen.
        auto: the `AutoModelFor...` of the task.
        config: of the random model.
        attention: kernel.
        settings: further fields of the config of `--model`.
    """
    torch.manual_seed(0)
    if not options.model:
        return auto.from_config(config, attn_implementation=attention)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    place = model_place(options.model)
    own = AutoConfig.from_pretrained(place, **settings)
    if "dropout" in options:
        for name, value in own.to_dict().items():
            if "dropout" in name and isinstance(value, float):
                setattr(own, name, options.dropout)
    return auto.from_pretrained(place, config=own, dtype=torch.float32, attn_implementation=attention)


def model_name(options: argparse.Namespace, otherwise: str) -> str:
    """Return what a figure is to call the model."""
    return options.model.rstrip("/").rsplit("/", 1)[-1] if options.model else f"{otherwise}, random weights"


def add_shape_arguments(parser: argparse.ArgumentParser, shapes: Shapes, repeats: int) -> None:
    """Add the arguments that say what a step looks like and how often it is timed."""
    parser.add_argument("--shape", choices=shapes, default=next(iter(shapes)))
    for name in dict.fromkeys(name for shape in shapes.values() for name in shape):
        parser.add_argument(f"--{name}", type=int)
    add_model_argument(parser)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast on fp32 weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", default="sdpa", help="kernel of the timed steps; FLOPs are counted with eager")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds; 0 only counts")
    parser.add_argument("--warmup", type=int, default=1, help="rounds that are not timed")
    parser.add_argument("--threads", type=int, default=1)


def fill_missing(options: argparse.Namespace, defaults: Mapping[str, int]) -> argparse.Namespace:
    """Let defaults, by names with hyphens, stand for what was not given."""
    for name, value in defaults.items():
        if getattr(options, name.replace("-", "_")) is None:
            setattr(options, name.replace("-", "_"), value)
    return options


def fill_shape(options: argparse.Namespace, shapes: Shapes) -> argparse.Namespace:
    """Let the shape's values, or those of `--model`, stand for what was not given."""
    take_shape(options, list(shapes[options.shape]))
    return fill_missing(options, shapes[options.shape])


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
        f"{model_name(options, 'XLM-R')}, {model}, hidden {options.hidden}, layers {options.layers}, heads "
        f"{options.heads}, vocabulary {options.vocabulary}, length {options.length}, batch {options.batch}, "
        f"{options.dtype}, dropout {options.dropout}, attention {options.attention} (timed) and eager (counted), "
        f"AdamW, {machine}, threads {options.threads}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; peer: {peer}; medians of {options.repeats} rounds"
    )
