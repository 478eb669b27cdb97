"""Checkpoints made in code, and references to compare averages with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

SHAPES = {"body.weight": (37, 11), "body.bias": (11,), "head.weight": (3, 11), "scalar": ()}


def make_state(seed: int, dtype: torch.dtype = torch.float32, shapes: dict | None = None) -> dict[str, torch.Tensor]:
    """Random tensors of a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (0.05 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for name, shape in (shapes or SHAPES).items()
    }


def save_state(folder: Path, state: dict[str, torch.Tensor], config: dict | None = None) -> Path:
    """Save a checkpoint's weights, and a config where one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_states(folder: Path, states: Sequence[dict[str, torch.Tensor]], config: dict | None = None) -> list[Path]:
    """Save checkpoints `c0`, `c1`, ..."""
    return [save_state(folder / f"c{number}", state, config) for number, state in enumerate(states)]


def load_average(folder: Path) -> dict[str, torch.Tensor]:
    """Load an average of one file."""
    return load_file(folder / "model.safetensors")


def rounded(reference: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Round float64 numbers once; torch itself rounds float64 to 16 bits by way of float32, which rounds twice."""
    if dtype == torch.float16:
        return torch.from_numpy(reference.astype(np.float16))
    if dtype == torch.bfloat16:
        near = torch.from_numpy(reference).to(torch.float32).to(torch.bfloat16)
        candidates = [near]
        bits = near.view(torch.int16)
        for step in (-1, 1):
            candidates.append((bits + step).view(torch.bfloat16))
        stacked = torch.stack([candidate.double() for candidate in candidates])
        nearest = (stacked - torch.from_numpy(reference)).abs().argmin(dim=0, keepdim=True)
        return stacked.gather(0, nearest)[0].to(torch.bfloat16)
    return torch.from_numpy(np.asarray(reference)).to(dtype)


def weighted_mean(states: Sequence[dict[str, torch.Tensor]], name: str, weights: Sequence[float]) -> np.ndarray:
    """The float64 reference of one tensor."""
    total = sum(weight * state[name].double().numpy() for weight, state in zip(weights, states, strict=True))
    return np.asarray(total / sum(weights))
