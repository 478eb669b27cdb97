"""What a checkpoint holds besides the stock files: `xlt_state.safetensors` and `xlt_state.json`.

The stock Trainer restores callback state only on request and into new objects, and knows nothing of a strategy's
own tensors. Here the state goes back into the objects at hand. Nothing is pickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from hf_xlt.errors import RunError
from hf_xlt.files import write_json
from hf_xlt.modelling.seen_rows import SeenRows
from hf_xlt.training.embedding_rows import check_same_setting
from hf_xlt.training.interruption import InterruptionCallback

if TYPE_CHECKING:
    from hf_xlt.training.trainer import XLTTrainer

TENSORS_NAME = "xlt_state.safetensors"
VALUES_NAME = "xlt_state.json"


@runtime_checkable
class Stateful(Protocol):
    """A callback with state of its own; `state_name` is unique within a run."""

    state_name: str

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors, and JSON-able values."""

    def load_strategy_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `strategy_state` returned."""


class ExtraState(TrainerCallback):
    """Writes and restores the state of the strategy and of callbacks."""

    def __init__(self, trainer: XLTTrainer) -> None:
        """Serve `trainer`."""
        self.trainer = trainer
        self.training_was_over = False
        self.folder: Path | None = None

    def resume_from(self, checkpoint: str | None) -> None:
        """Note which checkpoint `train` is about to resume from."""
        self.folder = Path(checkpoint) if checkpoint else None
        self.training_was_over = False

    def _parts(self) -> dict[str, Any]:
        callbacks = self.trainer.callback_handler.callbacks
        rows = self.trainer.embedding_rows
        held = {} if rows is None else {rows.state_name: rows}
        return {
            "strategy": self.trainer,
            **held,
            **{cb.state_name: cb for cb in callbacks if isinstance(cb, Stateful)},
        }

    def _exportable(self) -> dict[str, Any]:
        callbacks = self.trainer.callback_handler.callbacks
        return {type(cb).__name__: cb for cb in callbacks if isinstance(cb, ExportableState)}

    def interrupted(self) -> bool:
        """Say whether a signal stopped the training."""
        callbacks = self.trainer.callback_handler.callbacks
        return any(cb.stopped for cb in callbacks if isinstance(cb, InterruptionCallback))

    def write(self, folder: Path) -> None:
        """Add the extra state to a checkpoint folder."""
        tensors, values = {}, {}
        for name, part in self._parts().items():
            part_tensors, values[name] = part.strategy_state()
            tensors |= {f"{name}/{key}": tensor.detach().cpu().contiguous() for key, tensor in part_tensors.items()}
        state = {
            "global_step": self.trainer.state.global_step,
            "values": values,
            "callbacks": {name: cb.state()["attributes"] for name, cb in self._exportable().items()},
            "training_is_over": self.trainer.control.should_training_stop and not self.interrupted(),
        }
        save_file(tensors, folder / TENSORS_NAME, metadata={"format": "pt"})
        write_json(folder / VALUES_NAME, state)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Restore, now that the optimizer exists.

        Raises:
            RunError: the extra state is of another update than the checkpoint, or of other rows of word embeddings.
        """
        if self.folder is None:
            return
        path = self.folder / VALUES_NAME
        saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        check_same_setting(saved is not None and SeenRows.state_name in saved["values"], self.trainer.embedding_rows)
        if saved is None:
            return
        if saved["global_step"] != state.global_step:
            raise RunError(f"`{self.folder.name}` holds the state of another update; resume from an earlier one.")
        tensors = load_file(self.folder / TENSORS_NAME)
        for name, part in self._parts().items():
            own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
            if name in saved["values"]:
                part.load_strategy_state(own, saved["values"][name])
        for name, callback in self._exportable().items():
            for attribute, value in saved["callbacks"].get(name, {}).items():
                setattr(callback, attribute, value)
        # A longer training than the one that was over goes on, as with the stock Trainer.
        self.training_was_over = saved["training_is_over"] and state.max_steps <= _updates_asked(self.folder)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Tell training data that change with the epoch which one begins, or is resumed."""
        # Accelerate 1.15 tells the data set only where the sampler does not take the epoch.
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(int(state.epoch or 0))


def _updates_asked(folder: Path) -> int:
    """Return the number of updates of the training that a checkpoint is of."""
    return json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["max_steps"]
