"""Settings of `TrainingArguments` that would be ignored, or would fail only once training has begun.

The stock Trainer hands many settings on without a look: a wrong key of a dictionary ends in a `TypeError` of whatever
reads it, and what the chosen optimizer or schedule does not read is dropped. Both are found here by trying.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from hf_xlt.errors import ConfigError, close_match, one_line, shortened
from hf_xlt.registry import dependent, unused_problems

_NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
_NO_OPTIONS = ("constant", "constant_with_warmup")
_MAPPINGS = (
    "lr_scheduler_kwargs",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing_kwargs",
    "liger_kernel_config",
)
# Popped from the keywords in the body of `checkpoint`.
_CHECKPOINTING_OPTIONS = ("preserve_rng_state",)
# Values of which a reader of numbers, switches or names takes one or stumbles over it.
_OTHER_VALUES = ("0.125", "7", "true", "float16")
_OPTIONS_FORM = "`name=value`, separated by commas"


def _value(setting: Any) -> Any:
    return getattr(setting, "value", setting)


def _checkpoints(config: Any) -> bool:
    return bool(config.gradient_checkpointing or config.activation_checkpointing)


def _saves_or_evaluates_best(config: Any) -> bool:
    chooses = config.load_best_model_at_end or _value(config.save_strategy) == "best"
    return chooses or _value(config.lr_scheduler_type) == "reduce_lr_on_plateau"


DEPENDENT = (
    dependent(
        "warmup_steps",
        lambda config: _value(config.lr_scheduler_type) not in _NO_WARMUP or config.warmup_steps == 0,
        "an `lr_scheduler_type` that warms up, such as linear or constant_with_warmup",
    ),
    dependent(
        "lr_scheduler_kwargs",
        lambda config: _value(config.lr_scheduler_type) not in _NO_OPTIONS,
        f"an `lr_scheduler_type` other than {' and '.join(_NO_OPTIONS)}",
    ),
    *(
        dependent(
            name,
            lambda config, name=name: _is_read(config, name, 0.125),
            "an `optim` that reads it, such as adamw_torch",
        )
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon")
    ),
    dependent(
        "optim_target_modules",
        lambda config: any(kind in str(_value(config.optim)) for kind in ("galore", "apollo")),
        "an `optim` of the kinds galore and apollo",
    ),
    dependent(
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
        _checkpoints,
        "`gradient_checkpointing` (`activation_checkpointing`)",
    ),
    dependent("liger_kernel_config", lambda config: config.use_liger_kernel, "`use_liger_kernel`"),
    dependent(
        "dataloader_persistent_workers dataloader_multiprocessing_context dataloader_in_order",
        lambda config: config.dataloader_num_workers > 0,
        "`dataloader_num_workers` of 1 or more",
    ),
    dependent(
        "length_column_name",
        lambda config: _value(config.train_sampling_strategy) == "group_by_length",
        "`train_sampling_strategy` group_by_length",
    ),
)
# A trainer in Python may be given callbacks that read some of these, and scripts of the stock Trainer set others in
# all their runs; a run is asked for them one by one.
DEPENDENT_OF_RUNS = (
    dependent("eval_steps", lambda config: _value(config.eval_strategy) == "steps", "`eval_strategy` steps"),
    dependent("eval_delay", lambda config: _value(config.eval_strategy) != "no", "`eval_strategy` steps or epoch"),
    dependent("save_steps", lambda config: _value(config.save_strategy) == "steps", "`save_strategy` steps"),
    dependent(
        "save_total_limit", lambda config: _value(config.save_strategy) != "no", "`save_strategy` other than no"
    ),
    dependent(
        "metric_for_best_model greater_is_better",
        _saves_or_evaluates_best,
        "`load_best_model_at_end`, `early_stopping_patience` or `save_strategy` best",
    ),
    # `TrainingArguments` fills it in, whatever is asked for.
    dependent("fsdp_config", lambda config: bool(config.fsdp), "`fsdp`"),
    dependent("hub_model_id hub_private_repo hub_revision", lambda config: config.push_to_hub, "`push_to_hub`"),
    dependent(
        "hub_strategy hub_always_push", lambda config: False, "a `Trainer` in Python; a run is pushed once, at its end"
    ),
)


def check_used(config: Any, asked: Collection[str] | None = None) -> None:
    """Refuse settings of the stock Trainer that a trainer would ignore.

    Args:
        config: training arguments.
        asked: settings that the user set; None takes all that differ from their defaults.

    Raises:
        ConfigError: there are some.
    """
    problems = unused_problems(config, DEPENDENT, among=asked)
    if problems:
        raise ConfigError(f"{'; '.join(problems)}.")


def check_used_by_run(config: Any, asked: Collection[str], *, stops_early: bool) -> None:
    """Refuse settings of the stock Trainer that a run would ignore.

    Args:
        config: training arguments.
        asked: settings that the user set.
        stops_early: whether the run may end at a score.

    Raises:
        ConfigError: there are some.
    """
    chooses = {"metric_for_best_model", "greater_is_better"} if stops_early else set()
    problems = unused_problems(config, (*DEPENDENT, *DEPENDENT_OF_RUNS), among=set(asked) - chooses)
    if problems:
        raise ConfigError(f"{'; '.join(problems)}.")


def check_mappings(config: Any) -> None:
    """Check what holds several options in one setting, before `TrainingArguments` looks at it.

    Raises:
        ConfigError: a setting is no mapping, or has a key that is not known.
    """
    for name in _MAPPINGS:
        value = getattr(config, name)
        # Texts that begin like a JSON object are read by `TrainingArguments`.
        if value is not None and not isinstance(value, Mapping) and not str(value).lstrip().startswith("{"):
            raise ConfigError(f"`{name}` is {shortened(value)}; give a mapping of options to values.")
    from transformers.trainer_pt_utils import AcceleratorConfig

    given = config.accelerator_config
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ConfigError(f"`accelerator_config` is {shortened(given)}, which is no JSON: {error}.") from error
    if isinstance(given, Mapping):
        known = [entry.name for entry in dataclasses.fields(AcceleratorConfig)]
        _check_keys("accelerator_config", given, known)


def _check_keys(name: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ConfigError(
            f"`{name}`: unknown key {unknown[0]!r}.{close_match(str(unknown[0]), known)} Known: {', '.join(known)}."
        )


def check_start(config: Any) -> None:
    """Try what a Trainer makes of its arguments once training begins: optimizer, schedule, reports.

    Args:
        config: training arguments that `TrainingArguments` has resolved.

    Raises:
        ConfigError: one of them cannot be made; the message names the setting.
    """
    _check_checkpointing(config)
    for field in type(config).OPTIMIZERS:
        _check_optimizer(config, field)
    _check_optimizer_options(config)
    _check_schedule(config)
    _check_reports(config)
    if config.torch_compile_backend is not None:
        from accelerate.utils import DynamoBackend

        known = [backend.lower() for backend in DynamoBackend.list()]
        if config.torch_compile_backend.lower() not in known:
            raise ConfigError(
                f"`torch_compile_backend` is {config.torch_compile_backend!r}; choose one of {', '.join(known)}."
            )


def _check_checkpointing(config: Any) -> None:
    from torch.utils.checkpoint import checkpoint

    options = [
        name for name, found in inspect.signature(checkpoint).parameters.items() if found.kind is found.KEYWORD_ONLY
    ]
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        _check_keys(name, getattr(config, name) or {}, (*options, *_CHECKPOINTING_OPTIONS))


def _tried(what: str, make: Callable[[], Any]) -> Any:
    """Make something, and blame its settings for an error.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        return make()
    except (TypeError, ValueError, KeyError, AttributeError, ImportError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"{what}: {one_line(error).rstrip('.')}.") from error


def _optimizer_of(config: Any, field: str, **changes: Any) -> tuple[Any, dict[str, Any]] | None:
    """Return the class of an optimizer and its arguments; None where they are not known without the model."""
    from transformers import Trainer

    own = copy.copy(config)
    for name, value in {"optim": getattr(config, field), **changes}.items():
        setattr(own, name, value)
    try:
        return Trainer.get_optimizer_cls_and_kwargs(own)
    except ValueError as error:
        if "pass a model" in str(error):
            return None
        raise


def _check_optimizer(config: Any, field: str) -> None:
    import torch

    what = f"`{field}` {_value(getattr(config, field))}"
    options = _optimizer_options(config.optim_args)
    settings = f" with `optim_args` {config.optim_args!r}" if options else ""
    found = _tried(f"{what}{settings} cannot be made", lambda: _optimizer_of(config, field))
    if found is None:
        return
    made, arguments = found
    if isinstance(made, type) and made.__module__.startswith(("torch.", "transformers.")):
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        groups = [{"params": [weight], "weight_decay": config.weight_decay}]
        _tried(f"{what}{settings} cannot be made", lambda: made(groups, **arguments))


def _optimizer_options(text: str | None) -> dict[str, str]:
    """Read `optim_args`.

    Raises:
        ConfigError: it is not of the form that the Trainer reads.
    """
    parts = [part.partition("=") for part in (text or "").replace(" ", "").split(",")] if text else []
    if any(not name or not equals or not value or "=" in value for name, equals, value in parts):
        raise ConfigError(f"`optim_args` is {shortened(text)}; give {_OPTIONS_FORM}, such as momentum=0.9.")
    return {name: value for name, _, value in parts}


def _check_optimizer_options(config: Any) -> None:
    """Refuse options in `optim_args` that no optimizer of a config reads.

    Raises:
        ConfigError: there is one.
    """
    options, fields = _optimizer_options(config.optim_args), type(config).OPTIMIZERS
    for name in options:
        if not any(_reads_option(config, field, options, name) for field in fields):
            optimizers = " and ".join(f"`{field}` {_value(getattr(config, field))}" for field in fields)
            raise ConfigError(f"`optim_args`: {optimizers} reads no option `{name}`, which would be ignored.")


def _reads_option(config: Any, field: str, options: Mapping[str, str], name: str) -> bool:
    def made(values: Mapping[str, str]) -> Any:
        return _optimizer_of(config, field, optim_args=",".join(f"{key}={value}" for key, value in values.items()))

    without = made({key: value for key, value in options.items() if key != name})
    if without is None:
        return True
    for other in (options[name], *_OTHER_VALUES):
        try:
            if made({**options, name: other}) != without:
                return True
        except (TypeError, ValueError, AttributeError):
            return True
    return False


def _is_read(config: Any, name: str, other: Any) -> bool:
    """Say whether an optimizer of a config is made otherwise with another value of a setting."""
    for field in type(config).OPTIMIZERS:
        found = _optimizer_of(config, field)
        if found is None or found != _optimizer_of(config, field, **{name: other}):
            return True
    return False


def _check_schedule(config: Any) -> None:
    import torch
    from transformers import get_scheduler

    name, options = _value(config.lr_scheduler_type), config.lr_scheduler_kwargs
    settings = f" with `lr_scheduler_kwargs` {shortened(options)}" if options else ""

    def walk() -> None:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
        made = get_scheduler(
            name, optimizer, num_warmup_steps=1, num_training_steps=4, scheduler_specific_kwargs=options
        )
        if isinstance(made, torch.optim.lr_scheduler.LambdaLR):
            for _ in range(4):
                optimizer.step()
                made.step()

    _tried(f"`lr_scheduler_type` {name}{settings} cannot be made", walk)


def _check_reports(config: Any) -> None:
    from transformers.integrations import get_reporting_integration_callbacks

    if config.report_to:
        _tried(
            f"`report_to` {', '.join(config.report_to)}",
            lambda: [made() for made in get_reporting_integration_callbacks(config.report_to)],
        )
