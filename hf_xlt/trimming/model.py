"""A model with a part of its vocabulary: which tensors have a row or an entry per token, and which settings name one.

The tensors are found by building the architecture twice on the meta device, once with a larger vocabulary: those whose
shape changes hang on it, whatever the family calls them. So encoders, decoders, both together, output layers, biases
and tied weights need no list of names.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_xlt.errors import ConfigError
from hf_xlt.models import ModelSource, quiet, readable_errors
from hf_xlt.pretraining.vocabulary import shifted_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What configs call the size of a vocabulary.
_SIZES = ("vocab_size", "decoder_vocab_size")
# Settings that hold ids of tokens, besides all that end in `_token_id`.
_ID_ENDS = ("_token_id", "_token_ids", "_token_index")
_ID_NAMES = frozenset(
    "suppress_tokens begin_suppress_tokens bad_words_ids force_words_ids lang_to_id task_to_id pad_index bos_index "
    "eos_index unk_index mask_index".split()
)
# Pairs of a position, or of several ids, and a value.
_FORCED, _BIASED = "forced_decoder_ids", "sequence_bias"


def load_model(source: ModelSource) -> tuple[PreTrainedModel, list[str], list[str]]:
    """Load a model with the class that its config names, in the precision of its files.

    Returns:
        The model, the names of weights that its files lack (such as a pooler), and notes for the user.

    Raises:
        ConfigError: it cannot be loaded, its weights are quantized, or it takes no ids of tokens.
    """
    config = source.load_config()
    if getattr(config, "quantization_config", None):
        raise ConfigError(f"the weights of `{source.path}` are quantized; trim the original, and quantize the result.")
    with readable_errors(source.path), quiet():
        model, report = _class_of(config, source).from_pretrained(
            source.path,
            dtype="auto",
            output_loading_info=True,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
        )
    source.check_body(model, report)
    notes = []
    if report["unexpected_keys"]:
        first = sorted(report["unexpected_keys"])[0]
        notes.append(
            f"{len(report['unexpected_keys'])} tensors, such as `{first}`, are no part of `{type(model).__name__}`, "
            "which the config names, and are left out."
        )
    return source.anonymous(model).eval(), sorted(report["missing_keys"]), notes


def _class_of(config: Any, source: ModelSource) -> Any:
    import transformers

    name = (config.architectures or [""])[0]
    known = getattr(transformers, name, None)
    if known is not None:
        return known
    for auto, path in (getattr(config, "auto_map", None) or {}).items():
        if source.trust_remote_code and str(path).endswith(f".{name}"):
            return getattr(transformers, auto)
    return transformers.AutoModel


def row_count(model: PreTrainedModel) -> int:
    """Return the number of rows of a model's input embeddings."""
    return len(model.get_input_embeddings().weight)


def vocabulary_tensors(model: PreTrainedModel) -> dict[str, list[int]]:
    """Return the tensors with one entry per token: name to the dimensions that count tokens.

    Raises:
        ConfigError: the config names no vocabulary of the embeddings' size.
    """
    rows = row_count(model)
    larger = copy.deepcopy(model.config)
    if not _resize(larger, rows, rows + 1):
        raise ConfigError(
            f"the model has {rows:,} embeddings, and no `vocab_size` of its config says so; it cannot be trimmed."
        )
    before, after = (_shapes(type(model), config) for config in (copy.deepcopy(model.config), larger))
    found = {
        name: [place for place, sizes in enumerate(zip(shape, after[name], strict=True)) if sizes == (rows, rows + 1)]
        for name, shape in before.items()
        if shape != after[name]
    }
    odd = next((name for name, places in found.items() if not places), None)
    if odd:
        raise ConfigError(f"tensor `{odd}` grows with the vocabulary in an unknown way; it cannot be trimmed.")
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


def _resize(config: Any, old: int, new: int) -> bool:
    changed = False
    for part in configs_of(config):
        for name in _SIZES:
            if getattr(part, name, None) == old:
                setattr(part, name, new)
                changed = True
    return changed


def _settings(model: PreTrainedModel) -> list[Any]:
    generation = getattr(model, "generation_config", None)
    return [*configs_of(model.config), *([generation] if generation is not None else [])]


def named_ids(model: PreTrainedModel) -> set[int]:
    """Return the ids that config and generation config name, as far as the embeddings have them."""
    found: set[int] = set()

    def note(index: int) -> int:
        found.add(index)
        return index

    for settings in _settings(model):
        for name, value in vars(settings).items():
            _mapped(name, copy.deepcopy(value), note)
    return {index for index in found if 0 <= index < row_count(model)}


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
        return type(value)(_each(entry, change) for entry in value)
    return value


def rows_before_padding(model: PreTrainedModel) -> set[int]:
    """Return the ids that have to stay in front of the padding token.

    Models of fairseq's kind number positions from the padding id on. Where the table of positions is learned it can be
    moved; where it is reckoned, the id has to stay.
    """
    leaves = (module for module in model.modules() if not list(module.children()))
    tables = [module for module in leaves if getattr(module, "padding_idx", None) is not None]
    reckoned = any(not list(module.parameters()) for module in tables)
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    return set(range(padding)) if reckoned and padding else set()


@torch.no_grad()
def trim_model(model: PreTrainedModel, kept: Collection[int]) -> None:
    """Leave the kept rows, in their order, in every tensor with one entry per token, and renumber all settings.

    Args:
        model: changed in place; save it and load it again before it is used, since layers keep sizes of their own.
        kept: old ids, sorted.
    """
    rows, new_ids = row_count(model), {old: new for new, old in enumerate(kept)}
    chosen = torch.tensor(list(kept))
    places = vocabulary_tensors(model)
    _resize(model.config, rows, len(kept))
    for settings in _settings(model):
        for name, value in list(vars(settings).items()):
            changed = _mapped(name, copy.deepcopy(value), lambda index: new_ids.get(index, index))
            if changed != value:
                setattr(settings, name, changed)
    # Tied weights are one tensor under several names, and stay one.
    made: dict[int, torch.Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for name in places:
        tensor = state[name]
        if id(tensor) not in made:
            smaller = tensor.detach()
            for place in places[name]:
                smaller = smaller.index_select(place, chosen)
            made[id(tensor)] = torch.nn.Parameter(smaller) if isinstance(tensor, torch.nn.Parameter) else smaller
    for name, tensor in state.items():
        if id(tensor) in made:
            _put(model, name, made[id(tensor)])
    for name, tensor in shifted_positions(model, model.config.get_text_config()).items():
        _put(model, name, torch.nn.Parameter(tensor))


def _put(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> None:
    parent, _, last = name.rpartition(".")
    module = model.get_submodule(parent)
    (module._parameters if last in module._parameters else module._buffers)[last] = tensor


def save_model(model: PreTrainedModel, missing: Collection[str], folder: Path) -> None:
    """Save a trimmed model without the weights that its files lacked before."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in set(missing)}
    with quiet():
        model.save_pretrained(folder, state_dict=state)


def reload_model(model: PreTrainedModel, missing: Collection[str], folder: Path) -> PreTrainedModel:
    """Load what was saved; weights that its files lack are those of the model that was saved.

    Raises:
        ConfigError: it does not load as it was saved.
    """
    with readable_errors(str(folder)), quiet():
        loaded, report = type(model).from_pretrained(folder, dtype="auto", output_loading_info=True)
    left = {name: sorted(map(str, keys)) for name, keys in report.items() if keys and name != "missing_keys"}
    lost = sorted(set(report["missing_keys"]) - set(missing))
    if left or lost:
        raise ConfigError(f"the trimmed model does not load as it was saved: {json.dumps({**left, 'lost': lost})}.")
    loaded.load_state_dict({name: model.state_dict()[name] for name in missing}, strict=False)
    return loaded.eval()
