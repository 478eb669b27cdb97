"""How long the help of each command takes, in a process of its own: what a user waits for after Enter.

    python benchmarks/help.py
    python benchmarks/help.py --repeats 15 --limit 0.4

Wall time and CPU time are medians over repeats, which go round the commands, so that other load meets all of them
alike. With other load on the machine the CPU time is the one to read; on an idle one they are nearly equal. The exit
code is 1 where a median of the smaller of the two is above the limit.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hf_xlt.cli.main import COMMANDS  # noqa: E402

EXTRA = (["run", "--strategy", "robust", "--help"], ["strategies"], ["strategies", "robust"], ["--version"])


def measure(line: list[str]) -> tuple[float, float]:
    """Run one command; return seconds of wall time and of CPU time.

    Raises:
        SystemExit: the command failed.
    """
    # Through the module, as the checkout may not be installed; the console script adds nothing.
    command = [sys.executable, "-m", "hf_xlt.cli.main", *line]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {done.returncode}: {done.stderr.decode()}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Measure every command, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="rounds over all commands")
    parser.add_argument("--limit", type=float, default=0.4, help="seconds that the help may take")
    asked = parser.parse_args()
    lines = [["--help"], *([name, "--help"] for name in COMMANDS), *EXTRA]
    times: dict[str, list[tuple[float, float]]] = {}
    # The first round fills the page cache and writes byte code; it is not counted.
    for number in range(asked.repeats + 1):
        for line in lines:
            taken = measure(line)
            if number:
                times.setdefault(" ".join(line), []).append(taken)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, ", end="")
    print(f"median of {asked.repeats} (range), seconds\n")
    print(f"{'hf-xlt':<34}{'wall':>22}{'CPU':>22}")
    slow = []
    for name, taken in times.items():
        columns = [sorted(column) for column in zip(*taken, strict=True)]
        shown = [f"{statistics.median(c):.3f} ({c[0]:.3f}-{c[-1]:.3f})" for c in columns]
        print(f"{name:<34}{shown[0]:>22}{shown[1]:>22}")
        if min(map(statistics.median, columns)) > asked.limit:
            slow.append(name)
    print(f"\nAbove {asked.limit} s: {', '.join(slow) or 'none'}")
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main())
