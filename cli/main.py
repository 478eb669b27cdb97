"""`hf-xlt`: the door to all commands. Starts without importing torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from hf_xlt import __version__
from hf_xlt.cli import (
    average,
    card,
    compare,
    evaluate,
    lang_stats,
    make_pairs,
    pretrain,
    push,
    retrieve,
    run,
    strategies,
    swap_vocab,
    train_tokenizer,
)
from hf_xlt.errors import ConfigError, reports_errors

app = typer.Typer(
    name="hf-xlt",
    help="Cross-lingual transfer: train with labels in one language, serve many, push the result.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Cross-lingual transfer: train with labels in one language, serve many, push the result."""


COMMANDS = (
    run,
    evaluate,
    average,
    compare,
    retrieve,
    pretrain,
    train_tokenizer,
    lang_stats,
    swap_vocab,
    make_pairs,
    card,
    push,
    strategies,
)
for command in COMMANDS:
    command.register(app)


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
    from typer import exceptions

    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    traceback_wanted = [argument for argument in arguments if argument == "--traceback"]
    if arguments[:1] == ["run"]:
        return run.main(arguments[1:])
    arguments = [argument for argument in arguments if argument not in traceback_wanted]
    try:
        result = app(arguments, standalone_mode=False, prog_name="hf-xlt")
    except exceptions.Abort as error:
        raise KeyboardInterrupt from error
    except exceptions.TyperException as error:
        raise ConfigError(f"{error.format_message()} See `hf-xlt --help`.") from error
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
