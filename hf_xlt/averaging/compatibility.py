"""Whether inputs belong together: architecture, labels, tokenizer; and the files copied beside weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_xlt.averaging.dtypes import torch_name
from hf_xlt.averaging.headers import DamagedFile
from hf_xlt.errors import ConfigError, setting
from hf_xlt.files import TOKENIZER_FILES, write_json
from hf_xlt.record import RECORD_NAME
from hf_xlt.tasks import TASKS

CONFIG_NAME = "config.json"
# What makes a vocabulary; the other tokenizer files are settings.
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
)
_SHAPE_KEYS = (
    "model_type",
    "architectures",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "num_labels",
)
_TOKEN_KEYS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
_CHUNK = 1 << 20
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return a folder's `config.json`, or None when there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    return read_object(folder / CONFIG_NAME)


def read_object(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's object, or None when there is no such file.

    Raises:
        ConfigError: it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFile(path, "is damaged: it is no JSON.") from error
    if not isinstance(values, dict):
        raise DamagedFile(path, "is damaged: it holds no JSON object.")
    return values


def check_configs(folders: Sequence[Path], strict: bool, notes: list[str]) -> list[dict[str, Any] | None]:
    """Compare the configs of all inputs with the first one's.

    Args:
        folders: of the inputs, in order.
        strict: whether a difference is an error; else it becomes a note.
        notes: what the user should know is added here.

    Returns:
        Each folder's config, or None.

    Raises:
        ConfigError: architecture, labels or special tokens differ, or weights are quantised.
    """
    # Of many equal files one object is kept.
    texts: dict[bytes, dict[str, Any] | None] = {}
    configs = []
    for folder in folders:
        path = folder / CONFIG_NAME
        text = path.read_bytes() if path.is_file() else b""
        if text not in texts:
            texts[text] = read_config(folder)
        configs.append(texts[text])
    present = [(folder, config) for folder, config in zip(folders, configs, strict=True) if config is not None]
    for folder, config in present:
        if config.get("quantization_config"):
            raise ConfigError(
                f"`{folder}` holds a quantised model, whose codes have no mean. Average the models before they are "
                "quantised."
            )
    for folder, config in present[1:]:
        if config is not present[0][1]:
            _compare(present[0], (folder, config), strict, notes)
    if len(present) < len(folders):
        missing = next(folder for folder, config in zip(folders, configs, strict=True) if config is None)
        notes.append(f"`{missing}` holds no `{CONFIG_NAME}`: architecture and labels were not compared.")
    return configs


def _compare(first: tuple[Path, dict], other: tuple[Path, dict], strict: bool, notes: list[str]) -> None:
    problems = []
    for key in (*_SHAPE_KEYS, *_TOKEN_KEYS):
        expected, found = _setting(first[1], key), _setting(other[1], key)
        if expected != found:
            problems.append((key, expected, found, "Only checkpoints of one architecture can be averaged."))
    labels = [_labels(config) for config in (first[1], other[1])]
    if labels[0] != labels[1]:
        remedy = (
            f"The same class must have the same index in all inputs; train them with the same {setting('labels')}."
        )
        problems.append(("id2label", labels[0], labels[1], remedy))
    for key, expected, found, remedy in problems:
        text = f"`{key}` is {expected!r} in `{first[0]}` and {found!r} in `{other[0]}`."
        if strict:
            raise ConfigError(f"{text} {remedy}")
        notes.append(text)
    bases = [config.get("_name_or_path") for config in (first[1], other[1])]
    if all(bases) and bases[0] != bases[1]:
        notes.append(f"`{first[0].name}` and `{other[0].name}` name different base models in their configs.")


def _setting(config: dict[str, Any], key: str) -> Any:
    """Return a setting of a config, or of the text model's in it, where the sizes of models of several kinds lie."""
    nested = config.get("text_config")
    return config.get(key) if key in config or not isinstance(nested, dict) else nested.get(key)


def _labels(config: dict[str, Any]) -> list[str] | None:
    """Return the classes in order of their index; None where they have no names."""
    table = config.get("id2label")
    if not isinstance(table, dict):
        return None
    try:
        names = [str(table[key]) for key in sorted(table, key=int)]
    except ValueError:
        return sorted(map(str, table.items()))
    return None if names == [f"LABEL_{index}" for index in range(2)] else names


def check_tokenizers(folders: Sequence[Path], strict: bool, notes: list[str]) -> None:
    """Compare the vocabularies of all inputs with the first one's, byte by byte.

    Args:
        folders: of the inputs, in order.
        strict: whether a difference is an error; else it becomes a note.
        notes: what the user should know is added here.

    Raises:
        ConfigError: they differ.
    """
    first: dict[str, Path] = {}
    for folder in folders:
        for name in _VOCABULARIES:
            path = folder / name
            if not path.is_file():
                continue
            other = first.setdefault(name, path)
            if other is not path and not _same_vocabulary(other, path):
                text = f"the tokenizers differ: `{other}` and `{path}` hold other vocabularies."
                if strict:
                    raise ConfigError(f"{text} Only models with one tokenizer can be averaged.")
                notes.append(text)
    if not first:
        notes.append("no input comes with a tokenizer, so vocabularies were not compared and none is saved.")


def _same_vocabulary(one: Path, other: Path) -> bool:
    with open(one, "rb") as left, open(other, "rb") as right:
        if one.name == "tokenizer.json":
            # Truncation and padding stand first in the file and change with the batch that was tokenized last.
            for file in (left, right):
                begin = file.read(_CHUNK).find(b'"added_tokens"')
                file.seek(max(begin, 0))
        while True:
            chunks = left.read(_CHUNK), right.read(_CHUNK)
            if chunks[0] != chunks[1]:
                return False
            if not chunks[0]:
                return True


def copy_companions(source: Path, folder: Path, dtype: str | None) -> None:
    """Copy config, tokenizer and generation config; nothing that training could be resumed from.

    Args:
        source: folder of the last input.
        folder: the output.
        dtype: the weights' new format, to be named in the config; None leaves that as it is.

    Raises:
        OSError: the disk is full.
    """
    config = read_config(source)
    if config is not None:
        # It was chosen for the probabilities of one model alone.
        config.pop("decision_threshold", None)
        if dtype is not None:
            config.pop("torch_dtype", None)
            config["dtype"] = torch_name(dtype)
        write_json(folder / CONFIG_NAME, without_paths({**config, **_trained_for(source)}))
    code = sorted(path.name for path in source.glob("*.py")) if config and "auto_map" in config else []
    for name in ("generation_config.json", *TOKENIZER_FILES, *code):
        path = source / name
        if not path.is_file():
            continue
        values = read_object(path) if name in ("tokenizer_config.json", "generation_config.json") else None
        if values is not None and without_paths(values) != values:
            write_json(folder / name, without_paths(values))
        else:
            shutil.copyfile(path, folder / name)


def _trained_for(folder: Path) -> dict[str, Any]:
    """Return what the config of a model or a checkpoint is to say, by the record of its run; nothing without one."""
    for place in (folder, folder.parent):
        record = read_object(place / RECORD_NAME)
        if record is not None:
            task = TASKS.get((record.get("task") or {}).get("name"))
            return {"problem_type": task.problem_type} if task else {}
    return {}


def without_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out names of models that are no Hub ids: they are folders of this machine."""
    kept = dict(values)
    for key in ("_name_or_path", "name_or_path", "base_model_name_or_path"):
        name = kept.get(key)
        if isinstance(name, str) and not _HUB_ID.fullmatch(name):
            kept[key] = None if key.startswith("base") else ""
    return kept
