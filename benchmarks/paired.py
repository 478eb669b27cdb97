"""What the transfer benchmarks share: runs that are kept as JSON, and figures over paired seeds."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student


def run_once(
    arguments: Sequence[str], folder: Path, more: Callable[[Path], dict[str, Any]] = lambda folder: {}
) -> dict[str, Any]:
    """Do `hf-xlt run` once, or read what an earlier call left; return `results.json`.

    Args:
        arguments: of the run, without `--output-dir`.
        folder: of the run; it is deleted, and its scores are kept in a JSON file of that name beside it.
        more: gives what is to be kept besides, from the folder.
    """
    kept = folder.parent / f"{folder.name}.json"
    if not kept.is_file():
        # A process of its own: memory that one run leaves behind would add up.
        command = [sys.executable, "-m", "hf_xlt.run", *arguments, "--output-dir", str(folder)]
        if subprocess.run(command).returncode:
            raise SystemExit(f"the run in {folder} failed")
        scores = {**json.loads((folder / "results.json").read_text()), **more(folder)}
        kept.write_text(json.dumps(scores))
        shutil.rmtree(folder)
    return json.loads(kept.read_text())


def slug(name: str) -> str:
    """Write a name as part of a file's name."""
    return "".join(char if char.isalnum() else "-" for char in name)


def spread(values: Sequence[float]) -> str:
    """Write mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """Write mean and 95 % interval (Student's t) of paired differences."""
    gaps = [ours - theirs for ours, theirs in zip(values, others, strict=True)]
    if len(gaps) < 2:
        return f"{gaps[0]:+.1f}"
    half = student.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"{statistics.mean(gaps):+.1f} ± {half:.1f}"
