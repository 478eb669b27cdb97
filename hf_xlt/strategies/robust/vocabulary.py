"""The embedding matrix: which rows are text, how long they are, and what their precision leaves of a shift."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from hf_xlt.modelling.seen_rows import whole_weight
from hf_xlt.strategies.robust.embedding_hook import looked_up_states

_PLACEHOLDER = re.compile(r"\[?<?unused_?\d+>?\]?", re.IGNORECASE)
# Below this a shift per coordinate is largely lost when it is added to 16-bit embeddings of usual scale.
_SMALLEST_16_BIT_SHIFT = 1e-3


def special_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids of special tokens without the unknown token, which stands for text; empty if none are known."""
    ids = getattr(tokenizer, "all_special_ids", None) or []
    return sorted(set(ids) - {getattr(tokenizer, "unk_token_id", None)})


def text_rows(rows: int, tokenizer: Any) -> Tensor:
    """Say which rows of the embedding matrix stand for text.

    Args:
        rows: V, rows of the matrix; it may have more than the tokenizer has tokens.
        tokenizer: anything with `get_vocab` and `all_special_ids`; otherwise every row counts.

    Returns:
        bool (V,): neither special, nor unknown to the tokenizer, nor a placeholder such as `[unused7]`. All True
        when that would leave none.
    """
    if not hasattr(tokenizer, "get_vocab"):
        return torch.ones(rows, dtype=torch.bool)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    used = [
        index
        for token, index in tokenizer.get_vocab().items()
        if index < rows and index not in special and not _PLACEHOLDER.fullmatch(token)
    ]
    chosen = torch.zeros(rows, dtype=torch.bool)
    chosen[used] = True
    return chosen if used else torch.ones(rows, dtype=torch.bool)


@torch.no_grad()
def mean_embedding_norm(embedding: nn.Module, tokenizer: Any) -> float:
    """Return the mean L2 norm of what an embedding module gives for the tokens that stand for text.

    Modules that scale their rows (Gemma, BioGPT) give other vectors than their weight (V, D) holds.
    """
    weight = whole_weight(embedding.weight)
    rows = weight if type(embedding) is nn.Embedding else _outputs(embedding)
    norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))
    return norms.cpu().double()[text_rows(weight.shape[0], tokenizer)].mean().item()


def _outputs(embedding: nn.Module) -> Tensor:
    """Return what an embedding module gives for each token (V, D); it may want a batch of sequences."""
    training = embedding.training
    embedding.eval()
    try:
        ids = torch.arange(len(embedding.weight), device=embedding.weight.device).unsqueeze(0)
        return looked_up_states(embedding(ids))[0]
    finally:
        embedding.train(training)


def warn_of_lost_shifts(weight: Tensor, radius: float, *, per_coordinate: bool) -> None:
    """Warn when 16-bit embeddings (V, D) would swallow a perturbation.

    Args:
        weight: the embedding matrix.
        radius: absolute radius.
        per_coordinate: whether the radius bounds a coordinate rather than the length of a vector.
    """
    shift = radius if per_coordinate else radius / math.sqrt(weight.shape[-1])
    if weight.dtype in (torch.float16, torch.bfloat16) and shift < _SMALLEST_16_BIT_SHIFT:
        warnings.warn(
            f"The embeddings are {weight.dtype} and the perturbation is about {shift:.1e} per coordinate, most of "
            "which rounding removes. Load the model in float32 (with `bf16` for speed), or raise `epsilon`.",
            stacklevel=3,
        )
