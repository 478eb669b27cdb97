"""What a robust training step costs against a plain one: FLOPs counted, and wall time in pairs.

Times the steps of the real trainers (`training_step`, `optimizer.step`, `zero_grad`) on the same batches. FLOPs are
counted with eager attention, so that nothing is hidden in a fused kernel. A step of P training passes and K ascent
passes is held against the floor P + K * r plain steps, where r is the counted cost of one ascent pass (forward and
gradient to the perturbation); the bar is 1.03 times the floor, and r <= 0.69 at hidden size 768 and length 128.

Wall ratios are medians over rounds in an order that rotates. Needs torch, transformers and accelerate, nothing else.

    python benchmarks/robust_step.py
    python benchmarks/robust_step.py --shape xlm-r-base --device cuda --dtype bf16 --batch 32
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

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

from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer  # noqa: E402
from hf_xlt.strategies.robust import RobustConfig, RobustTrainer  # noqa: E402

SHAPES = {
    "small": {"hidden": 768, "layers": 2, "heads": 12, "vocabulary": 5_000, "length": 128, "batch": 4},
    "xlm-r-base": {"hidden": 768, "layers": 12, "heads": 12, "vocabulary": 250_002, "length": 128, "batch": 32},
    "xlm-r-large": {"hidden": 1024, "layers": 24, "heads": 16, "vocabulary": 250_002, "length": 128, "batch": 32},
}
VARIANTS = {
    "plain": None,
    "adv K=1": {"method": "adv", "steps": 1},
    "adv K=3": {"method": "adv", "steps": 3},
    "adv K=1, clean": {"method": "adv", "steps": 1, "clean_weight": 0.5},
    "rs_rp": {"method": "rs_rp"},
    "rs_rp n=3": {"method": "rs_rp", "num_samples": 3},
    "freelb K=3": {"method": "freelb", "steps": 3, "init": "uniform", "inner_dropout": "shared"},
    "r3f": {"method": "rs_rp", "consistency": "symkl"},
    "smart K=1": {"method": "adv", "steps": 1, "inner_loss": "kl", "init": "gaussian", "consistency": "symkl"},
}
# Training passes and ascent passes of a step.
PASSES = {
    "plain": (1, 0),
    "adv K=1": (1, 1),
    "adv K=3": (1, 3),
    "adv K=1, clean": (2, 0),
    "rs_rp": (1, 0),
    "rs_rp n=3": (3, 0),
    "freelb K=3": (3, 0),
    "r3f": (2, 0),
    "smart K=1": (2, 1),
}
BAR = 1.03
LARGEST_INNER_SHARE = 0.69


@dataclass
class Stepper:
    """One trainer, its optimizer and its batches, ready to step."""

    trainer: Any
    batches: list[dict[str, torch.Tensor]]

    def step(self, number: int) -> None:
        """Do one update on batch `number`."""
        take_step(self.trainer, self.batches[number % len(self.batches)])


def build_model(options: argparse.Namespace, attention: str) -> torch.nn.Module:
    """Return a classifier: `--model`, or a randomly initialised XLM-R of the asked shape."""
    config = model_config(options, attention, labels=3)
    return make_model(options, AutoModelForSequenceClassification, config, attention, num_labels=3)


def build_batches(options: argparse.Namespace, count: int = 4) -> list[dict[str, torch.Tensor]]:
    """Return batches whose examples fill 60 to 100 % of the length; the first of each fills it."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        lengths = torch.randint(int(0.6 * options.length), options.length + 1, (options.batch,), generator=generator)
        lengths[0] = options.length
        mask = torch.arange(options.length) < lengths[:, None]
        ids = torch.randint(4, options.vocabulary, mask.shape, generator=generator)
        labels = torch.randint(0, 3, (options.batch,), generator=generator)
        batch = {"input_ids": ids.where(mask, 1), "attention_mask": mask.long(), "labels": labels}
        batches.append({name: value.to(options.device) for name, value in batch.items()})
    return batches


def build_stepper(options: argparse.Namespace, variant: str, attention: str, folder: str) -> Stepper:
    """Return a trainer for a variant, wrapped as `train` would wrap it."""
    settings = VARIANTS[variant]
    trainer_cls, config_cls = (FinetuneTrainer, FinetuneConfig) if settings is None else (RobustTrainer, RobustConfig)
    config = config_cls(**training_settings(options, folder), **(settings or {}))
    trainer = trainer_cls(build_model(options, attention), config, train_dataset=[{}])
    return Stepper(wrap(trainer), build_batches(options))


def count_flops(options: argparse.Namespace, folder: str) -> dict[str, int]:
    """Return the FLOPs of one step per variant, and of one inner pass, with eager attention."""
    counted = {}
    for variant in options.variants:
        stepper = build_stepper(options, variant, "eager", folder)
        with FlopCounterMode(display=False) as counter:
            stepper.step(0)
        counted[variant] = counter.get_total_flops()
        if variant == "adv K=1":
            trainer, batch = stepper.trainer, stepper.batches[0]
            delta = torch.zeros(options.batch, options.length, options.hidden, device=options.device)
            with FlopCounterMode(display=False) as counter, trainer.accelerator.autocast():
                trainer._inner_gradient(trainer.model, batch, delta)
            counted["inner pass"] = counter.get_total_flops()
    return counted


def report(options: argparse.Namespace, flops: dict[str, int], seconds: dict[str, list[float]]) -> bool:
    """Print the table; return whether every bar is met."""
    share = flops["inner pass"] / flops["plain"]
    largest = LARGEST_INNER_SHARE if options.hidden == 768 and options.length <= 128 else None
    print(f"inner pass r = {share:.4f} plain steps" + (f" (bar {largest})" if largest else ""))
    print(f"{'variant':<16}{'FLOPs':>10}{'floor':>9}{'bar':>9}{'':>6}{'wall':>9}{'wall/FLOPs':>12}{'median ms':>11}")
    met = largest is None or share <= largest
    for variant in options.variants:
        training, ascent = PASSES[variant]
        floor = training + share * ascent
        ratio = flops[variant] / flops["plain"]
        good = ratio <= floor * BAR
        met &= good
        pairs = zip(seconds[variant], seconds["plain"], strict=True)
        wall, milliseconds = float("nan"), float("nan")
        if seconds[variant]:
            wall = statistics.median(own / plain for own, plain in pairs)
            milliseconds = 1000 * statistics.median(seconds[variant])
        print(
            f"{variant:<16}{ratio:>10.4f}{floor:>9.4f}{floor * BAR:>9.4f}{'ok' if good else 'OVER':>6}"
            f"{wall:>9.3f}{wall / ratio:>12.3f}{milliseconds:>11.1f}"
        )
    return met


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; the shape's values fill what is not given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shape_arguments(parser, SHAPES, repeats=9)
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        help="what to run; `plain` and `adv K=1` always run",
    )
    options = fill_shape(parser.parse_args(argv), SHAPES)
    # Ratios are to a plain step, and floors to the inner pass of the first of the adversarial ones.
    options.variants = list(dict.fromkeys(["plain", "adv K=1", *options.variants]))
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; exit code 1 when a FLOP bar is missed."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    print(headline(options, "classifier", "FinetuneTrainer"))
    with tempfile.TemporaryDirectory() as folder:
        flops = count_flops(options, folder)
        steppers = {name: build_stepper(options, name, options.attention, folder) for name in options.variants}
        seconds = time_rounds(options, {name: stepper.step for name, stepper in steppers.items()})
    return 0 if report(options, flops, seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
