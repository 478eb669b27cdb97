"""`MetaPretrainingConfig`: how a budget of pre-training is divided, and what its phases predict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_xlt.errors import ConfigError
from hf_xlt.languages import check_code, find_same
from hf_xlt.pretraining.plan import CONTRASTIVE, DISTILL, MLM, TLM, Phase, Source, split_budget
from hf_xlt.pretraining.streaming import MAX_FAILED_SHARDS
from hf_xlt.registry import Refusal, dependent
from hf_xlt.training.config import XLTConfig

META, CROSS = "meta", "cross"
# `distill` is left out: an update with a teacher costs more, so budgets that are compared would not be equal.
_OBJECTIVES = (MLM, TLM, CONTRASTIVE)
# `hf-xlt pretrain` starts from the same values.
OPTIMIZER_SETTINGS: dict[str, Any] = {
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-6,
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.06,
}

# Fields that say how a run is divided into phases, and what these predict.
PHASE_FIELDS = (
    "total_steps",
    "meta_fraction",
    "meta_language",
    "objectives",
    "tlm_weight",
    "tlm_share",
    "contrastive_weight",
    "alpha",
    "replay_floor",
    "masked_share",
    "whole_words",
    "isolated",
    "pretraining_batch_size",
    "meta_learning_rate",
    "cross_learning_rate",
    "held_out_share",
)


@dataclass
class MetaPretrainingConfig(XLTConfig):
    """Settings of two-phase pre-training, besides those of `XLTConfig`.

    In a run with a task (`--strategy meta-pretrain`) the encoder is pre-trained on `--text-dataset` in two phases and
    then fine-tuned on the source data; there the fields of `TrainingArguments` are those of the fine-tuning. The
    abstract of the paper gives the two phases; every value here is our choice.

    Raises:
        ConfigError: values are out of range; the message lists all of them.
    """

    total_steps: int = field(
        default=1000, metadata={"help": "T, updates of both pre-training phases together, >= 1. Ours."}
    )
    meta_fraction: float = field(
        default=0.5,
        metadata={
            "help": "f, share of total_steps for the monolingual phase, in [0, 1]; 0 is single-phase multilingual "
            "pre-training, the baseline at equal budget. Ours."
        },
    )
    meta_language: str = field(default="en", metadata={"help": "Language of the monolingual phase. Ours."})
    objectives: str = field(
        default="mlm",
        metadata={
            "help": "Objectives of the multilingual phase, joined by `+`: mlm, tlm (translation pairs in one row), "
            "contrastive (translations closer than other sentences; our addition to the paper). tlm and contrastive "
            "need text with equal ids in several languages."
        },
    )
    tlm_weight: float = field(default=1.0, metadata={"help": "Weight of the tlm loss, > 0. Ours."})
    tlm_share: float = field(default=0.5, metadata={"help": "Share of rows that hold translation pairs. Ours."})
    contrastive_weight: float = field(default=1.0, metadata={"help": "Weight of the contrastive loss, > 0. Ours."})
    alpha: float = field(
        default=0.7, metadata={"help": "Exponent of the language mixture: 1 follows the data, 0 is uniform. Ours."}
    )
    replay_floor: float = field(
        default=0.0, metadata={"help": "Least share of meta_language in the multilingual phase, in [0, 1). Ours."}
    )
    masked_share: float = field(default=0.15, metadata={"help": "Share of tokens to predict, in (0, 1]. Ours."})
    whole_words: bool = field(default=False, metadata={"help": "Mask whole words. Ours."})
    isolated: bool = field(
        default=False, metadata={"help": "Documents packed into one row do not attend to each other. Ours."}
    )
    row_length: int = field(default=128, metadata={"help": "Tokens of a packed row, 8 or more. Ours."})
    pretraining_batch_size: int = field(
        default=32, metadata={"help": "Packed rows per device in the pre-training phases, >= 1. Ours."}
    )
    meta_learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak learning rate of the monolingual phase, > 0. Ours."}
    )
    cross_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the multilingual phase; unset: half the first. Ours."}
    )
    pooling: Literal["auto", "mean", "first"] = field(
        default="auto",
        metadata={
            "help": "Sentence vector of the contrastive loss: mean of the last states, or the first one. auto: as the "
            "model's own classification head pools. Ours."
        },
    )
    chunk_rows: int | None = field(
        default=None,
        metadata={"help": "Rows of logits held at a time; unset: some 31 MiB of them, more for large vocabularies."},
    )
    epoch_limit: float = field(
        default=20.0, metadata={"help": "Warn when a language's text would be read more often than this."}
    )
    held_out_share: float = field(
        default=0.0,
        metadata={"help": "Share of documents kept from training, to report their masked-LM loss, in [0, 0.5]."},
    )
    strict_resume: bool = field(
        default=False,
        metadata={"help": "Refuse to resume streamed text with another number of processes or loader workers."},
    )
    max_failed_shards: float = field(
        default=MAX_FAILED_SHARDS,
        metadata={
            "help": "Share of a streamed language's shards that may fail in one pass, in [0, 1); each is skipped for "
            "that pass with a warning, and more of them end the run. Ours."
        },
    )
    allow_phase_change: bool = field(
        default=False, metadata={"help": "Resume although the definition of the phase under way has changed."}
    )

    def __post_init__(self) -> None:
        """Validate, then let `XLTConfig` resolve the rest."""
        problems = _problems(self)
        if problems:
            raise ConfigError(f"{'; '.join(problems)}.")
        check_code(self.meta_language)
        super().__post_init__()


def _problems(config: MetaPretrainingConfig) -> list[str]:
    limits = {
        "total_steps": (config.total_steps >= 1, "1 or more"),
        "meta_fraction": (0 <= config.meta_fraction <= 1, "a share in [0, 1]"),
        "tlm_weight": (config.tlm_weight > 0, "above 0"),
        "tlm_share": (0 < config.tlm_share < 1, "a share between 0 and 1"),
        "contrastive_weight": (config.contrastive_weight > 0, "above 0"),
        "alpha": (math.isfinite(config.alpha) and config.alpha >= 0, "a finite number of 0 or more"),
        "replay_floor": (0 <= config.replay_floor < 1, "a share in [0, 1)"),
        "masked_share": (0 < config.masked_share <= 1, "a share in (0, 1]"),
        "row_length": (config.row_length >= 8, "8 tokens or more"),
        "pretraining_batch_size": (config.pretraining_batch_size >= 1, "1 or more"),
        "meta_learning_rate": (config.meta_learning_rate > 0, "above 0"),
        "cross_learning_rate": (config.cross_learning_rate is None or config.cross_learning_rate > 0, "above 0"),
        "chunk_rows": (config.chunk_rows is None or config.chunk_rows >= 1, "1 or more"),
        "epoch_limit": (config.epoch_limit > 0, "above 0"),
        "held_out_share": (0 <= config.held_out_share <= 0.5, "a share in [0, 0.5]"),
        "max_failed_shards": (0 <= config.max_failed_shards < 1, "a share in [0, 1)"),
    }
    problems = [
        f"`{name}` is {getattr(config, name)}; it must be {allowed}"
        for name, (fits, allowed) in limits.items()
        if not fits
    ]
    unknown = [name for name in objective_names(config) if name not in _OBJECTIVES]
    if unknown:
        elsewhere = " (a plan of `hf-xlt pretrain` takes it)" if unknown[0] == DISTILL else ""
        problems.append(f"`objectives` names {unknown[0]!r}{elsewhere}; choose from {', '.join(_OBJECTIVES)}")
    return problems


def objective_names(config: MetaPretrainingConfig) -> list[str]:
    """Return the objectives of the multilingual phase."""
    return [name.strip() for name in config.objectives.split("+") if name.strip()]


def two_phases(config: MetaPretrainingConfig, languages: tuple[str, ...]) -> list[Phase]:
    """Return the phases of a run with a task: monolingual, then multilingual; one of them at f = 0 or 1.

    Args:
        config: the run's config.
        languages: languages of the text.

    Raises:
        ConfigError: there is no text in the language of the first phase.
    """
    # The text may call the language by another code.
    meta_language = find_same(config.meta_language, languages) or config.meta_language
    if config.meta_fraction > 0 and meta_language not in languages:
        raise ConfigError(
            f"there is no text in `{config.meta_language}` for the monolingual phase; the text has "
            f"{', '.join(languages)}. Name one by `meta_language`, or set `meta_fraction` to 0."
        )
    weights = {TLM: config.tlm_weight, CONTRASTIVE: config.contrastive_weight}
    cross_rate = config.cross_learning_rate or config.meta_learning_rate / 2
    shared = {"masked_share": config.masked_share, "whole_words": config.whole_words, "isolated": config.isolated}
    # The text of such a run comes by role, not by the phase's own sources.
    meta = Phase(
        META,
        config.total_steps,
        sources=(Source("text", (meta_language,)),),
        learning_rate=config.meta_learning_rate,
        **shared,
    )
    floors = {meta_language: config.replay_floor} if config.replay_floor else {}
    cross = Phase(
        CROSS,
        config.total_steps,
        sources=(Source("text", languages),),
        objectives={name: weights.get(name, 1.0) for name in objective_names(config) or [MLM]},
        learning_rate=cross_rate,
        alpha=config.alpha,
        floors=floors,
        tlm_share=config.tlm_share,
        pivot=meta_language,
        **shared,
    )
    return split_budget([meta, cross], config.total_steps, config.meta_fraction)


def _predicts(config: MetaPretrainingConfig, *names: str) -> bool:
    """Say whether the multilingual phase has all of some objectives."""
    chosen = objective_names(config) or [MLM]
    return config.meta_fraction < 1 and all(name in chosen for name in names)


def _masks(config: MetaPretrainingConfig) -> bool:
    return config.meta_fraction > 0 or _predicts(config, MLM) or _predicts(config, TLM)


_MULTILINGUAL = "the multilingual phase: `meta_fraction` below 1"
# Of a run with a task; in a plan of `hf-xlt pretrain` each phase says these things.
DEPENDENT_OF_RUNS = (
    dependent(
        "meta_language",
        lambda config: config.meta_fraction > 0 or config.replay_floor > 0,
        "a monolingual phase (`meta_fraction` above 0) or `replay_floor`",
    ),
    dependent("objectives alpha cross_learning_rate", _predicts, _MULTILINGUAL),
    dependent("replay_floor", lambda config: _predicts(config, MLM), f"mlm among the `objectives` of {_MULTILINGUAL}"),
    dependent(
        "meta_learning_rate",
        lambda config: config.meta_fraction > 0 or config.cross_learning_rate is None,
        "a monolingual phase (`meta_fraction` above 0), or without `cross_learning_rate`",
    ),
    dependent("tlm_weight", lambda config: _predicts(config, TLM), f"tlm among the `objectives` of {_MULTILINGUAL}"),
    dependent(
        "tlm_share",
        lambda config: _predicts(config, MLM, TLM),
        f"mlm and tlm among the `objectives` of {_MULTILINGUAL}",
    ),
    dependent(
        "contrastive_weight pooling",
        lambda config: _predicts(config, CONTRASTIVE),
        f"contrastive among the `objectives` of {_MULTILINGUAL}",
    ),
    dependent("masked_share whole_words isolated", _masks, "the objectives mlm and tlm"),
    dependent("strict_resume max_failed_shards", lambda config: False, "streamed text, which `hf-xlt pretrain` reads"),
)


REFUSALS = (
    Refusal(
        lambda config: config.torch_compile,
        "`torch_compile` is not supported: the masked positions are picked out between encoder and head. Leave it "
        "off.",
    ),
    Refusal(
        lambda config: config.use_liger_kernel,
        "`use_liger_kernel` is not supported: it replaces the output layer that computes the loss. Leave it off.",
    ),
    Refusal(
        lambda config: config.embedding_rows == "seen",
        "`embedding_rows` seen is not supported: masked language modelling puts any token of the vocabulary in, and "
        "predicts any. Leave it at all.",
    ),
)
