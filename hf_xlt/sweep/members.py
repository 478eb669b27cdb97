"""Which runs a sweep consists of, and the command line of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from hf_xlt.arguments import Arguments
from hf_xlt.errors import ConfigError, close_match
from hf_xlt.parsing import as_tokens, build_parser, divide, option_fields, parse_arguments
from hf_xlt.planning import PlannedCost, planned_cost
from hf_xlt.randomness import permutation
from hf_xlt.sweep.arguments import OWN_DONOR, SweepArguments
from hf_xlt.yaml_file import read_yaml

DONOR = "donor"
# What runs of one strategy are called together.
EACH = "Each"
# What a sweep decides for its runs.
_TAKEN = ("output_dir", "seed", "resume", "overwrite", "dry_run", "config", "json")


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        seed: its `--seed`.
        settings: what was varied, by field name.
        tokens: its arguments, without folder, seed and head.
        strategy: its strategy, where runs differ in that.
    """

    name: str
    seed: int
    settings: dict[str, str]
    tokens: tuple[str, ...]
    strategy: str | None = None

    def describe(self) -> str:
        """Say what sets it apart."""
        varied = "".join(f", {name} {value}" for name, value in self.settings.items())
        return f"seed {self.seed}{varied}"


def plan_members(arguments: Arguments, argv: Sequence[str]) -> list[Member]:
    """Return the runs of a sweep, the donor of the shared head first where one is trained.

    Args:
        arguments: parsed.
        argv: the same as typed; a YAML file's settings are written out, so that each run's record holds them.

    Raises:
        ConfigError: `--vary` names no setting, one that a sweep decides, or too few combinations.
    """
    asked, first = arguments.sweep, arguments.config.seed
    taken = {*_TAKEN, *(entry.name for entry in fields(SweepArguments))}
    shared = tuple(_without(_written_out(arguments, argv, taken), taken))
    if asked.strategies:
        return _of_strategies(asked.strategies, asked.seeds, first, shared)
    grid = _grid(arguments)
    drawn = _draw(grid, asked.seeds, first)
    members = []
    for number in range(asked.seeds):
        settings = drawn[number] if drawn else {}
        tokens = (*_without(shared, set(settings)), *as_tokens(settings))
        members.append(Member(f"run-{number + 1}", first + number, settings, tokens))
    _check_members(members)
    if asked.share_head == OWN_DONOR:
        members.insert(0, Member(DONOR, first, {}, shared))
    return members


def _check_members(members: Sequence[Member]) -> None:
    """Parse the command line of every run whose settings are its own.

    Raises:
        ConfigError: one cannot be used, or would ignore a setting; said before the first run starts.
    """
    for member in members:
        if member.settings:
            try:
                parse_arguments([*member.tokens, "--output-dir=unused"])
            except ConfigError as error:
                raise ConfigError(f"{member.name} ({member.describe()}): {error}") from error


def _of_strategies(names: Sequence[str], seeds: int, first: int, shared: Sequence[str]) -> list[Member]:
    """Return runs of several strategies, seed by seed, so that a sweep cut short holds pairs to compare.

    Raises:
        ConfigError: a strategy cannot be run like that; said before the first run starts.
    """
    division, tokens = divide(names, shared, {}), {}
    for name in names:
        tokens[name] = (f"--strategy={name}", *division.tokens(shared, name))
        try:
            parse_arguments([*tokens[name], "--output-dir=unused"])
        except ConfigError as error:
            told = "" if f"`{name}`" in str(error) else f"strategy `{name}`: "
            raise ConfigError(f"{told}{error}") from error
    return [
        Member(f"{name}-{number + 1}", first + number, {}, tokens[name], name)
        for number in range(seeds)
        for name in names
    ]


def read_plans(members: Sequence[Member]) -> dict[str, PlannedCost]:
    """Read the data of a sweep's runs, once per strategy.

    Args:
        members: runs; those of one strategy read the same data.

    Returns:
        What a run costs, by strategy, or by `EACH` where there is one.

    Raises:
        ConfigError: the data cannot be used.
    """
    from hf_xlt.preparation import plan_run, plan_updates

    costs: dict[str, PlannedCost] = {}
    for member in members:
        name = member.strategy or EACH
        if name in costs:
            continue
        arguments = parse_arguments([*member.tokens, "--output-dir=unused"])
        try:
            plan, _ = plan_run(arguments)
        except ConfigError as error:
            raise ConfigError(f"strategy `{name}`: {error}" if member.strategy else str(error)) from error
        costs[name] = planned_cost(arguments, plan, plan_updates(arguments, plan, exact=True))
    return costs


def divided_flags(arguments: Arguments, argv: Sequence[str]) -> list[str]:
    """Say which flags not all strategies of a sweep get; nothing where all do, or there is one strategy."""
    names = arguments.sweep.strategies
    if not names:
        return []
    division = divide(names, argv, {})
    division.tokens(_written_out(arguments, argv, set(_TAKEN)), names[0])
    return division.notes()


def _written_out(arguments: Arguments, argv: Sequence[str], taken: set[str]) -> list[str]:
    if not arguments.run.config:
        return list(argv)
    settings = read_yaml(arguments.run.config, lists_as_written=True)
    named = {_field(token) for token in argv if token.startswith("--")}
    kept = {key: value for key, value in settings.items() if key.replace("-", "_") not in named | taken}
    return [*as_tokens(kept), *argv]


def _field(token: str) -> str:
    return token[2:].split("=")[0].replace("-", "_")


def _without(tokens: Iterable[str], names: set[str]) -> list[str]:
    """Leave out flags with their values."""
    kept, skipping = [], False
    for token in tokens:
        if token.startswith("--"):
            skipping = _field(token) in names
        if not skipping:
            kept.append(token)
    return kept


def _grid(arguments: Arguments) -> dict[str, list[str]]:
    """Read `--vary NAME=VALUE,VALUE`.

    Raises:
        ConfigError: it is none, or names nothing that can be varied.
    """
    parser = build_parser(arguments.strategy)
    known = option_fields(parser)
    barred = {*_TAKEN, "strategy", "threads", "traceback", *(entry.name for entry in fields(SweepArguments))}
    grid: dict[str, list[str]] = {}
    for entry in arguments.sweep.vary or ():
        name, equals, text = entry.partition("=")
        values = [value.strip() for value in text.split(",") if value.strip()]
        if not equals or not values:
            raise ConfigError(f"`--vary {entry}` is not `NAME=VALUE,VALUE`, such as learning_rate=1e-5,3e-5.")
        if name not in known:
            raise ConfigError(f"`--vary {entry}` names no setting.{close_match(name, known)}")
        if known[name] in barred:
            raise ConfigError(f"`--vary {entry}`: the runs of a sweep cannot differ in `{name}`.")
        if known[name] in grid:
            raise ConfigError(f"`--vary {name}=...` is given twice; list all values once.")
        grid[known[name]] = list(dict.fromkeys(values))
    return grid


def _draw(grid: dict[str, list[str]], count: int, seed: int) -> list[dict[str, str]]:
    """Draw distinct combinations.

    Raises:
        ConfigError: there are fewer than runs.
    """
    if not grid:
        return []
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(combinations) < count:
        raise ConfigError(
            f"`--vary` gives {len(combinations)} different settings for {count} runs; add values, or lower `--seeds`."
        )
    return [combinations[index] for index in permutation(len(combinations), "sweep", seed)[:count]]
