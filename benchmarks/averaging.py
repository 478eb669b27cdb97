"""Averaging on disk against the floor: reading all inputs, and writing and fsyncing one output.

Makes checkpoints of a given size in a temporary folder, which it deletes. Each method runs in a process of its own
after its imports; times are medians over pairs of floor and method in that process, files in the cache. Memory is read
from outside, from the kernel: the peak during the call less what the process had before it.

    python benchmarks/averaging.py --counts 5 20 --megabytes 500
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HIDDEN, INNER, VOCABULARY = 768, 3072, 52_000
OUTPUT = "average"


def random_encoder(megabytes: int) -> dict[str, Any]:
    """Return float32 weights shaped like those of an encoder, of a size in 10^6 bytes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shapes = {"embeddings.weight": (VOCABULARY, HIDDEN)}
    layer = {"attention": (HIDDEN, 4 * HIDDEN), "inner": (HIDDEN, INNER), "outer": (INNER, HIDDEN), "norm": (HIDDEN,)}
    while 4 * sum(torch.Size(shape).numel() for shape in shapes.values()) < megabytes * 10**6:
        number = len(shapes)
        shapes |= {f"layer.{number}.{name}.weight": shape for name, shape in layer.items()}
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def make_checkpoints(folder: Path, count: int, base: dict[str, Any], pickles: int) -> None:
    """Write checkpoints that differ from `base` by noise, and the first ones as pickles as well."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    for number in range(1, count + 1):
        place = folder / f"checkpoint-{number}"
        place.mkdir()
        tensors = {
            name: tensor.float() + 1e-3 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in base.items()
        }
        save_file(tensors, place / "model.safetensors", {"format": "pt"})
        if number <= pickles:
            torch.save(tensors, folder / f"pickle-{number}.bin")


def floor(folder: Path, count: int) -> float:
    """Read all inputs into one buffer and write and fsync as many bytes as one has; return seconds."""
    buffer = memoryview(bytearray(4 * 2**20))
    start = time.perf_counter()
    for number in range(1, count + 1):
        with open(folder / f"checkpoint-{number}" / "model.safetensors", "rb", buffering=0) as file:
            size = 0
            while read := file.readinto(buffer):
                size += read
    with open(folder / "floor.bin", "wb", buffering=0) as file:
        while size > 0:
            size -= file.write(buffer[: min(len(buffer), size)])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    (folder / "floor.bin").unlink()
    return seconds


def ours(accumulate: str) -> Callable[[Path, int], None]:
    """Return `average_checkpoints` with one precision of sums."""
    from hf_xlt.averaging.average import average_checkpoints

    def run(folder: Path, count: int) -> None:
        places = [folder / f"checkpoint-{number}" for number in range(1, count + 1)]
        average_checkpoints(places, folder / OUTPUT, accumulate=accumulate)

    return run


def load_all_and_sum() -> Callable[[Path, int], None]:
    """Return the usual way: `torch.load` all, sum, divide, save."""
    import torch

    def run(folder: Path, count: int) -> None:
        loaded = [torch.load(folder / f"pickle-{number}.bin") for number in range(1, count + 1)]
        mean = {name: sum(state[name] for state in loaded) / count for name in loaded[0]}
        (folder / OUTPUT).mkdir()
        with open(folder / OUTPUT / "pytorch_model.bin", "wb") as file:
            torch.save(mean, file)
            os.fsync(file.fileno())

    return run


def merged_by_mergekit() -> Callable[[Path, int], None]:
    """Return mergekit's linear merge, imports included: it is run as a command."""

    def run(folder: Path, count: int) -> None:
        models = [
            {"model": str(folder / f"checkpoint-{number}"), "parameters": {"weight": 1.0}}
            for number in range(1, count + 1)
        ]
        plan = folder / "merge.yaml"
        plan.write_text(json.dumps({"merge_method": "linear", "dtype": "float32", "models": models}))
        subprocess.run(["mergekit-yaml", str(plan), str(folder / OUTPUT)], check=True, capture_output=True)

    return run


METHODS: dict[str, Callable[[], Callable[[Path, int], None]]] = {
    "float32": lambda: ours("float32"),
    "float64": lambda: ours("float64"),
    "torch.load and sum": load_all_and_sum,
    "mergekit": merged_by_mergekit,
}


def child(method: str, folder: Path, count: int, pairs: int) -> None:
    """Import, wait for the word, then alternate floor and method; the first pair warms up."""
    run = METHODS[method]()
    print("ready", flush=True)
    sys.stdin.readline()
    times = []
    for _ in range(pairs + 1):
        low = floor(folder, count)
        start = time.perf_counter()
        run(folder, count)
        times.append((low, time.perf_counter() - start))
        shutil.rmtree(folder / OUTPUT)
    print(json.dumps(times[1:]), flush=True)
    sys.stdin.readline()


def memory(process: int, name: str) -> int:
    """Return a figure of a process in bytes, from `/proc`."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def measure(method: str, folder: Path, count: int, pairs: int) -> dict[str, float]:
    """Run a method in a process of its own.

    Returns:
        Median seconds of floor and method, the median of their ratios, and bytes of memory above the imports.
    """
    command = [sys.executable, __file__, "--child", method, "--folder", str(folder)]
    command += ["--counts", str(count), "--pairs", str(pairs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        # Forget the peak of the imports.
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        before = memory(process.pid, "VmRSS")
        process.stdin.write("go\n")
        process.stdin.flush()
        times = json.loads(process.stdout.readline())
        peak = memory(process.pid, "VmHWM")
        process.stdin.write("end\n")
        process.stdin.flush()
    return {
        "floor": statistics.median(low for low, _ in times),
        "seconds": statistics.median(seconds for _, seconds in times),
        "ratio": statistics.median(seconds / low for low, seconds in times),
        "memory": peak - before,
    }


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the weights that the checkpoints are to be like."""
    from safetensors.torch import load_file

    return load_file(arguments.model / "model.safetensors") if arguments.model else random_encoder(arguments.megabytes)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[5, 20], help="Numbers of checkpoints.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--model", type=Path, help="Directory of a model in one safetensors file: average such ones.")
    size.add_argument("--megabytes", type=int, default=500, help="Size of each, in 10^6 bytes.")
    parser.add_argument("--pairs", type=int, default=7, help="Pairs of floor and method.")
    parser.add_argument("--peers-up-to", type=int, default=5, help="Most checkpoints to load at once as a peer.")
    parser.add_argument("--folder", type=Path, help="Where to work. Default: a temporary folder.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.folder, arguments.counts[0], arguments.pairs)
        return
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "safetensors")}
    load = os.getloadavg()
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {load[0]:.1f}")
    print(f"Python {platform.python_version()}, {packages}, files in the cache, {arguments.pairs} pairs")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        pickles = max((count for count in arguments.counts if count <= arguments.peers_up_to), default=0)
        make_checkpoints(folder, max(arguments.counts), start(arguments), pickles)
        size = (folder / "checkpoint-1" / "model.safetensors").stat().st_size
        for count in arguments.counts:
            print(f"\n{count} checkpoints of {size / 1e6:,.0f} MB, float32")
            print(f"{'method':20} {'floor s':>8} {'s':>8} {'ratio':>6} {'memory MiB':>11}")
            for method in METHODS:
                if method == "torch.load and sum" and count > pickles:
                    continue
                if method == "mergekit" and importlib.util.find_spec("mergekit") is None:
                    continue
                pairs = min(arguments.pairs, 3) if method not in ("float32", "float64") else arguments.pairs
                found = measure(method, folder, count, pairs)
                print(
                    f"{method:20} {found['floor']:8.2f} {found['seconds']:8.2f} {found['ratio']:6.2f} "
                    f"{found['memory'] / 2**20:11.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
