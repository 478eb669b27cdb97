"""What a MetaXL step costs against a joint step on the same batches: FLOPs counted, wall time in pairs, peak memory.

Times the updates of the real trainers (`get_batch_samples`, `training_step`, `optimizer.step`, `zero_grad`), with the
RTN after the last layer. FLOPs are counted with eager attention, so that nothing is hidden in a fused kernel. The peer
is joint training on the source batch and the half of the target batch that trains the model (`joint`); `public` is the
published algorithm written out plainly, with an unrestricted second backward pass. In units of a source forward pass a
joint step is 4.5, the exact product 12.5 in sequence and 8 with the gradient reused; the bars are 1.03 times that.

Wall ratios are medians over rounds in an order that rotates. Peak memory is what a step adds: allocated on the device,
or resident in a forked process on a CPU. Needs torch, transformers and accelerate, nothing else.

    python benchmarks/metaxl_step.py
    python benchmarks/metaxl_step.py --shape xlm-r-base --device cuda --dtype bf16
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForTokenClassification

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

from stepping import (  # noqa: E402
    add_shape_arguments,
    fill_shape,
    headline,
    make_model,
    model_config,
    take_step,
    time_rounds,
    training_settings,
    wrap,
)

from hf_xlt.strategies.metaxl import MetaXLConfig, MetaXLTrainer  # noqa: E402

SHAPES = {
    "small": {
        "hidden": 256,
        "layers": 6,
        "heads": 4,
        "vocabulary": 8_000,
        "length": 64,
        "batch": 10,
        "bottleneck": 64,
    },
    "xlm-r-base": {
        "hidden": 768,
        "layers": 12,
        "heads": 12,
        "vocabulary": 250_002,
        "length": 128,
        "batch": 10,
        "bottleneck": 192,
    },
}
PUBLIC = "public, written out"
VARIANTS: dict[str, dict[str, Any]] = {
    "joint": {"method": "joint"},
    "joint, published batches": {"method": "joint", "baseline": "published"},
    "JT+RTN": {"hypergrad": "none"},
    "exact": {},
    "exact, reuse": {"update_order": "reuse"},
    "finite_difference": {"hypergrad": "finite_difference"},
    "finite_difference, reuse": {"hypergrad": "finite_difference", "update_order": "reuse"},
    "evograd": {"hypergrad": "evograd"},
    PUBLIC: {},
}
# Relative to a joint step; 1.03 times the arithmetic.
BARS = {"exact": 2.87, "exact, reuse": 1.84}


@dataclass
class Stepper:
    """One trainer with its optimizer and source batches, ready to step."""

    trainer: MetaXLTrainer
    batches: list[dict[str, Tensor]]
    public: bool = False

    def step(self, number: int) -> None:
        """Do one update on source batch `number`."""
        batch = self.batches[number % len(self.batches)]
        take_step(self.trainer, batch, functools.partial(public_step, self.trainer) if self.public else None)


def _mean_loss(model: nn.Module, states: Tensor, labels: Tensor) -> Tensor:
    logits = model.classifier(model.dropout(states))
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def _states(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]


def public_step(trainer: MetaXLTrainer, wrapped: nn.Module, source: dict[str, Tensor], units: Tensor) -> None:
    """Do the published update as its code states it: all weights cloned, second derivatives with respect to all."""
    model, rtn = trainer.bare_model(), trainer.rtn
    train, meta = trainer.target_window.trains[0], trainer.target_window.metas[0]
    rtn.requires_grad_(True)
    names, weights = zip(*model.named_parameters(), strict=True)

    def inner_loss() -> Tensor:
        with trainer.compute_loss_context_manager():
            states = _states(model, source)
            transformed = rtn.slots[0](states.detach().float())[0].to(states.dtype) + states
            source_loss = _mean_loss(model, transformed, source["labels"])
            return source_loss + _mean_loss(model, _states(model, train), train["labels"])

    gradients = torch.autograd.grad(inner_loss(), weights, create_graph=True)
    rate = trainer.virtual_rate()
    moved = {
        name: (weight.detach().clone() - rate * gradient.detach()).requires_grad_()
        for name, weight, gradient in zip(names, weights, gradients, strict=True)
    }
    with trainer.compute_loss_context_manager():
        meta_loss = functional_call(model, moved, kwargs=meta).loss
    direction = torch.autograd.grad(meta_loss, list(moved.values()))
    product = sum((gradient * value).sum() for gradient, value in zip(gradients, direction, strict=True))
    (-rate * product).backward()
    trainer.rtn_optimizer.optimizer.step()
    trainer.rtn_optimizer.optimizer.zero_grad()
    model.zero_grad()
    inner_loss().backward()
    rtn.zero_grad()


def build_model(options: argparse.Namespace, attention: str) -> nn.Module:
    """Return a tagger: `--model`, or a randomly initialised XLM-R of the asked shape."""
    config = model_config(options, attention, labels=9)
    return make_model(options, AutoModelForTokenClassification, config, attention, num_labels=9)


def build_examples(options: argparse.Namespace, count: int, seed: int) -> list[dict[str, Tensor]]:
    """Return examples that fill the length."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, options.length)
    ids = torch.randint(4, options.vocabulary, shape, generator=generator)
    labels = torch.randint(0, 9, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.long)
    return [{"input_ids": ids[i], "attention_mask": mask[i], "labels": labels[i]} for i in range(count)]


def build_stepper(options: argparse.Namespace, variant: str, attention: str, folder: str) -> Stepper:
    """Return a trainer for a variant, wrapped as `train` would wrap it."""
    own = VARIANTS[variant]
    if own.get("method", "metaxl") == "metaxl":
        own = {"rtn_bottleneck": options.bottleneck, **own}
    config = MetaXLConfig(**training_settings(options, folder), **own)
    target = build_examples(options, 100, seed=1)
    trainer = MetaXLTrainer(
        build_model(options, attention), config, train_dataset=[{}], role_datasets={"target": {"xx": target}}
    )
    trainer.state.max_steps = 1000
    wrap(trainer)
    source = build_examples(options, 4 * options.batch, seed=0)
    batches = [trainer.data_collator(source[i : i + options.batch]) for i in range(0, len(source), options.batch)]
    batches = [{name: value.to(options.device) for name, value in batch.items()} for batch in batches]
    return Stepper(trainer, batches, variant == PUBLIC)


def count_flops(options: argparse.Namespace, folder: str) -> dict[str, int]:
    """Return the FLOPs of one step per variant, with eager attention."""
    counted = {}
    for variant in options.variants:
        stepper = build_stepper(options, variant, "eager", folder)
        with FlopCounterMode(display=False) as counter:
            stepper.step(0)
        counted[variant] = counter.get_total_flops()
    return counted


def peak_memory(options: argparse.Namespace, variant: str, folder: str) -> float:
    """Return the MiB that the second step of a variant takes on top of weights, moments and batches."""
    stepper = build_stepper(options, variant, options.attention, folder)
    if options.device != "cpu":
        device = torch.get_device_module(options.device)
        stepper.step(0)
        device.reset_peak_memory_stats()
        before = device.memory_allocated()
        stepper.step(1)
        return (device.max_memory_allocated() - before) / 2**20
    # The first step makes the moments; what is resident after it is the base, and pages that it freed count as such.
    stepper.trainer.optimizer.step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stepper.step(0)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure_memory(options: argparse.Namespace, folder: str) -> dict[str, float]:
    """Return the peak memory of a step per variant, each in a process of its own on a CPU."""
    if options.device != "cpu":
        return {variant: peak_memory(options, variant, folder) for variant in options.variants}
    found = {}
    for variant in options.variants:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found[variant] = pool.apply(peak_memory, (options, variant, folder))
    return found


def report(
    options: argparse.Namespace, flops: dict[str, int], seconds: dict[str, list[float]], memory: dict[str, float]
) -> bool:
    """Print the table; return whether every bar is met."""
    print(f"{'variant':<26}{'FLOPs':>9}{'bar':>7}{'':>6}{'wall':>8}{'median ms':>11}{'peak MiB':>10}")
    met = True
    for variant in options.variants:
        ratio = flops[variant] / flops["joint"]
        bar = BARS.get(variant)
        good = bar is None or ratio <= bar
        met &= good
        pairs = zip(seconds[variant], seconds["joint"], strict=True)
        wall, milliseconds = float("nan"), float("nan")
        if seconds[variant]:
            wall = statistics.median(own / plain for own, plain in pairs)
            milliseconds = 1000 * statistics.median(seconds[variant])
        verdict = "" if bar is None else "ok" if good else "OVER"
        print(
            f"{variant:<26}{ratio:>9.4f}{bar or '':>7}{verdict:>6}{wall:>8.3f}"
            f"{milliseconds:>11.1f}{memory[variant]:>10.0f}"
        )
    return met


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; the shape's values fill what is not given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shape_arguments(parser, SHAPES, repeats=9)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="`joint` always runs")
    options = fill_shape(parser.parse_args(argv), SHAPES)
    options.variants = list(dict.fromkeys(["joint", *options.variants]))
    if PUBLIC in options.variants and not hasattr(build_model(options, "eager"), "dropout"):
        raise SystemExit(f"`{PUBLIC}` knows heads of BERT's and XLM-R's kind alone; leave it out of --variants")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; exit code 1 when a FLOP bar is missed."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    half = options.batch // 2
    print(headline(options, "tagger", "joint training on the same batches"))
    print(f"with {half} target and {half} meta examples; RTN {options.bottleneck} wide after the last layer")
    with tempfile.TemporaryDirectory() as folder:
        memory = measure_memory(options, folder)
        flops = count_flops(options, folder)
        steppers = {name: build_stepper(options, name, options.attention, folder) for name in options.variants}
        seconds = time_rounds(options, {name: stepper.step for name, stepper in steppers.items()})
    return 0 if report(options, flops, seconds, memory) else 1


if __name__ == "__main__":
    sys.exit(main())
