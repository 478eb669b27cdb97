"""From a command line and a YAML file to `Arguments`.

Order of precedence: command line, then `--config`, then the embedded task's defaults, then each field's own default.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_xlt.arguments import (
    EMBEDDED,
    EMBEDDED_PHRASES,
    EMBEDDED_SETTINGS,
    Arguments,
    DataArguments,
    ModelArguments,
    RunArguments,
    check_arguments,
)
from hf_xlt.averaging.arguments import AverageArguments, check_average
from hf_xlt.errors import ConfigError, close_match
from hf_xlt.peft_arguments import PeftArguments, check_peft
from hf_xlt.registry import STRATEGIES, Strategy, get_strategy
from hf_xlt.sweep.arguments import SweepArguments, check_sweep

GROUPS = (RunArguments, ModelArguments, DataArguments, PeftArguments, AverageArguments, SweepArguments)


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
    first.add_argument("--model")
    first.add_argument("--dataset")
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
    place = (known.model or settings.get("model"), known.dataset or settings.get("dataset"))
    defaults = default_settings(strategy, explicit, place)
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
    check_arguments(arguments)
    check_peft(arguments)
    check_average(arguments)
    check_sweep(arguments)
    return arguments


def build_parser(strategy: Strategy) -> Any:
    """Build the parser of all arguments of a run with one strategy."""
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    class Parser(HfArgumentParser):
        def error(self, message: str) -> None:
            raise ConfigError(f"{message}. See `hf-xlt run --help`.")

    parser = Parser(
        (
            RunArguments,
            ModelArguments,
            DataArguments,
            PeftArguments,
            AverageArguments,
            SweepArguments,
            strategy.config_cls,
        ),
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


def default_settings(
    strategy: Strategy, explicit: frozenset[str], place: tuple[str | None, str | None]
) -> dict[str, Any]:
    """Return defaults that depend on the machine, the strategy's name and whether the embedded task is run.

    Args:
        strategy: registry entry.
        explicit: fields that the user set.
        place: the model and the source data that the user named.
    """
    import torch

    defaults: dict[str, Any] = {"output_dir": f"runs/{strategy.name}-{_start_time():%Y%m%d-%H%M%S-%f}"[:-3]}
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        # Without it a launcher's CPU processes would each train alone, and pinning memory would warn.
        defaults["use_cpu"] = True
    if not explicit & {"model", "dataset", "target_dataset"}:
        defaults |= {"model": EMBEDDED_PHRASES, "dataset": EMBEDDED}
        place = (EMBEDDED_PHRASES, EMBEDDED)
    if place == (EMBEDDED_PHRASES, EMBEDDED):
        defaults |= EMBEDDED_SETTINGS
    return defaults


def _start_time() -> datetime.datetime:
    if "RANK" not in os.environ:
        return datetime.datetime.now()
    # Every process of a launch must name the same directory: take the time at which their common parent started.
    import psutil

    return datetime.datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())
