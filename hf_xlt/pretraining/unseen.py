"""Embeddings of pieces that a phase's text does not hold.

A multilingual vocabulary has many such rows while one language is read. They are no target and, but for the random
tokens of the masking, no input; still weight decay shrinks them, and in an output layer, tied or not, the denominator
of the softmax pushes all of them in one direction. What counts as seen is decided by the text alone, with all special
tokens: a row that occurred only as a random token is unseen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.batches import PhaseText
from hf_xlt.pretraining.masking import special_ids
from hf_xlt.pretraining.vocabulary import vocabulary_parameters
from hf_xlt.randomness import keyed_generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Rows whose norms are taken together: some 50 MB at width 768.
_ROWS = 2**14


def seen_pieces(text: PhaseText, tokenizer: PreTrainedTokenizerBase, rows: int) -> np.ndarray | None:
    """Return which rows of the embeddings belong to special tokens, or to pieces of the text to train on.

    Args:
        text: of a phase; it is read once, from end to end.
        tokenizer: that of the text.
        rows: V, rows of the embeddings.

    Returns:
        (V,) bool; None for streamed text, whose pieces are not known beforehand.
    """
    if text.streams:
        return None
    seen = np.zeros(rows, dtype=bool)
    seen[sorted(special_ids(tokenizer))] = True
    for subset in text.corpora.values():
        seen |= subset.pieces(rows)
    return seen


def redraw_rows(model: PreTrainedModel, seen: np.ndarray, seed: int) -> int:
    """Draw the rows of unseen pieces from N(mean, std) of the seen ones, per dimension, in place.

    An output layer of its own (not tied) is treated likewise, and output biases of unseen pieces get the mean of the
    seen ones.

    Args:
        model: masked language model.
        seen: (V,) bool.
        seed: every row is a pure function of it, of the seen rows and of the row's number.

    Returns:
        How many rows were drawn.

    Raises:
        ConfigError: no row, or only that of padding, is seen.
    """
    unseen = torch.from_numpy(~seen)
    trained = torch.from_numpy(seen.copy())
    if model.config.pad_token_id is not None:
        # It is zero, and was never trained.
        trained[model.config.pad_token_id] = False
    if not trained.any():
        raise ConfigError("the text holds no piece of the vocabulary, so there are no embeddings to draw others like.")
    for name, parameter in vocabulary_parameters(model).items():
        values = parameter.detach().float().cpu()
        mean, std = values[trained].mean(0), values[trained].std(0, correction=0)
        drawn = mean.expand_as(values)
        if values.dim() > 1:
            drawn = torch.randn(values.shape, generator=keyed_generator(seed, "unseen rows", name)) * std + mean
        with torch.no_grad():
            parameter[unseen.to(parameter.device)] = drawn[unseen].to(parameter)
    return int(unseen.sum())


def mean_norm(table: torch.Tensor, rows: torch.Tensor) -> float:
    """Return the mean L2 norm of some rows of a table (V, D); `rows` are their numbers (U,), at least one."""
    with torch.no_grad():
        total: Any = sum(table[part].float().norm(dim=1).sum() for part in rows.split(_ROWS))
    return float(total) / len(rows)
