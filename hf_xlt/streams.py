"""What goes to stdout: the text of a command, one JSON document alone (`--json`), or nothing (`--quiet`).

Output is for somebody who may have stopped reading (`| head -1`) or whose terminal knows few characters; neither may
end the work of a command.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator
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
    """Print one JSON document to stdout; characters that its encoding lacks are escaped, as JSON escapes them."""
    place = _documents[0] if _documents else sys.stdout
    text = json.dumps(document, ensure_ascii=False)
    try:
        text.encode(getattr(place, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(document)
    print(text, file=place, flush=True)  # noqa: T201


class Unbroken:
    """A text stream that goes on when its reader has gone, and writes what its encoding lacks as escapes."""

    def __init__(self, stream: TextIO) -> None:
        """Take the stream to write to."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop what nobody reads."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except BrokenPipeError:
            self._abandon()
            return len(text)

    def flush(self) -> None:
        """Flush, or drop what nobody reads."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._abandon()

    def _abandon(self) -> None:
        # What is still in the buffer would raise again when the interpreter flushes it at exit.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(self._stream, name)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Let neither a reader that has gone nor a poor encoding end what is done inside the block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if stream is None or isinstance(stream, Unbroken) else Unbroken(stream) for stream in before
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Unbroken):
                stream.flush()
        sys.stdout, sys.stderr = before


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
