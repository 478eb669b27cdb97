"""What a MetaXL step costs against a joint step on the same batches: FLOPs counted, wall time in pairs, peak memory.

Times the updates of the real trainers (`get_batch_samples`, `training_step`, `optimizer.step`, `zero_grad`), with the
RTN after the last layer. FLOPs are counted with eager attention, so that nothing is hidden in a fused kernel. The peer
is joint training on the source batch and the half of the target batch that trains the model (`joint`); `public` is the
published algorithm written out plainly, with an unrestricted second backward pass. In units of a source forward pass a
joint step is 4.5, the exact product 12.5 in sequence and 8 with the gradient reused; the bars are 1.03 times that.

Wall ratios are medians over rounds; every round times each variant once, in an order that rotates. Peak memory is what
a step adds: allocated on the device, or resident in a forked process on a CPU. Needs torch, transformers and
accelerate, nothing else.

    python benchmarks/metaxl_step.py
    python benchmarks/metaxl_step.py --shape xlm-r-base --device cuda --dtype bf16
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers import XLMRobertaConfig, XLMRobertaForTokenClassification

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
        trainer = self.trainer
        batch = self.batches[number % len(self.batches)]
        micro_batches, units = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        if self.public:
            public_step(trainer, micro_batches[0])
        else:
            trainer.training_step(trainer.model_wrapped, micro_batches[0], units)
        trainer.optimizer.step()
        trainer.model_wrapped.zero_grad()
        trainer.state.global_step += 1


def _mean_loss(model: nn.Module, states: Tensor, labels: Tensor) -> Tensor:
    logits = model.classifier(model.dropout(states))
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def _states(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model.roberta(batch["input_ids"], attention_mask=batch["attention_mask"])[0]


def public_step(trainer: MetaXLTrainer, source: dict[str, Tensor]) -> None:
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
    """Return a randomly initialised XLM-R tagger of the asked shape."""
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
        num_labels=9,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return XLMRobertaForTokenClassification(config)


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
    config = MetaXLConfig(
        output_dir=folder,
        per_device_train_batch_size=options.batch,
        rtn_bottleneck=options.bottleneck,
        bf16=options.dtype == "bf16",
        use_cpu=options.device == "cpu",
        save_strategy="no",
        report_to="none",
        **VARIANTS[variant],
    )
    target = build_examples(options, 100, seed=1)
    trainer = MetaXLTrainer(
        build_model(options, attention), config, train_dataset=[{}], role_datasets={"target": {"xx": target}}
    )
    trainer.state.max_steps = 1000
    trainer.create_optimizer()
    trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped.train()
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


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.get_device_module(device).synchronize()


def time_rounds(options: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    """Return seconds per step of each variant, one entry per round."""
    steppers = {variant: build_stepper(options, variant, options.attention, folder) for variant in options.variants}
    seconds: dict[str, list[float]] = {variant: [] for variant in options.variants}
    names = list(options.variants)
    for round_number in range(options.warmup + options.repeats):
        shift = round_number % len(names)
        for variant in names[shift:] + names[:shift]:
            synchronize(options.device)
            start = time.perf_counter()
            steppers[variant].step(round_number)
            synchronize(options.device)
            if round_number >= options.warmup:
                seconds[variant].append(time.perf_counter() - start)
    return seconds


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
        wall = statistics.median(own / plain for own, plain in zip(seconds[variant], seconds["joint"], strict=True))
        verdict = "" if bar is None else "ok" if good else "OVER"
        print(
            f"{variant:<26}{ratio:>9.4f}{bar or '':>7}{verdict:>6}{wall:>8.3f}"
            f"{1000 * statistics.median(seconds[variant]):>11.1f}{memory[variant]:>10.0f}"
        )
    return met


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; the shape's values fill what is not given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    for name in ("hidden", "layers", "heads", "vocabulary", "length", "batch", "bottleneck"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast on fp32 weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", default="sdpa", help="kernel of the timed steps; FLOPs are counted with eager")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds")
    parser.add_argument("--warmup", type=int, default=1, help="rounds that are not timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="`joint` always runs")
    options = parser.parse_args(argv)
    for name, value in SHAPES[options.shape].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.variants = list(dict.fromkeys(["joint", *options.variants]))
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; exit code 1 when a FLOP bar is missed."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    machine = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    half = options.batch // 2
    print(
        f"XLM-R tagger, hidden {options.hidden}, layers {options.layers}, heads {options.heads}, vocabulary "
        f"{options.vocabulary}, length {options.length}, batches of {options.batch} source, {half} target and {half} "
        f"meta examples, RTN {options.bottleneck} wide after the last layer, {options.dtype}, dropout "
        f"{options.dropout}, attention {options.attention} (timed) and eager (counted), AdamW, {machine}, threads "
        f"{options.threads}, torch {torch.__version__}, transformers {transformers.__version__}; peer: joint training "
        f"on the same batches; medians of {options.repeats} rounds of 1 step"
    )
    with tempfile.TemporaryDirectory() as folder:
        memory = measure_memory(options, folder)
        flops = count_flops(options, folder)
        seconds = time_rounds(options, folder)
    return 0 if report(options, flops, seconds, memory) else 1


if __name__ == "__main__":
    sys.exit(main())
