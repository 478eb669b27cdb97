"""The two errors a user can meet, and the one place that turns them into a line and an exit code.

Exit codes: 0 done, 1 failure, 2 usage, 130 interrupted; nothing else.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from hf_xlt.streams import unbroken

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# Whether a command of ours is at work, whose user knows settings as flags.
_commands: list[bool] = []
_NUMBER = re.compile(r"-?[0-9.]+(?:e-?[0-9]+)?")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{6,}")


class ConfigError(ValueError):
    """The user's input cannot be used as given; the message says what is wrong and what to do. Exit code 2."""


class RunError(RuntimeError):
    """Work that started could not be finished; the message says what is kept and what to do. Exit code 1."""


class Interrupted(RunError):
    """The user stopped the run; the message says how to resume. Exit code 130."""


def setting(name: str, value: object = None, *, flag: str | None = None) -> str:
    """Write a setting as whoever reads the message gives it: `--per-run` to a command, `per_run` in Python.

    Library code names settings in errors and notes by this alone; what else stands in backticks (columns, labels,
    files) may be called like a setting and must stay as it is.

    Args:
        name: of the argument or field.
        value: what it is or may be given, where the message says so; True of a switch.
        flag: what the commands call it, where that is not the name with `-` for `_`.
    """
    if not _commands:
        text = f'"{value}"' if isinstance(value, (str, Path)) and not _NUMBER.fullmatch(str(value)) else value
        return f"`{name}`" if value is None else f"`{name}={text}`"
    spelt = f"--{flag or name.replace('_', '-')}"
    return f"`{spelt}`" if value is None or value is True else f"`{spelt} {value}`"


@contextlib.contextmanager
def as_flags() -> Iterator[None]:
    """Let `setting` write flags inside the block, which a command runs."""
    _commands.append(True)
    try:
        yield
    finally:
        _commands.pop()


def close_match(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean ...?` for the nearest known name, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean `{matches[0]}`?" if matches else ""


def few(names: Sequence[str], shown: int = 8) -> str:
    """List the first names, and say how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def shortened(value: object) -> str:
    """Return a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def one_line(error: BaseException) -> str:
    """Flatten an error's message to one line without tokens."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _TOKEN.sub("hf_***", text)


def exit_code(error: BaseException) -> int:
    """Map an error to its exit code."""
    if isinstance(error, (KeyboardInterrupt, Interrupted)):
        return EXIT_INTERRUPTED
    return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILURE


def describe(error: BaseException) -> str:
    """Say in one line what went wrong and what to do."""
    if isinstance(error, Interrupted):
        return f"interrupted: {one_line(error)}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: what was complete is kept; a run continues with `--resume` and its `--output-dir`."
    if isinstance(error, (ConfigError, RunError)):
        return f"error: {one_line(error)}"
    if is_disk_full(error):
        place = f" at `{error.filename}`" if getattr(error, "filename", None) else ""
        return (
            f"error: no space is left on the disk{place}. What was complete before is untouched; "
            "free some space and run again with `--resume`."
        )
    if isinstance(error, PermissionError):
        return f"error: permission denied: `{error.filename}`. Choose a place you may write to, or change its rights."
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"error: `{error.filename}`: {error.strerror.lower()}. Check the place, or give another."
    return f"error: {type(error).__name__}: {one_line(error)} (`--traceback` shows where)"


def is_disk_full(error: BaseException | None) -> bool:
    """Say whether an error, or one it was raised from, means that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # safetensors and torch wrap the operating system's error in their own and keep only its text.
        if "No space left on device" in str(error) or "os error 28" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def reports_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a command's `main(argv) -> int`: errors become one line on stderr and an exit code.

    With `--traceback` among the arguments the traceback is printed before that line. Of several processes the
    first speaks for usage errors, which all of them meet; a failure is reported by whichever process meets it.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        arguments = sys.argv[1:] if argv is None else list(argv)
        with as_flags(), unbroken():
            try:
                return main(argv)
            except (Exception, KeyboardInterrupt) as error:
                if "--traceback" in arguments:
                    traceback.print_exc()
                if _is_first_process() or not isinstance(error, (ConfigError, Interrupted, KeyboardInterrupt)):
                    sys.stdout.flush()
                    print(describe(error), file=sys.stderr, flush=True)  # noqa: T201
                return exit_code(error)

    return wrapped
