"""Low-rank adapters (LoRA): small trained matrices beside frozen weights, merged into them at the end.

Source: Hu et al. (2022), "LoRA: Low-Rank Adaptation of Large Language Models"; the arithmetic is that of the package
`peft`. The head of the task is trained in full, as it has no trained weights to adapt.

What is saved as the model is the merged one, which loads without `peft`; the adapter lies beside it.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from hf_xlt.averaging.heads import body_modules
from hf_xlt.errors import ConfigError, close_match, setting
from hf_xlt.randomness import derive_seed, generators

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
    _check_names("lora_modules_to_save", extra, [name for name, _ in model.named_modules() if name])
    saved = [*([name for name in head if name == _POOLER] if head_is_frozen else head), *extra]
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=_target_modules(model, settings.lora_target_modules, [*head, *extra], saved),
        modules_to_save=saved or None,
        task_type=_TASK_TYPES.get(task.auto_model),
        base_model_name_or_path=model.name_or_path or None,
        revision=getattr(model.config, "_commit_hash", None),
    )
    with generators(torch.device("cpu"), derive_seed(seed, "lora")), warnings.catch_warnings():
        # peft 0.21 asks for an attribute that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # It finds out by itself that the weights of `Conv1D` lie transposed.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        adapted = AdaptedModel(model, config)
    # peft keeps a set, whose order would differ from file to file.
    config.target_modules = sorted(config.target_modules)
    return adapted


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of what stands behind the encoder's last layer: the head, and the pooler where there is one.

    Checkpoints often lack the pooler, which is then as new as the head.
    """
    body = body_modules(model)
    head = [
        name for name, module in model.named_children() if name not in body and any(True for _ in module.parameters())
    ]
    if isinstance(getattr(model.base_model, _POOLER, None), nn.Module):
        head.append(_POOLER)
    return sorted(head)


def _target_modules(
    model: PreTrainedModel, asked: Sequence[str] | None, kept: Sequence[str], saved: Sequence[str]
) -> list[str]:
    """Return the names of the modules to adapt: those asked for, else those of `peft`, else all linear ones.

    Args:
        model: not yet wrapped.
        asked: the user's choice, or None.
        kept: modules that get no adapters, and their submodules with them: the head, and what is trained in full.
        saved: those of them that `peft` is told of, and leaves out by itself.

    Returns:
        Names as short as they can be, full paths where the short ones would match other modules as well.

    Raises:
        ConfigError: a name fits no linear module of the encoder, or one whose weight several modules share.
    """
    linear = [
        path
        for path, module in model.named_modules()
        if _is_adaptable(model, path, module) and not _is_inside(path, kept)
    ]
    others = [path for path, _ in model.named_modules() if path not in linear and not _is_inside(path, saved)]
    tied = _tied_modules(model, linear)
    if asked:
        _check_names("lora_target_modules", asked, linear)
        shared = next((path for path in _matched(asked, linear) if path in tied), None)
        if shared:
            raise ConfigError(
                f"{setting('lora_target_modules')}: the weight of `{shared}` is shared with other modules, and an "
                "adapter merged into it would change them too. Name modules that share nothing, or leave the option "
                "out."
            )
        return _names_for(asked, linear, others)
    own = [path for path in linear if path not in tied]
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    if isinstance(known, list) and not _unknown_names(known, own):
        return _names_for(known, own, [*others, *tied])
    if not own:
        raise ConfigError(
            f"{setting('peft', 'lora')}: {type(model).__name__} has no linear module to adapt. Leave "
            f"{setting('peft')} out."
        )
    return _names_for(sorted({path.rpartition(".")[2] for path in own}), own, [*others, *tied])


def _is_inside(path: str, names: Sequence[str]) -> bool:
    return any(f".{name}." in f".{path}." for name in names)


def _is_adaptable(model: PreTrainedModel, path: str, module: nn.Module) -> bool:
    """Say whether a module is linear and is called: one whose weight others read passes any adapter by."""
    if not isinstance(module, nn.Linear | Conv1D) or isinstance(module, NonDynamicallyQuantizableLinear):
        return False
    parent, _, name = path.rpartition(".")
    # The kernels of state-space layers take the weight of the last projection.
    return not (name == "out_proj" and isinstance(getattr(model.get_submodule(parent), "conv1d", None), nn.Conv1d))


def _tied_modules(model: PreTrainedModel, paths: Sequence[str]) -> set[str]:
    """Return the paths of modules whose weight other modules hold as well (the shared blocks of Zamba2)."""
    weights = [id(weight) for _, weight in model.named_parameters(remove_duplicate=False)]
    holders = Counter(weights)
    return {path for path in paths if holders[id(model.get_submodule(path).weight)] > 1}


def _matched(names: Sequence[str], paths: Iterable[str]) -> list[str]:
    """Return the paths that end with one of some names, by whole components, as `peft` matches them."""
    return [path for path in paths if any(f".{path}".endswith(f".{name}") for name in names)]


def _names_for(names: Sequence[str], linear: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return names that match linear modules alone: the given ones, or the full paths.

    A short name may be that of a container as well: of a layer (`0`) or of a block (`dense` of Reformer).
    """
    return _matched(names, linear) if _matched(names, others) else list(names)


def _unknown_names(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Return the names that are the end of no path, by whole components, as `peft` matches them."""
    return [name for name in names if not _matched([name], paths)]


def _check_names(name: str, names: Sequence[str], paths: Sequence[str]) -> None:
    unknown = _unknown_names(names, paths)
    if unknown:
        known = sorted({end for path in paths if not (end := path.rpartition(".")[2]).isdecimal()})
        raise ConfigError(
            f"{setting(name, unknown[0])}: the model has no such module.{close_match(unknown[0], known)} It has "
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
