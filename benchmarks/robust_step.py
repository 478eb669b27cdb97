"""What a robust training step costs against a plain one: FLOPs counted, and wall time in pairs.

Times the steps of the real trainers (`training_step`, `optimizer.step`, `zero_grad`) on the same batches. FLOPs are
counted with eager attention, so that nothing is hidden in a fused kernel. A step of P training passes and K ascent
passes is held against the floor P + K * r plain steps, where r is the counted cost of one ascent pass (forward and
gradient to the perturbation); the bar is 1.03 times the floor, and r <= 0.69 at hidden size 768 and length 128.

Wall ratios are medians over rounds; every round times each variant once, in an order that rotates. Needs torch,
transformers and accelerate, nothing else.

    python benchmarks/robust_step.py
    python benchmarks/robust_step.py --shape xlm-r-base --device cuda --dtype bf16 --batch 32
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
        trainer = self.trainer
        batch = self.batches[number % len(self.batches)]
        micro_batches, units = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        trainer.training_step(trainer.model_wrapped, micro_batches[0], units)
        trainer.optimizer.step()
        trainer.model_wrapped.zero_grad()
        trainer.state.global_step += 1


def build_model(options: argparse.Namespace, attention: str) -> torch.nn.Module:
    """Return a randomly initialised XLM-R classifier of the asked shape."""
    config = XLMRobertaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.hidden,
        max_position_embeddings=options.length + 4,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        type_vocab_size=1,
        num_labels=3,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return XLMRobertaForSequenceClassification(config)


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
    config = config_cls(
        output_dir=folder,
        per_device_train_batch_size=options.batch,
        bf16=options.dtype == "bf16",
        use_cpu=options.device == "cpu",
        save_strategy="no",
        report_to="none",
        **(settings or {}),
    )
    trainer = trainer_cls(build_model(options, attention), config, train_dataset=[{}])
    trainer.create_optimizer()
    trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped.train()
    return Stepper(trainer, build_batches(options))


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


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.get_device_module(device).synchronize()


def time_rounds(options: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    """Return seconds per step of each variant, one entry per round."""
    steppers = {variant: build_stepper(options, variant, options.attention, folder) for variant in options.variants}
    seconds: dict[str, list[float]] = {variant: [] for variant in options.variants}
    names = list(options.variants)
    number = 0
    for round_number in range(options.warmup + options.repeats):
        shift = round_number % len(names)
        for variant in names[shift:] + names[:shift]:
            synchronize(options.device)
            start = time.perf_counter()
            for step in range(options.steps_per_round):
                steppers[variant].step(number + step)
            synchronize(options.device)
            if round_number >= options.warmup:
                seconds[variant].append((time.perf_counter() - start) / options.steps_per_round)
        number += options.steps_per_round
    return seconds


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
        walls = [own / plain for own, plain in zip(seconds[variant], seconds["plain"], strict=True)]
        wall = statistics.median(walls)
        milliseconds = 1000 * statistics.median(seconds[variant])
        print(
            f"{variant:<16}{ratio:>10.4f}{floor:>9.4f}{floor * BAR:>9.4f}{'ok' if good else 'OVER':>6}"
            f"{wall:>9.3f}{wall / ratio:>12.3f}{milliseconds:>11.1f}"
        )
    return met


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; the shape's values fill what is not given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    for name in ("hidden", "layers", "heads", "vocabulary", "length", "batch"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast on fp32 weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", default="sdpa", help="kernel of the timed steps; FLOPs are counted with eager")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds")
    parser.add_argument("--warmup", type=int, default=1, help="rounds that are not timed")
    parser.add_argument("--steps-per-round", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        help="what to run; `plain` and `adv K=1` always run",
    )
    options = parser.parse_args(argv)
    for name, value in SHAPES[options.shape].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    # Ratios are to a plain step, and floors to the inner pass of the first of the adversarial ones.
    options.variants = list(dict.fromkeys(["plain", "adv K=1", *options.variants]))
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; exit code 1 when a FLOP bar is missed."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    machine = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(
        f"XLM-R classifier, hidden {options.hidden}, layers {options.layers}, heads {options.heads}, vocabulary "
        f"{options.vocabulary}, length {options.length}, batch {options.batch}, {options.dtype}, dropout "
        f"{options.dropout}, attention {options.attention} (timed) and eager (counted), AdamW, {machine}, threads "
        f"{options.threads}, torch {torch.__version__}, transformers {transformers.__version__}; peer: "
        f"FinetuneTrainer; medians of {options.repeats} rounds of {options.steps_per_round} steps"
    )
    with tempfile.TemporaryDirectory() as folder:
        flops = count_flops(options, folder)
        seconds = time_rounds(options, folder)
    return 0 if report(options, flops, seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
