"""Does robust training help? `finetune` against each robust method, paired seeds, radius from English data alone.

    python benchmarks/robust_transfer.py --task topic --data DATA --output-dir runs/robust-topic --seeds 5

For every method with a radius, the radius of its grid with the best mean score on English validation data (seeds of
their own) is taken; then all methods train with the same seeds. Printed: mean over seeds, and the difference from
`finetune` with the same seed, its mean and 95 % interval (Student's t over seeds). Runs that are done are not
repeated. Target labels score the last checkpoints and choose nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from paired import difference, run_once, slug

TUNING_SEEDS = (1001,)


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        name: for the table.
        arguments: of `hf-xlt run`.
        radii: values of `--epsilon` to choose from; empty where there is none.
        copies: augmented copies, whose extra updates the steps of plain training do not have.
    """

    name: str
    arguments: tuple[str, ...]
    radii: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A task with its data and settings.

    Attributes:
        arguments: of every run.
        tuning: arguments beside them when a radius is chosen: scores on validation data.
        columns: what is reported, as paths into `results.json` or `generalized.json`.
    """

    arguments: tuple[str, ...]
    tuning: tuple[str, ...]
    columns: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"English": ("source_average",), "targets": ("target_average",)}
    )


ROBUST = ("--strategy", "robust")
TEXT_AUGMENTATION = (*ROBUST, "--method", "none", "--augmentation", "online")
METHODS = (
    Method("finetune", ("--strategy", "finetune")),
    Method("adv", (*ROBUST, "--method", "adv"), ("0.01", "0.03", "0.1")),
    Method("rs_rp", (*ROBUST, "--method", "rs_rp", "--noise", "l2_sphere"), ("0.1", "0.3", "1.0")),
    Method("RS-DA, table {table}", (*TEXT_AUGMENTATION, "--augmenter", "synonyms", "--lookup", "casefold")),
    Method("character noise", (*TEXT_AUGMENTATION, "--augmenter", "characters")),
    Method(
        "R3F (rs_rp + symmetric KL)",
        (*ROBUST, "--method", "rs_rp", "--noise", "l2_sphere", "--consistency", "symkl"),
        ("0.1", "0.3", "1.0"),
    ),
    Method(
        "freelb, K = 2", (*ROBUST, "--method", "freelb", "--steps", "2", "--init", "uniform"), ("0.01", "0.03", "0.1")
    ),
)
SHARED = "--bf16 --learning-rate 1e-4 --warmup-steps 0.1 --per-device-train-batch-size 32 --save-strategy no "
SHARED += "--disable-tqdm --threads 1 --attn-implementation eager --overwrite"


def jobs(data: Path) -> dict[str, Job]:
    """Return the tasks by name."""
    shared = tuple(SHARED.split())
    topic = ("--dataset", str(data / "topic_sib200/{split}.{lang}.parquet"))
    pos = ("--task", "token-classification", "--dataset", str(data / "pos_ewt/{split}.{lang}.parquet"))
    pud = ("--target-dataset", str(data / "pos_pud/{split}.{lang}.parquet"))
    pairs = ("--dataset", str(data / "same_topic/{split}.{lang}.parquet"))
    few = ("--target-split", "validation", "--target-languages", "de")
    return {
        "topic": Job((*shared, *topic, "--num-train-epochs", "5"), few),
        "pos": Job((*shared, *pos, *pud, "--num-train-epochs", "1"), few),
        "pairs": Job(
            (*shared, *pairs, "--num-train-epochs", "1", "--generalized"),
            few,
            {
                "English": ("source_average",),
                "targets": ("target_average",),
                "off-diagonal": ("generalized", "averages", "accuracy", "off_diagonal"),
                "with English": ("generalized", "averages", "accuracy", "with_source"),
            },
        ),
    }


def run(job: Job, arguments: tuple[str, ...], model: str, seed: int, folder: Path, tuning: bool) -> dict:
    """Train and score once, or read what an earlier call left; return the scores."""
    extra = job.tuning if tuning else ()
    given = [argument for argument in job.arguments if not (tuning and argument == "--generalized")]
    return run_once([*given, *arguments, *extra, "--model", model, "--seed", str(seed)], folder, generalized_scores)


def generalized_scores(folder: Path) -> dict:
    """Return the scores over pairs of languages, where there are any."""
    path = folder / "generalized.json"
    return {"generalized": json.loads(path.read_text())} if path.is_file() else {}


def choose_radius(job: Job, method: Method, model: str, folder: Path) -> tuple[str, ...]:
    """Return the arguments of the radius with the best English validation score."""
    if not method.radii:
        return ()
    scores = {}
    for radius in method.radii:
        values = [
            run(
                job,
                (*method.arguments, "--epsilon", radius),
                model,
                seed,
                folder / f"tuning-{slug(method.name)}-{radius}-{seed}",
                True,
            )["source_average"]
            for seed in TUNING_SEEDS
        ]
        scores[radius] = statistics.mean(values)
    best = max(scores, key=scores.get)
    shown = ", ".join(f"{radius}: {100 * value:.1f}" for radius, value in scores.items())
    print(f"RADIUS {method.name}: English validation {shown}; taken {best}", flush=True)
    return ("--epsilon", best)


def value(scores: dict, path: tuple[str, ...]) -> float:
    """Look a figure up, in percent."""
    for key in path:
        scores = scores[key]
    return 100 * scores


def main() -> int:
    """Tune, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("topic", "pos", "pairs"), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with topic_sib200, pos_ewt, ...")
    parser.add_argument("--methods", nargs="*", help="beginnings of names; default all")
    parser.add_argument(
        "--radius",
        nargs=2,
        action="append",
        default=[],
        metavar=("METHOD", "RADIUS"),
        help="take a radius without tuning, such as one that another task's English validation data chose",
    )
    parser.add_argument("--neighbours", help="table for RS-DA; without it RS-DA is left out")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    job = jobs(options.data)[options.task]
    table: dict[str, dict[str, list[float]]] = {}
    for method in METHODS:
        if options.methods and not method.name.startswith(tuple(options.methods)):
            continue
        arguments, name = method.arguments, method.name
        if "synonyms" in arguments:
            if not options.neighbours:
                continue
            arguments, name = (
                (*arguments, "--neighbours", options.neighbours),
                f"RS-DA, {Path(options.neighbours).stem}",
            )
        given = [radius for begins, radius in options.radius if method.name.startswith(begins)]
        if given and method.radii:
            arguments += ("--epsilon", given[0])
        else:
            arguments += choose_radius(job, method, options.model, options.output_dir)
        scores = [
            run(job, arguments, options.model, seed, options.output_dir / f"{slug(name)}-{seed}", False)
            for seed in range(options.seeds)
        ]
        table[name] = {column: [value(entry, path) for entry in scores] for column, path in job.columns.items()}
        print(f"DONE {name}: {table[name]}", flush=True)
    cells = [f"{column} | against finetune" for column in job.columns]
    print(f"\n| method | {' | '.join(cells)} |\n|:--|{'--:|' * (2 * len(job.columns))}")
    for name, columns in table.items():
        parts = []
        for column, values in columns.items():
            parts.append(f"{statistics.mean(values):.1f}")
            parts.append(difference(values, table["finetune"][column]) if name != "finetune" else "")
        print(f"| {name} | {' | '.join(parts)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
