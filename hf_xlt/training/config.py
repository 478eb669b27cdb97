"""`XLTConfig`: `TrainingArguments` with the defaults and refusals that all strategies share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from transformers import TrainingArguments

from hf_xlt.errors import ConfigError
from hf_xlt.training.embedding_rows import settings_problem
from hf_xlt.training.stock_settings import check_mappings


@dataclass
class XLTConfig(TrainingArguments):
    """Settings of a training run; every field of `TrainingArguments` works as there.

    Defaults that differ from `TrainingArguments`: `per_device_eval_batch_size` 64 (evaluation covers many
    languages), `logging_nan_inf_filter` off (a diverging run must be seen), `logging_steps` 50.

    Raises:
        ConfigError: a value is out of range or a combination is refused.
    """

    # Settings that name a file of the user's, which records tell by name and hash, not by path.
    LOCAL_FILES: ClassVar[tuple[str, ...]] = ()
    # Settings that name an optimizer.
    OPTIMIZERS: ClassVar[tuple[str, ...]] = ("optim",)

    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Batch size per device for evaluation; languages share batches."}
    )
    logging_steps: float = field(
        default=50, metadata={"help": "Log every so many updates; below 1 a share of all updates."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Replace non-finite losses in the log by the running mean. Off, so that they are seen."},
    )

    embedding_rows: Literal["all", "seen"] = field(
        default="all",
        metadata={
            "help": "Rows of the word embeddings that training holds and updates: `all`, or of the tokens `seen` in "
            "what it trains and selects on. The result is the same; large vocabularies take less memory and time."
        },
    )

    def __post_init__(self) -> None:
        """Validate, then let `TrainingArguments` resolve devices and schedules."""
        if self.enable_jit_checkpoint:
            raise ConfigError(
                "`enable_jit_checkpoint` is not supported: an interrupted run (Ctrl-C, SIGTERM) already saves a "
                "resumable checkpoint. Leave it off."
            )
        if self.save_only_model:
            raise ConfigError(
                "`save_only_model` is not supported: such checkpoints cannot be resumed. To save disk, keep one "
                "checkpoint with `save_total_limit` 1, or none with `save_strategy` no."
            )
        if self.batch_eval_metrics:
            raise ConfigError("`batch_eval_metrics` is not supported: languages are scored whole. Leave it off.")
        rows = settings_problem(self)
        problems = [*_range_problems(self), *([rows] if rows else [])]
        if problems:
            raise ConfigError(f"{'; '.join(problems)}.")
        check_mappings(self)
        try:
            super().__post_init__()
        except ConfigError:
            raise
        except (ValueError, TypeError, NotImplementedError, ImportError) as error:
            raise ConfigError(str(error)) from error


def _range_problems(config: XLTConfig) -> list[str]:
    """Say what `TrainingArguments` would accept and training could not use."""
    problems = [
        f"`{name}` is {getattr(config, name)}; it must be 1 or more"
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        if getattr(config, name) < 1
    ]
    if config.dataloader_num_workers < 0:
        problems.append(f"`dataloader_num_workers` is {config.dataloader_num_workers}; it must be 0 or more")
    if not 0 <= config.label_smoothing_factor <= 1:
        problems.append(f"`label_smoothing_factor` is {config.label_smoothing_factor}; it must be between 0 and 1")
    if not (math.isfinite(config.weight_decay) and config.weight_decay >= 0):
        problems.append(f"`weight_decay` is {config.weight_decay}; it must be a finite number of 0 or more")
    if not 0 <= config.seed < 2**32:
        problems.append(f"`seed` is {config.seed}; it must be between 0 and 2**32 - 1")
    if not (math.isfinite(config.learning_rate) and config.learning_rate >= 0):
        problems.append(f"`learning_rate` is {config.learning_rate}; it must be a finite number of 0 or more")
    if config.eval_steps == 0:
        problems.append("`eval_steps` is 0; give a number of updates, or below 1 a share of them")
    if config.max_steps == 0:
        problems.append("`max_steps` is 0, which trains nothing; give a number of updates, or -1 for whole epochs")
    if config.max_steps < 0 and not config.num_train_epochs > 0:
        problems.append(f"`num_train_epochs` is {config.num_train_epochs}, which trains nothing; give more than 0")
    return problems
