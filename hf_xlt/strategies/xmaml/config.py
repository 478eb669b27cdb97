"""`XMAMLConfig`: how the initial weights are meta-learned."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hf_xlt.errors import ConfigError
from hf_xlt.launch import divides_weights
from hf_xlt.registry import Refusal, dependent, unused_problems
from hf_xlt.strategies.soft_layers.checks import choice_problems, is_number
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.embedding_rows import optimizer_problem

ALL, HEAD = "all", "head"


@dataclass
class XMAMLConfig(XLTConfig):
    """Settings of X-MAML, besides those of `XLTConfig`, which are of the fine-tuning on the source before it.

    Evidence in the help texts: `code` is read in the authors' published code, `ours` is our choice.

    Raises:
        ConfigError: values are out of range; the message lists all of them.
    """

    OPTIMIZERS: ClassVar[tuple[str, ...]] = ("optim", "meta_optimizer")

    order: Literal["second", "first", "reptile", "plain"] = field(
        default="second",
        metadata={
            "help": "`second`: MAML, exact (code); `first`: first-order MAML; `reptile`; `plain`: the baseline, "
            "fine-tuning on the same auxiliary examples without any inner step. The last three are ours."
        },
    )
    meta_steps: int = field(
        default=100, metadata={"help": "Meta-updates, >= 1. Ours; the code's value is an argument it does not record."}
    )
    meta_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate of the meta-updates, >= 0. 1e-5 in the scripts (code)."}
    )
    meta_optimizer: str = field(
        default="adamw_torch",
        metadata={
            "help": "Optimizer of the meta-updates, a value of `optim`; without weight decay AdamW is the Adam of the "
            "code."
        },
    )
    meta_max_grad_norm: float = field(
        default=0.0, metadata={"help": "Clip meta-gradients at this norm; 0 does not (code)."}
    )
    inner_learning_rate: float = field(
        default=1e-4,
        metadata={
            "help": "Rate of the inner steps, >= 0. 1e-4 (code), at which the meta-gradient is nearly the plain one: "
            "see the logged cosine."
        },
    )
    inner_steps: int = field(default=1, metadata={"help": "Inner steps, >= 1. The code always takes one."})
    inner_scope: str = field(
        default=ALL,
        metadata={
            "help": "What inner steps adapt: `all`, `head` (ANIL), or a regular expression of parameter names. The "
            "meta-update moves everything. all (code)."
        },
    )
    task_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Examples per language and meta-update, over all processes, >= 2, cut into support and query. "
            "Unset: as many as an update of the fine-tuning has. 32 in the scripts (code)."
        },
    )
    support_share: float = field(
        default=0.5, metadata={"help": "Share of them that is the support, in (0, 1). A half (code)."}
    )
    episode: Literal["same_language", "cross_language"] = field(
        default="same_language",
        metadata={
            "help": "`same_language`: support and query are of one auxiliary language (code); `cross_language`: the "
            "support is of the source, as in soft layer selection. Ours, after X-METRA-ADA and XLA-MAML."
        },
    )
    aggregate: Literal["sum", "mean"] = field(
        default="sum", metadata={"help": "How the meta-gradients of the languages are put together. sum (code)."}
    )
    cosine_steps: int = field(
        default=10,
        metadata={
            "help": "Every so many meta-updates log the cosine between the meta-gradient and the plain query gradient "
            "at the same weights, at the price of a pass; 0 is never."
        },
    )
    fine_tune_first: bool = field(
        default=True,
        metadata={"help": "Fine-tune on the source before; off where the model was fine-tuned for the task already."},
    )
    few_shot_steps: int = field(
        default=0,
        metadata={"help": "Updates of a last stage on the shots (`--shots`) of all target languages; 0 is none."},
    )
    few_shot_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate of that stage, >= 0. 1e-5 in the scripts (code)."}
    )

    def __post_init__(self) -> None:
        """Validate the meta-learning's settings together, then the rest."""
        problems = choice_problems(self, XMAMLConfig) + _problems(self)
        rows = optimizer_problem(self.meta_optimizer, "meta_optimizer") if self.embedding_rows == "seen" else None
        problems += [rows] if rows else []
        if problems:
            raise ConfigError(f"{'; '.join(problems)}.")
        super().__post_init__()

    @property
    def needs_second_derivatives(self) -> bool:
        """Whether meta-gradients go back through inner steps."""
        return self.order == "second" and self.inner_learning_rate > 0


def _cuts_tasks(config: XMAMLConfig) -> bool:
    return config.order in ("second", "first") or config.episode == "cross_language"


DEPENDENT = (
    dependent(
        "inner_learning_rate inner_steps inner_scope",
        lambda config: config.order != "plain",
        "inner steps: `order` second, first or reptile",
    ),
    dependent(
        "support_share", _cuts_tasks, "`order` second or first, or `episode` cross_language: else no query is cut off"
    ),
    dependent(
        "cosine_steps",
        # No cosine is measured there, which is what 0 asks for.
        lambda config: config.order in ("second", "first") or config.cosine_steps == 0,
        "`order` second or first",
    ),
)
_FIRST = "the fine-tuning on the source: `fine_tune_first`"
# A trainer that only meta-learns reads these in their own right; a run has `meta_steps` and `meta_learning_rate`.
DEPENDENT_OF_RUNS = (
    dependent("few_shot_learning_rate", lambda config: config.few_shot_steps > 0, "`few_shot_steps` of 1 or more"),
    dependent(
        "learning_rate num_train_epochs max_steps eval_strategy eval_steps load_best_model_at_end warmup_steps",
        lambda config: config.fine_tune_first,
        _FIRST,
    ),
    dependent(
        "lr_scheduler_type lr_scheduler_kwargs weight_decay optim max_grad_norm",
        lambda config: config.fine_tune_first or config.few_shot_steps > 0,
        f"{_FIRST}, or that on shots (`few_shot_steps`)",
    ),
)


def _problems(config: XMAMLConfig) -> list[str]:
    problems = unused_problems(config, DEPENDENT)
    for name, low, optional in (
        ("meta_steps", 1, False),
        ("inner_steps", 1, False),
        ("task_batch_size", 2, True),
        ("cosine_steps", 0, False),
        ("few_shot_steps", 0, False),
    ):
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= low
        if not (whole or (optional and value is None)):
            problems.append(f"`{name}` is {value!r}; it must be a whole number of {low} or more")
    for name in ("meta_learning_rate", "inner_learning_rate", "meta_max_grad_norm", "few_shot_learning_rate"):
        if not (is_number(getattr(config, name)) and getattr(config, name) >= 0):
            problems.append(f"`{name}` is {getattr(config, name)!r}; it must be a finite number of 0 or more")
    if not (is_number(config.support_share) and 0 < config.support_share < 1):
        problems.append(f"`support_share` is {config.support_share!r}; it must be above 0 and below 1")
    if config.order == "reptile" and config.inner_learning_rate == 0:
        problems.append("`order` reptile divides by `inner_learning_rate`, which is 0; set it above 0")
    if config.order == "reptile" and config.episode == "cross_language":
        problems.append("`order` reptile has no query, so `episode` cross_language would train on the source alone")
    if config.inner_scope not in (ALL, HEAD):
        try:
            re.compile(config.inner_scope)
        except re.error as error:
            problems.append(f"`inner_scope` is {config.inner_scope!r}, which is no regular expression: {error}")
    return problems


REFUSALS = (
    Refusal(
        divides_weights,
        "FSDP and DeepSpeed shard the weights, and inner steps run on the unsharded model. Use plain data parallelism "
        "(`accelerate launch --multi_gpu`).",
    ),
    Refusal(
        lambda config: config.fp16,
        "fp16 scales losses, which inner steps would have to undo. Use `bf16`.",
    ),
    Refusal(
        lambda config: config.torch_compile,
        "`torch_compile` is not supported: inner steps run the model on other weights. Leave it off.",
    ),
    Refusal(
        lambda config: config.meta_optimizer in ("lomo", "adalomo"),
        "`lomo` and `adalomo` update weights within a backward pass, and a meta-gradient comes from several. Choose "
        "another `meta_optimizer`.",
    ),
)
