"""Does learning the gates help? Plain fine-tuning, auxiliary labels used plainly, X-MAML, soft layers and its rivals.

    python benchmarks/soft_layers_transfer.py --task topic --data DATA --auxiliary hi,sw --targets ar,de,yo \
        --output-dir runs/soft-topic

Every method trains with the same seeds; all but those marked `no labels` see exactly the same auxiliary labels. The
auxiliary languages are scored nowhere among the targets, and the targets are the same for every method. Printed: mean
over seeds, and the difference from `finetune` with the same seed, its mean and 95 % interval (Student's t over seeds).
Each run's scores are kept as JSON, with the gates where there are any; runs that are done are not repeated. Target
labels score the last weights and choose nothing.

`--leave-one-out` chooses hyper-parameters without a target language: for each setting of a grid, every auxiliary
language in turn is left out of learning and scored in its place, on its validation data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from paired import difference, run_once, slug

AUXILIARY, PLAIN_DATA, SOURCES = "auxiliary", "none", "as source languages"


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        name: for the table.
        arguments: of `hf-xlt run`.
        labels: what auxiliary labels are to it: a role of their own, nothing, or further source languages.
    """

    name: str
    arguments: tuple[str, ...]
    labels: str = AUXILIARY


def method(name: str, line: str, labels: str = AUXILIARY) -> Method:
    """Make a method from its arguments as one line."""
    return Method(name, tuple(line.split()), labels)


SOFT = "--strategy soft-layers"
# The meta-updates move weights at the rate of the fine-tuning: the published 1e-5 belongs to a large encoder's 2e-5.
META = "--strategy xmaml --meta-steps {meta_steps} --task-batch-size 32 --meta-learning-rate 1e-4"
METHODS = (
    method("finetune (no labels)", "--strategy finetune", PLAIN_DATA),
    method("finetune on source and auxiliary", "--strategy finetune", SOURCES),
    method("source, then auxiliary", f"{META} --order plain"),
    method("xmaml second", f"{META} --order second --inner-learning-rate 1e-3"),
    method("xmaml first", f"{META} --order first --inner-learning-rate 1e-3"),
    method("xmaml cross-language", f"{META} --episode cross_language --inner-learning-rate 1e-3"),
    method("soft-layers trajectory", SOFT),
    method("soft-layers episodic", f"{SOFT} --mode episodic --inner-steps 5"),
    method("soft-layers online", f"{SOFT} --mode online"),
    method("one gate for all", f"{SOFT} --granularity uniform"),
    method("shuffled gates", f"{SOFT} --shuffle-gates"),
    method("freeze_bottom (no labels)", f"{SOFT} --profile freeze_bottom --frozen-layers {{frozen}}", PLAIN_DATA),
    method("layerwise_decay (no labels)", f"{SOFT} --profile layerwise_decay", PLAIN_DATA),
    method("gradual_unfreezing (no labels)", f"{SOFT} --profile gradual_unfreezing", PLAIN_DATA),
    method("auto_rgn (no labels)", f"{SOFT} --profile auto_rgn", PLAIN_DATA),
)
SHARED = "--bf16 --learning-rate 1e-4 --warmup-steps 0.1 --per-device-train-batch-size 32 --save-strategy no "
SHARED += "--disable-tqdm --threads 1 --attn-implementation eager --overwrite"
GRID = (("--meta-learning-rate", ("0.03", "0.1", "0.3")), ("--inner-steps", ("1", "5")))


@dataclass(frozen=True)
class Job:
    """A task with its data.

    Attributes:
        arguments: of every run.
        files: pattern of the data of all languages.
    """

    arguments: tuple[str, ...]
    files: str


def jobs(data: Path, folder: Path) -> dict[str, Job]:
    """Return the tasks by name.

    Args:
        data: folder of the data sets.
        folder: where links to files of several data sets may be put.
    """
    shared = tuple(SHARED.split())
    topic = str(data / "topic_sib200/{split}.{lang}.parquet")
    return {
        "topic": Job((*shared, "--num-train-epochs", "5"), topic),
        "pos": Job((*shared, "--task", "token-classification", "--num-train-epochs", "1"), tags(data, folder)),
    }


def tags(data: Path, folder: Path) -> str:
    """Put English of one treebank and the other languages of another one side by side; return the pattern."""
    together = folder / "tags"
    together.mkdir(parents=True, exist_ok=True)
    english, others = data / "pos_ewt", data / "pos_pud"
    for path in (*english.glob("*.en.parquet"), *(p for p in others.glob("*.parquet") if ".en." not in p.name)):
        link = together / path.name
        if not link.is_symlink():
            os.symlink(path.resolve(), link)
    return str(together / "{split}.{lang}.parquet")


def data_arguments(job: Job, labels: str, auxiliary: list[str], targets: str) -> list[str]:
    """Return the arguments that say what is learned from and scored."""
    own = ["--dataset", job.files, "--target-languages", targets]
    if labels == AUXILIARY:
        own += ["--auxiliary-dataset", job.files, "--auxiliary-languages", ",".join(auxiliary)]
        own += ["--auxiliary-split", "train"]
    elif labels == SOURCES:
        own += ["--source-languages", ",".join(["en", *auxiliary])]
    return own


def phases_and_gates(folder: Path) -> dict:
    """Return what the record says of the phases, and the gates with their plot where there are any."""
    more = {"phases": json.loads((folder / "xlt_run.json").read_text())["phases"]}
    if (folder / "gates.json").is_file():
        more["gates"] = json.loads((folder / "gates.json").read_text())
    if (folder / "gates.png").is_file():
        shutil.copy2(folder / "gates.png", folder.parent / f"{folder.name}.png")
    return more


def source_score(scores: dict) -> float:
    """Return the score on English in percent, whatever other languages were trained on."""
    entry = scores["languages"]["en"]
    return 100 * entry["metrics"][scores["metric"]]


def compare(options: argparse.Namespace, job: Job) -> int:
    """Run every method with every seed and print the table."""
    auxiliary = options.auxiliary.split(",")
    fill = {"meta_steps": str(options.meta_steps), "frozen": str(options.frozen_layers)}
    chosen = [one for one in METHODS if not options.methods or one.name.startswith(tuple(options.methods))]
    table: dict[str, tuple[list[float], list[float]]] = {one.name: ([], []) for one in chosen}
    for seed in range(options.seeds):
        # One seed after the other: what is there when the job is cut can be compared.
        for one in chosen:
            arguments = [part.format(**fill) for part in one.arguments]
            arguments += [*job.arguments, *data_arguments(job, one.labels, auxiliary, options.targets)]
            arguments += ["--model", options.model, "--seed", str(seed), *options.more]
            scores = run_once(arguments, options.output_dir / f"{slug(one.name)}-{seed}", phases_and_gates)
            table[one.name][0].append(source_score(scores))
            table[one.name][1].append(100 * scores["target_average"])
            print(f"DONE {one.name}, seed {seed}: {[column[-1] for column in table[one.name]]}", flush=True)
    plain = table.get(METHODS[0].name)
    print("\n| method | English | against finetune | targets | against finetune |\n|:--|--:|--:|--:|--:|")
    for name, columns in table.items():
        cells = []
        for place, values in enumerate(columns):
            gap = difference(values, plain[place]) if plain and name != METHODS[0].name else ""
            cells += [f"{statistics.mean(values):.1f}", gap]
        print(f"| {name} | {' | '.join(cells)} |")
    return 0


def leave_one_out(options: argparse.Namespace, job: Job) -> int:
    """Score every setting of the grid on auxiliary languages that were left out of learning."""
    auxiliary = options.auxiliary.split(",")
    if len(auxiliary) < 2:
        raise SystemExit("leaving one auxiliary language out needs two or more.")
    (first, firsts), (second, seconds) = GRID
    best: tuple[float, list[str]] = (-1.0, [])
    for one in firsts:
        for two in seconds:
            setting, values = [first, one, second, two], []
            for held_out in auxiliary:
                rest = [language for language in auxiliary if language != held_out]
                arguments = [*SOFT.split(), *setting, *job.arguments, *data_arguments(job, AUXILIARY, rest, held_out)]
                arguments += [
                    "--target-split",
                    "validation",
                    "--model",
                    options.model,
                    "--seed",
                    "1001",
                    *options.more,
                ]
                name = f"left-out-{held_out}-{slug('-'.join(setting))}"
                values.append(100 * run_once(arguments, options.output_dir / name)["target_average"])
            mean = statistics.mean(values)
            print(f"SETTING {' '.join(setting)}: {mean:.1f} over {', '.join(auxiliary)} {values}", flush=True)
            best = max(best, (mean, setting))
    print(f"BEST {' '.join(best[1])}: {best[0]:.1f}")
    return 0


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("topic", "pos"), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with topic_sib200, pos_ewt, ...")
    parser.add_argument("--auxiliary", required=True, help="auxiliary languages, separated by commas")
    parser.add_argument("--targets", required=True, help="target languages, separated by commas")
    parser.add_argument("--methods", nargs="*", help="beginnings of names; default all")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--meta-steps", type=int, default=100, help="meta-updates of X-MAML and its baseline")
    parser.add_argument("--frozen-layers", type=int, default=2)
    parser.add_argument("--leave-one-out", action="store_true")
    parser.add_argument("more", nargs="*", help="further arguments of every run, after --")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    job = jobs(options.data, options.output_dir)[options.task]
    return leave_one_out(options, job) if options.leave_one_out else compare(options, job)


if __name__ == "__main__":
    sys.exit(main())
