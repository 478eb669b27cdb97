"""What each test example contributes to a run's main metric, kept beside its results for paired comparisons."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_xlt.errors import ConfigError
from hf_xlt.files import sync_file, sync_folder

if TYPE_CHECKING:
    from transformers import EvalPrediction

    from hf_xlt.data.labels import LabelInventory
    from hf_xlt.tasks import Task

ITEMS_NAME = "items.safetensors"


class ItemScores:
    """Collects the item scores of a scoring, by language.

    Attributes:
        metric: the main metric, which is the sum of numerators over the sum of denominators.
        languages: (N, 2) numerators and denominators, examples in the order of the data.
    """

    def __init__(self, task: Task, inventory: LabelInventory | None) -> None:
        """Take the task and its labels."""
        self.metric, self.languages = task.metric, {}
        self._of_prediction = task.item_scores(inventory)

    def add(self, language: str, prediction: EvalPrediction) -> None:
        """Take a language's predictions."""
        self.languages[language] = self._of_prediction(prediction)

    def write(self, folder: Path) -> str:
        """Write `items.safetensors` into a run's folder, atomically; return its name.

        Raises:
            OSError: the disk is full.
        """
        from safetensors.numpy import save_file

        part = folder / f".{ITEMS_NAME}.{secrets.token_hex(4)}.part"
        try:
            save_file(self.languages, part, {"metric": self.metric})
            sync_file(part)
            os.replace(part, folder / ITEMS_NAME)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(folder)
        return ITEMS_NAME


def read_items(folder: Path) -> tuple[str, Mapping[str, np.ndarray[Any, Any]]] | None:
    """Read the item scores of a run.

    Returns:
        The metric, and per language (N, 2) float64; None where there are none, as of older runs.

    Raises:
        ConfigError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / ITEMS_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            metric = (file.metadata() or {}).get("metric", "")
            return metric, {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"`{path}` is damaged ({error}). Delete it, and score the run again.") from error
