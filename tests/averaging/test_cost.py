"""Memory seen from outside the process, and time against reading and writing the same bytes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from averaging_setup import make_state, save_states

from hf_xlt.averaging import average_checkpoints

CHILD = """
import sys
from hf_xlt.averaging.average import average_checkpoints
inputs, output, accumulate = sys.argv[1].split(":"), sys.argv[2], sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
average_checkpoints(inputs, output, accumulate=accumulate)
print("done", flush=True)
sys.stdin.readline()
"""
SHAPES = {"embedding": (20_000, 512), **{f"layer.{number}": (512, 512) for number in range(20)}}
LIMIT = 64 * 2**20


def figure(process, name):
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def growth(places, output, accumulate):
    """Bytes by which a process grows while it averages."""
    command = [sys.executable, "-c", CHILD, ":".join(map(str, places)), str(output), accumulate]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        before = figure(process.pid, "VmRSS")
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        peak = figure(process.pid, "VmHWM")
        process.stdin.write("end\n")
        process.stdin.flush()
    return peak - before


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
@pytest.mark.parametrize("accumulate", ["float32", "auto"])
def test_memory_does_not_grow_with_the_number_of_checkpoints(tmp_path, accumulate):
    # 62 MB each: holding one of them, or mapping two, would show.
    places = save_states(tmp_path, [make_state(seed, shapes=SHAPES) for seed in range(2)])
    for number in range(2, 20):
        folder = tmp_path / f"c{number}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes((places[0] / "model.safetensors").read_bytes())
        places.append(folder)
    few, many = (growth(places[:count], tmp_path / f"out-{count}", accumulate) for count in (2, 20))
    assert few < LIMIT / 2 and many < LIMIT / 2
    assert many - few < LIMIT / 8


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "bar"), [("float32", 2.0), ("float64", 3.0)])
def test_time_is_that_of_reading_and_writing(tmp_path, accumulate, bar):
    places = save_states(tmp_path, [make_state(seed, shapes=SHAPES) for seed in range(5)])
    buffer, ratios = memoryview(bytearray(4 * 2**20)), []
    for attempt in range(6):
        start = time.perf_counter()
        for place in places:
            with open(place / "model.safetensors", "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        with open(tmp_path / "floor", "wb", buffering=0) as file:
            for _ in range((places[0] / "model.safetensors").stat().st_size // len(buffer)):
                file.write(buffer)
            os.fsync(file.fileno())
        floor = time.perf_counter() - start
        start = time.perf_counter()
        average_checkpoints(places, tmp_path / "out", accumulate=accumulate, overwrite=True)
        if attempt:
            ratios.append((time.perf_counter() - start) / floor)
    assert sorted(ratios)[2] <= bar
    assert torch.get_num_threads() == 1
