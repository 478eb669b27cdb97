"""Does MetaXL help a low-resource target? Paired seeds against joint training, target-only training and JT+RTN.

    python benchmarks/metaxl_transfer.py --task pos --data DATA --output-dir runs/metaxl-pos --seeds 5

English source, one African target language with 100 labelled examples of its own; a seed chooses the examples, the
new head and all masks. All methods of a seed see the same examples and make as many updates; the matched baselines see
the same batches. Printed: mean over seeds, and the difference from joint training with the same seed, its mean and
95 % interval (Student's t over seeds). Runs that are done are not repeated. Every setting is fixed beforehand: target
labels score the last checkpoints and choose nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from paired import difference, run_once, slug, spread

# At the rates of a small encoder the factor η leaves the meta gradient far below the RTN's weight decay.
UNIT = ("--meta-grad-scale", "unit")
METHODS = {
    "JT": ("--method", "joint"),
    "JT, as published": ("--method", "joint", "--baseline", "published"),
    "target only": ("--method", "target_only", "--baseline", "published"),
    "JT+RTN": ("--hypergrad", "none"),
    "MetaXL": UNIT,
    "MetaXL, published RTN settings": ("--rtn-lr", "1e-6"),
    "MetaXL, reuse": (*UNIT, "--update-order", "reuse"),
    "MetaXL, zero start": (*UNIT, "--rtn-init", "zero_out"),
    "zero-shot": ("--strategy", "finetune"),
}
DEFAULT_METHODS = ("JT", "JT, as published", "target only", "JT+RTN", "MetaXL", "MetaXL, published RTN settings")
PEER = "JT"
TASKS = {
    "pos": (
        "pos_ewt",
        "pos_wolof",
        "wo",
        "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X",
    ),
    "ner": ("ner_uner", "ner_masakhaner_nc", "yo", "O B-PER I-PER B-ORG I-ORG B-LOC I-LOC"),
}


def arguments_of(options: argparse.Namespace) -> list[str]:
    """Return the arguments of `hf-xlt run` that all methods share."""
    source, target, language, labels = TASKS[options.task]
    name = "{split}.{lang}.parquet"
    return [
        *("--task", "token-classification"),
        *("--dataset", str(options.data / source / name)),
        *("--target-dataset", str(options.data / target / name)),
        *("--target-languages", options.target_language or language),
        *("--model", options.model, "--labels", *labels.split()),
        *("--learning-rate", str(options.learning_rate), "--warmup-steps", "0.1", "--max-grad-norm", "10"),
        *("--per-device-train-batch-size", "10", "--max-steps", str(options.updates)),
        *("--save-strategy", "no", "--disable-tqdm", "--threads", "1", "--overwrite", "--no-floor"),
    ]


def run(options: argparse.Namespace, method: str, seed: int) -> dict:
    """Train and score once, or read what an earlier call left; return the scores."""
    folder = options.output_dir / f"{slug(method)}-{seed}"
    own = [*arguments_of(options), "--seed", str(seed)]
    if "finetune" not in METHODS[method]:
        own += ["--strategy", "metaxl", "--shots", str(options.shots), "--shot-seed", str(seed)]
        # The baselines have no RTN, and one method brings its rate.
        own += ["--rtn-lr", str(options.rtn_lr)] if not {"--rtn-lr", "--method"} & {*METHODS[method]} else []
    return run_once([*own, *METHODS[method]], folder, phases)


def phases(folder: Path) -> dict:
    """Return what the record says of the phases."""
    return {"phases": json.loads((folder / "xlt_run.json").read_text())["phases"]}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with pos_ewt, pos_wolof, ...")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=DEFAULT_METHODS)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--target-language", help="instead of the task's own")
    parser.add_argument("--shots", type=int, default=100)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--rtn-lr", type=float, default=1e-3)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run, print."""
    options = parse(argv)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    table: dict[str, list[float]] = {name: [] for name in options.methods}
    # Seed by seed, so that what is done so far is always paired.
    for seed in range(options.seeds):
        for method in options.methods:
            score = 100 * run(options, method, seed)["target_average"]
            table[method].append(score)
            print(f"DONE {method}, seed {seed}: {score:.1f}", flush=True)
    print(f"\n| method | target | against {PEER} |\n|:--|--:|--:|")
    for method, values in table.items():
        gap = difference(values, table[PEER]) if method != PEER and PEER in table else ""
        print(f"| {method} | {spread(values)} | {gap} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
