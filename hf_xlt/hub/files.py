"""The files of a push: which ones go, and what keeps them from going."""

from __future__ import annotations

import fnmatch
import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hf_xlt.errors import ConfigError
from hf_xlt.files import TOKENIZER_FILES
from hf_xlt.record import RECORD_NAME, RunRecord, plots
from hf_xlt.registry import left_beside

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
INDEX = "model.safetensors.index.json"
CARD_NAME = "README.md"
# A LoRA adapter lies in a folder of the run, and goes to the top of a repository of its own.
ADAPTER_FOLDER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = ("adapter_config.json", ADAPTER_WEIGHTS)
# Nothing else leaves the machine: no pickles, optimizer states, checkpoints or logs.
MODEL_FILES = (*WEIGHTS, INDEX, "config.json", "generation_config.json")
_BESIDE = (
    *TOKENIZER_FILES,
    CARD_NAME,
    RECORD_NAME,
    "results.json",
    "results.md",
    "comparators.json",
    "comparators.md",
    "averaging.json",
    "generalized.json",
    "generalized.md",
    "trimming.json",
)
# What decides which weights are loaded: left over from an earlier push it would win against those of this one.
_DECIDING = (*WEIGHTS, INDEX, *ADAPTER_FILES)
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
    "adapter_config.json",
)
_IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?:)([^)\s]+)\)")


@dataclass(frozen=True)
class Upload:
    """A file to push: its name in the repository, its size in bytes, and where it is or what it holds."""

    name: str
    size: int
    content: Path | bytes = field(repr=False)


def collect(
    folder: Path, record: RunRecord, repo_id: str, adapter: bool = False
) -> tuple[list[Upload], str, list[str]]:
    """Gather the files of a push and check them.

    Args:
        folder: output directory of a run.
        record: its record.
        repo_id: where the model goes, for the card.
        adapter: send the LoRA adapter in place of the model that it is merged into.

    Returns:
        The files by name, the card, and notes for the user. A card that was edited by hand is pushed as it stands;
        any other is rendered anew.

    Raises:
        ConfigError: weights or configuration are missing or damaged, the card would be refused, or a file names a
            local path or holds a token.
    """
    paths = _choose(folder, allowed(adapter))
    if adapter:
        paths |= _adapter_files(folder, record)
    else:
        _check_weights(paths, folder, command_of(record))
    _check_leaks(paths)
    card, notes = _card(folder, record, repo_id, adapter)
    missing = [name for name in dict.fromkeys(_IMAGE.findall(card)) if name not in paths]
    if missing:
        notes.append(f"the card shows {', '.join(missing)}, which is not pushed: only pictures that runs draw are.")
    uploads = [Upload(CARD_NAME, len(card.encode()), card.encode())]
    uploads += [Upload(name, path.stat().st_size, path) for name, path in paths.items() if name != CARD_NAME]
    return sorted(uploads, key=lambda upload: upload.name), card, notes


def allowed(adapter: bool = False) -> tuple[str, ...]:
    """Return the patterns of what a push may take from a run: the model, unless its adapter goes, and what it was."""
    return (*(() if adapter else MODEL_FILES), *_BESIDE, *plots(), *left_beside("FILES"))


def kept_beside() -> tuple[str, ...]:
    """Return the patterns of what stays true of a run when its weights are written anew: record, results, pictures."""
    own = {*TOKENIZER_FILES, CARD_NAME, "trimming.json"}
    return (*(name for name in _BESIDE if name not in own), *plots(), *left_beside("FILES"))


def _choose(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """Return the files of a folder that fit one of the patterns, by name."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _fits(path.name, patterns)}


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def stale(present: Iterable[str], uploads: Iterable[Upload]) -> list[str]:
    """Return which files of a repository would be loaded in place of the weights that are pushed into it.

    Args:
        present: names of the files in the repository.
        uploads: what is pushed.
    """
    kept = {upload.name for upload in uploads}
    return sorted(name for name in present if name not in kept and _fits(name, _DECIDING))


def _card(folder: Path, record: RunRecord, repo_id: str, adapter: bool) -> tuple[str, list[str]]:
    from hf_xlt.model_cards.card import check, is_generated, render
    from hf_xlt.model_cards.checks import contradictions

    card, notes = render(record.with_plots(folder), repo_id, adapter), []
    present = folder / CARD_NAME
    if present.is_file():
        text = present.read_text(encoding="utf-8")
        if not is_generated(text) and adapter:
            notes.append(f"{CARD_NAME} was edited by hand, but tells of the merged model; a card of the adapter goes.")
        elif not is_generated(text):
            card = text
            notes.append(f"{CARD_NAME} was edited by hand and goes as it stands; `hf-xlt card` renders it anew.")
    problems = check(card) or contradictions(card, record)
    if problems:
        raise ConfigError(f"the card cannot be pushed: {'; '.join(problems)}. Mend `{present}`.")
    return card, notes


def _adapter_files(folder: Path, record: RunRecord) -> dict[str, Path]:
    """Return the files of a run's adapter, once it is sure that they can be loaded elsewhere.

    Raises:
        ConfigError: there is no adapter, it is damaged, or its base model is not on the Hub.
    """
    from hf_xlt.model_cards.metadata import base_model

    place = folder / ADAPTER_FOLDER
    if not record.model.get("adapter"):
        raise ConfigError(f"the run in `{folder}` trained no adapter (`--peft lora`). Leave `--adapter` out.")
    paths = _choose(place, ADAPTER_FILES) if place.is_dir() else {}
    missing = sorted(set(ADAPTER_FILES) - set(paths))
    if missing:
        raise ConfigError(f"`{place}` holds no complete adapter: `{missing[0]}` is missing. Leave `--adapter` out.")
    check_safetensors(paths[ADAPTER_WEIGHTS])
    try:
        named = json.loads(paths["adapter_config.json"].read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"`{place / 'adapter_config.json'}` is damaged. Leave `--adapter` out.") from error
    if base_model(record) is None or named != record.model["name"]:
        raise ConfigError(
            "the adapter is of no use without the weights it was trained on, and these are not on the Hub: "
            + ("the run has trained them in an earlier phase." if base_model(record) else "they are local.")
            + " Leave `--adapter` out to push the merged model."
        )
    return paths


def command_of(record: RunRecord) -> str:
    """Return the command that a run is repeated with."""
    from hf_xlt.model_cards.pretraining import is_pretraining

    return "hf-xlt pretrain" if is_pretraining(record) else "hf-xlt run"


def _check_weights(paths: Mapping[str, Path], folder: Path, command: str) -> None:
    weights = [name for name in paths if _fits(name, WEIGHTS)]
    wanted = {"config.json"}
    if INDEX in paths:
        wanted |= _shards(paths[INDEX])
    elif weights != ["model.safetensors"]:
        wanted.add("model.safetensors")
    missing = sorted(wanted - set(paths))
    if missing:
        raise ConfigError(
            f"`{folder}` holds no complete model: `{missing[0]}` is missing. Repeat the `{command}` command with "
            "`--resume`, or give the folder that the run was saved in."
        )
    for name in weights:
        check_safetensors(paths[name])


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"`{index}` is damaged: it names no weight files. Copy or save it again.") from error


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


def _check_leaks(paths: Mapping[str, Path]) -> None:
    from hf_xlt.model_cards.checks import leaks

    for name in (*_SEARCHED, *left_beside("FILES")):
        found = leaks(paths[name].read_text(encoding="utf-8")) if name in paths else []
        if found:
            raise ConfigError(f"`{paths[name]}` is not pushed as it is: it holds {found[0]}. Take it out first.")
