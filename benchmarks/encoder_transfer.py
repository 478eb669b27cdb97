"""Zero-shot transfer and retrieval of several encoders, same data, same settings, several seeds.

    python benchmarks/encoder_transfer.py --data DATA random=DIR two-phase=DIR --seeds 3

Each encoder is fine-tuned plainly on English labels (`hf-xlt run --strategy finetune`) and scored on the other
languages of the task; retrieval needs no training. The last checkpoint is scored: nothing is selected.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from paired import spread

from hf_xlt.cli.main import main as hf_xlt


@dataclass(frozen=True)
class Task:
    """A task to transfer.

    Attributes:
        name: for the table.
        pattern: data, below the data folder.
        settings: arguments of the run.
    """

    name: str
    pattern: str
    settings: tuple[str, ...]


SETTINGS = ("--bf16", "--learning-rate", "1e-4", "--warmup-steps", "0.1", "--per-device-train-batch-size", "32")
TASKS = (
    Task("topic", "topic_sib200/{split}.{lang}.parquet", (*SETTINGS, "--num-train-epochs", "5")),
    Task("sentiment", "sentiment_nusax/{split}.{lang}.parquet", (*SETTINGS, "--num-train-epochs", "5")),
)
RETRIEVAL = "retrieval_tatoeba/test.{lang}.parquet"


def transfer(encoder: str | Path, task: Task, data: Path, seed: int, folder: Path) -> tuple[float, float]:
    """Return English and mean target accuracy of one run, in percent."""
    code = hf_xlt(
        [
            *("run", "--strategy", "finetune", "--model", str(encoder), "--dataset", str(data / task.pattern)),
            *("--seed", str(seed), "--save-strategy", "no", "--disable-tqdm", "--threads", "1"),
            *("--attn-implementation", "eager", "--output-dir", str(folder), "--overwrite", *task.settings),
        ]
    )
    if code:
        raise SystemExit(f"the run of {encoder} on {task.name} failed")
    scores = json.loads((folder / "results.json").read_text())["languages"]
    english = scores["en"]["metrics"]["accuracy"]
    targets = [entry["metrics"]["accuracy"] for code, entry in scores.items() if code != "en"]
    return 100 * english, 100 * statistics.mean(targets)


def retrieval(encoder: str | Path, data: Path, folder: Path, layer: str) -> float:
    """Return mean retrieval accuracy over languages and directions, in percent."""
    arguments = ["retrieve", str(encoder), "--dataset", str(data / RETRIEVAL), "--split", "test"]
    if hf_xlt([*arguments, "--layer", layer, "--output-dir", str(folder), "--threads", "1", "--overwrite"]):
        raise SystemExit(f"retrieval with {encoder} failed")
    return 100 * json.loads((folder / "retrieval.json").read_text())["average"]["mean"]


def compare(
    encoders: dict[str, str | Path], data: Path, seeds: int, layer: str, tasks: tuple[Task, ...] = TASKS
) -> list:
    """Measure all encoders.

    Returns:
        Rows of (name, {task: ([English], [targets])}, retrieval).
    """
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, encoder in encoders.items():
            scores = {}
            for task in tasks:
                pairs = [transfer(encoder, task, data, seed, Path(scratch, "run")) for seed in range(seeds)]
                scores[task.name] = tuple(map(list, zip(*pairs, strict=True)))
            rows.append((name, scores, retrieval(encoder, data, Path(scratch, "retrieval"), layer)))
            print(line(rows[-1]), flush=True)
    return rows


def line(row: tuple) -> str:
    """Write one encoder's figures as a row of a table: mean ± standard deviation over seeds."""
    name, scores, retrieved = row
    cells = [name]
    for english, targets in scores.values():
        gap = statistics.mean(english) - statistics.mean(targets)
        cells += [spread(english), spread(targets), f"{gap:.1f}"]
    return "| " + " | ".join([*cells, f"{retrieved:.1f}"]) + " |"


def header(tasks: tuple[Task, ...] = TASKS) -> str:
    """Write the table's head."""
    names = [f"{task.name} {part}" for task in tasks for part in ("English", "targets", "gap")]
    return f"| encoder | {' | '.join(names)} | retrieval |\n|:--|{'--:|' * (len(names) + 1)}"


def main() -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="*", help="NAME=DIRECTORY or NAME=embedded")
    parser.add_argument("--model", action="append", default=[], help="directory or Hub id, named by its last part")
    parser.add_argument("--data", type=Path, required=True, help="folder with topic_sib200, sentiment_nusax, ...")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layer", default="middle", help="layer for retrieval, fixed in advance")
    options = parser.parse_args()
    models = [model.rstrip("/") for model in options.model]
    encoders = dict(entry.split("=", 1) for entry in options.encoders) | {
        model.split("/")[-1]: model for model in models
    }
    if not encoders:
        parser.error("name an encoder: NAME=DIRECTORY, or --model")
    rows = compare(encoders, options.data, options.seeds, options.layer)
    print("\n" + "\n".join([header(), *map(line, rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
