"""The files of a push: which ones go, and what keeps them from going."""

from __future__ import annotations

import fnmatch
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

from hf_xlt.errors import ConfigError
from hf_xlt.files import TOKENIZER_FILES
from hf_xlt.record import RECORD_NAME, RunRecord

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
INDEX = "model.safetensors.index.json"
# Nothing else leaves the machine: no pickles, optimizer states, checkpoints or logs.
ALLOWED = (
    *WEIGHTS,
    INDEX,
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    "README.md",
    RECORD_NAME,
    "results.json",
    "results.md",
    "results.png",
    "comparators.json",
    "comparators.md",
    "averaging.json",
    "generalized.json",
    "generalized.md",
    "generalized.png",
    "gates.json",
    "gates.png",
)
# Files that say where they came from; vocabularies are not searched, whose pieces may look like paths.
_SEARCHED = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    RECORD_NAME,
    "results.json",
    "generalized.json",
    "comparators.json",
    "averaging.json",
)


@dataclass(frozen=True)
class Upload:
    """A file to push: its name in the repository, its size in bytes, and where it is or what it holds."""

    name: str
    size: int
    content: Path | bytes = field(repr=False)


def collect(folder: Path, record: RunRecord, repo_id: str) -> tuple[list[Upload], str, list[str]]:
    """Gather the files of a push and check them.

    Args:
        folder: output directory of a run.
        record: its record.
        repo_id: where the model goes, for the card.

    Returns:
        The files by name, the card, and notes for the user. A card that was edited by hand is pushed as it stands;
        any other is rendered anew.

    Raises:
        ConfigError: weights or configuration are missing or damaged, the card would be refused, or a file names a
            local path or holds a token.
    """
    from hf_xlt.model_cards.card import CARD_NAME, check, is_generated, render

    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch.fnmatchcase(path.name, pattern) for pattern in ALLOWED)
    )
    _check_weights(folder, names, command_of(record))
    _check_leaks(folder, names)
    card, notes = render(record, repo_id), []
    if CARD_NAME in names:
        present = (folder / CARD_NAME).read_text(encoding="utf-8")
        if not is_generated(present):
            card = present
            notes.append(f"{CARD_NAME} was edited by hand and goes as it stands; `hf-xlt card` renders it anew.")
    problems = check(card)
    if problems:
        raise ConfigError(f"the card cannot be pushed: {'; '.join(problems)}. Mend `{folder / CARD_NAME}`.")
    uploads = [Upload(CARD_NAME, len(card.encode()), card.encode())]
    uploads += [Upload(name, (folder / name).stat().st_size, folder / name) for name in names if name != CARD_NAME]
    return sorted(uploads, key=lambda upload: upload.name), card, notes


def command_of(record: RunRecord) -> str:
    """Return the command that a run is repeated with."""
    from hf_xlt.model_cards.pretraining import is_pretraining

    return "hf-xlt pretrain" if is_pretraining(record) else "hf-xlt run"


def _check_weights(folder: Path, names: list[str], command: str) -> None:
    weights = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in WEIGHTS)]
    wanted = {"config.json"}
    if INDEX in names:
        wanted |= set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    elif weights != ["model.safetensors"]:
        wanted.add("model.safetensors")
    missing = sorted(wanted - set(names))
    if missing:
        raise ConfigError(
            f"`{folder}` holds no complete model: `{missing[0]}` is missing. Repeat the `{command}` command with "
            "`--resume`, or give the folder that the run was saved in."
        )
    for name in weights:
        check_safetensors(folder / name)


def check_safetensors(path: Path) -> None:
    """Check that a weight file is as long as its header says.

    Raises:
        ConfigError: it is cut off, too long, or no safetensors file.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= size - 8 else None
        if header is None:
            expected = 8 + length
        else:
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"`{path}` is damaged: it has no safetensors header. Copy or save it again.") from error
    if size != expected:
        raise ConfigError(
            f"`{path}` is damaged: it has {size:,} bytes and its header asks for {expected:,}. Copy or save it again."
        )


def _check_leaks(folder: Path, names: list[str]) -> None:
    from hf_xlt.model_cards.checks import leaks

    for name in _SEARCHED:
        found = leaks((folder / name).read_text(encoding="utf-8")) if name in names else []
        if found:
            raise ConfigError(f"`{folder / name}` is not pushed as it is: it holds {found[0]}. Take it out first.")
