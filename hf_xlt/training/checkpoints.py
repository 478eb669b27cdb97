"""Complete checkpoints: how one is sealed, found, rotated and cleared away.

A checkpoint folder counts only once `complete.json` lies in it and every file named there has its size. So a run
killed at any moment, also while saving or while deleting, resumes from the newest folder that was finished.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from hf_xlt.files import sync_file, sync_folder, write_json
from hf_xlt.written import COMPLETE_NAME, delete_files, delete_written, sort_out

_FOLDER = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path, others: frozenset[Path] = frozenset()) -> None:
    """Make a checkpoint's files durable and declare it complete.

    Args:
        folder: the checkpoint.
        others: what `unseal` found in it that is no part of it; it may change and counts for nothing.
    """
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != COMPLETE_NAME and others.isdisjoint((path, *path.parents)):
            sync_file(path)
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    write_json(folder / COMPLETE_NAME, {"files": sizes})
    sync_folder(folder.parent)


def unseal(folder: Path) -> frozenset[Path]:
    """Declare a checkpoint incomplete, before its files are replaced; return what in it no run wrote."""
    others = frozenset(sort_out(folder).others)
    (folder / COMPLETE_NAME).unlink(missing_ok=True)
    return others


def is_complete(folder: Path) -> bool:
    """Say whether a checkpoint was sealed and still has every file at its size."""
    try:
        sizes = json.loads((folder / COMPLETE_NAME).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Return the checkpoint folders of one phase, complete or not, by step."""
    if not run_folder.is_dir():
        return []
    folders = [path for path in run_folder.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name)]
    return sorted(folders, key=step_of)


def step_of(folder: Path) -> int:
    """Return the update after which a checkpoint was taken."""
    return int(_FOLDER.fullmatch(folder.name)[1])


def newest_complete(run_folder: Path) -> Path | None:
    """Return the newest complete checkpoint of one phase, or None."""
    return next((folder for folder in reversed(list_checkpoints(run_folder)) if is_complete(folder)), None)


def remove_incomplete(run_folder: Path) -> list[Path]:
    """Delete the checkpoints that a killed run left unfinished, and nothing else in their folders; return them."""
    checkpoints = list_checkpoints(run_folder)
    # A folder in which only files of the user's are left was no checkpoint any more.
    unfinished = [folder for folder in checkpoints if not is_complete(folder) and _holds_checkpoint(folder)]
    for folder in unfinished:
        delete_written(folder, itself=True)
    return unfinished


def _holds_checkpoint(folder: Path) -> bool:
    contents = sort_out(folder)
    return bool(contents.written) or not contents.others


def rotate(run_folder: Path, limit: int | None, best: Path | None) -> None:
    """Delete the oldest complete checkpoints beyond `limit`, never the newest nor the best one.

    Args:
        run_folder: folder of one phase.
        limit: how many to keep; None or 0 keeps all. The newest and the best are kept even above it.
        best: the checkpoint that selection prefers so far.
    """
    if not limit or limit < 0:
        return
    folders = [folder for folder in list_checkpoints(run_folder) if is_complete(folder)]
    kept = {folders[-1]} | {folder for folder in folders if best is not None and folder.name == Path(best).name}
    excess = len(folders) - max(limit, len(kept))
    for folder in [folder for folder in folders if folder not in kept][: max(excess, 0)]:
        _delete_complete(folder)


def _delete_complete(folder: Path) -> None:
    # Its seal names files that no pattern knows, and has to go first: what is half deleted must not count.
    contents = sort_out(folder)
    unseal(folder)
    delete_files(contents)
    delete_written(folder, itself=True)
