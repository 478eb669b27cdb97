"""`XLTConfig`: `TrainingArguments` with the defaults and refusals that all strategies share."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_xlt.errors import ConfigError


@dataclass
class XLTConfig(TrainingArguments):
    """Settings of a training run; every field of `TrainingArguments` works as there.

    Defaults that differ from `TrainingArguments`: `per_device_eval_batch_size` 64 (evaluation covers many
    languages), `logging_nan_inf_filter` off (a diverging run must be seen), `logging_steps` 50.

    Raises:
        ConfigError: a value is out of range or a combination is refused.
    """

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
                "checkpoint with `--save-total-limit 1`, or none with `--save-strategy no`."
            )
        try:
            super().__post_init__()
        except ConfigError:
            raise
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(str(error)) from error
