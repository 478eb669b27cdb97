"""From a command line and a YAML file to `Arguments`.

Order of precedence: command line, then `--config`, then the embedded task's defaults, then each field's own default.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
from collections.abc import Mapping, Sequence
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
    split_names,
)
from hf_xlt.averaging.arguments import AverageArguments, check_average
from hf_xlt.errors import ConfigError, close_match
from hf_xlt.flags import OUTPUT_FLAG, describe_flags, render_help, strategies_with
from hf_xlt.peft_arguments import PeftArguments, check_peft
from hf_xlt.registry import Strategy, get_strategy
from hf_xlt.streams import shows_progress
from hf_xlt.sweep.arguments import SweepArguments, check_sweep
from hf_xlt.sweep.division import Division, check_names
from hf_xlt.yaml_file import read_yaml


class _Parser(argparse.ArgumentParser):
    """Finds what the other flags depend on, before the strategy's own fields are known."""

    def error(self, message: str) -> None:
        raise ConfigError(f"{message}. See `hf-xlt run --help`.")


def spelt_out(argv: Sequence[str]) -> list[str]:
    """Write `-o` as `--output-dir`, so that whatever looks at a command line knows one name of it."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        words.append(f"--output-dir{equals}{value}" if name == OUTPUT_FLAG else word)
    return words


def first_look(argv: Sequence[str]) -> argparse.Namespace:
    """Read strategy, strategies, config file, model and data set off a command line, each None where it is not there.

    Raises:
        ConfigError: one of them is without a value.
    """
    first = _Parser(add_help=False, allow_abbrev=False)
    for flag in ("--strategy", "--config", "--model", "--dataset"):
        first.add_argument(flag)
    first.add_argument("--strategies", nargs="+", action="extend")
    return first.parse_known_args(list(argv))[0]


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
    argv = spelt_out(argv)
    known = first_look(argv)
    settings = read_yaml(known.config, lists_as_written=True) if known.config else {}
    names = named_strategies(known, settings)
    if names:
        division = divide(names, argv, settings)
        argv, settings = division.tokens(argv, names[0]), division.settings(settings, names[0])
    strategy = get_strategy(names[0] if names else _strategy_name(known, settings))
    parser = build_parser(strategy)
    options = option_fields(parser)
    unknown = [key for key in settings if key not in options]
    if unknown:
        raise ConfigError(f"`{known.config}`: unknown key {unknown[0]!r}.{close_match(unknown[0], options)}")
    _check_shapes(parser, settings, known.config)
    on_command_line = named_fields(argv, options)
    from_file = {options[key]: (key, value) for key, value in settings.items() if options[key] not in on_command_line}
    explicit = frozenset(on_command_line | set(from_file))
    place = (known.model or settings.get("model"), known.dataset or settings.get("dataset"))
    defaults = default_settings("sweep" if names else strategy.name, explicit, place)
    asked = [*as_tokens(dict(from_file.values())), *argv]
    tokens = [*as_tokens({key: value for key, value in defaults.items() if key not in explicit}), *asked]
    tokens += _first_varied(argv, settings, options)
    *groups, rest = parser.parse_args_into_dataclasses(tokens, return_remaining_strings=True, look_for_args_file=False)
    if rest:
        raise _unknown(rest[0].split("=")[0], parser)
    arguments = Arguments(strategy, *groups, explicit=explicit, asked=tuple(asked))
    check_arguments(arguments)
    check_peft(arguments)
    check_average(arguments)
    check_sweep(arguments)
    return arguments


def _first_varied(argv: Sequence[str], settings: Mapping[str, Any], options: Mapping[str, str]) -> list[str]:
    """Return the first value of every setting that a sweep varies: others may be of no use without it.

    What is no setting, or cannot be varied, is told of where the runs are planned.
    """
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--vary", nargs="*", action="extend")
    listed = first.parse_known_args(list(argv))[0].vary or settings.get("vary") or ()
    entries = [entry.partition("=") for entry in ([listed] if isinstance(listed, str) else listed)]
    barred = {"output_dir", "seed", "strategy", "config", "seeds"}
    return [
        f"--{name}={text.split(',')[0].strip()}"
        for name, _, text in entries
        if text and options.get(name, "seed") not in barred
    ]


def _unknown(flag: str, parser: argparse.ArgumentParser) -> ConfigError:
    owners = strategies_with(flag)
    if owners:
        named = " or ".join(f"`--strategy {name}`" for name in owners)
        return ConfigError(f"unknown argument `{flag}`. It is a setting of {', '.join(owners)}: add {named}.")
    return ConfigError(f"unknown argument `{flag}`.{close_match(flag, parser._option_string_actions)}")


def _strategy_name(known: argparse.Namespace, settings: Mapping[str, Any]) -> str:
    return known.strategy or settings.get("strategy") or RunArguments.strategy


def named_strategies(known: argparse.Namespace, settings: Mapping[str, Any]) -> list[str]:
    """Return the names that `--strategies` lists; none without it.

    Raises:
        ConfigError: `--strategy` is there as well, or a name is there twice.
    """
    listed = settings.get("strategies")
    names = split_names(known.strategies or ([listed] if isinstance(listed, str) else listed)) or []
    if names and (known.strategy or settings.get("strategy")):
        raise ConfigError("`--strategy` is one strategy and `--strategies` several; give one of the flags.")
    check_names(names)
    return names


def divide(names: Sequence[str], argv: Sequence[str], settings: Mapping[str, Any]) -> Division:
    """Make what divides a command line among several strategies.

    Raises:
        ConfigError: a strategy is unknown.
    """
    strategies = tuple(get_strategy(name) for name in names)
    options = {strategy.name: option_fields(build_parser(strategy)) for strategy in strategies}
    asked = {token[2:].split("=")[0] for token in argv if token.startswith("--")} | set(settings)
    return Division(strategies, options, "average" in asked)


def option_fields(parser: Any) -> dict[str, str]:
    """Return the flags of a parser without the hyphens in front, and the field that each sets."""
    return {option.lstrip("-"): action.dest for option, action in parser._option_string_actions.items()}


def build_parser(strategy: Strategy) -> Any:
    """Build the parser of all arguments of a run with one strategy."""
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    class Parser(HfArgumentParser):
        def error(self, message: str) -> None:
            raise ConfigError(f"{message}. See `hf-xlt run --help`.")

        def format_help(self) -> str:
            return render_help(strategy.name, describe_flags(self, strategy))

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
    )
    for action in parser._actions:
        # HfArgumentParser wants a value after switches that default to None, such as `--disable-tqdm`.
        if action.type is string_to_bool:
            action.nargs, action.const = "?", True
        if action.nargs in ("+", "*") and type(action) is argparse._StoreAction:
            # Repeated, it would count with its last values alone.
            action.__class__ = _Collect
    return parser


class _Collect(argparse._StoreAction):
    """Takes the values of a list flag wherever it comes; the first ones replace the default."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Add the values."""
        before = getattr(namespace, self.dest)
        fresh = before is self.default or before is None
        setattr(namespace, self.dest, list(values) if fresh else [*before, *values])


def named_fields(argv: Sequence[str], options: Mapping[str, str]) -> set[str]:
    """Return the fields that a command line names."""
    flags = (token[2:].split("=")[0] for token in argv if token.startswith("--"))
    return {options[flag] for flag in flags if flag in options}


def _check_shapes(parser: Any, settings: Mapping[str, Any], path: str) -> None:
    """Check that lists and mappings of a file stand where the command line takes them, and no argument is there twice.

    Raises:
        ConfigError: one does not; the message names its key.
    """
    actions = {option.lstrip("-"): action for option, action in parser._option_string_actions.items()}
    fields = [entry for group in parser.dataclass_types for entry in dataclasses.fields(group)]
    mappings = {entry.name for entry in fields if "dict" in str(entry.type).lower()}
    first: dict[str, str] = {}
    for key, value in settings.items():
        action = actions[key]
        if isinstance(value, dict) and action.dest not in mappings:
            raise ConfigError(f"`{path}`: `{key}` is a mapping; give a text, a number or a list.")
        if isinstance(value, list) and len(value) != 1 and action.nargs in (None, "?"):
            raise ConfigError(f"`{path}`: `{key}` is a list of {len(value)}; it takes one value.")
        if isinstance(value, list) and any(isinstance(entry, (list, dict)) for entry in value):
            raise ConfigError(f"`{path}`: `{key}` is a list of lists or mappings; give texts or numbers.")
        if first.setdefault(action.dest, key) != key:
            raise ConfigError(f"`{path}`: `{first[action.dest]}` and `{key}` are one argument; keep one.")


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


def default_settings(name: str, explicit: frozenset[str], place: tuple[str | None, str | None]) -> dict[str, Any]:
    """Return defaults that depend on the machine, the strategy's name and whether the embedded task is run.

    Args:
        name: what the output directory is named by.
        explicit: fields that the user set.
        place: the model and the source data that the user named.
    """
    import torch

    defaults: dict[str, Any] = {"output_dir": f"runs/{name}-{_start_time():%Y%m%d-%H%M%S-%f}"[:-3]}
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        # Without it a launcher's CPU processes would each train alone, and pinning memory would warn.
        defaults["use_cpu"] = True
    if not shows_progress():
        # A bar moves the cursor, which is noise in a file; the log of the losses goes there in its place.
        defaults["disable_tqdm"] = True
    if not explicit & {"model", "dataset", "target_dataset"}:
        defaults |= {"model": EMBEDDED_PHRASES, "dataset": EMBEDDED}
        place = (EMBEDDED_PHRASES, EMBEDDED)
    if place == (EMBEDDED_PHRASES, EMBEDDED):
        # A number of updates would win over the epochs that were asked for.
        left = {"max_steps"} if "num_train_epochs" in explicit else set()
        defaults |= {name: value for name, value in EMBEDDED_SETTINGS.items() if name not in left}
    return defaults


def _start_time() -> datetime.datetime:
    if "RANK" not in os.environ:
        return datetime.datetime.now()
    # Every process of a launch must name the same directory: take the time at which their common parent started.
    import psutil

    return datetime.datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())
