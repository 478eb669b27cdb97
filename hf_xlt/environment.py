"""What a run ran on: versions, processor, device; and its command without anything of this machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_xlt.data.sources import shareable_pattern

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "safetensors", "tokenizers", "babel")
_SECRET_FLAGS = ("hub-token", "token")
_PLACE_FLAGS = ("output-dir", "resume", "overwrite", "traceback", "quiet", "json")
_PATH_FLAGS = ("config", "deepspeed", "run-name", "logging-dir", "hub-model-id")


def versions() -> dict[str, str]:
    """Return the versions of Python, hf_xlt and what it stands on."""
    from hf_xlt import __version__

    found = {"hf_xlt": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(config: Any, threads: int) -> dict[str, Any]:
    """Describe device, processor and parallelism."""
    import torch

    device = "CPU" if config.device.type == "cpu" else config.device.type.upper()
    if config.device.type == "cuda":
        device = torch.cuda.get_device_name(config.device)
    return {"device": device, "processor": _processor(), "processes": config.world_size, "threads": threads}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    cores = os.cpu_count() or 1
    return f"{names[0] if names else platform.machine()}, {cores} logical cores"


def shareable_command(asked: Sequence[str], files: Iterable[str] = ()) -> str:
    """Write a run's command without tokens, local folders, or where its output lies.

    Args:
        asked: arguments after the program's name, those of a YAML file among them (`Arguments.asked`).
        files: names of the settings that name a file of the user's.
    """
    file_flags = {name.replace("_", "-") for name in files}
    kept, skipping, names_file = [], False, False
    for token in asked:
        flag = re.sub("_", "-", token[2:].split("=")[0]) if token.startswith("--") else None
        if flag is not None:
            skipping = flag in (*_SECRET_FLAGS, *_PATH_FLAGS, *_PLACE_FLAGS)
            names_file = flag in file_flags
        if not skipping:
            kept.append(_file_name(token) if names_file else _without_folders(token))
    return " ".join(["hf-xlt run", *map(shlex.quote, kept)])


def _file_name(token: str) -> str:
    """Cut the path in `PATH`, or in `--flag=PATH`, to its last part."""
    flag, separator, value = token.partition("=") if token.startswith("--") else ("", "", token)
    return f"{flag}{separator}{Path(value).name}"


def _without_folders(token: str) -> str:
    """Take local folders out of `VALUE`, `--flag=VALUE` or `languages=PATTERN`."""
    if token.startswith("--") and "=" in token:
        flag, _, value = token.partition("=")
        return f"{flag}={_without_folders(value)}"
    if token[:1] in ("{", "["):
        try:
            # A JSON value is no path, whatever slashes it holds; what it holds may be paths.
            return json.dumps(_plain(json.loads(token)))
        except ValueError:
            pass
    if re.match(r"https?://[^@]*$", token):
        # An address is no place here, unless it holds a login.
        return token
    prefix, separator, value = token.rpartition("=")
    local = value.startswith(("/", "~", ".")) or value.count("/") > 1
    if not local:
        return token
    # Only of a file is the folder told, which names the data; a folder alone may be anybody's.
    told = shareable_pattern(value) if Path(value).suffix else Path(value).name
    return f"{prefix}{separator}{told}"


def shareable_arguments(values: dict[str, Any], hidden: Iterable[str]) -> dict[str, Any]:
    """Keep of resolved arguments what is JSON-able and says nothing of this machine."""
    hidden = set(hidden)
    return {name: _plain(value) for name, value in values.items() if name not in hidden and value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _without_folders(str(getattr(value, "value", value)))
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return str(getattr(value, "value", value))
