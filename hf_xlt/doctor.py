"""What `hf-xlt doctor` looks at: packages, devices, the Hub, caches, and how to start several processes here."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_xlt.launch import WORKING_COMMAND, available_cores

# What each optional package is for; without it something is left out, and nothing fails.
_OPTIONAL = {"matplotlib": ("plots", "pip install 'hf-xlt[plot]'")}
_HUB_SECONDS = 4.0
# A cache on a slow disk is not counted to the end: the answer should come in seconds.
_COUNTED_FILES = 200_000
_LAUNCH_SECONDS = 300
_GIB = 2**30


@dataclass(frozen=True)
class Problem:
    """Something to mend.

    Attributes:
        what: what is wrong, and what to do.
        needed: whether nothing works without it.
    """

    what: str
    needed: bool


@dataclass(frozen=True)
class Examination:
    """What was found; sizes in bytes.

    Attributes:
        versions: package to version.
        devices: `kind` (cuda, mps or cpu), `gpus`, `cpu`, and whether bf16 is supported.
        hub: endpoint, whether it can be reached, and the login; never the token.
        caches: per cache its folder, size and free space.
        launch: how to start a run in one and in several processes.
        problems: what to mend.
    """

    versions: dict[str, str]
    devices: dict[str, Any]
    hub: dict[str, Any]
    caches: list[dict[str, Any]]
    launch: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether something is broken that is needed."""
        return any(problem.needed for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {**asdict(self), "broken": self.broken}


def examine(try_launch: bool = False) -> Examination:
    """Look at everything; nothing is changed, and without a network it takes seconds.

    Args:
        try_launch: also start several processes as advised, which takes half a minute.
    """
    problems = [*_check_packages(), *_check_encoder()]
    devices = _devices(problems)
    hub = _hub(problems)
    launch = _launch(devices)
    if try_launch and launch["several"]:
        launch["tried"] = _try(launch["several"], max(launch["processes"], 2), problems)
    return Examination(_versions(), devices, hub, _caches(problems), launch, problems)


def _versions() -> dict[str, str]:
    from hf_xlt.environment import versions

    found = versions()
    for package in ("huggingface_hub", *_OPTIONAL):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _check_packages() -> Iterator[Problem]:
    from packaging.requirements import Requirement

    try:
        required = importlib.metadata.requires("hf-xlt") or []
    except importlib.metadata.PackageNotFoundError:
        # A checkout on PYTHONPATH states its requirements to nobody.
        required = []
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Problem(f"`{requirement.name}` is not installed: pip install '{requirement}'", True)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield Problem(f"`{requirement.name}` is {version}, too old: pip install '{requirement}'", True)
    for package, (purpose, remedy) in _OPTIONAL.items():
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Problem(f"`{package}` is not installed, so {purpose} are left out: {remedy}", False)


def _check_encoder() -> Iterator[Problem]:
    from hf_xlt.embedded import phrase_encoder_directory

    if not (Path(phrase_encoder_directory()) / "model.safetensors").is_file():
        yield Problem("the embedded encoder is missing from the installation: install hf-xlt again", True)


def _devices(problems: list[Problem]) -> dict[str, Any]:
    cores = available_cores()
    cpu = {"cores": cores, "memory": _memory(), "bf16_instructions": _bf16_instructions()}
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append(Problem(f"torch cannot be imported ({' '.join(str(error).split())}): install it again", True))
        return {"kind": "cpu", "gpus": [], "cpu": cpu, "threads": None, "bf16": False}
    cpu["threads"] = torch.get_num_threads()
    gpus = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            gpus.append({"name": facts.name, "memory": facts.total_memory})
        return {"kind": "cuda", "gpus": gpus, "cpu": cpu, "bf16": torch.cuda.is_bf16_supported()}
    kind = "mps" if torch.backends.mps.is_available() else "cpu"
    # Autocast computes in bf16 on every CPU; without instructions for it that is slow.
    return {"kind": kind, "gpus": gpus, "cpu": cpu, "bf16": kind == "cpu" and bool(cpu["bf16_instructions"])}


def _memory() -> int:
    import psutil

    return psutil.virtual_memory().total


def _bf16_instructions() -> bool | None:
    """Say whether the processor computes in bf16; None where it does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), None)
    return None if flags is None else bool({"avx512_bf16", "amx_bf16"} & set(flags))


def _hub(problems: list[Problem]) -> dict[str, Any]:
    """Ask the Hub who this is: one request, a few seconds at most."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import build_hf_headers, get_session

    token = get_token()
    found = {
        "endpoint": constants.ENDPOINT,
        "offline": constants.HF_HUB_OFFLINE,
        "reachable": None,
        "token": token is not None,
        "user": None,
    }
    if constants.HF_HUB_OFFLINE:
        return found
    if not constants.ENDPOINT.startswith(("https://", "http://")):
        what = f"HF_ENDPOINT is `{constants.ENDPOINT}`, which is no web address: unset it, or begin it with https://"
        problems.append(Problem(what, False))
        return {**found, "reachable": False}
    address = f"{constants.ENDPOINT}/api/whoami-v2"
    try:
        reply = get_session().get(address, headers=build_hf_headers(token=token or False), timeout=_HUB_SECONDS)
    except Exception as error:
        # The classes of errors are those of whichever HTTP library the client uses.
        what = f"the Hub does not answer ({type(error).__name__}): only local and cached models and data can be used"
        problems.append(Problem(what, False))
        return {**found, "reachable": False}
    found["reachable"] = reply.status_code < 500
    if reply.status_code == 200:
        found["user"] = reply.json().get("name")
    elif token is not None and reply.status_code in (401, 403):
        problems.append(Problem("the Hub refuses the access token: `hf auth login`, or set HF_TOKEN anew", False))
    return found


def _caches(problems: list[Problem]) -> list[dict[str, Any]]:
    from huggingface_hub import constants

    data = os.environ.get("HF_DATASETS_CACHE", os.path.join(constants.HF_HOME, "datasets"))
    found = []
    for name, place in (("models and files of the Hub", constants.HF_HUB_CACHE), ("data sets", data)):
        size, complete = _size(place)
        home = next(folder for folder in (Path(place), *Path(place).absolute().parents) if folder.exists())
        free = shutil.disk_usage(home).free
        found.append({"name": name, "folder": str(place), "bytes": size, "complete": complete, "free": free})
        if not os.access(home, os.W_OK):
            problems.append(Problem(f"`{home}` cannot be written to: set HF_HOME to a folder of yours", False))
    return found


def _size(folder: str) -> tuple[int, bool]:
    """Return bytes of the files below a folder, links not counted, and whether all were counted."""
    total, waiting, left = 0, [folder], _COUNTED_FILES
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            left -= 1
            if left < 0:
                return total, False
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif not entry.is_symlink():
                total += entry.stat(follow_symlinks=False).st_size
    return total, True


def _launch(devices: dict[str, Any]) -> dict[str, Any]:
    """Say how to start one run in one and in several processes; ecosystem's commands that look right do not work."""
    gpus, cores = len(devices["gpus"]), devices["cpu"]["cores"]
    found: dict[str, Any] = {"processes": max(gpus, 1), "one": "hf-xlt run ...", "several": None, "notes": []}
    if gpus > 1:
        found["several"] = f"accelerate launch --multi_gpu --num_processes {gpus} -m hf_xlt.run ..."
        found["notes"].append("Several runs (`--seeds`, `--strategies`) take one GPU each, without a launcher.")
    elif gpus == 0 and devices["kind"] == "cpu" and cores > 1:
        found["several"] = WORKING_COMMAND.format(processes=2)
        found["notes"] += [
            f"One process uses up to {cores} cores by itself (`--threads`); two are for trying out parallel training.",
            "`accelerate launch --cpu --num_processes 2` starts one process without a word, and "
            "`torchrun` or `--multi_gpu` without ACCELERATE_USE_CPU=true may train each process alone.",
        ]
    settings = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "accelerate"
    if any((settings / name).is_file() for name in ("default_config.yaml", "default_config.json")):
        found["notes"].append(f"`{settings}` holds a default configuration, which `accelerate launch` follows.")
    if found["several"] and shutil.which("accelerate") is None:
        found["notes"].append("`accelerate` is not on PATH: write `python -m accelerate.commands.launch` for it.")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        found["notes"].append(f"OMP_NUM_THREADS is {threads}: a process computes with so many threads.")
    return found


def _try(command: str, processes: int, problems: list[Problem]) -> bool:
    """Start the processes of a launch command with a probe in place of a run; say whether they found each other."""
    words = shlex.split(command.split(" -m ")[0])
    settings = dict(word.split("=", 1) for word in words[: words.index("accelerate")])
    # `accelerate` itself may not be on PATH; port 0 is any that is free.
    line = [sys.executable, "-m", "accelerate.commands.launch", *words[words.index("launch") + 1 :]]
    line += ["--main_process_port", "0", "-m", "hf_xlt.launch_probe"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    try:
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=_LAUNCH_SECONDS)
    except subprocess.TimeoutExpired:
        problems.append(Problem(f"the launch did not end within {_LAUNCH_SECONDS} s: {command}", False))
        return False
    if done.stdout.split() == [str(processes)]:
        return True
    said = " ".join((done.stderr.strip().splitlines() or ["nothing"])[-1].split())
    what = (
        f"the launch did not work (exit code {done.returncode}, it printed {done.stdout.strip()!r}, and last {said!r})"
    )
    problems.append(Problem(what, False))
    return False


def describe(found: Examination) -> str:
    """Return what was found as text."""
    rows = [("Versions", ", ".join(f"{name} {version}" for name, version in found.versions.items()))]
    rows += _device_rows(found.devices)
    rows += [("Hub", _hub_words(found.hub))]
    for cache in found.caches:
        about = "" if cache["complete"] else "at least "
        rows.append(
            ("Cache", f"{cache['name']}: {about}{_gib(cache['bytes'])}, {_gib(cache['free'])} free, {cache['folder']}")
        )
    rows.append(("Launch", f"one process: {found.launch['one']}"))
    if found.launch["several"]:
        rows.append(("", f"several:     {found.launch['several']}"))
    if "tried" in found.launch:
        rows.append(("", "Tried: the processes met." if found.launch["tried"] else "Tried: it does not work here."))
    rows += [("", note) for note in found.launch["notes"]]
    lines = [f"{name:<10} {text}" for name, text in rows]
    marks = {True: "Broken", False: "Note"}
    lines += [f"{marks[problem.needed]:<10} {problem.what}." for problem in found.problems]
    end = "Something needed is broken." if found.broken else "Everything needed is there."
    return "\n".join([*lines, "", end])


def _device_rows(devices: dict[str, Any]) -> list[tuple[str, str]]:
    cpu = devices["cpu"]
    rows = [("Device", f"{gpu['name']}, {_gib(gpu['memory'])}") for gpu in devices["gpus"]]
    if devices["kind"] == "mps":
        rows.append(("Device", "Apple GPU (mps)"))
    threads = f", {cpu['threads']} threads of torch" if cpu.get("threads") else ""
    rows.append(("CPU", f"{cpu['cores']} cores{threads}, {_gib(cpu['memory'])} of memory"))
    if devices["kind"] == "cuda":
        words = "yes (`--bf16`)" if devices["bf16"] else "no; take `--fp16`"
    elif cpu["bf16_instructions"] is None or devices["kind"] == "mps":
        words = "not known for this device; try `--bf16` on a few steps first"
    else:
        words = (
            "yes, on the CPU (`--bf16`)" if devices["bf16"] else "no: this CPU has no instructions for it; leave it"
        )
    return [*rows, ("bf16", words)]


def _hub_words(hub: dict[str, Any]) -> str:
    where = hub["endpoint"]
    if hub["offline"]:
        return f"{where}, not asked (HF_HUB_OFFLINE is set)"
    if not hub["reachable"]:
        return f"{where}, cannot be reached"
    if hub["user"]:
        return f"{where}, logged in as {hub['user']}"
    if hub["token"]:
        return f"{where}, the access token is not accepted"
    return f"{where}, not logged in (`hf auth login`; only pushes and private models need it)"


def _gib(size: int) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:,.1f} MiB"
