"""`hf-xlt`: the door to all commands. Starts without importing torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from hf_xlt import __version__
from hf_xlt.cli.command import EXIT_CODES, QUIET, TRACEBACK, Command
from hf_xlt.errors import ConfigError, close_match, reports_errors
from hf_xlt.streams import silenced

# The module of each command and what it does, in the order of the help.
COMMANDS = {
    "run": ("run", "Train on source languages, score on target languages."),
    "evaluate": ("evaluate", "Score a model on the languages of a data set."),
    "compare": ("compare", "Is the difference between runs more than noise?"),
    "average": ("average", "Average checkpoints and runs into one model."),
    "card": ("card", "Write or check the model card of a run."),
    "push": ("push", "Upload a finished run to the Hub."),
    "strategies": ("strategies", "List the strategies: needs, cost, paper, settings."),
    "doctor": ("doctor", "Check what is installed, the Hub, and launchers."),
    "pretrain": ("pretrain", "Pre-train an encoder on text, in phases."),
    "retrieve": ("retrieve", "Measure how well an encoder finds translations."),
    "train-tokenizer": ("train_tokenizer", "Train a tokenizer for several languages."),
    "swap-vocab": ("swap_vocab", "Give an encoder another tokenizer."),
    "trim-vocab": ("trim_vocab", "Cut a model's vocabulary down to a text's tokens."),
    "lang-stats": ("lang_stats", "Count text by language."),
    "make-pairs": ("make_pairs", "Make a pair task of parallel sentences."),
}
_HELP = "Cross-lingual transfer: train with labels in one language, serve many, push the result."
_SETTINGS = {"help_option_names": ["-h", "--help"]}
_EPILOG = f"""{EXIT_CODES} Errors are one line on stderr.

`hf-xlt COMMAND --help` says what a command takes. `hf-xlt run` alone trains on a small task that comes with it."""


def build_app(only: str | None = None) -> typer.Typer:
    """Make the command line.

    Args:
        only: the one command that is needed, if that is known, which then takes its arguments without its name: help
            must print at once, and typer imports pydantic to look at the flags of a group.
    """
    app = typer.Typer(
        name="hf-xlt",
        help=_HELP,
        epilog=_EPILOG,
        add_completion=only is None,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=_SETTINGS,
    )
    if only is None:
        app.callback()(_options)
    for name, (module, _) in COMMANDS.items():
        if only in (None, name):
            import_module(f"hf_xlt.cli.{module}").register(app)
    for info in app.registered_commands:
        info.short_help, info.context_settings = COMMANDS[info.name][1], _SETTINGS
        if not issubclass(info.cls, Command):
            info.cls = Command
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Cross-lingual transfer."""


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments; None takes those of the process.

    Returns:
        Exit code: 0 done, 1 failure, 2 usage, 130 interrupted.

    Raises:
        ConfigError: the command line cannot be used (caught by the decorator).
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    quiet = any(argument in QUIET for argument in arguments) and not {"-h", "--help"} & set(arguments)
    with silenced(quiet, documents="--json" in arguments):
        rest = [argument for argument in arguments if argument not in (*QUIET, *TRACEBACK)]
        if rest[:1] == ["run"] and not _completes():
            from hf_xlt.cli import run

            # It reports its errors itself, and is also called without this function.
            shared = [flag[0] for flag in (QUIET, TRACEBACK) if set(flag) & set(arguments)]
            return run.main([*rest[1:], *shared])
        return _call(rest)


def _completes() -> bool:
    return "_HF_XLT_COMPLETE" in os.environ


def _call(arguments: list[str]) -> int:
    from typer import exceptions

    name = arguments[0] if arguments else "--help"
    try:
        if name in COMMANDS and not _completes():
            app, words, called = build_app(name), arguments[1:], f"hf-xlt {name}"
        else:
            app, words, called = build_app(), arguments or ["--help"], "hf-xlt"
        result = app(words, standalone_mode=False, prog_name=called)
    except exceptions.Abort as error:
        raise KeyboardInterrupt from error
    except exceptions.TyperException as error:
        raise ConfigError(_explain(error, name)) from error
    return result if isinstance(result, int) else 0


def _explain(error: Exception, name: str) -> str:
    """Return what typer says in one sentence, with the nearest known name where it has none."""
    text = " ".join(error.format_message().split())
    unknown = re.match(r"No such (?P<kind>command|option):? '?(?P<typed>[^'\s]+)'?", text)
    if unknown:
        known = COMMANDS if unknown["kind"] == "command" else getattr(error, "possibilities", None) or ()
        near = close_match(unknown["typed"], known)
        text = f"unknown {unknown['kind']} `{unknown['typed']}`.{near}"
    return f"{text} See `hf-xlt {name} --help`." if name in COMMANDS else f"{text} See `hf-xlt --help`."


if __name__ == "__main__":
    sys.exit(main())
