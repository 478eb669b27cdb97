"""Whether tokenizer and model fit together: padding, number of tokens, longest input."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, setting
from hf_xlt.modelling.limits import Limits, find_limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_xlt.models import ModelSource
    from hf_xlt.tasks import Task

_SPARSE = (
    "block-sparse attention turns into full attention at the first short batch, and draws random numbers for it: a "
    "resumed run is not equal to one in one go, bit by bit. Set `attention_type` to `original_full` in its config for "
    "that."
)
_RESEEDING = (
    "Reformer seeds the random generators anew, from outside, in each training pass: a run of it can neither be "
    "repeated nor resumed bit by bit."
)


@dataclass(frozen=True)
class Fitted:
    """A model and a tokenizer that fit together.

    Attributes:
        source: where the model is loaded from, with the padding token and the number of tokens settled.
        tokenizer: it has a padding token.
        max_length: longest input in tokens.
        notes: what was settled, in sentences.
    """

    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    notes: tuple[str, ...]


def fit_tokenizer(source: ModelSource, task: Task, asked: int | None, resize: bool | None = False) -> Fitted:
    """Load the tokenizer of a model and make both fit.

    Args:
        source: the model.
        task: says whether the tokenizer must tell where its tokens lie, and the usual longest input.
        asked: longest input that the user asks for; None takes the task's.
        resize: give embeddings to tokens that have none; None where nothing is trained that could.

    Raises:
        ConfigError: there is no usable tokenizer, nothing to pad with, or tokens without an embedding.
    """
    config, tokenizer = source.load_config(), source.load_tokenizer(task)
    limits = find_limits(config)
    notes, count = [], tokens_of(tokenizer)
    if limits.tokens is not None and count > limits.tokens:
        check_resize(source, tokenizer, limits.tokens, resize)
        notes.append(
            f"{count - limits.tokens:,} tokens of the tokenizer have no embedding in the model; new ones are made "
            f"({setting('resize_embeddings')})."
        )
        source = dataclasses.replace(source, token_rows=count)
    chosen = choose_padding(source, tokenizer, config, count)
    if chosen is not None:
        notes.append(f"the tokenizer has no padding token; `{chosen}` serves as one, in the saved model too.")
    padding = _padding_for_config(config, tokenizer, limits)
    source = dataclasses.replace(source, pad_token_id=padding)
    wanted = task.max_length if asked is None else asked
    longest = allowed_length(wanted, tokenizer, limits)
    if longest < wanted:
        notes.append(_cut_note(wanted, longest, tokenizer, asked is not None))
    notes += _repeating_notes(config)
    return Fitted(source, tokenizer, longest, tuple(notes))


def _repeating_notes(config: Any) -> list[str]:
    """Say where an architecture keeps a run from being repeated, or resumed, bit by bit."""
    # BigBird and BigBird-Pegasus name it so.
    sparse = getattr(config, "attention_type", None) == "block_sparse"
    return [_SPARSE] * sparse + [_RESEEDING] * (config.model_type == "reformer")


def tokens_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return one more than the largest id that a tokenizer gives."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_resize(source: ModelSource, tokenizer: PreTrainedTokenizerBase, rows: int, resize: bool | None) -> None:
    """Refuse tokens without an embedding unless new ones are asked for.

    Raises:
        ConfigError: they are not.
    """
    if resize:
        return
    vocabulary = tokenizer.get_vocab()
    extra = sorted((token for token, number in vocabulary.items() if number >= rows), key=vocabulary.get)
    remedy = "" if resize is None else f", or add {setting('resize_embeddings')} to make new embeddings and train them"
    raise ConfigError(
        f"the tokenizer of `{source.path}` has {len(extra)} tokens, such as `{extra[0]}`, that the model has no "
        f"embedding for (it has {rows:,}). Save the tokenizer that the model was trained with beside it{remedy}."
    )


def choose_padding(source: ModelSource, tokenizer: PreTrainedTokenizerBase, config: Any, count: int) -> str | None:
    """Give a tokenizer a padding token where it has none: the config's, else the end of the text, else the unknown.

    The end of the text is what the examples of transformers pad with: the attention mask keeps it out of everything.

    Args:
        source: the model, for messages.
        tokenizer: it is changed.
        config: the model's config.
        count: number of the tokenizer's tokens.

    Returns:
        The token, or None where there was one before.

    Raises:
        ConfigError: there is no such token.
    """
    if tokenizer.pad_token_id is not None:
        return None
    named = _named_padding(config)
    token = tokenizer.convert_ids_to_tokens(named) if named is not None and named < count else None
    token = token or tokenizer.eos_token or tokenizer.unk_token
    if token is None:
        raise ConfigError(
            f"the tokenizer of `{source.path}` has no padding token, nor one for the end of a text to pad with. Set "
            "`pad_token` in its `tokenizer_config.json`."
        )
    tokenizer.pad_token = token
    return token


def _named_padding(config: Any) -> int | None:
    """Return the padding token's id that a config names; Llama's -1 names none."""
    named = getattr(config.get_text_config(), "pad_token_id", None)
    return named if isinstance(named, int) and named >= 0 else None


def _padding_for_config(config: Any, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> int | None:
    """Return the id that the config is to name; None where it stays.

    Decoders find the last token of a text by it, so it has to be what batches are padded with. Where positions are
    counted from it, it belongs to the weights.
    """
    if _named_padding(config) == tokenizer.pad_token_id or (limits.counts_from_padding):
        return None
    return tokenizer.pad_token_id


def allowed_length(asked: int, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> int:
    """Return the longest input in tokens that user, tokenizer and model all allow."""
    return int(min(asked, tokenizer.model_max_length, limits.positions or asked))


def longest_input(asked: int, tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """Return the longest input in tokens that the user, the tokenizer and the model of a config all allow."""
    return allowed_length(asked, tokenizer, find_limits(config))


def _cut_note(wanted: int, longest: int, tokenizer: PreTrainedTokenizerBase, by_user: bool) -> str:
    who = "tokenizer announces" if tokenizer.model_max_length <= longest else "model takes"
    what = f"{setting('max_length', wanted)}" if by_user else f"the task's usual length of {wanted} tokens"
    return f"the {who} no more than {longest} tokens; inputs are cut there, and not at {what}."
