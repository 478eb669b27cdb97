"""What the user asks for: the arguments of a run, from the command line, a YAML file and the defaults.

Order of precedence: command line, then `--config`, then the embedded task's defaults, then each field's own default.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_xlt.errors import ConfigError, close_match
from hf_xlt.languages import check_code
from hf_xlt.registry import STRATEGIES, Strategy, get_strategy

EMBEDDED = "embedded"
ALL_LANGUAGES = "all"


@dataclass
class RunArguments:
    """What to run, and what to do with what is there already."""

    _argument_group_name = "run"

    strategy: str = field(
        default="finetune", metadata={"help": "How to transfer; `hf-xlt strategies` lists the strategies."}
    )
    config: str | None = field(
        default=None, metadata={"help": "YAML file of arguments; what the command line names wins over it."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Continue the run in --output_dir from its newest complete checkpoint."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Delete the run that --output_dir holds, and start anew."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Print what would be run, and stop."})
    floor: bool = field(
        default=True,
        metadata={"help": "With the embedded task, train once more from random weights, to show what transfer adds."},
    )
    threads: int | None = field(
        default=None,
        metadata={"help": "CPU threads per process, 1 or more; results are bit-equal only for equal numbers."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better source-language score."}
    )
    traceback: bool = field(default=False, metadata={"help": "Show the traceback of an error."})


@dataclass
class ModelArguments:
    """Where training starts."""

    _argument_group_name = "model"

    model: str | None = field(
        default=None, metadata={"help": "Encoder: Hub id, directory, or `embedded` for the one in this package."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run Python code that comes with the model. Only for authors you trust."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention kernel for training (eager, sdpa, flash_attention_2); not saved."}
    )


@dataclass
class DataArguments:
    """Data by role: what to learn from, what to score on."""

    _argument_group_name = "data"

    task: str = field(default="text-classification", metadata={"help": "Kind of task: text-classification."})
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Source data: a pattern such as topic/{split}.{lang}.parquet (also .jsonl .json .csv .tsv), one "
            "file with a language column, a Hub id (ORG/NAME, or ORG/NAME:{lang}), or `embedded`."
        },
    )
    target_dataset: list[str] | None = field(
        default=None,
        metadata={
            "help": "Target data where they differ from --dataset; repeatable; `sw,yo=PATTERN` names its languages.",
            "action": "extend",
        },
    )
    source_languages: list[str] | None = field(
        default=None, metadata={"help": "Languages with training labels, separated by commas. Default: en."}
    )
    target_languages: list[str] | None = field(
        default=None,
        metadata={
            "help": "Languages to transfer to, separated by commas, or `all` others of the target data (default)."
        },
    )
    source_split: str = field(default="train", metadata={"help": "Split of the source data to train on."})
    validation_split: str = field(default="validation", metadata={"help": "Split to select checkpoints on."})
    target_split: str = field(default="test", metadata={"help": "Split of every language that is scored at the end."})
    few_shot_split: str = field(default="train", metadata={"help": "Split of the target data to take shots from."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the text. Default: found by name."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second text of a pair."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the label, an index or a name."})
    language_column: str | None = field(
        default=None, metadata={"help": "Column that names the language, where the pattern has no {lang}."}
    )
    labels: list[str] | None = field(
        default=None, metadata={"help": "Class names in index order. Default: those of the source training data."}
    )
    max_length: int = field(default=128, metadata={"help": "Longest input in tokens; longer ones are cut."})
    shots: int = field(
        default=0, metadata={"help": "Labelled examples per target language, in all; 0 is zero-shot transfer."}
    )
    shot_seed: int = field(default=0, metadata={"help": "Seed of the choice of shots; budgets are nested."})
    few_shot_mode: Literal["concat", "joint"] = field(
        default="joint",
        metadata={
            "help": "joint: each update takes one batch per language and averages their losses (Schmidt et al. 2023); "
            "concat: shots are mixed into the source data."
        },
    )
    auxiliary_dataset: list[str] | None = field(
        default=None,
        metadata={
            "help": "Labelled data of auxiliary languages, for strategies that learn how to transfer; repeatable.",
            "action": "extend",
        },
    )
    auxiliary_languages: list[str] | None = field(
        default=None, metadata={"help": "Auxiliary languages, separated by commas. Default: all in their data."}
    )
    auxiliary_split: str = field(default="train", metadata={"help": "Split of the auxiliary data."})
    text_dataset: list[str] | None = field(
        default=None,
        metadata={"help": "Unlabelled text, for strategies that pre-train; repeatable.", "action": "extend"},
    )
    text_languages: list[str] | None = field(
        default=None, metadata={"help": "Languages of the text, separated by commas. Default: all in its data."}
    )
    text_split: str = field(default="train", metadata={"help": "Split of the text."})
    select_on_target_validation: bool = field(
        default=False,
        metadata={"help": "Let target-language validation labels choose the checkpoint. An oracle; the card says so."},
    )

    def __post_init__(self) -> None:
        """Split lists and check ranges."""
        self.source_languages = split_codes(self.source_languages) or ["en"]
        self.target_languages = split_codes(self.target_languages) or [ALL_LANGUAGES]
        self.auxiliary_languages = split_codes(self.auxiliary_languages) or [ALL_LANGUAGES]
        self.text_languages = split_codes(self.text_languages) or [ALL_LANGUAGES]
        self.labels = split_names(self.labels)
        if self.shots < 0:
            raise ConfigError(f"`--shots` is {self.shots}; give 0 (zero-shot) or more.")
        if self.max_length < 4:
            raise ConfigError(f"`--max-length` is {self.max_length}; give 4 or more.")
        both = sorted(set(self.source_languages) & set(self.target_languages))
        if both:
            raise ConfigError(
                f"{', '.join(both)} is both a source and a target language. A target language is one without training "
                "labels; leave it out of one of the lists (the source is scored anyway)."
            )


def split_names(values: Sequence[str] | None) -> list[str] | None:
    """Split what may be separated by commas or blanks into names."""
    if values is None:
        return None
    return [name.strip() for value in values for name in str(value).split(",") if name.strip()]


def split_codes(values: Sequence[str] | None) -> list[str]:
    """Split language codes and check each; repeated ones count once.

    Raises:
        ConfigError: one cannot be a language code.
    """
    return list(dict.fromkeys(check_code(code) for code in split_names(values) or []))


@dataclass(frozen=True)
class Arguments:
    """Everything that a run is asked to do, parsed and checked.

    Attributes:
        strategy: registry entry.
        run: what to run.
        model: where training starts.
        data: data by role.
        config: the strategy's config.
        explicit: names of the fields that the command line or the YAML file set.
    """

    strategy: Strategy
    run: RunArguments
    model: ModelArguments
    data: DataArguments
    config: Any
    explicit: frozenset[str]

    @property
    def embedded(self) -> bool:
        """Whether the run is on the embedded task."""
        return self.data.dataset == EMBEDDED


class _Parser(argparse.ArgumentParser):
    """Finds `--strategy` and `--config` before the strategy's own fields are known."""

    def error(self, message: str) -> None:
        raise ConfigError(f"{message}. See `hf-xlt run --help`.")


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Parse a run's arguments.

    Args:
        argv: arguments without the program's name.

    Returns:
        The parsed arguments.

    Raises:
        ConfigError: anything that cannot be used, in one sentence.
        SystemExit: `--help` was asked for.
    """
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--strategy")
    first.add_argument("--config")
    known, _ = first.parse_known_args(list(argv))
    settings = read_yaml(known.config) if known.config else {}
    strategy = get_strategy(known.strategy or settings.get("strategy") or RunArguments.strategy)
    parser = build_parser(strategy)
    options = {option.lstrip("-"): action.dest for option, action in parser._option_string_actions.items()}
    unknown = [key for key in settings if key not in options]
    if unknown:
        raise ConfigError(f"`{known.config}`: unknown key {unknown[0]!r}.{close_match(unknown[0], options)}")
    on_command_line = named_fields(argv, options)
    from_file = {options[key]: (key, value) for key, value in settings.items() if options[key] not in on_command_line}
    explicit = frozenset(on_command_line | set(from_file))
    defaults = default_settings(strategy, explicit)
    tokens = [
        *as_tokens({key: value for key, value in defaults.items() if key not in explicit}),
        *as_tokens(dict(from_file.values())),
        *argv,
    ]
    *groups, rest = parser.parse_args_into_dataclasses(tokens, return_remaining_strings=True, look_for_args_file=False)
    if rest:
        flag = rest[0].split("=")[0]
        raise ConfigError(f"unknown argument `{flag}`.{close_match(flag, parser._option_string_actions)}")
    arguments = Arguments(strategy, *groups, explicit=explicit)
    _check(arguments)
    return arguments


def build_parser(strategy: Strategy) -> Any:
    """Build the parser of all arguments of a run with one strategy."""
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    class Parser(HfArgumentParser):
        def error(self, message: str) -> None:
            raise ConfigError(f"{message}. See `hf-xlt run --help`.")

    parser = Parser(
        (RunArguments, ModelArguments, DataArguments, strategy.config_cls),
        prog="hf-xlt run",
        allow_abbrev=False,
        description=f"Train on source languages, score on target languages. Strategies: {', '.join(STRATEGIES)}. "
        "Every field of `transformers.TrainingArguments` and of the chosen strategy is an argument; `a_b` may be "
        "written `a-b`.",
    )
    for action in parser._actions:
        # HfArgumentParser wants a value after switches that default to None, such as `--disable-tqdm`.
        if action.type is string_to_bool:
            action.nargs, action.const = "?", True
    return parser


def named_fields(argv: Sequence[str], options: Mapping[str, str]) -> set[str]:
    """Return the fields that a command line names."""
    flags = (token[2:].split("=")[0] for token in argv if token.startswith("--"))
    return {options[flag] for flag in flags if flag in options}


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML file of arguments.

    Raises:
        ConfigError: it is missing, no YAML, or no mapping.
    """
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"config file `{path}` is missing.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config file `{path}` cannot be read as YAML: {error}") from error
    if not isinstance(settings or {}, dict):
        raise ConfigError(f"config file `{path}` must be a mapping from argument names to values.")
    return dict(settings or {})


def as_tokens(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as command-line tokens; None means not set."""
    tokens: list[str] = []
    for key, value in settings.items():
        if value is None:
            continue
        flag = f"--{key}"
        if isinstance(value, (list, tuple)):
            tokens += [flag, *map(str, value)]
        elif isinstance(value, dict):
            tokens += [flag, json.dumps(value)]
        else:
            tokens += [f"{flag}={value}"]
    return tokens


def default_settings(strategy: Strategy, explicit: frozenset[str]) -> dict[str, Any]:
    """Return defaults that depend on the machine, the strategy's name and whether the embedded task is run."""
    import torch

    defaults: dict[str, Any] = {"output_dir": f"runs/{strategy.name}-{_start_time():%Y%m%d-%H%M%S-%f}"[:-3]}
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        # Without it a launcher's CPU processes would each train alone, and pinning memory would warn.
        defaults["use_cpu"] = True
    if not explicit & {"model", "dataset", "target_dataset"}:
        defaults |= {"model": EMBEDDED, "dataset": EMBEDDED}
        defaults |= EMBEDDED_SETTINGS
    return defaults


def _start_time() -> datetime.datetime:
    if "RANK" not in os.environ:
        return datetime.datetime.now()
    # Every process of a launch must name the same directory: take the time at which their common parent started.
    import psutil

    return datetime.datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())


# Measured on the development split of the embedded task; see `docs/embedded.md`.
EMBEDDED_SETTINGS = {
    "max_steps": 180,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "learning_rate": 5e-4,
    "warmup_steps": 20,
    "logging_steps": 30,
    "save_steps": 90,
    "save_total_limit": 1,
    "attn_implementation": "eager",
    "threads": 1,
    "max_length": 64,
}


def _check(arguments: Arguments) -> None:
    run, model, data, config = arguments.run, arguments.model, arguments.data, arguments.config
    if data.dataset is None:
        raise ConfigError("no data: give `--dataset` (a pattern, a Hub id, or `embedded`) beside `--model`.")
    if model.model is None:
        raise ConfigError("no model: give `--model` (a Hub id, a directory, or `embedded`) beside `--dataset`.")
    if run.resume and run.overwrite:
        raise ConfigError("`--resume` continues a run and `--overwrite` deletes it; give one of them.")
    if run.threads is not None and run.threads < 1:
        raise ConfigError(f"`--threads` is {run.threads}; give 1 or more.")
    if config.resume_from_checkpoint:
        raise ConfigError(
            "`--resume_from_checkpoint` is not taken: `--resume` continues the run in `--output_dir` from its newest "
            "complete checkpoint."
        )
    if run.early_stopping_patience is not None and config.eval_strategy == "no":
        raise ConfigError("`--early-stopping-patience` needs evaluations: add `--eval-strategy epoch` (or `steps`).")
    if data.select_on_target_validation and not config.load_best_model_at_end:
        raise ConfigError(
            "`--select-on-target-validation` selects nothing without `--load-best-model-at-end` "
            "(with `--eval-strategy epoch --save-strategy epoch`)."
        )
    _check_roles(arguments.strategy, data)
    arguments.strategy.check(config, data.task)


# What meets each data role besides the source: the field of `DataArguments`, and how to say it on a command line.
_ROLE_FIELDS = {
    "target": ("shots", "labelled target-language examples: add `--shots 100`"),
    "auxiliary": ("auxiliary_dataset", "labelled data of auxiliary languages: add `--auxiliary-dataset PATTERN`"),
    "text": ("text_dataset", "unlabelled text: add `--text-dataset PATTERN`"),
}


def _check_roles(strategy: Strategy, data: DataArguments) -> None:
    for role, (name, how) in _ROLE_FIELDS.items():
        given = bool(getattr(data, name))
        if role in strategy.roles and not given:
            raise ConfigError(f"strategy `{strategy.name}` needs {how}.")
        if given and role not in (*strategy.roles, *strategy.optional_roles):
            raise ConfigError(
                f"strategy `{strategy.name}` takes no {role} data; leave `--{name.replace('_', '-')}` out."
            )


def non_default(arguments: Arguments) -> dict[str, Any]:
    """Return the settings that differ from their fields' defaults, and all of the strategy's own, by field name."""
    from hf_xlt.training.config import XLTConfig

    shared = {entry.name for entry in dataclasses.fields(XLTConfig)}
    own = [entry.name for entry in dataclasses.fields(arguments.config) if entry.name not in shared]
    changed = {name: getattr(arguments.config, name) for name in own}
    for group in (arguments.run, arguments.model, arguments.data, arguments.config):
        for entry in dataclasses.fields(group):
            value = getattr(group, entry.name)
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            if entry.name in arguments.explicit or entry.name in EMBEDDED_SETTINGS:
                if value != default:
                    changed[entry.name] = value
    return changed
