"""Watching, and on request freezing, the embeddings of pieces that the phase's text does not hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_xlt.pretraining.batches import PhaseText
from hf_xlt.pretraining.plan import FREEZE, Phase
from hf_xlt.pretraining.unseen import mean_norm, seen_pieces
from hf_xlt.pretraining.vocabulary import vocabulary_parameters


class UnseenRows(TrainerCallback):
    """Knows the unseen rows of a phase; under `freeze` they end the phase as they began it, bit for bit.

    Frozen are the rows of the embeddings and of an output layer of its own; the output bias is not. Their gradients
    are zero before the norm is clipped, and after each update the rows are put back: weight decay and moments of an
    earlier phase move them also without a gradient. That takes a copy of them on the device, and one write of it per
    update.

    Nothing is saved: text and weights of a checkpoint say all.
    """

    def __init__(self, phase: Phase, text: PhaseText, tokenizer: Any) -> None:
        """Watch the rows of one phase."""
        self.frozen, self.text, self.tokenizer = phase.unseen_rows == FREEZE, text, tokenizer
        self.rows: torch.Tensor | None = None
        self.table: nn.Parameter | None = None
        self._kept: list[tuple[nn.Parameter, torch.Tensor]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the unseen rows, and keep a copy of them if they are frozen; a checkpoint's weights are loaded."""
        model = kwargs["model"]
        self.table, self.rows, self._kept = model.get_input_embeddings().weight, None, []
        seen = seen_pieces(self.text, self.tokenizer, len(self.table))
        if seen is None or seen.all():
            return
        self.rows = torch.from_numpy((~seen).nonzero()[0]).to(self.table.device)
        if self.frozen:
            tables = [parameter for parameter in vocabulary_parameters(model).values() if parameter.dim() > 1]
            self._kept = [(table, table.detach()[self.rows].clone()) for table in tables]

    def mask_gradients(self) -> None:
        """Set the gradients of frozen rows to zero."""
        for table, _ in self._kept:
            if table.grad is not None:
                table.grad.index_fill_(0, self.rows, 0.0)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put frozen rows back."""
        for table, kept in self._kept:
            table.detach().index_copy_(0, self.rows, kept)

    def log_entries(self) -> dict[str, float]:
        """Return the mean norm of the unseen rows of the embeddings, where there are any."""
        return {} if self.rows is None else {"unseen_row_norm": round(mean_norm(self.table, self.rows), 6)}
