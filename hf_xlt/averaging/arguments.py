"""What the user asks of averaging in a run (`--average`), and what does not go with it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from hf_xlt.arguments import Arguments, split_names
from hf_xlt.averaging.schedule import EMA, LAST_K, SAVE, UNIFORM, Schedule, parse_every
from hf_xlt.averaging.summary import every_words, mode_words
from hf_xlt.comparator_results import AVERAGED, COMPARATORS, LAST, TARGET_DEV_ORACLE
from hf_xlt.errors import ConfigError, close_match, setting
from hf_xlt.launch import divides_weights


@dataclass
class AverageArguments:
    """Average the run's own snapshots; the output is their mean."""

    _argument_group_name = "average"

    average: bool = field(
        default=False,
        metadata={
            "help": "Average snapshots of the last phase, which trains the task, and save, score and push their mean; "
            "the last weights lie beside it in last/. With --peft the factors of the adapters are averaged one by "
            "one, which makes sense within one run, and merged then."
        },
    )
    average_every: str = field(
        default="0.1",
        metadata={
            "help": "When to take a snapshot: below 1 a share of all updates (0.1: ten snapshots, as in the paper's "
            "code), from 1 on a number of updates, or `epoch`, or `save`. The last update always counts."
        },
    )
    average_mode: Literal["uniform", "last_k", "ema"] = field(
        default=UNIFORM,
        metadata={"help": "Which mean: of all snapshots, of the last ones, or an exponential one."},
    )
    average_start: float = field(
        default=0.0,
        metadata={"help": "Leave earlier snapshots out: up to 1 a share of all updates, beyond it an update."},
    )
    average_last_k: int | None = field(
        default=None, metadata={"help": "How many snapshots count with --average_mode last_k, 1 or more."}
    )
    average_ema_decay: float | None = field(
        default=None,
        metadata={"help": "Decay per snapshot with --average_mode ema, from 0 to below 1; see --average_every."},
    )
    average_evaluate: bool = field(
        default=False, metadata={"help": "Evaluate the average so far during training, not the weights in training."}
    )
    average_compare: list[str] | None = field(
        default=None,
        metadata={
            "help": "Also score what could have been taken in place of the average, separated by commas: last; "
            "source_dev, the snapshot that is best on source-language validation data; target_dev_oracle, for each "
            "target language the snapshot that is best on its validation labels, which true transfer does not have. "
            "All snapshots stay on the disk until they are scored."
        },
    )

    def __post_init__(self) -> None:
        """Split the list."""
        self.average_compare = split_names(self.average_compare) or None

    def schedule(self) -> Schedule:
        """Return when snapshots are taken and what becomes of them.

        Raises:
            ConfigError: a value cannot be used, or two contradict each other.
        """
        made = Schedule(
            parse_every(self.average_every),
            self.average_mode,
            self.average_start,
            self.average_last_k,
            self.average_ema_decay,
        )
        made.check(lambda name: setting(f"average_{name}"))
        return made

    @property
    def compares_validation(self) -> bool:
        """Whether rivals of the average are chosen on source-language validation data."""
        return bool(self.average_compare) and set(self.average_compare) != {LAST}

    @property
    def compares_oracle(self) -> bool:
        """Whether target-language validation labels choose a rival of the average."""
        return TARGET_DEV_ORACLE in (self.average_compare or ())

    def describe(self) -> str:
        """Say for a plan what will be averaged."""
        schedule = self.schedule()
        words = mode_words(schedule.mode, schedule.last_k, schedule.ema_decay)
        return f"{words} taken {every_words(schedule.every)}; the last weights go to last/"


def check_average(arguments: Arguments) -> None:
    """Settle whether a run averages, and refuse what does not go with that.

    Raises:
        ConfigError: a setting cannot be used, or does nothing.
    """
    asked, config, strategy = arguments.average, arguments.config, arguments.strategy
    if strategy.averages:
        if "average" in arguments.explicit and not asked.average:
            raise ConfigError(
                f"strategy `{strategy.name}` averages; leave `--average` out, or choose another strategy."
            )
        asked.average = True
    if not asked.average:
        own = {entry.name for entry in fields(asked)} - {"average"}
        unused = sorted(own & arguments.explicit)
        if unused:
            raise ConfigError(f"`--{unused[0].replace('_', '-')}` does nothing without `--average`; add that.")
        return
    schedule = asked.schedule()
    if divides_weights(config):
        raise ConfigError(
            "`--average` does not go with FSDP or DeepSpeed, which divide the weights. Keep checkpoints "
            "(`--save-total-limit 10`) and average them with `hf-xlt average`."
        )
    saves = str(getattr(config.save_strategy, "value", config.save_strategy))
    if schedule.every == SAVE and saves not in ("steps", "epoch"):
        raise ConfigError(f"`--average-every save` needs regular saves, and `--save-strategy` is {saves}.")
    if schedule.mode == LAST_K and arguments.run.early_stopping_patience is not None:
        raise ConfigError(
            "`--average-mode last_k` counts from the planned end, which `--early-stopping-patience` may never reach. "
            f"Take `--average-mode {EMA}`, or leave one of them out."
        )
    _check_evaluation(asked, config)
    rivals = [name for name in COMPARATORS if name != AVERAGED]
    unknown = [name for name in asked.average_compare or () if name not in rivals]
    if unknown:
        raise ConfigError(
            f"`--average-compare {unknown[0]}` is not known.{close_match(unknown[0], rivals)} Choose from "
            f"{', '.join(rivals)}; the average is scored anyway."
        )


def _check_evaluation(asked: AverageArguments, config: object) -> None:
    if not asked.average_evaluate:
        return
    if str(getattr(config.eval_strategy, "value", config.eval_strategy)) == "no":
        raise ConfigError("`--average-evaluate` needs evaluations: add `--eval-strategy epoch` (or `steps`).")
    if config.load_best_model_at_end:
        raise ConfigError(
            "`--average-evaluate` with `--load-best-model-at-end` would select checkpoints by the score of weights "
            "that they do not hold. Leave one of them out."
        )
