"""What goes to stdout: the text of a command, one JSON document alone (`--json`), or nothing (`--quiet`)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Collection, Iterator
from typing import Any, TextIO, TypeVar

_Entry = TypeVar("_Entry")

# Where documents go while stdout is turned away from the terminal.
_documents: list[TextIO] = []
# Read by the libraries when they are imported, which is after the command line was looked at.
_SILENT = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@contextlib.contextmanager
def turned(*, documents_only: bool = False, quiet: bool = False) -> Iterator[None]:
    """Turn what is printed inside the block away from stdout.

    Args:
        documents_only: to stderr, so that stdout holds what `print_document` prints alone.
        quiet: to nowhere.
    """
    if not (documents_only or quiet):
        yield
        return
    _documents.append(_documents[0] if _documents else sys.stdout)
    try:
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(open(os.devnull, "w", encoding="utf-8")) if quiet else sys.stderr
            stack.enter_context(contextlib.redirect_stdout(place))
            yield
    finally:
        _documents.pop()


def print_document(document: Any) -> None:
    """Print one JSON document to stdout."""
    print(  # noqa: T201
        json.dumps(document, ensure_ascii=False), file=_documents[0] if _documents else sys.stdout, flush=True
    )


@contextlib.contextmanager
def silenced(quiet: bool, documents: bool = False) -> Iterator[None]:
    """Ask libraries that are not imported yet for no progress bars where there is no terminal, or none are wanted.

    Args:
        quiet: show none on a terminal either, and print nothing to stdout inside the block.
        documents: the command prints a document, which is let through.
    """
    # A bar moves the cursor, which is noise in a file.
    wanted = _SILENT if quiet else {} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"}
    unset = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(unset)
    try:
        with turned(quiet=quiet and not documents):
            yield
    finally:
        for name in unset:
            os.environ.pop(name, None)


def track(entries: Collection[_Entry], what: str) -> Iterator[_Entry]:
    """Yield entries behind a progress bar, where bars are shown.

    Args:
        entries: to go through.
        what: what is done, for the bar.
    """
    from tqdm import tqdm

    yield from tqdm(entries, desc=what, leave=False, disable=not shows_progress())


def shows_progress() -> bool:
    """Whether progress bars belong on stderr: on a terminal, unless `--quiet` asks for none."""
    return sys.stderr.isatty() and os.environ.get("TQDM_DISABLE", "0") in ("0", "")
