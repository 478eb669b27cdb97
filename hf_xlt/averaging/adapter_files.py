"""Adapters of `peft` on disk: which kinds can be averaged, and what their names mean."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_xlt.averaging.compatibility import read_object
from hf_xlt.averaging.inputs import ADAPTER_CONFIG, Checkpoint
from hf_xlt.averaging.tensors import read_numbers
from hf_xlt.errors import ConfigError

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
_ADAPTER_WEIGHT = re.compile(r"\.(lora_|modules_to_save\.)?(lora_|vera_|hada_|ia3_|prompt_)")
# Variants whose weights mean something else than B A; averaging them as if they were plain would go wrong in silence.
_VARIANTS = {
    "use_dora": "DoRA",
    "kasa_config": "KaSA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "alora_invocation_tokens": "aLoRA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "layer_replication": "layer replication",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "adapted parameters",
    "lora_bias": "a bias in the adapter",
}
# Other starts change the base model's own weights, which the adapter file does not tell.
_STARTS = (True, False, "gaussian", "orthogonal", "eva")


def is_adapter_weight(name: str) -> bool:
    """Say whether a tensor of an adapter file belongs to an adapter, not to a module saved in full."""
    return bool(_ADAPTER_WEIGHT.search(name))


def plain_name(name: str) -> str:
    """Return a tensor's name in the model."""
    return name.removeprefix(_PREFIX)


@dataclass(frozen=True)
class Adapter:
    """An adapter as it was opened.

    Attributes:
        checkpoint: its files.
        config: its `adapter_config.json`.
    """

    checkpoint: Checkpoint
    config: Mapping[str, Any]

    def modules(self) -> dict[str, tuple[str, str]]:
        """Return the names of the tensors A and B of each adapted module, by the module's name in the model."""
        sides: dict[str, dict[str, str]] = {}
        for name in self.checkpoint.tensors:
            match = _FACTOR.fullmatch(name)
            if match:
                sides.setdefault(plain_name(match["module"]), {})[match["side"]] = name
        broken = sorted(module for module, found in sides.items() if set(found) != {"A", "B"})
        if broken:
            raise ConfigError(f"`{self.checkpoint.place}` holds only one of A and B of `{broken[0]}`; save it again.")
        return {module: (found["A"], found["B"]) for module, found in sides.items()}

    def full_tensors(self) -> list[str]:
        """Return the names of the tensors of modules that were trained and saved in full."""
        return [name for name in self.checkpoint.tensors if not is_adapter_weight(name)]

    def factors(self, module: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Read a module's A (rank × inputs), B (outputs × rank), both float64, and the scale of their product.

        The rank is that of the tensors; alpha may differ by module (`alpha_pattern`). With rank-stabilised scaling
        the scale is α / √r, else α / r.

        Raises:
            ConfigError: they are no matrices of one rank.
        """
        names = self.modules()[module]
        first, second = (read_numbers(self.checkpoint, name) for name in names)
        if first.ndim != 2 or second.ndim != 2 or len(first) != second.shape[1]:
            raise ConfigError(
                f"`{self.checkpoint.place}` adapts `{module}` by tensors of shapes {list(first.shape)} and "
                f"{list(second.shape)}; only pairs of matrices can be averaged."
            )
        rank, alpha = len(first), self.config.get("lora_alpha", 8)
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return first, second, alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def is_embedding(self, module: str) -> bool:
        """Say whether a module is an embedding, whose weight is the transpose of B A."""
        return ".lora_embedding_" in self.modules()[module][0]


def open_adapters(checkpoints: Sequence[Checkpoint]) -> list[Adapter]:
    """Read and compare the adapters' configs.

    Raises:
        ConfigError: a kind cannot be averaged, or base model, modules, task or shapes differ.
    """
    adapters = []
    for checkpoint in checkpoints:
        config = read_object(checkpoint.snapshot.folder / ADAPTER_CONFIG) or {}
        _check_kind(checkpoint, config)
        adapters.append(Adapter(checkpoint, config))
    first = adapters[0]
    for other in adapters[1:]:
        _check_alike(first, other)
    if not first.modules():
        raise ConfigError(f"`{first.checkpoint.place}` holds no LoRA matrices.")
    return adapters


def _check_kind(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type"))
    names = {"ADALORA": "AdaLoRA", "VERA": "VeRA"}
    if kind != "LORA":
        raise ConfigError(
            f"`{checkpoint.place}` is an adapter of kind {names.get(kind, kind)}; only plain LoRA can be averaged. "
            "Merge each into its base model, and average the models."
        )
    variants = [label for key, label in _VARIANTS.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        variants.append("trained biases")
    if config.get("init_lora_weights", True) not in _STARTS:
        variants.append(f"the start `{config['init_lora_weights']}`, which changes the base model")
    if variants:
        raise ConfigError(
            f"`{checkpoint.place}` is LoRA with {variants[0]}; only plain LoRA can be averaged. Merge each into its "
            "base model, and average the models."
        )


def _check_alike(first: Adapter, other: Adapter) -> None:
    places = first.checkpoint.place, other.checkpoint.place
    for key in ("base_model_name_or_path", "task_type", "fan_in_fan_out"):
        if first.config.get(key) != other.config.get(key):
            raise ConfigError(
                f"`{key}` is {first.config.get(key)!r} in `{places[0]}` and {other.config.get(key)!r} in "
                f"`{places[1]}`. Only adapters of one base model and task can be averaged."
            )
    names = [set(adapter.checkpoint.tensors) for adapter in (first, other)]
    if names[0] != names[1]:
        odd = sorted(names[0] ^ names[1])
        holder, lacking = places if odd[0] in names[0] else places[::-1]
        raise ConfigError(
            f"`{holder}` adapts what `{lacking}` does not ({len(odd)} tensors, such as `{odd[0]}`). Only adapters of "
            "the same modules can be averaged."
        )
    for name in first.full_tensors():
        shapes = [adapter.checkpoint.tensors[name][1].shape for adapter in (first, other)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"`{name}` has shape {list(shapes[0])} in `{places[0]}` and {list(shapes[1])} in `{places[1]}`."
            )
