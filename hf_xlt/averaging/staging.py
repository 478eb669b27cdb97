"""An output folder that is there whole or not at all: written beside, made durable, then moved into place.

A killed writer leaves its temporary folder; the next one for the same output removes it. Two writers at once do not
disturb each other: each holds a lock on its temporary folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from hf_xlt.errors import ConfigError, RunError, setting
from hf_xlt.files import sync_file, sync_folder
from hf_xlt.written import carry_over, sort_out

MANIFEST_NAME = "averaging.json"
_MARGIN_BYTES = 16 * 2**20
_EXCHANGE = 2
_AT_FDCWD = -100


def check_output(output: Path, inputs: list[Path], overwrite: bool) -> None:
    """Check that an average may be written to a place; nothing is written.

    Args:
        output: the folder to be.
        inputs: folders and files that were named or are read.
        overwrite: an earlier average there may be replaced.

    Raises:
        ConfigError: it is an input, lies in one or holds one, or holds something that is not to be overwritten.
    """
    place = Path(os.path.realpath(output))
    for given in inputs:
        real = Path(os.path.realpath(given))
        if place == real or real in place.parents or place in real.parents:
            raise ConfigError(
                f"the output `{output}` is or lies in an input, or holds one (`{given}`); give a folder beside it."
            )
    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigError(f"the output `{output}` is a file; give a folder.")
    if not any(output.iterdir()):
        return
    if not (output / MANIFEST_NAME).is_file():
        raise ConfigError(f"`{output}` is not empty and holds no average, so it is left alone; give another folder.")
    if not overwrite:
        raise ConfigError(f"`{output}` holds an average already; add {setting('overwrite')} to replace it.")


def check_space(output: Path, needed: int) -> None:
    """Check that an output fits on the disk.

    Args:
        output: the folder to be.
        needed: bytes.

    Raises:
        RunError: it does not fit.
    """
    place = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed + _MARGIN_BYTES:
        raise RunError(
            f"`{place}` has {free / 2**20:,.0f} MiB free, and the average needs "
            f"{(needed + _MARGIN_BYTES) / 2**20:,.0f} MiB. Free some space, or write elsewhere. Nothing was written."
        )


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes the output when the block ends, and vanishes when it fails.

    Args:
        output: the folder to be; one that is there is replaced, in one step where the system can do that.

    Raises:
        OSError: the disk is full or the place is not writable; what was there is untouched.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    sweep(output)
    part = output.with_name(f".{output.name}.{secrets.token_hex(4)}.part")
    lock = None
    try:
        part.mkdir()
        lock = _lock(part)
        yield part
        _make_durable(part)
        _move_into_place(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sweep(output: Path) -> None:
    """Remove what killed writers left beside an output, and bring back what they had moved aside."""
    output = output.absolute()
    for aside in sorted(output.parent.glob(f".{output.name}.*.old")):
        if output.exists():
            carry_over(aside, output)
        else:
            os.rename(aside, output)
    for part in output.parent.glob(f".{output.name}.*.part"):
        lock = _lock(part)
        if lock is not None:
            shutil.rmtree(part, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives; None when another holds it or the system has no locks."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _make_durable(part: Path) -> None:
    folders = [part]
    for path in sorted(part.rglob("*")):
        if path.is_dir():
            folders.append(path)
        else:
            sync_file(path)
    for folder in reversed(folders):
        sync_folder(folder)


def _move_into_place(part: Path, output: Path) -> None:
    if output.is_dir() and any(output.iterdir()):
        # Swapped, the old folder would pass for a half-written one, and files of the user's would go with it.
        if sort_out(output).others or not _exchange(part, output):
            aside = output.with_name(f".{output.name}.{secrets.token_hex(4)}.old")
            os.rename(output, aside)
            os.rename(part, output)
            carry_over(aside, output)
    else:
        if output.is_dir():
            # Only POSIX replaces an empty folder on renaming.
            output.rmdir()
        os.rename(part, output)
    sync_folder(output.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that there is no moment without an output; Linux only.

    Returns:
        Whether it was done.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0
