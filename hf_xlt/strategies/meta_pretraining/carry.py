"""Carrying the optimizer's moments over from the phase before.

A stock checkpoint numbers them by parameter group. Here the names of the parameters are kept in the same checkpoint,
so moments find their parameter by name, also when another vocabulary or another order lies between. The optimizer's
settings and the schedule are the new phase's own.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_xlt.errors import ConfigError, RunError, one_line, setting
from hf_xlt.pretraining.plan import REDRAW, Phase
from hf_xlt.pretraining.vocabulary import vocabulary_parameters
from hf_xlt.training.checkpoints import newest_complete, step_of
from hf_xlt.training.state import VALUES_NAME

OPTIMIZER_FILE = "optimizer.pt"
_NAMES = "parameters"


def last_checkpoint(folder: Path, before: Phase, phase: Phase) -> Path:
    """Return the checkpoint of a phase's last update.

    Args:
        folder: of the phase `before`.
        before: a finished phase.
        phase: the one that is to carry its optimizer on.

    Raises:
        ConfigError: there is none, or it has no optimizer.
    """
    newest = newest_complete(folder)
    if newest is not None and step_of(newest) == before.steps and (newest / OPTIMIZER_FILE).is_file():
        return newest
    found = f"the newest there is `{newest.name}`" if newest else "there is no complete checkpoint"
    if newest is not None and step_of(newest) == before.steps:
        found = f"`{newest.name}` has no `{OPTIMIZER_FILE}`"
    raise ConfigError(
        f"phase `{phase.name}`: `optimizer_carry` needs the checkpoint of update {before.steps} of phase "
        f"`{before.name}` in `{folder.name}`; {found}. Set `optimizer_carry: false`, or start anew with "
        f"{setting('overwrite')}."
    )


def parameter_names(optimizer: Any, model: nn.Module) -> list[str]:
    """Return the names of an optimizer's parameters, in the order in which its state numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def read_moments(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Read an optimizer's state by name of parameter.

    Raises:
        ConfigError: the checkpoint does not name its parameters.
        RunError: it is damaged.
    """
    try:
        values = json.loads((checkpoint / VALUES_NAME).read_text(encoding="utf-8"))["values"]
        saved = torch.load(checkpoint / OPTIMIZER_FILE, map_location="cpu", weights_only=True)["state"]
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RunError(
            f"the optimizer in `{checkpoint.parent.name}/{checkpoint.name}` cannot be read: {one_line(error)}. Set "
            f"`optimizer_carry: false`, or start anew with {setting('overwrite')}."
        ) from error
    names = values.get(CarriedMoments.state_name, {}).get(_NAMES)
    if names is None:
        raise ConfigError(
            f"`{checkpoint.parent.name}/{checkpoint.name}` does not name its parameters: an earlier version wrote it. "
            f"Set `optimizer_carry: false`, or start anew with {setting('overwrite')}."
        )
    return {name: saved[number] for number, name in enumerate(names) if number in saved}


def give_moments(
    optimizer: Any, names: list[str], moments: dict[str, dict[str, Any]], without: Collection[str]
) -> int:
    """Give an optimizer the moments and step counts of the parameters that it shares with another.

    Args:
        optimizer: AdamW, before its first step.
        names: of its parameters, as `parameter_names` returns them.
        moments: by name; those of another shape are left out.
        without: names that start anew all the same.

    Returns:
        How many parameters have got theirs.
    """
    state, packed = {}, optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
        shapes = {value.shape for value in moments.get(name, {}).values() if isinstance(value, Tensor) and value.dim()}
        if name not in without and shapes == {parameter.shape}:
            state[number] = moments[name]
    optimizer.load_state_dict({**packed, "state": state})
    return len(state)


class CarriedMoments(TrainerCallback):
    """Names the optimizer's parameters in every checkpoint, and starts a phase with those moments of another."""

    state_name = "optimizer"

    def __init__(self, phase: Phase, before: Phase | None = None, checkpoint: Path | None = None) -> None:
        """Serve one phase.

        Args:
            phase: the phase.
            before: the phase before it.
            checkpoint: where to take the moments from; None starts without any.
        """
        self.phase, self.checkpoint = phase, checkpoint
        # Embeddings that changed in between, in whole or in part, start anew.
        self.new_embeddings = phase.tokenizer is not None or (before is not None and before.unseen_rows == REDRAW)
        self.names: list[str] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fill the optimizer, unless the phase was resumed: then its own checkpoint has."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self.names = parameter_names(optimizer, model)
        if self.checkpoint is None or state.global_step:
            return
        without = vocabulary_parameters(model) if self.new_embeddings else ()
        count = give_moments(optimizer, self.names, read_moments(self.checkpoint), without)
        if state.is_world_process_zero:
            new = len(self.names) - count
            print(  # noqa: T201
                f"Phase {self.phase.name}: AdamW moments of {count} parameters are carried over, {new} start anew.",
                flush=True,
            )

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the names of the optimizer's parameters, in the order of `optimizer.pt`."""
        return {}, {_NAMES: self.names} if self.names else {}

    def load_strategy_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Do nothing: the names are those of the model."""
