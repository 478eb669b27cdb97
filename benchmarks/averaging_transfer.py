"""Does averaging help? Last, source-dev and averaged over paired seeds, and the mean over runs that share a head.

    python benchmarks/averaging_transfer.py --task topic --data DATA --learning-rate 1e-4 --output-dir runs/averaging

A sweep of `hf-xlt run`: a donor, then runs with its frozen head, each scored as its last snapshot, as the one that is
best on English validation data and as the mean of ten; then the means over 1, 2, ... runs. Printed: mean over seeds,
and the difference from the last snapshot of the same run, its mean and 95 % interval (Student's t). A sweep that was
cut continues. Target labels score and choose nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from paired import difference, spread

SHARED = "--bf16 --warmup-steps 0.1 --per-device-train-batch-size 32 --save-strategy no --disable-tqdm --threads 1 "
SHARED += "--attn-implementation eager --average --average-compare last,source_dev --share-head"
TAGGING = ("--task", "token-classification")
ROWS = ("last", "source_dev", "averaged")


def arguments_of(task: str, data: Path) -> tuple[str, ...]:
    """Return a task's arguments."""
    if task == "topic":
        return ("--dataset", str(data / "topic_sib200/{split}.{lang}.parquet"), "--num-train-epochs", "5")
    if task == "pos":
        pud = str(data / "pos_pud/{split}.{lang}.parquet")
        source = str(data / "pos_ewt/{split}.{lang}.parquet")
        targets = ("--target-dataset", pud, "--target-languages", "ar,de,hi,id,tr")
        return (*TAGGING, "--dataset", source, *targets, "--num-train-epochs", "1")
    source = str(data / "ner_uner/{split}.{lang}.parquet")
    african = str(data / "ner_masakhaner_nc/{split}.{lang}.parquet")
    targets = ("--target-dataset", source, "--target-dataset", african, "--target-languages", "zh,sw")
    return (*TAGGING, "--dataset", source, *targets, "--max-steps", "300")


def table(folder: Path) -> list[str]:
    """Return the lines of a sweep's table, in percent: English and targets."""
    values = json.loads((folder / "sweep_results.json").read_text())
    runs = [name for name in values["runs"] if name != "donor"]
    compared = {name: json.loads((folder / name / "comparators.json").read_text())["rows"] for name in values["runs"]}
    averages = ("source_average", "target_average")
    scores = {
        (row, average): [100 * compared[run][row][average] for run in runs] for row in ROWS for average in averages
    }
    lines = ["| taken | English | against last | targets | against last |", "|:--|--:|--:|--:|--:|"]
    for row in ROWS:
        cells = []
        for average in averages:
            own, last = scores[row, average], scores["last", average]
            cells += [spread(own), "" if row == "last" else difference(own, last)]
        lines.append(f"| {row.replace('_', ' ')} | {' | '.join(cells)} |")
    for kind, means in values["accumulated"]["means"].items():
        shown = " | ".join(f"{100 * means[-1][average]:.1f} | " for average in averages)
        lines.append(f"| {kind}, mean over {len(means)} runs | {shown}|")
    for row in ROWS:
        shown = " | ".join(f"{100 * compared['donor'][row][average]:.1f} | " for average in averages)
        lines.append(f"| donor (own head), {row.replace('_', ' ')} | {shown}|")
    for kind, means in values["accumulated"]["means"].items():
        steps = ", ".join(f"{100 * mean['target_average']:.1f}" for mean in means)
        lines.append(f"\nTargets, {kind}, mean over 1, 2, ... runs: {steps}")
    return lines


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("topic", "pos", "ner"), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with topic_sib200, pos_ewt, ...")
    parser.add_argument("--learning-rate", required=True)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args()
    folder = options.output_dir / f"{options.task}-{options.learning_rate}"
    own = ["--model", options.model, "--learning-rate", options.learning_rate, "--seeds", str(options.seeds)]
    own += ["--seed", "0", "--output-dir", str(folder), *(["--resume"] if folder.exists() else [])]
    command = [sys.executable, "-m", "hf_xlt.run", *arguments_of(options.task, options.data), *SHARED.split(), *own]
    if subprocess.run(command).returncode:
        return 1
    print(
        f"\n{options.task}, learning rate {options.learning_rate}, {options.seeds} runs\n\n" + "\n".join(table(folder))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
