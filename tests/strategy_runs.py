"""Short runs of every strategy over tiny data, by the command line that a user types."""

from __future__ import annotations

from pathlib import Path

from tiny import make_rows, save_encoder, write_data, write_rows

LANGUAGES = ("en", "de", "sw", "zh")
BASE = (
    "run --model {model} --dataset data/{{split}}.{{lang}}.jsonl --target-languages de,sw --max-steps 3 "
    "--per-device-train-batch-size 8 --learning-rate 1e-3 --save-strategy no --disable-tqdm --threads 1"
)
_AUXILIARY = "--auxiliary-dataset data/{split}.{lang}.jsonl --auxiliary-languages zh"
_TEXT = "--text-dataset text/{split}.{lang}.jsonl --total-steps 4 --row-length 16 --pretraining-batch-size 4"
# What each strategy needs beside the base; a test holds the names against the registry.
NEEDS = {
    "finetune": "",
    "robust": "",
    "meta-pretrain": _TEXT,
    "averaging": "",
    "metaxl": "--shots 6",
    "soft-layers": _AUXILIARY,
    "xmaml": f"{_AUXILIARY} --meta-steps 2",
}


def write_world(folder: Path) -> None:
    """Write an encoder, labelled data and unlabelled text, for commands that are run in this folder."""
    save_encoder(folder / "encoder")
    write_data(folder / "data", LANGUAGES)
    (folder / "text").mkdir()
    for language in ("en", "de", "sw"):
        rows = [{key: row[key] for key in ("id", "text")} for row in make_rows(language, 30, 7)]
        write_rows(folder / "text" / f"train.{language}.jsonl", rows)


def run_command(strategy: str, output: str, more: str = "", model: str = "encoder") -> list[str]:
    """Return the arguments of `hf-xlt` for a short run."""
    line = f"{BASE.format(model=model)} --strategy {strategy} {NEEDS[strategy]} {more} --output-dir {output}"
    return line.split()
