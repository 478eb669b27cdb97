"""Low-rank adapters (LoRA): small trained matrices beside frozen weights, merged into them at the end.

Source: Hu et al. (2022), "LoRA: Low-Rank Adaptation of Large Language Models"; the arithmetic is that of the package
`peft`. The head of the task is trained in full, as it has no trained weights to adapt.

What is saved as the model is the merged one, which loads without `peft`; the adapter lies beside it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from hf_xlt.errors import ConfigError, close_match
from hf_xlt.randomness import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_xlt.peft_arguments import PeftArguments
    from hf_xlt.tasks import Task

ADAPTER_NAME = "adapter"
_POOLER = "pooler"

_TASK_TYPES = {
    "AutoModelForSequenceClassification": TaskType.SEQ_CLS,
    "AutoModelForTokenClassification": TaskType.TOKEN_CLS,
    "AutoModelForQuestionAnswering": TaskType.QUESTION_ANS,
}


class AdaptedModel(PeftModel):
    """A `PeftModel` that saves nothing but its adapter, and asks nobody when it does."""

    def save_pretrained(self, save_directory: str, **settings: Any) -> None:
        """Save `adapter_config.json` and `adapter_model.safetensors`; arguments as for `PeftModel`.

        Left to itself `PeftModel` looks the base model up on the Hub at each save, to find out whether its
        vocabulary was changed. Frozen embeddings never need saving.
        """
        super().save_pretrained(save_directory, **{"save_embedding_layers": False, **settings})

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write no card: that of the run says what there is to say."""


def wrap(
    model: PreTrainedModel, settings: PeftArguments, task: Task, seed: int, head_is_frozen: bool = False
) -> AdaptedModel:
    """Freeze a model's weights and put adapters beside them.

    Args:
        model: as loaded; it is changed in place. `name_or_path` is recorded as the adapter's base.
        settings: rank, scale and place of the adapters.
        task: names the kind of model in the adapter's config.
        seed: of the adapters' random start. The global generators are left as they are, so that dropout masks are
            those of a run without adapters.
        head_is_frozen: whether the head is shared between runs, and so not trained here.

    Raises:
        ConfigError: a module to adapt, or to train in full, is not in the model.
    """
    head = head_modules(model)
    extra = [name for name in settings.lora_modules_to_save or () if name not in head]
    _check_names("lora-modules-to-save", extra, [name for name, _ in model.named_modules() if name])
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=_target_modules(model, settings.lora_target_modules, [*head, *extra]),
        modules_to_save=[*([name for name in head if name == _POOLER] if head_is_frozen else head), *extra] or None,
        task_type=_TASK_TYPES.get(task.auto_model),
        base_model_name_or_path=model.name_or_path or None,
        revision=getattr(model.config, "_commit_hash", None),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks for an attribute that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        torch.default_generator.manual_seed(derive_seed(seed, "lora"))
        adapted = AdaptedModel(model, config)
    # peft keeps a set, whose order would differ from file to file.
    config.target_modules = sorted(config.target_modules)
    return adapted


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of what stands behind the encoder's last layer: the head, and the pooler where there is one.

    Checkpoints often lack the pooler, which is then as new as the head.
    """
    body = model.base_model_prefix
    head = [name for name, module in model.named_children() if name != body and any(True for _ in module.parameters())]
    if isinstance(getattr(model.base_model, _POOLER, None), nn.Module):
        head.append(_POOLER)
    return sorted(head)


def _target_modules(model: PreTrainedModel, asked: Sequence[str] | None, trained: Sequence[str]) -> list[str]:
    """Return the names of the modules to adapt: those asked for, else those of `peft`, else all linear ones.

    Args:
        model: not yet wrapped.
        asked: the user's choice, or None.
        trained: modules that are trained in full, and their submodules with them.

    Raises:
        ConfigError: a name fits no linear module of the encoder.
    """
    linear = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(name in path.split(".") for name in trained)
    ]
    if asked:
        _check_names("lora-target-modules", asked, linear)
        return list(asked)
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    if isinstance(known, list) and not _unknown_names(known, linear):
        return list(known)
    if not linear:
        raise ConfigError(f"`--peft lora`: {type(model).__name__} has no linear module to adapt. Leave `--peft` out.")
    return sorted({path.rpartition(".")[2] for path in linear})


def _unknown_names(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Return the names that are the end of no path, by whole components, as `peft` matches them."""
    return [name for name in names if not any(f".{path}".endswith(f".{name}") for path in paths)]


def _check_names(flag: str, names: Sequence[str], paths: Sequence[str]) -> None:
    unknown = _unknown_names(names, paths)
    if unknown:
        known = sorted({end for path in paths if not (end := path.rpartition(".")[2]).isdecimal()})
        raise ConfigError(
            f"`--{flag} {unknown[0]}`: the model has no such module.{close_match(unknown[0], known)} It has "
            f"{', '.join(known)}."
        )


def merged(model: PeftModel) -> PreTrainedModel:
    """Return a plain model with the adapters added into its weights; the given one is left as it is."""
    return copy.deepcopy(model).merge_and_unload()


def describe(model: PeftModel) -> dict[str, Any]:
    """Return what the record says of the adapters.

    Returns:
        `method`, `rank`, `alpha`, `dropout`, `target_modules`, `modules_to_save`, and `trainable_parameters`, a
        number that counts adapters and modules trained in full.
    """
    config = model.peft_config[model.active_adapter]
    return {
        "method": "lora",
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "target_modules": list(config.target_modules),
        "modules_to_save": sorted(config.modules_to_save or ()),
        "trainable_parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
    }


def merged_size(model: PeftModel) -> int:
    """Return the number of parameters of the merged model.

    They are the frozen ones: of a module that is trained in full, the wrapper keeps the frozen original as well.
    """
    return sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
