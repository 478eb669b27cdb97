"""Saving a folder of files so that a reader sees the old folder or the new one, never half of one."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_xlt import __version__
from hf_xlt.errors import ConfigError, RunError, setting
from hf_xlt.files import sync_file, sync_folder, write_json
from hf_xlt.written import carry_over


def check_folder(
    folder: Path, *, overwrite: bool, known: Iterable[str], what: str, marker: str, origin: str | None = None
) -> None:
    """Check that a folder may be written; nothing is changed here.

    Args:
        folder: the output folder, existing or not.
        overwrite: what is there may be replaced, if it is of the same kind.
        known: names of the files that such a folder holds, as shell patterns; with any other it is left
            alone.
        what: what the folder is to hold, for the message.
        marker: name of the file that says that such a folder was written here; without it what is there is the user's.
        origin: directory or Hub id of what is read, which may not be replaced by what is made of it.

    Raises:
        ConfigError: it is a file, or holds something that may not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{setting('output_dir', folder)} is a file; give a directory.")
    if origin is not None and folder.exists() and Path(origin).exists() and folder.samefile(origin):
        raise ConfigError(f"`{folder}` is the model that is read; give another {setting('output_dir')} for {what}.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / marker).is_file():
        raise ConfigError(
            f"`{folder}` is not empty and holds no {what.removeprefix('a ')} of hf-xlt, so it is left alone; give "
            f"another {setting('output_dir')}."
        )
    names = (path.name for path in folder.iterdir())
    foreign = sorted(name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in known))
    if foreign:
        raise ConfigError(
            f"`{folder}` holds `{foreign[0]}`, which is no part of {what}, so it is left alone; give another "
            f"{setting('output_dir')}."
        )
    if not overwrite:
        raise ConfigError(
            f"`{folder}` holds {what} already. Add {setting('overwrite')} to replace it, or give another "
            f"{setting('output_dir')}."
        )


def write_report(folder: Path, name: str, report: Mapping[str, Any]) -> None:
    """Write a command's report beside what it wrote into a folder, with the names of all of that but the card.

    By them what was written is told from files of other origin; a card may be edited, and tells that itself.
    """
    files = sorted({path.name for path in folder.iterdir()} - {"README.md"} | {name})
    write_json(folder / name, {"version": __version__, **report, "files": files})


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to write into; when the block ends without error it takes the place of `folder`.

    It lies beside `folder`, is made durable, and is moved in by renaming. After an error or an interruption it is
    deleted and `folder` is as it was.

    Raises:
        RunError: the place cannot be written.
        OSError: the disk is full.
    """
    folder = folder.absolute()
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"output directory `{folder}` cannot be used: {error.strerror}. Give another.") from error
    try:
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                sync_file(path)
        sync_folder(part)
        _exchange(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(folder.parent)


def _exchange(part: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(part, folder)
        return
    old = part.with_suffix(".old")
    os.replace(folder, old)
    try:
        os.replace(part, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    carry_over(old, folder)
