"""The output directory: whether a run may use it, and what lies in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from hf_xlt.errors import ConfigError, RunError
from hf_xlt.files import has_keys, write_text
from hf_xlt.record import RECORD_NAME, RunRecord
from hf_xlt.written import delete_written, sort_out


def inspect_output(folder: Path, *, resume: bool, overwrite: bool) -> RunRecord | None:
    """Check that a run may use a directory; nothing is written or deleted here.

    Args:
        folder: the output directory, existing or not.
        resume: the run continues what is there.
        overwrite: what is there may be deleted, if it is a run.

    Returns:
        The record of the run that is there, or None.

    Raises:
        ConfigError: the directory holds something that this run may not touch.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"`--output-dir {folder}` is a file; give a directory.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if not (folder / RECORD_NAME).is_file():
        raise ConfigError(
            f"`{folder}` is not empty and holds no run of hf-xlt, so it is left alone; give an empty directory."
        )
    if overwrite:
        return None
    record = RunRecord.read(folder)
    if not resume:
        raise ConfigError(
            f"`{folder}` holds a run already (strategy {record.strategy['name']}, {record.status}). Add `--resume` to "
            "continue it, `--overwrite` to delete it, or give another `--output-dir`."
        )
    return record


def check_folder(folder: Path) -> None:
    """Check that files can be written into a folder, which need not be there yet; nothing is written here.

    Raises:
        ConfigError: it, or what it would lie in, is a file or is read-only.
    """
    place = folder.absolute()
    home = next(path for path in (place, *place.parents) if os.path.lexists(path))
    if not home.is_dir():
        raise ConfigError(f"`{folder if home == place else home}` is a file; give a directory for the output.")
    if not os.access(home, os.W_OK | os.X_OK):
        raise ConfigError(f"nothing can be written to `{folder}`; give another directory for the output.")


def check_files(folder: Path, names: Sequence[str], keys: Collection[str], *, overwrite: bool, what: str) -> None:
    """Check that files may be written into a folder that may hold others; nothing is written or deleted here.

    Args:
        folder: existing or not.
        names: of the files, the first a JSON document that says whether they were written here before.
        keys: what that document has.
        overwrite: they may be replaced, if they are of the same kind.
        what: what they are, for the message.

    Raises:
        ConfigError: the folder is a file or read-only, or one of the files is there and may not be replaced.
    """
    check_folder(folder)
    there = [name for name in names if (folder / name).exists()]
    if there and not has_keys(folder / names[0], keys):
        raise ConfigError(
            f"`{folder}` holds `{there[0]}`, but no {what} of hf-xlt, so it is left alone; give another "
            "`--output-dir`."
        )
    if there and not overwrite:
        raise ConfigError(f"`{folder}` holds {what} already; add `--overwrite`, or give another `--output-dir`.")


def output_file(place: str, name: str) -> Path:
    """Return the file that `--output-dir` means with a command that writes one.

    Args:
        place: a folder, existing or to be made, or a file, told by its ending.
        name: of the file in a folder.
    """
    path = Path(place)
    is_file = not path.is_dir() and (path.is_file() or any(char.isalpha() for char in path.suffix))
    return path if is_file and not place.endswith(("/", os.sep)) else path / name


def claim_output(folder: Path, *, overwrite: bool) -> tuple[str, ...]:
    """Make the directory, and with `overwrite` delete the run that it holds.

    Returns:
        Names of what no run wrote there, which stays.

    Raises:
        RunError: it cannot be made.
    """
    others: tuple[Path, ...] = ()
    try:
        if overwrite and (folder / RECORD_NAME).is_file():
            others = delete_written(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"output directory `{folder}` cannot be used: {error.strerror}. Give another.") from error
    return tuple(path.relative_to(folder).as_posix() for path in others)


def withdraw(folder: Path, made: bool) -> None:
    """Give a claimed directory back where a run has left nothing there but its record.

    Args:
        folder: the output directory.
        made: whether the run made it, and so takes it away.
    """
    left = [path for path in folder.rglob("*") if not path.is_dir()]
    if left != [folder / RECORD_NAME]:
        return
    left[0].unlink()
    if made:
        # In the user's own folder an empty folder may be the user's as well.
        for place in sorted(folder.rglob("*"), reverse=True):
            place.rmdir()
        folder.rmdir()


def kept_note(folder: Path, others: Sequence[str]) -> list[str]:
    """Say what stays in a folder whose run is deleted; nothing where all of it was the run's."""
    named = ", ".join(f"`{name}`" for name in others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return [f"Note: {named} in `{folder}` was not written by a run and stays."] if others else []


def write_card(folder: Path, record: RunRecord) -> list[str]:
    """Write a run's card, unless one is there that was edited by hand.

    Returns:
        A note where it was.
    """
    from hf_xlt.model_cards.card import CARD_NAME, is_generated, render

    path = folder / CARD_NAME
    if path.is_file() and not is_generated(path.read_text(encoding="utf-8", errors="replace")):
        return [f"Note: {CARD_NAME} was edited by hand and is left alone; `hf-xlt card --overwrite` renders it anew."]
    write_text(path, render(record))
    return []


def check_space(
    folder: Path,
    parameters: int,
    checkpoints: bool,
    overwrite: bool,
    trainable: int | None = None,
    averages: bool = False,
    snapshots: int = 0,
) -> None:
    """Check that the model, and a checkpoint with its optimizer, fit on the disk; nothing is written or deleted.

    Args:
        folder: the output directory, existing or not.
        parameters: number of parameters, 4 bytes each.
        checkpoints: whether checkpoints are saved, of which two exist while one is replaced.
        overwrite: whether what the directory holds will be deleted.
        trainable: how many parameters are trained, which alone go into checkpoints; None means all.
        averages: whether an average is saved beside the last weights, and kept in checkpoints.
        snapshots: how many further models are kept until they are scored.

    Raises:
        RunError: there is too little space.
    """
    # Weights once; a checkpoint holds weights and two moments each.
    kept = parameters if trainable is None else trainable
    needed = 4 * ((1 + averages + snapshots) * parameters + ((6 + 2 * averages) * kept if checkpoints else 0)) + 2**20
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if overwrite and folder.is_dir():
        free += sum(path.stat().st_size for path in sort_out(folder).written if path.is_file())
    if free < needed:
        raise RunError(
            f"`{folder}` has {free / 2**20:,.0f} MiB free, and the model with its checkpoints needs about "
            f"{needed / 2**20:,.0f} MiB. Free some space, give another `--output-dir`, or add `--save-strategy no`."
        )
