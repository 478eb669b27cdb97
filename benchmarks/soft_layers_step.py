"""What learning gates costs against plain steps: FLOPs counted, wall time in pairs, and parameter-sized memory.

Runs whole episodes (k gated updates, query pass, meta-update) of the real trainers on the same batches and divides by
k plain steps. FLOPs are counted with eager attention. Bars, per inner step: one step and first order (k + 1) / k *
1.03; exact gradients (12 k + 3) / (3 k) * 1.05, where 12 is the paper specification's floor in forward passes; a whole
`trajectory` run (2 + 1 / k) * 1.03. X-MAML is held against its `meta_cost`. Wall ratios are medians over
rounds in an order that rotates; they are reported and have no bar.

    python benchmarks/soft_layers_step.py
    python benchmarks/soft_layers_step.py --shape xlm-r-base --device cuda --dtype bf16 --batch 32
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
from transformers import default_data_collator

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

from robust_step import SHAPES, build_batches, build_model  # noqa: E402
from stepping import (  # noqa: E402
    add_shape_arguments,
    fill_shape,
    headline,
    take_step,
    time_rounds,
    training_settings,
    wrap,
)

from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer  # noqa: E402
from hf_xlt.strategies.soft_layers import SoftLayerSelectionConfig, SoftLayerSelectionTrainer  # noqa: E402
from hf_xlt.strategies.xmaml import XMAMLConfig, XMAMLTrainer  # noqa: E402
from hf_xlt.strategies.xmaml.cost import meta_cost  # noqa: E402

SOFT = (SoftLayerSelectionTrainer, SoftLayerSelectionConfig)
XMAML = (XMAMLTrainer, XMAMLConfig)
VARIANTS: dict[str, tuple[tuple[type, type], dict[str, Any]]] = {
    "plain": ((FinetuneTrainer, FinetuneConfig), {}),
    "gates fixed": (SOFT, {"gate_values": "0.5"}),
    "one step": (SOFT, {}),
    "first order, k=5": (SOFT, {"inner_steps": 5}),
    "exact, k=3": (SOFT, {"inner_steps": 3, "meta_gradient": "exact"}),
    "episodic, k=5": (SOFT, {"inner_steps": 5, "mode": "episodic"}),
    "recurrent": (SOFT, {"gate_type": "recurrent"}),
    "xmaml second": (XMAML, {}),
    "xmaml first": (XMAML, {"order": "first"}),
    "xmaml plain": (XMAML, {"order": "plain"}),
}
BAR, EXACT_BAR = 1.03, 1.05


@dataclass
class Stepper:
    """One trainer, its optimizer and its batches, ready to step.

    Attributes:
        steps: updates that belong together.
    """

    trainer: Any
    batches: list[dict[str, torch.Tensor]]
    steps: int

    def run(self, number: int) -> None:
        """Do an episode, from batch `number` on."""
        for step in range(self.steps):
            take_step(self.trainer, self.batches[(number + step) % len(self.batches)])
            if isinstance(self.trainer, SoftLayerSelectionTrainer):
                self.trainer.after_update()


def build_stepper(options: argparse.Namespace, variant: str, attention: str, folder: str) -> Stepper:
    """Return a trainer for a variant, wrapped as `train` would wrap it."""
    (trainer_cls, config_cls), settings = VARIANTS[variant]
    batches = build_batches(options)
    places = [(batch, row) for batch in batches for row in range(options.batch)]
    rows = [{name: value[row].cpu() for name, value in batch.items()} for batch, row in places]
    own = {"audit_episodes": 0} if trainer_cls is SoftLayerSelectionTrainer else {}
    if trainer_cls is XMAMLTrainer:
        own = {"cosine_steps": 0, "task_batch_size": options.batch}
    config = config_cls(**training_settings(options, folder), **own, **settings)
    trainer = trainer_cls(
        build_model(options, attention),
        config,
        data_collator=default_data_collator,
        train_dataset=rows,
        role_datasets={"auxiliary": {"xx": rows}},
    )
    trainer.state.max_steps = 1_000_000
    wrap(trainer)
    # The inner steps of X-MAML are inside an update.
    return Stepper(trainer, batches, config.inner_steps if trainer_cls is SoftLayerSelectionTrainer else 1)


def bar_of(variant: str) -> float | None:
    """Return the most FLOPs per inner step, in plain steps; None where nothing is promised."""
    (trainer_cls, config_cls), settings = VARIANTS[variant]
    if trainer_cls is FinetuneTrainer or "gate_values" in settings:
        return BAR
    if trainer_cls is XMAMLTrainer:
        return meta_cost(config_cls(output_dir="unused", use_cpu=True, **settings)) * BAR
    steps = settings.get("inner_steps", 1)
    if settings.get("meta_gradient") == "exact":
        return (12 * steps + 3) / (3 * steps) * EXACT_BAR
    return (steps + 1) / steps * BAR


def held_copies(trainer: Any) -> float:
    """Return the parameter-sized memory that an episode holds between its updates, in copies of the weights."""
    learning = getattr(trainer, "learning", None)
    if learning is None:
        return 0.0
    tensors = [*(learning.episode.start or ()), *(learning.origin or ())]
    for step in learning.episode.steps:
        tensors += step.before
        tensors += [value for state in step.states for value in state.values() if torch.is_tensor(value)]
    # The start of an episode of mode `episodic` is the very snapshot that it goes back to.
    storages = {tensor.data_ptr(): tensor.numel() for tensor in tensors}
    return sum(storages.values()) / sum(parameter.numel() for parameter in trainer.model.parameters())


def count(options: argparse.Namespace, folder: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return per variant the FLOPs of an update with eager attention, and the copies of the weights held."""
    counted, copies = {}, {}
    for variant in options.variants:
        stepper = build_stepper(options, variant, "eager", folder)
        held = [0.0]
        after = getattr(stepper.trainer, "after_update", None)
        if after is not None:

            def listen(trainer: Any = stepper.trainer, after: Any = after, held: list[float] = held) -> None:
                held.append(held_copies(trainer))
                after()

            stepper.trainer.after_update = listen
        stepper.run(0)
        with FlopCounterMode(display=False) as counter:
            stepper.run(0)
        counted[variant] = counter.get_total_flops() / stepper.steps
        copies[variant] = max(held)
    return counted, copies


def report(
    options: argparse.Namespace, flops: dict[str, float], copies: dict[str, float], seconds: dict[str, list[float]]
) -> bool:
    """Print the table; return whether every bar is met."""
    print(f"{'variant':<18}{'FLOPs':>9}{'bar':>9}{'':>6}{'wall':>9}{'median ms':>11}{'copies held':>13}")
    met = True
    for variant in options.variants:
        ratio, bar = flops[variant] / flops["plain"], bar_of(variant)
        good = bar is None or ratio <= bar
        met &= good
        pairs = zip(seconds[variant], seconds["plain"], strict=True)
        wall = statistics.median(own / plain for own, plain in pairs) if seconds[variant] else float("nan")
        middle = 1000 * statistics.median(seconds[variant]) if seconds[variant] else float("nan")
        print(
            f"{variant:<18}{ratio:>9.4f}{bar or 0:>9.4f}{'ok' if good else 'OVER':>6}{wall:>9.3f}{middle:>11.1f}"
            f"{copies[variant]:>13.2f}"
        )
        if VARIANTS[variant][0] is SOFT and variant in ("one step", "first order, k=5"):
            steps = VARIANTS[variant][1].get("inner_steps", 1)
            total = ratio + flops.get("gates fixed", flops["plain"]) / flops["plain"]
            good = total <= (2 + 1 / steps) * BAR and copies[variant] <= 1
            met &= good
            print(f"{'  trajectory run':<18}{total:>9.4f}{(2 + 1 / steps) * BAR:>9.4f}{'ok' if good else 'OVER':>6}")
    return met


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; the shape's values fill what is not given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shape_arguments(parser, SHAPES, repeats=5)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = fill_shape(parser.parse_args(argv), SHAPES)
    options.variants = list(dict.fromkeys(["plain", *options.variants]))
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; exit code 1 when a bar is missed."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    print(headline(options, "classifier", "FinetuneTrainer") + "; xmaml per language and task of a batch's size")
    with tempfile.TemporaryDirectory() as folder:
        flops, copies = count(options, folder)
        seconds: dict[str, list[float]] = {variant: [] for variant in options.variants}
        if options.repeats:
            steppers = {name: build_stepper(options, name, options.attention, folder) for name in options.variants}
            rounds = time_rounds(options, {name: stepper.run for name, stepper in steppers.items()})
            seconds = {name: [whole / steppers[name].steps for whole in times] for name, times in rounds.items()}
    return 0 if report(options, flops, copies, seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
