"""What a masked-LM step costs against the stock recipe: wall time in pairs, FLOPs and peak memory counted.

Peer: `Trainer` with `DataCollatorForLanguageModeling(mlm_probability=0.15)` on packed rows with a special-token mask,
as transformers' `run_mlm.py` does it. Ours: rows masked by keyed draws, and the loss on masked positions only. Both
collate in the process, clip gradients to 1 and step a fused AdamW; the same model, rows and autocast.

Wall ratios are medians over rounds; every round times both, in alternating order, so that a noisy machine hits both
alike. On a shared machine threads wait for each other; the ratio by processor time, with one thread, is steadier.
FLOPs are counted with eager attention, so that nothing is hidden in a fused kernel. Peak memory is the highest sum of
the CPU allocator's events over one step (`torch.profiler`, `profile_memory`), in a process where weights exist and
gradients do not; "activations" leaves out the gradients of the weights, which live on after the step.

    python benchmarks/pretraining_step.py
    python benchmarks/pretraining_step.py --vocabulary 250002 --batch 8 --repeats 3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    XLMRobertaConfig,
)

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

from stepping import add_model_argument, fill_missing, make_model, model_name, take_shape  # noqa: E402

from hf_xlt.pretraining.masking import MaskingRule, mask_rows, row_draws  # noqa: E402
from hf_xlt.pretraining.objectives import masked_lm_loss  # noqa: E402

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
SPEED_BAR, MEMORY_BAR = 1.8, 3.0
GRADIENT_NORM = 1.0
SHAPE = {
    "hidden": 256,
    "layers": 4,
    "heads": 4,
    "intermediate": 1024,
    "vocabulary": 24_000,
    "length": 128,
    "batch": 32,
    "memory-vocabulary": 250_002,
    "memory-batch": 8,
}


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer of that many ids, the first five special."""
    pieces = [*SPECIAL.values(), *(f"w{number}" for number in range(vocabulary - len(SPECIAL)))]
    model = models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **SPECIAL)


def build_model(options: argparse.Namespace, vocabulary: int, attention: str) -> transformers.PreTrainedModel:
    """Return `--model`, or a randomly initialised XLM-R of the asked shape, the same every time."""
    config = XLMRobertaConfig(
        vocab_size=vocabulary,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.intermediate,
        max_position_embeddings=options.length + 4,
        type_vocab_size=1,
    )
    return make_model(options, AutoModelForMaskedLM, config, attention)


def build_rows(options: argparse.Namespace, vocabulary: int, batch: int, count: int = 4) -> list[list[dict]]:
    """Return batches of packed rows: no padding, a separator every 32 tokens."""
    generator = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        ids = generator.integers(len(SPECIAL), vocabulary, (batch, options.length))
        ids[:, 31::32] = 2
        special = (ids < len(SPECIAL)).astype(np.int64)
        rows = zip(ids.tolist(), special.tolist(), strict=True)
        batches.append([{"input_ids": row, "special_tokens_mask": mask} for row, mask in rows])
    return batches


def peer_step(options: argparse.Namespace, vocabulary: int, batch: int, attention: str) -> Callable[[int], float]:
    """Return a function that does update `number` of the stock recipe and returns the loss."""
    arguments = TrainingArguments(
        output_dir=options.folder,
        per_device_train_batch_size=batch,
        bf16=options.dtype == "bf16",
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        max_grad_norm=GRADIENT_NORM,
    )
    collator = DataCollatorForLanguageModeling(build_tokenizer(vocabulary), mlm_probability=0.15)
    model = build_model(options, vocabulary, attention)
    trainer = Trainer(model, arguments, train_dataset=[{}], data_collator=collator)
    trainer.create_optimizer()
    trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped.train()
    batches = build_rows(options, vocabulary, batch)

    def step(number: int) -> float:
        inputs = collator(batches[number % len(batches)])
        micro_batches, units = trainer.get_batch_samples(iter([inputs]), 1, trainer.args.device)
        loss = trainer.training_step(trainer.model_wrapped, micro_batches[0], units)
        trainer.accelerator.clip_grad_norm_(trainer.model_wrapped.parameters(), GRADIENT_NORM)
        trainer.optimizer.step()
        trainer.model_wrapped.zero_grad()
        return loss.item()

    return step


def autocast(options: argparse.Namespace) -> AbstractContextManager:
    """Return the context of a forward pass."""
    return torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bf16")


def ours_step(options: argparse.Namespace, vocabulary: int, batch: int, attention: str) -> Callable[[int], float]:
    """Return a function that does update `number` of ours and returns the loss."""
    rule = MaskingRule.from_tokenizer(build_tokenizer(vocabulary))
    model = build_model(options, vocabulary, attention).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
    batches = [
        tuple(np.array([row[name] for row in rows]) for name in ("input_ids", "special_tokens_mask"))
        for rows in build_rows(options, vocabulary, batch)
    ]

    def step(number: int) -> float:
        ids, special = batches[number % len(batches)]
        draws = row_draws(0, np.arange(batch) + number * batch, options.length)
        inputs, labels = map(torch.from_numpy, mask_rows(ids, special == 0, draws, rule))
        weights = torch.full((batch,), 1 / max(int(labels.ne(-100).sum()), 1))
        # The stock collator passes a mask too, although packed rows have no padding.
        features = {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}
        with autocast(options):
            loss = masked_lm_loss(model, model, features, labels, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        model.zero_grad()
        return loss.item()

    return step


STEPS = {"peer": peer_step, "ours": ours_step}


def time_rounds(options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Return wall and processor seconds per step of both, one entry per round; prints the first losses."""
    steps = {
        name: build(options, options.vocabulary, options.batch, options.attention) for name, build in STEPS.items()
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(options.warmup + options.repeats):
        for name in sorted(steps, reverse=bool(number % 2)):
            start = time.perf_counter(), time.process_time()
            for inner in range(options.steps_per_round):
                loss = steps[name](number * options.steps_per_round + inner)
            if number >= options.warmup:
                wall, used = time.perf_counter() - start[0], time.process_time() - start[1]
                seconds[name].append((wall / options.steps_per_round, used / options.steps_per_round))
            elif number == 0:
                print(f"first loss of {name}: {loss:.3f}")
    return seconds


def count_flops(options: argparse.Namespace) -> dict[str, int]:
    """Return the FLOPs of one step of each, with eager attention."""
    counted = {}
    for name, build in STEPS.items():
        step = build(options, options.vocabulary, options.batch, "eager")
        with FlopCounterMode(display=False) as counter:
            step(0)
        counted[name] = counter.get_total_flops()
    return counted


def peak_bytes(options: argparse.Namespace, name: str) -> tuple[int, int]:
    """Return the highest number of bytes that one step holds beyond the weights and optimizer, and those of gradients.

    The optimizer's state is made by a first step; what the step frees before it allocates counts as freed.
    """
    step = STEPS[name](options, options.memory_vocabulary, options.memory_batch, "sdpa")
    step(0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(1)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    live = np.cumsum([event.nbytes() for event in events])
    parameters = build_model(options, options.memory_vocabulary, "sdpa").num_parameters()
    return int(live.max()), 4 * parameters


def report_speed(options: argparse.Namespace) -> bool:
    """Print tokens per second of both and their ratio; return whether the bar is met."""
    flops, seconds = count_flops(options), time_rounds(options)
    tokens = options.batch * options.length
    for name, values in seconds.items():
        median = statistics.median(wall for wall, _ in values)
        print(
            f"{name}: {tokens / median:,.0f} tokens/s, median {1000 * median:.1f} ms, "
            f"{flops[name] / 1e9:.1f} GFLOP a step"
        )
    pairs = list(zip(seconds["peer"], seconds["ours"], strict=True))
    ratios = sorted(peer[0] / own[0] for peer, own in pairs)
    ratio, low, high = statistics.median(ratios), ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    processor = statistics.median(peer[1] / own[1] for peer, own in pairs)
    good = ratio >= SPEED_BAR
    print(
        f"tokens/s, ours / peer: median of pairs {ratio:.2f} (quartiles {low:.2f} to {high:.2f}), by processor time "
        f"{processor:.2f}, FLOPs peer / ours {flops['peer'] / flops['ours']:.2f}; bar {SPEED_BAR} "
        f"{'ok' if good else 'MISSED'}"
    )
    return good


def report_memory(options: argparse.Namespace) -> bool:
    """Print the peak memory of both and the ratio; return whether the bar is met."""
    activations = {}
    for name in STEPS:
        peak, gradients = peak_bytes(options, name)
        activations[name] = peak - gradients
        print(f"{name}: peak {peak / 2**20:,.0f} MiB, without gradients {activations[name] / 2**20:,.0f} MiB")
    ratio = activations["peer"] / max(activations["ours"], 1)
    good = ratio >= MEMORY_BAR
    print(f"peak activations, peer / ours: {ratio:.1f}; bar {MEMORY_BAR} {'ok' if good else 'MISSED'}")
    return good


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_argument(parser)
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, help=f"default {value}")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help="bf16 is autocast on fp32 weights")
    parser.add_argument("--attention", default="sdpa", help="kernel of the timed steps; FLOPs are counted with eager")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds")
    parser.add_argument("--warmup", type=int, default=2, help="rounds that are not timed")
    parser.add_argument("--steps-per-round", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-memory", action="store_true")
    options = parser.parse_args(argv)
    take_shape(options, list(SHAPE))
    return fill_missing(options, SHAPE)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; exit code 1 when a bar is missed."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    print(
        f"{model_name(options, 'XLM-R')}, masked LM, hidden {options.hidden}, layers {options.layers}, heads "
        f"{options.heads}, intermediate {options.intermediate}, vocabulary {options.vocabulary}, length "
        f"{options.length}, batch {options.batch}, "
        f"{options.dtype}, dropout 0.1, attention {options.attention} (timed) and eager (counted), fused AdamW, CPU, "
        f"threads {options.threads}, torch {torch.__version__}, transformers {transformers.__version__}; peer: "
        f"Trainer and DataCollatorForLanguageModeling; {options.repeats} rounds of {options.steps_per_round} steps; "
        f"memory at vocabulary {options.memory_vocabulary}, batch {options.memory_batch}"
    )
    with tempfile.TemporaryDirectory() as options.folder:
        good = report_speed(options)
        if not options.skip_memory:
            good = report_memory(options) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
