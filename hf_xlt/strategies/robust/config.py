"""`RobustConfig`: which perturbation the model is trained against, and what does not go with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

from hf_xlt.errors import ConfigError
from hf_xlt.registry import Refusal
from hf_xlt.strategies.robust.embedding_hook import REENTRANT
from hf_xlt.training.config import XLTConfig


@dataclass
class RobustConfig(XLTConfig):
    """Settings of robust training, besides those of `XLTConfig`.

    Evidence in the help texts: `paper` is stated in the paper, `related work` is read in the code of the named
    project, `ours` is our choice. The paper's own radii, steps, step size, start, noise law and clean-loss weight
    could not be read, so no default claims to be the paper's.

    Raises:
        ConfigError: values are out of range; the message lists all of them.
    """

    method: Literal["none", "adv", "rs_rp"] = field(
        default="adv",
        metadata={
            "help": "`adv`: adversarial training, `rs_rp`: randomized smoothing with random perturbations (both named "
            "in the paper, details ours), `none`: plain fine-tuning."
        },
    )
    epsilon: float = field(
        default=0.01,
        metadata={
            "help": "Radius of the perturbation, >= 0; 0 is plain fine-tuning. Standard deviation per coordinate for "
            "gaussian noise, half-width per coordinate for uniform noise and the linf norm. Ours; first grids: 0.01, "
            "0.03, 0.1 for adv, 0.1, 0.3, 1.0 (l2 noise) for rs_rp."
        },
    )
    eps_mode: Literal["relative", "absolute"] = field(
        default="relative",
        metadata={
            "help": "`relative` multiplies epsilon and step_size by the mean L2 norm of the vocabulary's embeddings "
            "at the start of training, since these norms differ between models. Ours."
        },
    )
    norm: Literal["l2", "linf"] = field(default="l2", metadata={"help": "Norm of adv's ball. Ours."})
    norm_scope: Literal["token", "sentence"] = field(
        default="token",
        metadata={
            "help": "One radius per `token`, or per `sentence` (the whole input, both sentences of a pair). A token "
            "radius does not depend on length. Ours."
        },
    )
    steps: int = field(
        default=1,
        metadata={"help": "Ascent steps of adv, >= 1; each costs 2/3 of a plain training step. Ours."},
    )
    step_size: float | None = field(
        default=None,
        metadata={
            "help": "Length of an ascent step, > 0, in the unit of epsilon. Unset: epsilon for one step, else "
            "1.5 * epsilon / steps. Ours."
        },
    )
    init: Literal["zero", "uniform", "gaussian"] = field(
        default="zero",
        metadata={
            "help": "Where the ascent starts; a random start helps with two or more steps. uniform with l2 as in "
            "FreeLB's code (related work), the rest ours."
        },
    )
    linf_direction: Literal["sign", "maxnorm"] = field(
        default="sign",
        metadata={
            "help": "Ascent direction in the linf norm: the gradient's sign (ours), or the gradient divided by its "
            "largest entry (related work: FreeLB's code)."
        },
    )
    noise: Literal["gaussian", "uniform", "l2_ball", "l2_sphere"] = field(
        default="gaussian",
        metadata={
            "help": "Noise law of rs_rp. A token's gaussian noise has length about epsilon * sqrt(embedding width). "
            "Ours; gaussian is the law of the smoothing certificate (related work: Cohen et al. 2019)."
        },
    )
    num_samples: int = field(
        default=1,
        metadata={"help": "Noise draws of rs_rp per step, >= 1, losses averaged; each costs a plain step. Ours."},
    )
    clean_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight in [0, 1] of the unperturbed loss; above 0 it costs a further plain step, at 1 nothing is "
            "perturbed. Ours; whether the paper mixes losses is unknown."
        },
    )
    inner_dropout: Literal["train", "shared", "eval"] = field(
        default="train",
        metadata={
            "help": "Dropout in the passes that search the perturbation: masks of their own (`train`), those of the "
            "training pass (`shared`; related work: FreeLB), or none (`eval`; also switches activation checkpointing "
            "off there, which takes more memory)."
        },
    )
    perturb_special_tokens: bool = field(
        default=True,
        metadata={
            "help": "Perturb special tokens such as [CLS] too; padding never is. Related work: FreeLB does so as well."
        },
    )
    start_step: int = field(
        default=0,
        metadata={
            "help": "First update that is perturbed, >= 0; earlier ones are plain fine-tuning. Helps against NaN at "
            "the start. Ours."
        },
    )

    def __post_init__(self) -> None:
        """Validate the perturbation's settings together, then the rest."""
        problems = [
            f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
            for name, choices in _choices().items()
            if getattr(self, name) not in choices
        ]
        problems += _range_problems(self)
        if problems:
            raise ConfigError(f"{'; '.join(problems)}.")
        super().__post_init__()

    @property
    def perturbs(self) -> bool:
        """Whether any update is other than plain fine-tuning."""
        return self.method != "none" and self.epsilon > 0 and self.clean_weight < 1

    @property
    def bounds_coordinates(self) -> bool:
        """Whether the radius is a size per coordinate rather than the length of a vector."""
        return self.noise in ("gaussian", "uniform") if self.method == "rs_rp" else self.norm == "linf"

    @property
    def ascent_length(self) -> float:
        """Length of an ascent step, in the unit of `epsilon`."""
        if self.step_size is not None:
            return self.step_size
        return self.epsilon if self.steps == 1 else 1.5 * self.epsilon / self.steps


def _choices() -> dict[str, tuple[str, ...]]:
    hints = get_type_hints(RobustConfig)
    return {name: get_args(hints[name]) for name in RobustConfig.__annotations__ if "Literal" in str(hints[name])}


def _range_problems(config: RobustConfig) -> list[str]:
    def at_least(name: str, low: int) -> list[str]:
        value = getattr(config, name)
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        return [] if good else [f"`{name}` is {value!r}; it must be a whole number of {low} or more"]

    problems = at_least("steps", 1) + at_least("num_samples", 1) + at_least("start_step", 0)
    if not (_is_number(config.epsilon) and config.epsilon >= 0):
        problems.append(f"`epsilon` is {config.epsilon!r}; it must be a finite number of 0 or more")
    if not (config.step_size is None or (_is_number(config.step_size) and config.step_size > 0)):
        problems.append(f"`step_size` is {config.step_size!r}; it must be above 0, or unset")
    if not (_is_number(config.clean_weight) and 0 <= config.clean_weight <= 1):
        problems.append(f"`clean_weight` is {config.clean_weight!r}; it must be between 0 and 1")
    return problems


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _has_reentrant_checkpointing(config: RobustConfig) -> bool:
    # `gradient_checkpointing` is the name before transformers 5.23 and its mirror there.
    options = config.gradient_checkpointing_kwargs or {}
    return bool(config.gradient_checkpointing) and bool(options.get("use_reentrant"))


SHARDED = (
    "FSDP and DeepSpeed shard the embedding, and the search for a perturbation runs on the unsharded model. Use plain "
    "data parallelism (`accelerate launch --multi_gpu`)."
)

REFUSALS = (
    Refusal(
        lambda config: config.perturbs and config.torch_compile,
        "`torch_compile` is not supported: a compiled model does not see the temporary hook that adds the "
        "perturbation. Leave it off.",
    ),
    Refusal(lambda config: config.perturbs and bool(config.fsdp or config.deepspeed), SHARDED),
    Refusal(
        lambda config: config.perturbs and config.method == "adv" and _has_reentrant_checkpointing(config), REENTRANT
    ),
    Refusal(
        lambda config: config.perturbs and config.n_gpu > 1,
        "`nn.DataParallel` would have to split the perturbation. Start one process per GPU with `accelerate launch`, "
        "or show the run a single GPU with CUDA_VISIBLE_DEVICES.",
    ),
)


def cost(config: RobustConfig) -> float:
    """Return the cost of an update in plain steps: (2K + 3) / 3 for K ascent steps, n for n noise draws.

    A plain step is 3 units (forward, gradients of activations, gradients of weights), or 4 with activation
    checkpointing, where an ascent step is 3. With frozen weights (LoRA) an ascent step is about a full plain step,
    which the settings here do not tell.
    """
    if not config.perturbs:
        return 1.0
    clean = 1.0 if config.clean_weight > 0 else 0.0
    if config.method == "rs_rp":
        return config.num_samples + clean
    checkpointed = config.gradient_checkpointing and config.inner_dropout != "eval"
    inner = 3 / 4 if checkpointed else 2 / 3
    return 1.0 + inner * config.steps + clean
