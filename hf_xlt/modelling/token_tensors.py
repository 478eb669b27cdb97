"""Which tensors of a model have a row or an entry per token, and which tables of positions hang on the padding token.

The tensors are found by building the architecture twice on the meta device, once with a larger vocabulary: those whose
shape changes hang on it, whatever the family calls them. So encoders, decoders, both together, output layers, biases
and tied weights need no list of names.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from hf_xlt.errors import ConfigError
from hf_xlt.models import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What configs call the size of a vocabulary.
_PER_LAYER = "vocab_size_per_layer_input"
_SIZES = ("vocab_size", "decoder_vocab_size", _PER_LAYER)
# Settings that hold ids of tokens, besides all that end in `_token_id`.
_ID_ENDS = ("_token_id", "_token_ids", "_token_index")
_ID_NAMES = frozenset(
    "suppress_tokens begin_suppress_tokens bad_words_ids force_words_ids lang_to_id task_to_id pad_index bos_index "
    "eos_index unk_index mask_index".split()
)
# Pairs of a position, or of several ids, and a value.
_FORCED, _BIASED = "forced_decoder_ids", "sequence_bias"
# A position table starts after the padding id in models such as RoBERTa; it grows by what the id grows.
_LARGEST_PADDING_ID = 1023


def token_rows(model: PreTrainedModel) -> torch.Tensor:
    """Return a model's input embeddings, one row per token: (V, D).

    Raises:
        ConfigError: it looks tokens up in no table.
    """
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except (AttributeError, NotImplementedError):
        weight = None
    if weight is None or weight.ndim != 2:
        raise ConfigError(
            f"`{type(model).__name__}` has no table of embeddings with a row for each token, so its vocabulary cannot "
            "be changed."
        )
    return weight


def row_count(model: PreTrainedModel) -> int:
    """Return the number of rows of a model's input embeddings.

    Raises:
        ConfigError: as `token_rows`.
    """
    return len(token_rows(model))


def vocabulary_tensors(model: PreTrainedModel) -> dict[str, list[int]]:
    """Return the tensors with one entry per token: name to the dimensions that count tokens.

    Raises:
        ConfigError: the config names no vocabulary of the embeddings' size.
    """
    rows = row_count(model)
    larger = copy.deepcopy(model.config)
    odd = [size for part in configs_of(larger) if (size := getattr(part, _PER_LAYER, rows)) not in (None, 0, rows)]
    if odd:
        raise ConfigError(
            f"the model has {rows:,} embeddings and in each layer some for {odd[0]:,} tokens, which other ids than "
            "those of the text have none of; its vocabulary cannot be changed."
        )
    if not resize_config(larger, rows, rows + 1):
        raise ConfigError(
            f"the model has {rows:,} embeddings, and no `vocab_size` of its config says so; its vocabulary "
            "cannot be changed."
        )
    before, after = (_shapes(type(model), config) for config in (copy.deepcopy(model.config), larger))
    found = {
        name: [place for place, sizes in enumerate(zip(shape, after[name], strict=True)) if sizes == (rows, rows + 1)]
        for name, shape in before.items()
        if shape != after[name]
    }
    odd = next((name for name, places in found.items() if not places), None)
    if odd:
        raise ConfigError(f"tensor `{odd}` grows with the vocabulary in an unknown way, so that cannot be changed.")
    return found


def _shapes(kind: type, config: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"), quiet():
        return {name: tuple(tensor.shape) for name, tensor in kind(config).state_dict().items()}


def configs_of(config: Any) -> Iterator[Any]:
    """Yield a config and all configs inside it."""
    from transformers import PreTrainedConfig

    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from configs_of(value)


def resize_config(config: Any, old: int, new: int) -> bool:
    """Put another size wherever a config, or one inside it, names that of the vocabulary; say whether any did."""
    changed = False
    for part in configs_of(config):
        for name in _SIZES:
            if getattr(part, name, None) == old:
                setattr(part, name, new)
                changed = True
    return changed


def settings_of(model: PreTrainedModel) -> list[Any]:
    """Return the configs of a model that may name tokens: its own, those inside it, that of generation."""
    generation = getattr(model, "generation_config", None)
    return [*configs_of(model.config), *([generation] if generation is not None else [])]


def named_ids(model: PreTrainedModel) -> set[int]:
    """Return the ids that config and generation config name, as far as the embeddings have them."""
    found: set[int] = set()

    def note(index: int) -> int:
        found.add(index)
        return index

    for settings in settings_of(model):
        for name, value in vars(settings).items():
            _mapped(name, copy.deepcopy(value), note)
    return {index for index in found if 0 <= index < row_count(model)}


def renumber_settings(settings: Iterable[Any], change: Callable[[int], int | None]) -> None:
    """Give the tokens that settings name other ids.

    Args:
        settings: configs, changed in place.
        change: new id by old id; None for a token that is there no more, which lists lose and single settings forget,
            where they may be without one.
    """
    from huggingface_hub.errors import StrictDataclassError

    for part in settings:
        for name, value in list(vars(part).items()):
            changed = _mapped(name, copy.deepcopy(value), change)
            if changed != value:
                with contextlib.suppress(StrictDataclassError):
                    setattr(part, name, changed)


def _mapped(name: str, value: Any, change: Any) -> Any:
    """Return a setting with its ids changed by a function; other settings come back as they are."""
    if value is None or isinstance(value, bool):
        return value
    if name == _FORCED:
        return [[place, _each(index, change)] for place, index in value]
    if name == _BIASED:
        pairs = value.items() if isinstance(value, Mapping) else value
        changed = [[_each(list(ids), change), bias] for ids, bias in pairs]
        return {tuple(ids): bias for ids, bias in changed} if isinstance(value, Mapping) else changed
    if name.endswith(_ID_ENDS) or name in _ID_NAMES:
        return _each(value, change)
    return value


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(entry, change) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        changed = [(entry, _each(entry, change)) for entry in value]
        return type(value)(after for before, after in changed if before is None or after is not None)
    return value


def _tables_after_padding(model: PreTrainedModel) -> dict[str, Any]:
    """Return the learned tables of positions that are numbered from the padding id on, by name."""
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    }


def fixed_padding(model: PreTrainedModel) -> int | None:
    """Return the padding id from which a model's code numbers positions, whatever its config names.

    Returns:
        The id; None where positions are not numbered from one, or from that of the config.
    """
    tables = _tables_after_padding(model)
    if not tables:
        return None
    other = copy.deepcopy(model.config)
    other.get_text_config().pad_token_id = int(other.get_text_config().pad_token_id != 1)
    with torch.device("meta"), quiet():
        built = _tables_after_padding(type(model)(other))
    fixed = (table.padding_idx for name, table in tables.items() if table.padding_idx == built[name].padding_idx)
    return next(fixed, None)


def check_padding(model: PreTrainedModel, padding: int) -> None:
    """Check that a model can number positions from another padding id.

    Raises:
        ConfigError: its code fixes the one it has.
    """
    fixed = fixed_padding(model)
    if fixed not in (None, padding):
        raise ConfigError(
            f"`{type(model).__name__}` numbers positions from padding id {fixed}, whatever its config names, and the "
            f"new tokenizer's padding id is {padding}. Make a tokenizer whose padding token has the id {fixed}."
        )


def rows_before_padding(model: PreTrainedModel) -> set[int]:
    """Return the ids that have to stay in front of the padding token.

    Models of fairseq's kind number positions from the padding id on. Where the table of positions is learned it can be
    moved; where it is reckoned, or the code fixes the id, the id has to stay.
    """
    fixed = fixed_padding(model)
    leaves = (module for module in model.modules() if not list(module.children()))
    tables = [module for module in leaves if getattr(module, "padding_idx", None) is not None]
    reckoned = any(not list(module.parameters()) for module in tables)
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    found = set(range(padding)) if reckoned and padding else set()
    return found if fixed is None else found | set(range(fixed + 1))


def shifted_positions(model: PreTrainedModel, config: Any) -> dict[str, torch.Tensor]:
    """Return the position tables that start after the padding id, moved to the new one; changes `config`.

    Raises:
        ConfigError: the new padding id is so large that the table would grow out of proportion.
    """
    tables, fixed = _tables_after_padding(model), fixed_padding(model)
    moved = {}
    for name, table in tables.items():
        shift = config.pad_token_id - table.padding_idx
        if shift == 0 or table.padding_idx == fixed:
            continue
        if config.pad_token_id > _LARGEST_PADDING_ID:
            raise ConfigError(
                f"the new tokenizer's padding id is {config.pad_token_id}, and this model numbers positions from it; "
                f"it must be {_LARGEST_PADDING_ID} or less. Train the tokenizer with its special tokens first."
            )
        config.max_position_embeddings = table.num_embeddings + shift
        weight = table.weight.detach()
        used = weight[table.padding_idx + 1 :]
        moved[name] = torch.cat([weight.new_zeros(config.pad_token_id + 1, weight.shape[1]), used])
    return moved
