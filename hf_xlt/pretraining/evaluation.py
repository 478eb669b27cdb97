"""Masked-LM loss on held-out documents, per language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from hf_xlt.pretraining.corpus import PackedRows
from hf_xlt.pretraining.masking import mask_rows, row_draws
from hf_xlt.pretraining.objectives import IGNORED, masked_lm_loss
from hf_xlt.randomness import derive_seed

_ROWS = 256


def held_out_losses(trainer: Any, documents: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean loss per masked token of each language; rows, order and masks are the same each time.

    Args:
        trainer: a `MetaPretrainingTrainer`.
        documents: held-out documents by language; at most 256 rows of each are read, never one twice.

    Returns:
        Loss in nats by language; languages with less than one row are left out.
    """
    bare, batches = trainer.bare_model(), trainer.batches
    training, device = bare.training, trainer.args.device
    bare.eval()
    losses = {}
    for language, subset in documents.items():
        packer = PackedRows(subset, batches.body, batches.separator, trainer.args.seed, "held out", language)
        rows = min(packer.tokens_per_pass // batches.body, _ROWS) if len(subset.lengths) else 0
        if not rows:
            continue
        total, masked = 0.0, 0
        for start in range(0, rows, batches.layout.rows):
            numbers = np.arange(start, min(start + batches.layout.rows, rows))
            ids = np.empty((len(numbers), batches.layout.length), dtype=np.int64)
            ids[:, 0] = batches.first
            for place, number in enumerate(numbers):
                ids[place, 1:] = packer.row(int(number))
            draws = row_draws(derive_seed(trainer.args.seed, "held out", language), numbers, batches.layout.length)
            inputs, labels = mask_rows(ids, ~np.isin(ids, batches.special), draws, batches.rule)
            with torch.no_grad(), trainer.compute_loss_context_manager():
                loss = masked_lm_loss(
                    bare, bare, {"input_ids": torch.from_numpy(inputs).to(device)}, torch.from_numpy(labels).to(device)
                )
            total, masked = total + float(loss), masked + int((labels != IGNORED).sum())
        losses[language] = total / max(masked, 1)
    bare.train(training)
    return losses
