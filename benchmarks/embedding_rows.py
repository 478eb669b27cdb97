"""`--embedding-rows seen` against `all`: memory and CPU time of `hf-xlt run`, in one run.

    python benchmarks/embedding_rows.py --model DIR --data "DATA/topic_sib200/{split}.{lang}.parquet"

Every run is a process of its own, so that its peak of resident memory is its own; the two settings alternate, with the
same kernel, and ratios are medians over rounds. The peak during training is read from Linux, which is told to forget
the one before; it includes the checkpoint at the end. Updates are timed in CPU seconds of the process, without the
first two. Accuracies are printed: they must be equal.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stepping import model_place

SETTINGS = ("all", "seen")
TARGETS = {"training": "0.55 or less", "run": "0.75 or less", "update": "0.80 (sdpa), 0.85 (eager) or less"}
_WARMUP = 2


def read_peak() -> int:
    """Return the peak of this process's resident memory since it was last forgotten, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    """Let the peak of resident memory start anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def run_once(command: list[str], out: Path) -> dict[str, Any]:
    """Run `hf-xlt run` in this process; return its peaks in bytes, CPU seconds of its updates, and its accuracies."""
    from transformers import TrainerCallback

    from hf_xlt.run import main
    from hf_xlt.training.trainer import XLTTrainer

    peaks, seconds = {}, []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(time.process_time() - self.start)

    original = XLTTrainer._train_rows

    def measured(trainer: XLTTrainer, *args: Any, **kwargs: Any) -> Any:
        trainer.add_callback(Clock())
        peaks["before"] = read_peak()
        forget_peak()
        output = original(trainer, *args, **kwargs)
        peaks["training"] = read_peak()
        return output

    XLTTrainer._train_rows = measured
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(command)
    if code:
        raise SystemExit(code)
    languages = json.loads((out / "results.json").read_text(encoding="utf-8"))["languages"]
    return {
        "training": peaks["training"],
        "run": max(*peaks.values(), read_peak()),
        "update": statistics.median(seconds[_WARMUP:]),
        "accuracy": {code: entry["metrics"]["accuracy"] for code, entry in languages.items()},
    }


def in_a_process(options: argparse.Namespace, setting: str, attention: str) -> dict[str, Any]:
    """Measure one run of a setting."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [
            *("--strategy", "finetune", "--model", options.model, "--dataset", options.data),
            *("--source-languages", "en", "--target-languages", *options.languages.split()),
            *("--per-device-train-batch-size", str(options.batch), "--max-length", str(options.length)),
            *("--max-steps", str(options.steps), "--learning-rate", "1e-4", "--attn-implementation", attention),
            *("--threads", str(options.threads), "--output-dir", str(out), "--embedding-rows", setting),
            *("--save-strategy", "steps", "--save-steps", str(options.steps), "--report-to", "none", "--disable-tqdm"),
            *(["--bf16"] if options.bf16 else []),
        ]
        line = [sys.executable, __file__, "--child", json.dumps([command, str(out)])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the pairs and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or Hub id")
    parser.add_argument("--data", help="pattern of a text classification set with English")
    parser.add_argument("--languages", default="de sw yo zh", help="target languages")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--attention", default="sdpa eager", help="kernels, each measured by itself")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        command, out = json.loads(options.child)
        print(json.dumps(run_once(command, Path(out))))
        return
    if not options.model or not options.data:
        parser.error("--model and --data are needed")
    options.model = model_place(options.model)
    print(
        f"{Path(options.model).name}, {options.steps} updates of {options.batch}, length {options.length}, "
        f"{'bfloat16' if options.bf16 else 'float32'}, {options.threads} threads, {options.rounds} pairs"
    )
    for attention in options.attention.split():
        pairs = []
        for number in range(options.rounds):
            order = SETTINGS if number % 2 == 0 else SETTINGS[::-1]
            pairs.append({setting: in_a_process(options, setting, attention) for setting in order})
        report(attention, pairs)


def report(attention: str, pairs: list[dict[str, Any]]) -> None:
    """Print the medians of one kernel."""
    for name, unit, scale in (("training", "GB peak", 1e9), ("run", "GB peak", 1e9), ("update", "s CPU", 1.0)):
        both = [statistics.median(pair[setting][name] for pair in pairs) / scale for setting in SETTINGS]
        ratios = sorted(pair["seen"][name] / pair["all"][name] for pair in pairs)
        middle = statistics.median(ratios)
        print(
            f"{attention:<6} {name:<9} all {both[0]:.2f}, seen {both[1]:.2f} {unit}; ratio {middle:.3f} "
            f"(lowest {ratios[0]:.3f}, highest {ratios[-1]:.3f}; target {TARGETS[name]})"
        )
    gaps = [
        abs(pair["all"]["accuracy"][code] - value)
        for pair in pairs
        for code, value in pair["seen"]["accuracy"].items()
    ]
    print(f"{attention:<6} largest difference of accuracy {max(gaps):.4f}")


if __name__ == "__main__":
    main()
