"""Which settings of MetaXL are wrong alone, wrong together, or refused with something else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args, get_type_hints

from hf_xlt.launch import divides_weights
from hf_xlt.registry import Refusal, dependent, unused_problems

if TYPE_CHECKING:
    from hf_xlt.strategies.metaxl.config import MetaXLConfig

_WHOLE_NUMBERS = {
    "meta_every": 1,
    "evograd_population": 2,
    "rtn_bottleneck": 1,
    "portion": 2,
    "diagnostics_examples": 2,
}
_ABOVE_ZERO = (
    "fd_scale",
    "evograd_sigma",
    "evograd_temperature",
    "sampling_temperature",
    "exp3_reward_scale",
)
_ZERO_OR_MORE = ("rtn_lr", "rtn_weight_decay", "rtn_max_grad_norm")


def choice_problems(config: MetaXLConfig, declared_by: type) -> list[str]:
    """Say which fields that a class declares have a value outside their choices."""
    hints = get_type_hints(declared_by)
    choices = {name: get_args(hints[name]) for name in declared_by.__annotations__ if "Literal" in str(hints[name])}
    return [
        f"`{name}` is {getattr(config, name)!r}; choose one of {', '.join(allowed)}"
        for name, allowed in choices.items()
        if getattr(config, name) not in allowed
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def range_problems(config: MetaXLConfig) -> list[str]:
    """Say which numbers are out of range."""
    problems = [
        f"`{name}` is {getattr(config, name)!r}; it must be a whole number of {low} or more"
        for name, low in _WHOLE_NUMBERS.items()
        if not _is_whole(getattr(config, name), low)
    ]
    if not (config.target_batch_size is None or _is_whole(config.target_batch_size, 1)):
        problems.append(f"`target_batch_size` is {config.target_batch_size!r}; it must be 1 or more, or unset")
    for name in _ABOVE_ZERO:
        if not (_is_number(getattr(config, name)) and getattr(config, name) > 0):
            problems.append(f"`{name}` is {getattr(config, name)!r}; it must be a finite number above 0")
    for name in _ZERO_OR_MORE:
        if not (_is_number(getattr(config, name)) and getattr(config, name) >= 0):
            problems.append(f"`{name}` is {getattr(config, name)!r}; it must be a finite number of 0 or more")
    if not (config.inner_lr is None or (_is_number(config.inner_lr) and config.inner_lr >= 0)):
        problems.append(f"`inner_lr` is {config.inner_lr!r}; it must be 0 or more, or unset")
    if not (_is_number(config.rtn_warmup_ratio) and 0 <= config.rtn_warmup_ratio <= 1):
        problems.append(f"`rtn_warmup_ratio` is {config.rtn_warmup_ratio!r}; it must be between 0 and 1")
    if not (_is_number(config.exp3_gamma) and 0 < config.exp3_gamma <= 1):
        problems.append(f"`exp3_gamma` is {config.exp3_gamma!r}; it must be above 0 and at most 1")
    if not config.rtn_layers and not config.rtn_modules:
        problems.append("`rtn_layers` is empty; name a layer, or train without RTN by method joint")
    return problems


def _has_rtn(config: MetaXLConfig) -> bool:
    return config.method == "metaxl"


def _has_virtual_step(config: MetaXLConfig) -> bool:
    return _has_rtn(config) and config.hypergrad in ("exact", "finite_difference")


def _adds_losses(config: MetaXLConfig) -> bool:
    """Say whether a source and a target loss are put together in the way that is asked for."""
    published = config.baseline == "published" and not _has_rtn(config)
    return config.method != "target_only" and config.inner_target_loss and not published


def _clips(config: MetaXLConfig) -> bool:
    return _has_rtn(config) or config.baseline != "published" or config.max_grad_norm == 0


_RTN = "`method` metaxl"
DEPENDENT = (
    dependent("baseline", lambda config: not _has_rtn(config), "`method` joint or target_only"),
    dependent(
        "hypergrad rtn_modules rtn_bottleneck rtn_activation rtn_gate rtn_init rtn_detach_input rtn_lr "
        "rtn_weight_decay rtn_warmup_ratio rtn_max_grad_norm save_rtn diagnostics",
        _has_rtn,
        _RTN,
    ),
    dependent(
        "rtn_layers", lambda config: _has_rtn(config) and not config.rtn_modules, f"{_RTN} and without `rtn_modules`"
    ),
    dependent(
        "meta_every inner_lr",
        lambda config: config.bilevel,
        f"{_RTN} and `hypergrad` exact, finite_difference or evograd",
    ),
    dependent(
        "update_order meta_grad_scale",
        _has_virtual_step,
        f"{_RTN} and `hypergrad` exact or finite_difference",
    ),
    dependent(
        "fd_scale",
        lambda config: _has_rtn(config) and config.hypergrad == "finite_difference",
        f"{_RTN} and `hypergrad` finite_difference",
    ),
    dependent(
        "evograd_population evograd_sigma evograd_temperature",
        lambda config: _has_rtn(config) and config.hypergrad == "evograd",
        f"{_RTN} and `hypergrad` evograd",
    ),
    dependent(
        "portion batch_split target_resplit",
        lambda config: config.split_portion is not None,
        "target batches of which a part trains the model: `inner_target_loss`, and not `baseline` published",
    ),
    dependent(
        "target_batch_size",
        lambda config: not config.trains_on_target_alone,
        "every method but target_only with `baseline` published, where `per_device_train_batch_size` says it",
    ),
    dependent(
        "loss_reduction",
        _adds_losses,
        "a sum of source and target loss: `inner_target_loss` with `method` metaxl, or joint with `baseline` matched",
    ),
    dependent("max_grad_norm", _clips, "`baseline` matched; the published one does not clip"),
    dependent(
        "sampling_temperature",
        lambda config: config.source_sampling == "temperature",
        "`source_sampling` temperature",
    ),
    dependent(
        "exp3_gamma exp3_reward_scale", lambda config: config.source_sampling == "exp3", "`source_sampling` exp3"
    ),
    dependent("diagnostics_examples", lambda config: config.diagnostics, "`diagnostics`"),
)


def combination_problems(config: MetaXLConfig) -> list[str]:
    """Say which settings contradict each other, or would be ignored."""
    problems = unused_problems(config, DEPENDENT)
    if config.update_order == "reuse" and config.method == "metaxl" and config.hypergrad in ("evograd", "none"):
        problems.append(
            f"`update_order` reuse does not go with hypergrad {config.hypergrad}, which computes no virtual step; "
            "choose sequential"
        )
    if config.source_sampling == "exp3" and not config.bilevel:
        problems.append("`source_sampling` exp3 learns from the meta loss, and these settings compute none")
    if config.method != "metaxl" and not config.inner_target_loss:
        problems.append(f"`inner_target_loss` false leaves method {config.method} without its target loss")
    if config.method == "target_only" and config.source_sampling != "mixed":
        problems.append("`source_sampling` does not go with method target_only, which uses no source batch")
    if config.hypergrad == "finite_difference" and not config.rtn_detach_input and config.rtn_activation == "relu":
        problems.append(
            "`hypergrad` finite_difference without rtn_detach_input steps over the kinks of relu; set "
            "`rtn_activation` to gelu"
        )
    return problems


def has_reentrant_checkpointing(config: MetaXLConfig) -> bool:
    """Say whether activation checkpointing is asked for in the form that `autograd.grad` cannot differentiate."""
    options = config.gradient_checkpointing_kwargs or {}
    return bool(config.gradient_checkpointing) and bool(options.get("use_reentrant"))


REFUSALS = (
    Refusal(
        divides_weights,
        "FSDP and DeepSpeed shard the weights, and the virtual step needs them whole. Use plain data parallelism "
        "(`accelerate launch --multi_gpu`).",
    ),
    Refusal(
        lambda config: config.bilevel and has_reentrant_checkpointing(config),
        "reentrant activation checkpointing is incompatible with `autograd.grad`, which finds the meta gradient. Set "
        '`activation_checkpointing_kwargs` to {"use_reentrant": false} (the default).',
    ),
    Refusal(
        lambda config: config.method == "metaxl" and config.torch_compile,
        "`torch_compile` is not supported: a compiled model does not see the hook of the RTN, and second derivatives "
        "do not go through it. Leave it off.",
    ),
    Refusal(
        lambda config: config.bilevel and config.fp16,
        "fp16 scales losses, and the meta gradient is a product of two gradients, which would overflow. Use `bf16`.",
    ),
    Refusal(
        lambda config: config.label_smoothing_factor > 0,
        "`label_smoothing_factor` is not supported: source, target and meta loss are the plain task loss. Leave it "
        "at 0.",
    ),
    Refusal(
        lambda config: bool(config.neftune_noise_alpha),
        "`neftune_noise_alpha` is not supported: the virtual step reads word embeddings without its noise. Leave it "
        "off.",
    ),
    Refusal(
        lambda config: config.optim in ("lomo", "adalomo"),
        "`lomo` and `adalomo` update weights within a backward pass, before the whole gradient is known. Choose "
        "another `optim`.",
    ),
    Refusal(
        lambda config: config.n_gpu > 1,
        "`nn.DataParallel` would have to split source and target batches. Start one process per GPU with `accelerate "
        "launch`, or show the run a single GPU with CUDA_VISIBLE_DEVICES.",
    ),
)
