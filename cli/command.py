"""What all commands share: `--quiet` and `--traceback`, and completion, also of the flags of `run`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import typer
from typer.core import TyperCommand

from hf_xlt.errors import ConfigError

EXIT_CODES = "Exit codes: 0 done, 1 failure, 2 usage, 130 interrupted."
QUIET, TRACEBACK = ("--quiet", "-q"), ("--traceback",)
_SHARED = {
    "--quiet": "Print nothing but errors and the document of --json, and no progress bars.",
    "--traceback": "Show the traceback of an error.",
}


# Where a command writes, and whether it may replace what it wrote there before: one name each, with every command.
OUTPUT, OVERWRITE = ("--output-dir", "-o"), "--overwrite"


def output_option(text: str, *also: str, required: bool = False) -> Any:
    """Return the option of a command that says where it writes.

    Args:
        text: its help.
        also: further names of it.
        required: the command has no place of its own to write to.
    """
    return typer.Option(... if required else None, *OUTPUT, *also, help=text)


def overwrite_option(what: str) -> Any:
    """Return the switch of a command that lets it replace what it wrote before.

    Args:
        what: the command writes, for the help.
    """
    return typer.Option(False, OVERWRITE, help=f"Replace {what} there; files of other origin stay as they are.")


class Command(TyperCommand):
    """A command whose help and completion name the shared flags, which `main` takes off the command line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, but refuse long flags with one hyphen, and a flag of no effect or with one value that comes twice.

        The first of two values would be lost without a word.

        Raises:
            ConfigError: there is one.
        """
        known = {name for option in self.get_params(ctx) for name in option.opts}
        long, short = OUTPUT
        args = [f"{long}{word.removeprefix(short)}" if word.startswith(f"{short}=") else word for word in args]
        for word in args:
            if f"-{word.partition('=')[0]}" in known:
                # Read letter by letter it would be `-o` with a strange place.
                raise ConfigError(f"unknown option `{word}`. Did you mean `-{word}`?")
        for option in self.get_params(ctx):
            names = {name for name in option.opts if name.startswith("-")}
            given = sum(word.partition("=")[0] in names for word in args) if names else 0
            if given > 1 and not (option.multiple or option.is_flag):
                raise ConfigError(
                    f"`{option.opts[0]}` is there {given} times, and takes one value; several names in one value are "
                    "separated by commas."
                )
        left = super().parse_args(ctx, args)
        self._check_used(ctx)
        return left

    def _check_used(self, ctx: Any) -> None:
        """Refuse options that do nothing without others, as the table `DEPENDENT` of the command's module says.

        Raises:
            ConfigError: there is one.
        """
        table = getattr(sys.modules.get(getattr(self.callback, "__module__", "")), "DEPENDENT", ())
        if not table:
            return
        from hf_xlt.registry import unused_problems

        options = {option.name: option for option in self.get_params(ctx)}
        problems = unused_problems(
            SimpleNamespace(**ctx.params),
            table,
            changed=lambda names: [name for name in names if ctx.params[name] not in (options[name].default, None)],
            spelt=lambda name: f"`{options[name].opts[0]}`",
        )
        if problems:
            raise ConfigError(f"{'; '.join(problems)}.")

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the shared flags below the command's own."""
        with formatter.section("With every command"):
            formatter.write_dl([("-q, --quiet", _SHARED["--quiet"]), ("--traceback", _SHARED["--traceback"])])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete flags."""
        found = super().shell_complete(ctx, incomplete)
        return [*found, *_flags(_SHARED.items(), incomplete)] if incomplete.startswith("-") else found


class RunCommand(Command):
    """`hf-xlt run`, whose flags depend on `--strategy` and are parsed by `hf_xlt.run`; here they are completed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words as they are."""
        ctx.args = list(args)
        return ctx.args

    def get_params(self, ctx: Any) -> list[Any]:
        """Return none, so that completion asks the command itself."""
        return []

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete flags, the values of the last flag where they are known, and strategies in lists."""
        from hf_xlt.flags import flags_of

        words = [word for word in ctx.args if word != "="]
        flags = {entry["flag"]: entry for entry in flags_of(chosen_strategy(words)) or []}
        if incomplete.startswith("-") and "=" not in incomplete:
            return _flags(((name, entry["help"]) for name, entry in flags.items()), incomplete)
        flag = next((word for word in reversed(words) if word.startswith("--")), None)
        if flag is None or flags.get(flag, {}).get("switch"):
            return []
        before, comma, part = incomplete.rpartition(",")
        values = _values(flag.replace("_", "-"), flags)
        return [
            SimpleNamespace(type="plain", value=before + comma + v, help=None) for v in values if v.startswith(part)
        ]


def chosen_strategy(words: Sequence[str]) -> str:
    """Return the strategy that a command line of `run` names, the first of several, or the default one.

    Only looked at: a name that is unknown comes back as it is.
    """
    from hf_xlt.arguments import RunArguments

    for flag in ("--strategy", "--strategies"):
        for number, word in enumerate(words):
            name, equals, value = word.partition("=")
            if name == flag and equals:
                return value.split(",")[0]
            if name == flag and number + 1 < len(words):
                return words[number + 1].split(",")[0]
    return RunArguments.strategy


def _values(flag: str, flags: dict[str, Any]) -> list[str]:
    if flag in ("--strategy", "--strategies"):
        return strategy_names()
    if flag == "--task":
        return task_names()
    if flag == "--model":
        from hf_xlt.arguments import EMBEDDED, EMBEDDED_PHRASES

        return [EMBEDDED, EMBEDDED_PHRASES]
    return flags.get(flag, {}).get("choices", [])


def _flags(entries: Iterable[tuple[str, str]], incomplete: str) -> list[Any]:
    return [
        SimpleNamespace(type="plain", value=name, help=_plain(text))
        for name, text in entries
        if name.startswith(incomplete)
    ]


def _plain(text: str) -> str:
    """Return the first sentence without what a shell or typer's own markup would read."""
    return "".join(char for char in text.split(". ")[0] if char not in "[]`'\"$\\")[:100]


def strategy_names() -> list[str]:
    """Return the names of all strategies, for completion."""
    from hf_xlt.registry import STRATEGIES

    return list(STRATEGIES)


def task_names() -> list[str]:
    """Return the names of all tasks, for completion; none where the catalogue of flags is for another version."""
    from hf_xlt.flags import read_catalogue

    return (read_catalogue() or {}).get("tasks", [])
