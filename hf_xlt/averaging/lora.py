"""Averaging LoRA adapters: the mean of products is not the product of means.

`merge` and `concat` give the exact mean of the changes Σ wᵢ sᵢ Bᵢ Aᵢ, as a model or as one adapter; `svd` cuts that
down to the rank of the inputs; `factors` averages A and B apart, which only makes sense within one run.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_xlt.averaging.adapter_files import Adapter, open_adapters
from hf_xlt.averaging.compatibility import CONFIG_NAME, copy_companions, without_paths
from hf_xlt.averaging.dtypes import FLOATS, from_torch_name, torch_name
from hf_xlt.averaging.inputs import ADAPTER_CONFIG, Checkpoint
from hf_xlt.averaging.report import AverageReport, Parents, describe_inputs, write_manifest
from hf_xlt.averaging.staging import check_space, staged
from hf_xlt.averaging.tensors import read_numbers, write_tensors
from hf_xlt.errors import ConfigError, setting
from hf_xlt.files import write_json

if TYPE_CHECKING:
    from hf_xlt.averaging.average import Settings

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MERGE, FACTORS, SVD = "merge", "factors", "svd"


def average_adapters(
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[Fraction],
    settings: Settings,
    output: Path | None,
    check_only: bool,
    notes: list[str],
    parents: Parents,
) -> AverageReport:
    """Average adapters into an adapter, or with `merge` into a model.

    Args:
        checkpoints: adapter folders, opened.
        weights: one each, summing to 1.
        settings: of the average; its `lora_mode` says how.
        output: the folder to be.
        check_only: write nothing.
        notes: what the user should know so far.
        parents: the runs behind the adapters.

    Raises:
        ConfigError: no mode was chosen, or the adapters cannot be averaged in it.
    """
    adapters, mode = _open(checkpoints, settings.lora_mode), settings.lora_mode
    counted = [(adapter, float(weight)) for adapter, weight in zip(adapters, weights, strict=True) if weight]
    modules, full = len(adapters[0].modules()), len(adapters[0].full_tensors())
    facts = {
        "output": output,
        "mode": settings.mode_name(),
        "lora_mode": mode,
        "inputs": describe_inputs(checkpoints, weights),
        "tensors": {"averaged": 2 * modules + full, "copied": 0},
        "accumulate": "float64",
        "notes": tuple(notes),
    }
    if check_only:
        return AverageReport(dtypes=_formats(adapters[0]), files={}, **facts)
    check_space(output, sum(file.state[2] for checkpoint in checkpoints for file in checkpoint.files))
    with staged(output) as part:
        if mode == MERGE:
            from hf_xlt.averaging.merging import write_merged

            facts |= write_merged(counted, settings, part)
        else:
            facts |= _write_adapter(counted, settings, part)
        report = AverageReport(**facts)
        write_manifest(part, report, parents, settings.command)
    return report


def _open(checkpoints: Sequence[Checkpoint], mode: str) -> list[Adapter]:
    if mode == "error":
        raise ConfigError(
            f"the inputs are LoRA adapters: choose {setting('lora_mode', 'merge')} (a model), `concat` (an adapter "
            f"of more rank), "
            "`svd` (the rank of the inputs, approximate) or `factors` (within one run only, approximate)."
        )
    adapters = open_adapters(checkpoints)
    if mode == FACTORS:
        _check_factors(adapters)
    return adapters


def _formats(adapter: Adapter) -> tuple[str, ...]:
    kinds = {place.dtype for _, place in adapter.checkpoint.tensors.values()}
    return tuple(sorted(torch_name(kind) for kind in kinds if kind in FLOATS))


def _check_factors(adapters: Sequence[Adapter]) -> None:
    """Refuse to average A and B apart where A started at random more than once, or where ranks or scales differ."""
    runs = {_run_of(adapter) for adapter in adapters} - {None}
    if len(runs) > 1:
        raise ConfigError(
            f"{setting('lora_mode', 'factors')} averages A and B apart, and each run began with an A of its own: "
            f"across runs the "
            "result is no mean. Use `merge`, `concat` or `svd`."
        )
    first = adapters[0]
    for module in first.modules():
        one = first.factors(module)
        for adapter in adapters[1:]:
            other = adapter.factors(module)
            if (one[0].shape, one[1].shape, one[2]) != (other[0].shape, other[1].shape, other[2]):
                raise ConfigError(
                    f"`{module}` has other ranks or scales in `{first.checkpoint.place}` and "
                    f"`{adapter.checkpoint.place}`; {setting('lora_mode', 'factors')} needs them equal. Use `merge` "
                    f"or `concat`."
                )


def _run_of(adapter: Adapter) -> Path | None:
    place = adapter.checkpoint.place.resolve()
    # A run keeps its final adapter in a folder of that name.
    return adapter.checkpoint.snapshot.run or (place.parent if place.name == "adapter" else None)


def mean_of_full(counted: Sequence[tuple[Adapter, float]]) -> dict[str, np.ndarray]:
    """Average the modules that were saved in full, as float64, by their names in the file."""
    means = {}
    for name in counted[0][0].full_tensors():
        base = read_numbers(counted[0][0].checkpoint, name)
        total = np.zeros_like(base)
        # Differences from the first input: equal inputs give themselves back.
        for adapter, weight in counted[1:]:
            total += weight * (read_numbers(adapter.checkpoint, name) - base)
        means[name] = base + total
    return means


def concatenated(counted: Sequence[tuple[Adapter, float]], module: str) -> tuple[np.ndarray, np.ndarray]:
    """Return A (Σ ranks × inputs) and B (outputs × Σ ranks), whose product is Σ wᵢ sᵢ Bᵢ Aᵢ, in float64."""
    firsts, seconds = [], []
    for adapter, weight in counted:
        first, second, scale = adapter.factors(module)
        firsts.append(first)
        seconds.append(weight * scale * second)
    return np.concatenate(firsts), np.concatenate(seconds, axis=1)


def mean_delta(counted: Sequence[tuple[Adapter, float]], module: str) -> np.ndarray:
    """Return the exact mean change of a module, outputs × inputs, in float64."""
    first, second = concatenated(counted, module)
    return second @ first


def truncated(first: np.ndarray, second: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Cut a product down to a rank by singular values, without forming it.

    Args:
        first: A, R × inputs.
        second: B, outputs × R.
        rank: to keep.

    Returns:
        A (rank × inputs), B (outputs × rank), and the energy (sum of squared singular values) cut off and in all.
    """
    left, upper = np.linalg.qr(second)
    right, lower = np.linalg.qr(first.T)
    inner_left, values, inner_right = np.linalg.svd(upper @ lower.T)
    # Fewer rows or columns than `rank` leave fewer values: the rest is zero.
    kept = min(rank, len(values))
    roots = np.sqrt(values[:kept])
    new_first = np.zeros((rank, first.shape[1]))
    new_second = np.zeros((second.shape[0], rank))
    new_first[:kept] = roots[:, None] * (right @ inner_right.T[:, :kept]).T
    new_second[:, :kept] = (left @ inner_left[:, :kept]) * roots
    return new_first, new_second, float(np.sum(values[kept:] ** 2)), float(np.sum(values**2))


def _write_adapter(counted: Sequence[tuple[Adapter, float]], settings: Settings, part: Path) -> dict[str, Any]:
    """Write an averaged adapter with its config, and return what the report says of it."""
    last = counted[-1][0]
    given = None if settings.dtype is None else from_torch_name(settings.dtype)
    numbers, ranks, lost, whole = dict(mean_of_full(counted)), {}, 0.0, 0.0
    for module, names in last.modules().items():
        if settings.lora_mode == FACTORS:
            pairs = [(weight, adapter.factors(module)) for adapter, weight in counted]
            first, second = (sum(weight * pair[side] for weight, pair in pairs) for side in (0, 1))
        else:
            first, second = concatenated(counted, module)
            if settings.lora_mode == SVD:
                rank = max(len(adapter.factors(module)[0]) for adapter, _ in counted)
                first, second, cut, total = truncated(first, second, rank)
                lost, whole = lost + cut, whole + total
        ranks[module] = len(first)
        numbers |= dict(zip(names, (first, second), strict=True))
    formats = {name: given or last.checkpoint.tensors[name][1].dtype for name in numbers}
    size = write_tensors(part / ADAPTER_WEIGHTS, {name: (formats[name], numbers[name]) for name in numbers})
    folder = last.checkpoint.snapshot.folder
    copy_companions(folder, part, None)
    config = dict(last.config) if settings.lora_mode == FACTORS else _unscaled_config(last.config, ranks)
    write_json(part / ADAPTER_CONFIG, without_paths(config))
    return {
        "dtypes": tuple(sorted({torch_name(kind) for kind in formats.values()})),
        "files": {ADAPTER_WEIGHTS: size},
        "discarded_energy": (lost / whole if whole else 0.0) if settings.lora_mode == SVD else None,
    }


def _unscaled_config(config: Any, ranks: dict[str, int]) -> dict[str, Any]:
    """Return an adapter's config with new ranks and, for every module, the scale 1."""
    common = collections.Counter(ranks.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in ranks.items() if rank != common}
    return {
        **config,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "use_rslora": False,
    }


def labelled_config(folder: Path) -> Path | None:
    """Return the folder whose `config.json` tells an adapter's classes: its own, or that of its run; or None."""
    return next((place for place in (folder, folder.parent) if (place / CONFIG_NAME).is_file()), None)
