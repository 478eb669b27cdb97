"""Saving a masked language model with a tokenizer that was made for another."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from hf_xlt.errors import RunError
from hf_xlt.models import quiet
from hf_xlt.pretraining.statistics import tokenizer_hash
from hf_xlt.written import SWAPPING_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILES = (
    SWAPPING_NAME,
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modeling_*.py",
    "configuration_*.py",
    "tokenization_*.py",
)


def save_masked(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[str]:
    """Save a model and a tokenizer that was made for another, so that they work together.

    The tokenizer announces no more tokens than the model has positions, and no token types that it does not take.

    Returns:
        Notes for the user.

    Raises:
        RunError: `AutoTokenizer` would read the saved tokenizer as another one.
        OSError: the disk is full.
    """
    from transformers import AutoTokenizer

    notes = _fit_tokenizer(model, tokenizer)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reread = AutoTokenizer.from_pretrained(folder)
    if tokenizer_hash(reread) != tokenizer_hash(tokenizer):
        raise RunError(
            f"beside a `{model.config.model_type}` config this tokenizer is read as another "
            f"(`{type(reread).__name__}`); save it with `tokenizer_class` `PreTrainedTokenizerFast` in its "
            "`tokenizer_config.json`."
        )
    return notes


def _fit_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    notes = []
    types = getattr(model.config, "type_vocab_size", 0)
    takes_types = types >= 2 and "token_type_ids" in inspect.signature(model.forward).parameters
    if "token_type_ids" in tokenizer.model_input_names and not takes_types:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        # What is saved are the arguments the tokenizer was made with.
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
        notes.append("the model takes no token types, so the saved tokenizer makes none.")
    positions = usable_positions(model)
    if positions is not None and tokenizer.model_max_length > positions:
        tokenizer.model_max_length = positions
        notes.append(f"the model has {positions} positions, so the saved tokenizer announces no more tokens.")
    return notes


def usable_positions(model: PreTrainedModel) -> int | None:
    """Return the longest input of a model in tokens, or None where the config does not say."""
    size = getattr(model.config, "max_position_embeddings", None)
    if size is None:
        return None
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    padding = next((table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None), None)
    return size if padding is None else size - padding - 1
