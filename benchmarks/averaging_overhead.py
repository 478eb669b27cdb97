"""What averaging in training costs: the time of a training with ten snapshots over that of one without.

Both train the same model on the same batches with the stock Trainer, one after the other, each first in every second
pair. Ratios are medians over pairs, of wall time and of CPU time, with their range. Where other load makes that range
wider than the bar, which is 1.01, the share of a training that is spent in the callback, measured inside, decides.

On Linux the allocator's thresholds are fixed: left to itself glibc raises them when large buffers such as the
mean's are freed, and training with averaging looks some 10 % faster for that alone.

What is timed is the training alone: checkpoints and the final model are not written.

    python benchmarks/averaging_overhead.py
    python benchmarks/averaging_overhead.py --device cuda --hidden 768 --layers 12 --vocabulary 250002 --updates 200
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    XLMRobertaConfig,
)

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

from stepping import add_model_argument, fill_missing, make_model, model_name, take_shape  # noqa: E402

from hf_xlt.averaging.callback import CheckpointAveragingCallback  # noqa: E402

BAR = 1.01
SNAPSHOTS = 10
SHAPE = {"hidden": 256, "layers": 4, "vocabulary": 20_000}


@dataclass
class Times:
    """Seconds of one training: on the clock, of the processor, and in taking snapshots."""

    wall: float
    cpu: float
    inside: float = 0.0


class TimedAveraging(CheckpointAveragingCallback):
    """Adds up the time that snapshots take."""

    seconds = 0.0

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """Take a snapshot where one is due, on the clock."""
        start = time.perf_counter()
        super().on_step_end(*args, **kwargs)
        self.seconds += time.perf_counter() - start


class Clock(TrainerCallback):
    """Times from the first update to the last."""

    def _now(self, args: TrainingArguments) -> tuple[float, float]:
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def on_train_begin(self, args: TrainingArguments, state: object, control: object, **kwargs: object) -> None:
        """Start."""
        self.start = self._now(args)

    def on_train_end(self, args: TrainingArguments, state: object, control: object, **kwargs: object) -> None:
        """Stop."""
        end = self._now(args)
        self.wall, self.cpu = (after - before for before, after in zip(self.start, end, strict=True))


def build_model(options: argparse.Namespace) -> torch.nn.Module:
    """Return a classifier: `--model`, or a randomly initialised XLM-R of the asked shape."""
    config = XLMRobertaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden,
        max_position_embeddings=options.length + 4,
        type_vocab_size=1,
        num_labels=3,
    )
    return make_model(options, AutoModelForSequenceClassification, config, "sdpa", num_labels=3)


def train(options: argparse.Namespace, rows: list[dict], averages: bool) -> Times:
    """Train once from the same start; return what it took."""
    clock = Clock()
    # Nothing is written and nothing swapped: what the end of a run costs does not grow with its length.
    averaging = TimedAveraging(every=1 / SNAPSHOTS, output_name=None, swap_at_end=False, device=options.mean_device)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingArguments(
            output_dir=folder,
            max_steps=options.updates,
            per_device_train_batch_size=options.batch,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=options.device == "cpu",
            bf16=options.bf16,
        )
        callbacks = [clock, *([averaging] if averages else [])]
        Trainer(build_model(options), config, train_dataset=rows, callbacks=callbacks).train()
    if averages and len(averaging.steps) != SNAPSHOTS:
        raise SystemExit(f"took {len(averaging.steps)} snapshots, not {SNAPSHOTS}; give more --updates")
    return Times(clock.wall, clock.cpu, averaging.seconds)


def make_rows(options: argparse.Namespace) -> list[dict]:
    """Return full-length rows of random pieces for all updates."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.updates * options.batch, options.length)
    ids = torch.randint(4, options.vocabulary, shape, generator=generator)
    labels = torch.randint(0, 3, (len(ids),), generator=generator)
    return [{"input_ids": row, "labels": int(label)} for row, label in zip(ids, labels, strict=True)]


def fix_allocator() -> None:
    """Let glibc neither map large blocks one by one nor give memory back between trainings."""
    if platform.system() == "Linux":
        library = ctypes.CDLL(None)
        trim, mapped = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
        for option, value in ((mapped, 2**30), (trim, 2**31 - 1)):
            if hasattr(library, "mallopt"):
                library.mallopt(option, value)


def describe(options: argparse.Namespace) -> str:
    """Name shape, precision and versions."""
    parameters = sum(weight.numel() for weight in build_model(options).parameters())
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    return (
        f"{model_name(options, 'XLM-R')}: {options.layers} layers, hidden {options.hidden}, vocabulary "
        f"{options.vocabulary:,}: {parameters / 1e6:.1f}M parameters; length {options.length}, batch {options.batch}, "
        f"{options.updates} updates, {'bf16' if options.bf16 else 'float32'}, dropout 0.1, sdpa; "
        f"{options.device} ({device}), mean on {options.mean_device}, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, help=f"default {value}")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--mean-device", default="cpu", help="where the mean lies")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    take_shape(options, list(SHAPE))
    return fill_missing(options, SHAPE)


def main() -> int:
    """Time pairs and print the ratios; 1 when the bar is missed."""
    options = parse()
    fix_allocator()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    rows = make_rows(options)
    print(describe(options), flush=True)
    train(argparse.Namespace(**{**vars(options), "updates": SNAPSHOTS}), rows, True)
    pairs = []
    for number in range(options.pairs):
        order = (False, True) if number % 2 else (True, False)
        times = {averages: train(options, rows, averages) for averages in order}
        pairs.append((times[False], times[True]))
        plain, averaged = pairs[-1]
        print(
            f"pair {number}: without {plain.wall:.2f} s (CPU {plain.cpu:.2f}), with {averaged.wall:.2f} s "
            f"(CPU {averaged.cpu:.2f}), of these {averaged.inside:.3f} in the callback",
            flush=True,
        )
    ratios = {
        "wall time, with over without": [averaged.wall / plain.wall for plain, averaged in pairs],
        "CPU time, with over without": [averaged.cpu / plain.cpu for plain, averaged in pairs],
        "1 + share in the callback": [1 + with_.inside / (with_.wall - with_.inside) for _, with_ in pairs],
    }
    for name, values in ratios.items():
        value = statistics.median(values)
        print(
            f"{name:<29} {value:.4f} ({min(values):.4f} to {max(values):.4f}), bar {BAR}: "
            f"{'kept' if value <= BAR else 'missed'}"
        )
    return int(statistics.median(ratios["1 + share in the callback"]) > BAR)


if __name__ == "__main__":
    sys.exit(main())
