"""The layer groups of a model: each trainable tensor in exactly one, found by module identity.

A layer is an entry of an `nn.ModuleList` as long as the encoder is deep, so nothing depends on how a family names its
modules. What lies outside such lists is told apart by where it is: word embeddings, other embeddings, pooler, the
rest of the encoder (`encoder_shared`), and the head outside the encoder.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from hf_xlt.errors import ConfigError
from hf_xlt.modelling.parts import lists_for_text
from hf_xlt.models import is_adapted

WORD_EMBEDDINGS = "word_embeddings"
EMBEDDINGS = "embeddings"
SHARED = "encoder_shared"
POOLER = "pooler"
HEAD = "head"
UNIFORM = "all"
_DEPTHS = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")
_LAYER = re.compile(r"(?P<stack>.*?)layer_(?P<index>\d+)(?P<part>\..+)?")


@dataclass(frozen=True)
class LayerGroups:
    """A partition of a model's trainable tensors.

    Attributes:
        members: parameter names, as in `named_parameters`, by group, from the embeddings up to the head.
        sizes: number of weights by group.
    """

    members: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """The groups, from the embeddings up to the head."""
        return tuple(self.members)

    def index_of(self) -> dict[str, int]:
        """Return the number of each parameter's group, by parameter name."""
        return {name: number for number, names in enumerate(self.members.values()) for name in names}


def find_groups(
    model: nn.Module,
    *,
    granularity: str = "layer",
    separate_word_embeddings: bool = True,
    patterns: Mapping[str, str] | None = None,
    group_of: Callable[[str], str | None] | None = None,
    apart: Sequence[str] = (HEAD,),
) -> LayerGroups:
    """Partition a model's trainable tensors.

    Args:
        model: a task model or a bare encoder, also one with adapters of `peft`.
        granularity: `layer`; `sublayer` (attention and the rest of each layer); `tensor`; `uniform` (one group for
            everything but `apart`).
        separate_word_embeddings: keep word embeddings apart from the other embeddings.
        patterns: regular expressions of parameter names to groups, the first that is found wins over the rules here.
        group_of: maps a parameter's name to its group, or to None to leave it to the rules; wins over everything.
        apart: patterns of the groups that `uniform` does not merge.

    Returns:
        The groups; tensors that are not trained are in none, tied tensors count once.

    Raises:
        ConfigError: no tensor is trained, or a pattern is no regular expression.
    """
    base, prefix = _without_adapters(model)
    layers, word_embeddings = _layers_of(base), _word_embeddings(base)
    body = getattr(base, getattr(base, "base_model_prefix", "") or "", None)
    inside = {id(parameter) for parameter in body.parameters()} if isinstance(body, nn.Module) else set()
    members: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = name.removeprefix(prefix)
        group = (group_of(own) if group_of else None) or _by_pattern(own, patterns or {})
        if group is None:
            place = layers.get(id(parameter))
            group = place[0] if place else _outside_layers(own, id(parameter), word_embeddings, inside)
            if not separate_word_embeddings and group == WORD_EMBEDDINGS:
                group = EMBEDDINGS
            group = _refine(group, own, place, granularity, apart)
        members.setdefault(group, []).append(name)
        sizes[group] = sizes.get(group, 0) + parameter.numel()
    if not members:
        raise ConfigError("no weight of the model is trained, so there is no layer to select.")
    order = sorted(members, key=_rank)
    return LayerGroups({group: tuple(sorted(members[group])) for group in order}, {g: sizes[g] for g in order})


def layer_number(group: str) -> int | None:
    """Return the number of the encoder layer that a group is (part of), or None."""
    match = _LAYER.fullmatch(group)
    return int(match["index"]) if match else None


def matches(group: str, patterns: Sequence[str]) -> bool:
    """Say whether a group is named by one of some shell-style patterns."""
    return any(fnmatch.fnmatchcase(group, pattern) for pattern in patterns)


def _without_adapters(model: nn.Module) -> tuple[nn.Module, str]:
    if not is_adapted(model):
        return model, ""
    base = model.get_base_model()
    prefix = next((f"{name}." for name, module in model.named_modules() if module is base), "")
    return base, prefix


def _layers_of(base: nn.Module) -> dict[int, tuple[str, str]]:
    """Return, by the identity of each parameter in an encoder layer, its group and its name within the layer."""
    config = getattr(base, "config", None)
    parts = [config]
    if hasattr(config, "get_text_config"):
        parts += [config.get_text_config(encoder=True), config.get_text_config(decoder=True)]
    depths = {getattr(part, name, None) for part in parts for name in _DEPTHS} - {None}
    lists = [(name, module) for name, module in lists_for_text(base) if len(module) in depths]
    # A list inside another one belongs to a layer.
    lists = [(name, module) for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    parents = sorted({name.rpartition(".")[0] for name, _ in lists})
    found = {}
    for name, module in lists:
        # Parallel lists of one parent (attentions, norms, ...) are one stack; lists of two parents are two.
        stack = f"{name.rpartition('.')[0].rpartition('.')[2]}_" if len(parents) > 1 else ""
        for index, layer in enumerate(module):
            for own, parameter in layer.named_parameters():
                found.setdefault(id(parameter), (f"{stack}layer_{index}", f"{name.rpartition('.')[2]}.{own}"))
    return found


def _word_embeddings(base: nn.Module) -> set[int]:
    try:
        module = base.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return set()
    return {id(parameter) for parameter in module.parameters()} if isinstance(module, nn.Module) else set()


def _by_pattern(name: str, patterns: Mapping[str, str]) -> str | None:
    try:
        return next((group for pattern, group in patterns.items() if re.search(pattern, name)), None)
    except re.error as error:
        raise ConfigError(f"`layer_groups`: {error.pattern!r} is no regular expression: {error}.") from error


def _outside_layers(name: str, identity: int, word_embeddings: set[int], inside: set[int]) -> str:
    if identity in word_embeddings:
        return WORD_EMBEDDINGS
    if inside and identity not in inside:
        return HEAD
    # Relative positions of DeBERTa are shared by its layers; they are no input embeddings.
    if "embed" in name and "rel_embed" not in name:
        return EMBEDDINGS
    if "pooler" in name:
        return POOLER
    return SHARED if inside else HEAD


def _refine(group: str, name: str, place: tuple[str, str] | None, granularity: str, apart: Sequence[str]) -> str:
    if granularity == "tensor" and not matches(group, apart):
        return name
    if granularity == "uniform" and not matches(group, apart):
        return UNIFORM
    if granularity == "sublayer" and place is not None:
        return f"{group}.{'attention' if 'att' in place[1].lower() else 'feed_forward'}"
    return group


def _rank(group: str) -> tuple:
    fixed = {WORD_EMBEDDINGS: 0, EMBEDDINGS: 1, UNIFORM: 2, SHARED: 5, POOLER: 6, HEAD: 7}
    match = _LAYER.fullmatch(group)
    if match:
        return (3, match["stack"] != "encoder_", match["stack"], int(match["index"]), match["part"] or "")
    return (fixed.get(group, 4), False, "", 0, group)
