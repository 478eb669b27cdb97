"""Which settings of soft layer selection are wrong alone, wrong together, or refused with something else."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from hf_xlt.errors import ConfigError
from hf_xlt.launch import divides_weights
from hf_xlt.registry import Refusal, dependent, unused_problems
from hf_xlt.strategies.soft_layers.rates import REFUSED

if TYPE_CHECKING:
    from hf_xlt.strategies.soft_layers.config import SoftLayerSelectionConfig


def choice_problems(config: Any, declared_by: type) -> list[str]:
    """Say which fields that a class declares have a value outside their choices."""
    hints = get_type_hints(declared_by)
    choices = {name: get_args(hints[name]) for name in declared_by.__annotations__ if "Literal" in str(hints[name])}
    return [
        f"`{name}` is {getattr(config, name)!r}; choose one of {', '.join(allowed)}"
        for name, allowed in choices.items()
        if getattr(config, name) not in allowed
    ]


def problems_of(config: SoftLayerSelectionConfig, declared_by: type) -> list[str]:
    """Say what is wrong with a config."""
    return choice_problems(config, declared_by) + _range_problems(config) + _combination_problems(config)


def _range_problems(config: SoftLayerSelectionConfig) -> list[str]:
    problems = []
    for name, low, optional in (
        ("inner_steps", 1, False),
        ("auxiliary_batch_size", 1, True),
        ("table_bins", 1, False),
        ("gate_hidden", 1, False),
        ("audit_episodes", 0, False),
        ("gate_updates", 1, True),
        ("frozen_layers", 0, False),
    ):
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= low
        if not (whole or (optional and value is None)):
            problems.append(f"`{name}` is {value!r}; it must be a whole number of {low} or more")
    for name in ("meta_learning_rate", "prior_weight", "freezing_bonus"):
        if not (is_number(getattr(config, name)) and getattr(config, name) >= 0):
            problems.append(f"`{name}` is {getattr(config, name)!r}; it must be a finite number of 0 or more")
    for name in ("gate_maximum", "gate_temperature"):
        if not (is_number(getattr(config, name)) and getattr(config, name) > 0):
            problems.append(f"`{name}` is {getattr(config, name)!r}; it must be a finite number above 0")
    if config.init_logit is not None and not is_number(config.init_logit):
        problems.append(f"`init_logit` is {config.init_logit!r}; it must be a finite number, or unset")
    if not (is_number(config.layer_decay) and 0 <= config.layer_decay <= 1):
        problems.append(f"`layer_decay` is {config.layer_decay!r}; it must be between 0 and 1")
    if not (is_number(config.unfreezing_share) and 0 < config.unfreezing_share <= 1):
        problems.append(f"`unfreezing_share` is {config.unfreezing_share!r}; it must be above 0 and at most 1")
    if isinstance(config.gate_hidden, int) and config.gate_hidden > 64:
        problems.append(f"`gate_hidden` is {config.gate_hidden}; it must be at most 64")
    for name, parse in (("layer_groups", parse_map), ("gate_values", parse_values)):
        if getattr(config, name) is not None:
            try:
                parse(getattr(config, name))
            except ConfigError as error:
                problems.append(str(error))
    return problems


_LEARNED = "gates that are learned: without `gates`, `gate_values` and `profile`"
DEPENDENT = (
    dependent(
        "mode gate_type inner_steps meta_gradient meta_learning_rate auxiliary_batch_size auxiliary_schedule "
        "query_dropout init_logit gate_maximum gate_temperature gate_normalization gradient_normalization "
        "prior_weight freezing_bonus",
        lambda config: config.learns,
        _LEARNED,
    ),
    dependent(
        "table_bins", lambda config: config.learns and config.gate_type == "table", f"`gate_type` table and {_LEARNED}"
    ),
    dependent(
        "gate_hidden",
        lambda config: config.learns and config.gate_type in ("mlp", "recurrent"),
        f"`gate_type` mlp or recurrent and {_LEARNED}",
    ),
    dependent(
        "audit_episodes",
        # None are made there, which is what 0 asks for.
        lambda config: _audits(config) or config.audit_episodes == 0,
        f"`inner_steps` of 2 or more, `meta_gradient` first_order and {_LEARNED}",
    ),
    dependent(
        "granularity separate_word_embeddings layer_groups",
        lambda config: config.gates is None,
        "gates that do not come from a file, which says what its groups are",
    ),
    dependent(
        "always_open",
        lambda config: config.gates is None and config.gate_values is None,
        "gates that neither come from a file nor from `gate_values`, which say it themselves",
    ),
    dependent(
        "hard_threshold",
        lambda config: config.profile == "learned",
        "constant gates: `profile` learned, `gates` or `gate_values`",
    ),
    dependent("layer_decay", lambda config: config.profile == "layerwise_decay", "`profile` layerwise_decay"),
    dependent("frozen_layers", lambda config: config.profile == "freeze_bottom", "`profile` freeze_bottom"),
    dependent(
        "unfreezing_share", lambda config: config.profile == "gradual_unfreezing", "`profile` gradual_unfreezing"
    ),
)
# A trainer in Python refuses the first, and may be given gates besides.
DEPENDENT_OF_RUNS = (
    dependent(
        "gate_updates",
        lambda config: config.learns and config.mode != "online",
        f"{_LEARNED}, and `mode` trajectory or episodic",
    ),
    dependent("interpolate_gates", lambda config: config.gates is not None, "`gates` of a model of another depth"),
)


def _audits(config: SoftLayerSelectionConfig) -> bool:
    return config.learns and config.inner_steps > 1 and config.meta_gradient == "first_order"


def _combination_problems(config: SoftLayerSelectionConfig) -> list[str]:
    problems = unused_problems(config, DEPENDENT)
    given = [name for name in ("gates", "gate_values") if getattr(config, name) is not None]
    given += ["profile"] if config.profile != "learned" else []
    if len(given) > 1:
        problems.append(f"`{given[0]}` and `{given[1]}` both say what the gates are; give one")
    stateful = config.gate_type in ("mlp", "recurrent")
    if stateful and config.inner_steps != 1 and not given:
        problems.append(
            f"`gate_type` {config.gate_type} has gates of its own for every update, which needs `inner_steps` 1"
        )
    if config.hard_threshold is not None and stateful:
        problems.append("`hard_threshold` needs gates that do not change: set `gate_type` to constant")
    if config.hard_threshold is not None and config.mode == "online" and not given:
        problems.append("`hard_threshold` freezes in a fine-tuning with known gates, which mode online has not")
    if config.shuffle_gates and stateful and config.gates is None:
        problems.append("`shuffle_gates` permutes gates of groups: set `gate_type` to constant or table")
    if config.shuffle_gates and (config.gate_values is not None or config.profile != "learned"):
        problems.append("`shuffle_gates` permutes learned gates, and these settings have none")
    if config.shuffle_gates and config.mode == "online" and not given:
        problems.append("`shuffle_gates` needs a fine-tuning after the gates are learned, which mode online has not")
    return problems


def is_number(value: object) -> bool:
    """Say whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def parse_map(text: str) -> dict[str, str]:
    """Read a JSON object of strings.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ConfigError(
            f"`layer_groups` is {text!r}; give a JSON object such as " + '{"layer\\\\.[01]\\\\.": "low"}'
        )
    return found


def parse_values(text: str) -> dict[str, float] | float:
    """Read a number of 0 or more, or a JSON object of such numbers.

    Raises:
        ConfigError: it is neither.
    """
    try:
        found = json.loads(str(text))
    except ValueError:
        found = None
    values = list(found.values()) if isinstance(found, dict) else [found]
    if not values or not all(is_number(value) and value >= 0 for value in values):
        raise ConfigError(
            f"`gate_values` is {text!r}; give a number of 0 or more, or a JSON object from groups to such"
        )
    return found


def _optimizer_name(config: SoftLayerSelectionConfig) -> str:
    return str(getattr(config.optim, "value", config.optim))


def _has_reentrant_checkpointing(config: SoftLayerSelectionConfig) -> bool:
    options = config.gradient_checkpointing_kwargs or {}
    return bool(config.gradient_checkpointing) and bool(options.get("use_reentrant"))


def _goes_back(config: SoftLayerSelectionConfig) -> bool:
    audits = config.meta_gradient == "first_order" and config.audit_episodes > 0
    return config.learns and config.inner_steps > 1 and (config.meta_gradient == "exact" or audits)


def _refused_optimizer(name: str, why: str) -> Refusal:
    return Refusal(
        lambda config: _optimizer_name(config) == name,
        f"optimizer `{name}` {why}. A gate multiplies the learning rate, which is wrong there. Choose another "
        "`optim`, such as adamw_torch.",
    )


REFUSALS = (
    *(_refused_optimizer(name, why) for name, why in REFUSED.items()),
    Refusal(
        divides_weights,
        "FSDP and DeepSpeed step over shards with optimizers of their own, which gates do not reach. Use plain data "
        "parallelism (`accelerate launch --multi_gpu`).",
    ),
    Refusal(
        lambda config: _goes_back(config) and _has_reentrant_checkpointing(config),
        "reentrant activation checkpointing has no second derivative, which exact gate gradients and the audit need. "
        'Set `activation_checkpointing_kwargs` to {"use_reentrant": false}, or `meta_gradient` to first_order and '
        "`audit_episodes` to 0.",
    ),
    Refusal(
        lambda config: config.learns and config.torch_compile,
        "`torch_compile` is not supported while gates are learned: query passes run on the model as it is. Leave it "
        "off, or fine-tune with gates that are known (`gates`).",
    ),
    Refusal(
        lambda config: config.learns and config.fp16,
        "fp16 scales gradients, which gate gradients would have to undo. Use `bf16`.",
    ),
    Refusal(
        lambda config: config.learns and config.load_best_model_at_end and config.mode == "online",
        "`load_best_model_at_end` in mode online would keep weights without the gates that they had. Leave it off, or "
        "use mode trajectory.",
    ),
)
