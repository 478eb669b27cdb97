"""Which settings of robust training are wrong alone, wrong together, or refused with something else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args, get_type_hints

from hf_xlt.launch import divides_weights
from hf_xlt.registry import Refusal, dependent, unused_problems
from hf_xlt.strategies.robust.embedding_hook import REENTRANT

if TYPE_CHECKING:
    from hf_xlt.strategies.robust.config import RobustConfig

SHARDED = (
    "FSDP and DeepSpeed shard the embedding, and the search for a perturbation runs on the unsharded model. Use plain "
    "data parallelism (`accelerate launch --multi_gpu`)."
)


def choice_problems(config: RobustConfig, declared_by: type) -> list[str]:
    """Say which fields that a class declares have a value outside their choices."""
    hints = get_type_hints(declared_by)
    choices = {name: get_args(hints[name]) for name in declared_by.__annotations__ if "Literal" in str(hints[name])}
    return [
        f"`{name}` is {getattr(config, name)!r}; choose one of {', '.join(allowed)}"
        for name, allowed in choices.items()
        if getattr(config, name) not in allowed
    ]


def range_problems(config: RobustConfig) -> list[str]:
    """Say which numbers are out of range."""
    problems = []
    for name, low in (("steps", 1), ("num_samples", 1), ("start_step", 0), ("smooth_samples", 1)):
        value = getattr(config, name)
        if not (isinstance(value, int) and not isinstance(value, bool) and value >= low):
            problems.append(f"`{name}` is {value!r}; it must be a whole number of {low} or more")
    for name in ("epsilon", "consistency_weight"):
        if not (_is_number(getattr(config, name)) and getattr(config, name) >= 0):
            problems.append(f"`{name}` is {getattr(config, name)!r}; it must be a finite number of 0 or more")
    if not (config.smooth_epsilon is None or (_is_number(config.smooth_epsilon) and config.smooth_epsilon >= 0)):
        problems.append(f"`smooth_epsilon` is {config.smooth_epsilon!r}; it must be 0 or more, or unset")
    if not (config.step_size is None or (_is_number(config.step_size) and config.step_size > 0)):
        problems.append(f"`step_size` is {config.step_size!r}; it must be above 0, or unset")
    if not (_is_number(config.init_scale) and 0 < config.init_scale <= 1):
        problems.append(f"`init_scale` is {config.init_scale!r}; it must be above 0 and at most 1")
    if not (_is_number(config.clean_weight) and 0 <= config.clean_weight <= 1):
        problems.append(f"`clean_weight` is {config.clean_weight!r}; it must be between 0 and 1")
    return problems


def _perturbing(config: RobustConfig) -> bool:
    return config.method != "none"


def _ascending(config: RobustConfig) -> bool:
    return config.method in ("adv", "freelb")


def _climbing(config: RobustConfig) -> bool:
    # The steps of freelb lie between its training passes.
    return config.method == "adv" or (config.method == "freelb" and config.steps > 1)


def _smoothing(config: RobustConfig) -> bool:
    return config.smooth_predict != "none"


def _drawing_noise(config: RobustConfig) -> bool:
    return config.method == "rs_rp" or _smoothing(config)


def _has_radius(config: RobustConfig) -> bool:
    """Say whether a radius is of a token or a sentence, not of a coordinate."""
    return _ascending(config) or (_drawing_noise(config) and config.noise in ("l2_ball", "l2_sphere"))


def _has_side_passes(config: RobustConfig) -> bool:
    several = config.training_passes > 1 or config.clean_weight > 0 or config.consistency != "none"
    # Passes that train keep their dropout under `eval`.
    trained = config.inner_dropout != "eval" and config.method != "none" and several
    return config.method == "adv" or trained


_ASCENT = "`method` adv or freelb"
_METHODS = "`method` adv, rs_rp or freelb"
DEPENDENT = (
    dependent(
        "epsilon",
        lambda config: _perturbing(config) or (_smoothing(config) and config.smooth_epsilon is None),
        f"{_METHODS}, or with `smooth_predict` whose radius `smooth_epsilon` leaves open",
    ),
    dependent(
        "eps_mode perturb_special_tokens",
        lambda config: _perturbing(config) or _smoothing(config),
        f"{_METHODS}, or with `smooth_predict`",
    ),
    dependent("clean_weight start_step", _perturbing, _METHODS),
    dependent("norm steps init", _ascending, _ASCENT),
    dependent(
        "norm_scope",
        _has_radius,
        f"{_ASCENT}, or with `noise` l2_ball or l2_sphere",
    ),
    dependent("step_size", _climbing, "`method` adv, or freelb with `steps` of 2 or more"),
    dependent(
        "init_scale",
        lambda config: _ascending(config) and config.init != "zero",
        f"{_ASCENT} and `init` uniform or gaussian",
    ),
    dependent("inner_loss", lambda config: config.method == "adv", "`method` adv"),
    dependent(
        "linf_direction",
        lambda config: _climbing(config) and config.norm == "linf",
        f"`norm` linf and {_ASCENT}",
    ),
    dependent("noise", _drawing_noise, "`method` rs_rp, or with `smooth_predict`"),
    dependent("num_samples", lambda config: config.method == "rs_rp", "`method` rs_rp"),
    dependent("consistency_weight detach_noised", lambda config: config.consistency != "none", "`consistency` symkl"),
    dependent(
        "inner_dropout",
        _has_side_passes,
        "`method` adv, and `shared` with every method that makes several passes (`num_samples`, `steps`, "
        "`clean_weight`, `consistency`)",
    ),
    dependent("smooth_samples smooth_epsilon", _smoothing, "`smooth_predict` vote, mean_prob or mean_logit"),
)


def combination_problems(config: RobustConfig) -> list[str]:
    """Say which settings contradict each other, or would be ignored."""
    problems = unused_problems(config, DEPENDENT)
    if config.consistency != "none":
        if config.method not in ("adv", "rs_rp"):
            problems.append(f"`consistency` does not go with method {config.method}; choose adv or rs_rp")
        if config.clean_weight != 0:
            problems.append("`consistency` always trains on the clean loss alone; leave `clean_weight` at 0")
    if config.inner_loss == "kl":
        if config.method == "freelb":
            problems.append("`inner_loss` kl does not go with freelb, whose ascent follows the training loss; use adv")
        if config.method == "adv" and config.init == "zero":
            problems.append(
                "`inner_loss` kl has no direction to rise in at a zero start; set `init` to gaussian or uniform"
            )
    return problems


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _has_reentrant_checkpointing(config: RobustConfig) -> bool:
    # `gradient_checkpointing` is the name before transformers 5.23 and its mirror there.
    options = config.gradient_checkpointing_kwargs or {}
    return bool(config.gradient_checkpointing) and bool(options.get("use_reentrant"))


def _perturbs_anything(config: RobustConfig) -> bool:
    return config.perturbs or config.smoothing_radius > 0


def _fuses_backward_and_update(config: RobustConfig) -> bool:
    several = config.consistency == "none" and (config.training_passes > 1 or config.clean_weight > 0)
    return config.perturbs and several and config.optim in ("lomo", "adalomo")


REFUSALS = (
    Refusal(
        lambda config: _perturbs_anything(config) and config.torch_compile,
        "`torch_compile` is not supported: a compiled model does not see the temporary hook that adds the "
        "perturbation. Leave it off.",
    ),
    Refusal(lambda config: _perturbs_anything(config) and divides_weights(config), SHARDED),
    Refusal(
        lambda config: config.perturbs and config.method == "adv" and _has_reentrant_checkpointing(config), REENTRANT
    ),
    Refusal(
        lambda config: _perturbs_anything(config) and config.n_gpu > 1,
        "`nn.DataParallel` would have to split the perturbation. Start one process per GPU with `accelerate launch`, "
        "or show the run a single GPU with CUDA_VISIBLE_DEVICES.",
    ),
    Refusal(
        _fuses_backward_and_update,
        "`lomo` and `adalomo` update weights within a backward pass, and these settings make several per update. "
        "Choose another `optim`.",
    ),
)
