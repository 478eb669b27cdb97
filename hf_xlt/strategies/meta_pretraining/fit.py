"""Whether model, tokenizer and rows fit together, and what of the model's layout pre-training must know."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_xlt.errors import ConfigError
from hf_xlt.modelling.limits import find_limits
from hf_xlt.models import ModelSource
from hf_xlt.pretraining.objectives import base_model
from hf_xlt.pretraining.plan import FREEZE, Phase


def check_model(model: nn.Module, tokenizer: Any, row_length: int) -> None:
    """Refuse a model that the tokenizer or the row length does not fit.

    Raises:
        ConfigError: the vocabulary is smaller than the tokenizer's, the tokenizer cannot mask, or rows are longer
            than the position table.
    """
    config = getattr(model, "config", None)
    if tokenizer is None or tokenizer.mask_token_id is None:
        raise ConfigError("pre-training needs a tokenizer with a mask token; this one has none.")
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer):,} pieces and the model {config.vocab_size:,} rows; they do not "
            "belong together. Give the model's own tokenizer, or `hf-xlt swap-vocab` first."
        )
    longest = getattr(config, "max_position_embeddings", None) or row_length
    # RoBERTa's table starts after the padding index.
    longest -= first_position(model)
    if row_length > longest:
        raise ConfigError(f"`row_length` is {row_length}, the model's position table ends at {longest}.")


def check_distillation(phase: Phase, student: Any, tokenizer: Any, held_out: bool) -> None:
    """Refuse a distillation that cannot be done, before anything is computed; of the teacher its config is read.

    Args:
        phase: with a teacher.
        student: config of the student.
        tokenizer: of the teacher.
        held_out: whether documents are held out.

    Raises:
        ConfigError: the teacher is no encoder, its tokenizer is another model's, a text is longer than either model
            takes, or text is held out for a loss that the phase does not train.
    """
    config = ModelSource.find(phase.teacher).load_config()
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise ConfigError(f"teacher `{phase.teacher}` is no encoder (`{config.model_type}`); give one, such as E5.")
    limits = find_limits(config)
    rows = limits.tokens
    if rows is not None and len(tokenizer) > rows:
        raise ConfigError(
            f"teacher `{phase.teacher}`: its tokenizer has {len(tokenizer):,} pieces and the model {rows:,} rows; "
            "they do not belong together."
        )
    for name, longest in (("teacher", limits.positions), ("student", find_limits(student).positions)):
        if longest is not None and phase.text_length > longest:
            raise ConfigError(
                f"phase `{phase.name}`: `text_length` is {phase.text_length}, and the {name} takes {longest} tokens."
            )
    if held_out and not phase.masked:
        raise ConfigError(
            f"phase `{phase.name}`: `held_out_share` reports a masked-LM loss, and `distill` alone trains no output "
            "layer. Leave it out, or add `mlm` to `objectives`."
        )


def check_whole(phase: Phase) -> None:
    """Refuse what needs whole parameters in every process, where FSDP or DeepSpeed divides them.

    Raises:
        ConfigError: the phase carries an optimizer over, or freezes rows.
    """
    asked = {"optimizer_carry": phase.optimizer_carry, f"unseen_rows: {FREEZE}": phase.unseen_rows == FREEZE}
    for name, wanted in asked.items():
        if wanted:
            raise ConfigError(
                f"phase `{phase.name}`: `{name}` does not work with FSDP or DeepSpeed, where no process holds whole "
                "parameters. Leave it out, or train without them."
            )


def first_position(bare: nn.Module) -> int:
    """Return the position id of a document's first token: 0, or the one after padding in RoBERTa-like tables."""
    table = getattr(getattr(base_model(bare), "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def pooling_of(asked: str, config: Any) -> str:
    """Return `mean` or `first`; `auto` follows the model's own classification head."""
    if asked != "auto":
        return asked
    return "mean" if getattr(config, "classifier_pooling", None) == "mean" else "first"
