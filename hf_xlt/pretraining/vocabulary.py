"""Giving a masked language model another vocabulary.

`random` draws all embeddings anew; `overlap` copies those of pieces that both vocabularies have, whatever their ids
and however they mark the start of a word: `Ġthe`, `▁the` and BERT's `the` are one piece, as are `the` and `##the`.
Any other initialiser fits through the hook `init_fn(old_tokenizer, new_tokenizer, old_embeddings)`.

The model is built anew from a changed config, so that sizes, ties and padding positions are those of a fresh model.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_xlt.errors import ConfigError, one_line
from hf_xlt.modelling.token_tensors import (
    check_padding,
    configs_of,
    renumber_settings,
    resize_config,
    row_count,
    shifted_positions,
    token_rows,
    vocabulary_tensors,
)
from hf_xlt.pretraining.pieces import Notation, script_of, shared_rows
from hf_xlt.randomness import keyed_generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# (old tokenizer, new tokenizer, old embeddings) -> (new embeddings, copied mask); ours take a generator as well.
Init = Callable[..., tuple[torch.Tensor, torch.Tensor]]
# Output biases, by the end of their names, of the families of encoders in `transformers`.
_BIASES = ("predictions.bias", "lm_head.bias", "decoder.bias", "vocab_projector.bias", "generator_lm_head.bias")
_CONFIG_IDS = ("pad", "bos", "eos", "cls", "sep", "mask")


@dataclass(frozen=True)
class SwapReport:
    """What a swap did.

    Attributes:
        old_size: rows of the old embeddings.
        new_size: rows of the new ones.
        copied: how many of them are old rows.
        scripts: per script of the new pieces, how many are copied and how many there are; largest first.
    """

    old_size: int
    new_size: int
    copied: int
    scripts: dict[str, tuple[int, int]]

    def line(self) -> str:
        """Say it in one line."""
        return (
            f"{self.old_size:,} embeddings before, {self.new_size:,} now; {self.copied:,} copied "
            f"({self.copied / self.new_size:.1%})."
        )


def init_random(
    old_tokenizer: PreTrainedTokenizerBase,
    new_tokenizer: PreTrainedTokenizerBase,
    old_embeddings: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw every row from N(mean, std) of the trained rows, per dimension.

    Args:
        old_tokenizer: its ids, without padding, are the trained rows.
        new_tokenizer: has a row for every id.
        old_embeddings: (V_old, D).
        generator: where the numbers come from.

    Returns:
        (V_new, D) embeddings in the old ones' dtype, and a (V_new,) bool mask of copied rows, here none.
    """
    ids = sorted(set(old_tokenizer.get_vocab().values()) - {old_tokenizer.pad_token_id})
    trained = old_embeddings[ids].float().cpu()
    mean, std = trained.mean(0), trained.std(0, correction=0)
    size = vocabulary_size(new_tokenizer)
    drawn = torch.randn(size, old_embeddings.shape[1], generator=generator) * std + mean
    return drawn.to(old_embeddings), torch.zeros(size, dtype=torch.bool)


def init_overlap(
    old_tokenizer: PreTrainedTokenizerBase,
    new_tokenizer: PreTrainedTokenizerBase,
    old_embeddings: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy the rows of pieces in both vocabularies, special tokens by role; draw the others as `init_random`.

    Args:
        old_tokenizer: tokenizer of the old embeddings.
        new_tokenizer: has a row for every id.
        old_embeddings: (V_old, D).
        generator: where the numbers come from.

    Returns:
        (V_new, D) embeddings in the old ones' dtype, and a (V_new,) bool mask of copied rows.

    Raises:
        ConfigError: a vocabulary marks where words end instead of where they start.
    """
    embeddings, copied = init_random(old_tokenizer, new_tokenizer, old_embeddings, generator)
    rows = shared_rows(old_tokenizer, new_tokenizer)
    new, old = list(rows), list(rows.values())
    embeddings[new] = old_embeddings[old]
    copied[new] = True
    return embeddings, copied


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of embedding rows a tokenizer needs: its largest id and 1."""
    return max(tokenizer.get_vocab().values()) + 1


INITS = {"overlap": init_overlap, "random": init_random}


def find_init(name: str) -> Init:
    """Return an initialiser by name, or the function that `package.module:function` names.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in INITS:
        return INITS[name]
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ConfigError(
            f"`init` is {name!r}; it must be {' or '.join(INITS)}, or a function as `package.module:function`."
        )
    if str(Path.cwd()) not in sys.path:
        # A console script does not look for modules where the user stands; `python -m` does.
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ConfigError(
            f"init `{name}`: module `{module}` cannot be imported ({one_line(error)}). Install it, or run "
            "where it lies."
        ) from error
    if not callable(found):
        raise ConfigError(
            f"init `{name}`: `{module}` has no function `{function}`; it must take (old_tokenizer, new_tokenizer, "
            "old_embeddings) and return (new_embeddings, copied_mask)."
        )
    return found


def swap_vocabulary(
    model: PreTrainedModel,
    old_tokenizer: PreTrainedTokenizerBase,
    new_tokenizer: PreTrainedTokenizerBase,
    init: str | Init = "overlap",
    seed: int = 0,
) -> SwapReport:
    """Give a model embeddings for another tokenizer; the encoder is kept.

    The padding row is zero. Output biases of shared pieces are kept, the others get the mean. An output layer of its
    own (not tied) is initialised as the embeddings are. Positions are kept, also where their table depends on the
    padding id. An optimizer made before holds tensors that are the model's no longer.

    Args:
        model: encoder with or without masked-language-model head; changed in place, and untouched after an error.
        old_tokenizer: its tokenizer.
        new_tokenizer: the tokenizer to be.
        init: `overlap`, `random`, or a function as in the module's docstring.
        seed: of the random rows.

    Raises:
        ConfigError: a tokenizer does not fit its model, lacks padding or mask token, or the initialiser does not work.
    """
    init_fn = _seeded(find_init(init) if isinstance(init, str) else init, seed)
    old_rows = token_rows(model).detach()
    check_tokenizer_fits(old_tokenizer, len(old_rows))
    _check_roles(new_tokenizer)
    check_padding(model, new_tokenizer.pad_token_id)
    embeddings, copied = _initialise(init_fn, old_tokenizer, new_tokenizer, old_rows)
    state = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
    rows = shared_rows(old_tokenizer, new_tokenizer, strict=False)
    replaced = {name: embeddings for name, tensor in state.items() if tensor.data_ptr() == old_rows.data_ptr()}
    for name, places in vocabulary_tensors(model).items():
        if name in replaced:
            continue
        by_token = state[name].movedim(places[0], 0)
        if by_token.numel() == len(by_token):
            made = _new_bias(by_token.flatten(), rows, copied).reshape(-1, *by_token.shape[1:])
        else:
            made, _ = _initialise(init_fn, old_tokenizer, new_tokenizer, by_token)
        replaced[name] = made.movedim(0, places[0])
    ids = {old: new for new, old in rows.items()}
    config = _new_config(model, new_tokenizer, len(embeddings), ids)
    replaced |= shifted_positions(model, config)
    with torch.random.fork_rng(devices=[]):
        fresh = type(model)(config)
    fresh.load_state_dict({**state, **replaced})
    fresh.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        fresh.generation_config = copy.deepcopy(model.generation_config)
        renumber_settings([fresh.generation_config], ids.get)
    fresh.to(old_rows).train(model.training)
    # The caller's object stays, and consists of the fresh model's parts.
    vars(model).clear()
    vars(model).update(vars(fresh))
    return _report(len(old_rows), new_tokenizer, copied)


def _seeded(init: Init, seed: int) -> Init:
    if init not in INITS.values():
        return init
    # Every call draws the same numbers: they are a pure function of the seed.
    return lambda old, new, embeddings: init(old, new, embeddings, keyed_generator(seed, "embeddings"))


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Check that a model has an embedding for every token.

    Raises:
        ConfigError: it has not.
    """
    needed = vocabulary_size(tokenizer)
    if needed > rows:
        raise ConfigError(
            f"the model has {rows:,} embeddings and its tokenizer {needed:,} pieces: they do not belong together. "
            "Give the model with the tokenizer it was trained with."
        )


def _check_roles(new: PreTrainedTokenizerBase) -> None:
    for role in ("pad", "mask"):
        if getattr(new, f"{role}_token_id") is None:
            raise ConfigError(
                f"the new tokenizer has no {role} token, which masked language models need; add one to it and save it."
            )


def _initialise(
    init_fn: Init, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call an initialiser, check what it returns, and zero the padding row."""
    result = init_fn(old, new, weights.clone())
    shape = (vocabulary_size(new), weights.shape[1])
    wanted = f"a tensor {shape} and a bool mask ({shape[0]},)"
    if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, torch.Tensor) for part in result)):
        raise ConfigError(f"the initialiser returned {type(result).__name__}; it must return {wanted}.")
    embeddings, copied = result
    if embeddings.shape != shape or copied.shape != shape[:1] or copied.dtype != torch.bool:
        raise ConfigError(
            f"the initialiser returned {tuple(embeddings.shape)} and a {copied.dtype} mask {tuple(copied.shape)}; it "
            f"must return {wanted}."
        )
    if not torch.isfinite(embeddings).all():
        raise ConfigError("the initialiser returned embeddings that are infinite or not numbers.")
    embeddings = embeddings.to(weights.dtype).clone()
    embeddings[new.pad_token_id] = 0
    return embeddings, copied.cpu()


def _output_weights(model: PreTrainedModel) -> list[str]:
    """Return the state-dict names of the output layer's weight, one row per piece; none without a head."""
    layer = model.get_output_embeddings()
    # DeBERTa's newer head calls a square layer its output and projects on the embeddings themselves.
    if layer is None or layer.weight.shape != model.get_input_embeddings().weight.shape:
        return []
    return [name for name, tensor in model.state_dict(keep_vars=True).items() if tensor is layer.weight]


def vocabulary_parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Return the parameters with one row or entry per piece, by name: embeddings, output layer and output bias."""
    embeddings = model.get_input_embeddings().weight
    outputs, rows = set(_output_weights(model)), len(embeddings)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter is embeddings or name in outputs or (name.endswith(_BIASES) and parameter.shape == (rows,))
    }


def _new_bias(old: torch.Tensor, rows: Mapping[int, int], copied: torch.Tensor) -> torch.Tensor:
    bias = old.float().mean().to(old.dtype).repeat(len(copied))
    for new, previous in rows.items():
        if copied[new]:
            bias[new] = old[previous]
    return bias


def _new_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, size: int, ids: Mapping[int, int]) -> Any:
    config = copy.deepcopy(model.config)
    renumber_settings(configs_of(config), ids.get)
    resize_config(config, row_count(model), size)
    for role in _CONFIG_IDS:
        # XLM and its kin call it an index.
        for name in (f"{role}_token_id", f"{role}_index"):
            if hasattr(config, name):
                setattr(config, name, getattr(tokenizer, f"{role}_token_id"))
    config.pad_token_id = tokenizer.pad_token_id
    return config


def _report(old_size: int, tokenizer: PreTrainedTokenizerBase, copied: torch.Tensor) -> SwapReport:
    scripts: dict[str, tuple[int, int]] = {}
    special, notation = set(tokenizer.all_special_ids), Notation.of(tokenizer)
    for piece, index in tokenizer.get_vocab().items():
        script = "special" if index in special else script_of(notation, piece)
        hits, total = scripts.get(script, (0, 0))
        scripts[script] = (hits + int(copied[index]), total + 1)
    ordered = dict(sorted(scripts.items(), key=lambda item: (-item[1][1], item[0])))
    return SwapReport(old_size, len(copied), int(copied.sum()), ordered)
