"""Where the RTN sits: finding a layer's module in an encoder, and transforming its output for one forward pass.

The hook is there only while a pass runs, so neither evaluation nor a saved model nor an exception leaves one behind.
transformers 5.23 calls hooks outside of a checkpointed layer, so recomputation does not see them either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_xlt.errors import ConfigError
from hf_xlt.modelling.parts import lists_for_text
from hf_xlt.strategies.metaxl.rtn import RepresentationTransformation

# After the last layer these encoders normalise once more; the head reads that module's output.
_FINAL_NORMS = {"modernbert": "final_norm", "xlm-roberta-xl": "encoder.LayerNorm", "roberta-prelayernorm": "LayerNorm"}


def plain_model(model: nn.Module) -> nn.Module:
    """Return the model of `transformers` inside adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the encoder below the task's head; the model itself where it has none."""
    plain = plain_model(model)
    return getattr(plain, getattr(plain, "base_model_prefix", "") or "", plain)


def layer_list(model: nn.Module) -> nn.ModuleList:
    """Return the encoder's layers: the one `ModuleList` with as many entries as the config has layers.

    Raises:
        ConfigError: there is none, or more than one.
    """
    encoder, config = encoder_of(model), plain_model(model).config.get_text_config()
    count = getattr(config, "num_hidden_layers", None)
    # A list of lists (the blocks of Funnel) is never called.
    found = [
        module
        for _, module in lists_for_text(encoder)
        if len(module) == count and not any(isinstance(entry, nn.ModuleList) for entry in module)
    ]
    if len(found) != 1:
        raise ConfigError(
            f"`{type(plain_model(model)).__name__}` has {len(found)} module lists of length {count} "
            "(`num_hidden_layers`), so its encoder layers cannot be told. Name the modules whose output is to be "
            "transformed by their path with `rtn_modules`."
        )
    return found[0]


def _final_module(model: nn.Module, layers: nn.ModuleList) -> nn.Module:
    encoder, config = encoder_of(model), plain_model(model).config
    path = _FINAL_NORMS.get(config.model_type)
    if path is not None:
        return encoder.get_submodule(path)
    owner = next(module for module in encoder.modules() if any(child is layers for child in module.children()))
    # The norm that DeBERTa keeps beside its layers is that of its relative positions.
    if hasattr(owner, "rel_embeddings"):
        return layers[-1]
    norms = [
        module
        for name, module in owner.named_children()
        if "norm" in type(module).__name__.lower() and "embed" not in name
    ]
    return norms[-1] if norms else layers[-1]


def find_module(model: nn.Module, place: int | str) -> nn.Module:
    """Return the module whose output is the hidden state at a placement.

    Args:
        model: bare model with its head, with or without adapters.
        place: m in 0, ..., L (0: the embeddings' output, L: the last hidden state, after a final norm where there is
            one); negative numbers count from the end, -1 is L; or the path of a module.

    Raises:
        ConfigError: there is no such layer or module.
    """
    if isinstance(place, str):
        try:
            return plain_model(model).get_submodule(place)
        except AttributeError as error:
            names = ", ".join(name for name, _ in plain_model(model).named_children())
            raise ConfigError(
                f"`rtn_modules` names {place!r}, which the model has not. Its top modules are {names}."
            ) from error
    layers = layer_list(model)
    number = place if place >= 0 else len(layers) + 1 + place
    if not 0 <= number <= len(layers):
        raise ConfigError(
            f"`rtn_layers` names layer {place}, and the encoder has {len(layers)}; give 0 (embeddings) to "
            f"{len(layers)}, or -1 (last) to {-len(layers) - 1}."
        )
    if number == len(layers):
        return _final_module(model, layers)
    if number > 0:
        return layers[number - 1]
    embeddings = getattr(encoder_of(model), "embeddings", None)
    if not isinstance(embeddings, nn.Module):
        raise ConfigError(
            f"`{type(encoder_of(model)).__name__}` has no module `embeddings` for placement 0. Name the module by its "
            "path with `rtn_modules`."
        )
    return embeddings


@dataclass
class Trace:
    """What one pass through the hook left.

    Attributes:
        input: (B, T, D) input u of the RTN, without history.
        gate: mean gate, scalar; None without gates.
        ratio: norm of f(u) over norm of the hidden state, scalar.
    """

    input: Tensor | None = None
    gate: Tensor | None = None
    ratio: Tensor | None = None


@dataclass
class Injection:
    """Puts an RTN into a model's forward passes.

    Attributes:
        model: bare model.
        rtn: one transformation per place.
        places: placement of each slot, see `find_module`.
        detach: whether the gradient reaches the encoder by the skip connection alone: h + f(stop_grad(h)).
        modules: the module of each slot; filled in.
    """

    model: nn.Module
    rtn: RepresentationTransformation
    places: Sequence[int | str]
    detach: bool = True
    modules: list[nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        """Find the modules."""
        self.modules = [find_module(self.model, place) for place in self.places]

    @contextmanager
    def active(self, slot: int, pinned: Tensor | None = None) -> Iterator[Trace]:
        """Transform the slot's hidden state in the one forward pass made inside the block.

        Args:
            slot: number of the slot.
            pinned: (B, T, D) what the RTN sees instead of the hidden state at hand.

        Yields:
            The trace, filled by the pass.

        Raises:
            ConfigError: the module ran not at all or more than once, or gave no (B, T, D) tensor.
        """
        trace, calls = Trace(), 0

        def transform(module: nn.Module, args: tuple, output: Any) -> Any:
            nonlocal calls
            calls += 1
            states = output if isinstance(output, Tensor) else output[0]
            if calls > 1 or states.dim() != 3:
                raise ConfigError(
                    f"`{type(module).__name__}` at placement {self.places[slot]} ran more than once in a forward "
                    "pass, or gave no (batch, tokens, width) tensor. Choose another with `rtn_modules`; encoders "
                    "that remove padding need `attn_implementation` `sdpa` or `eager`."
                )
            changed = self._transform(states, slot, pinned, trace)
            return changed if isinstance(output, Tensor) else (changed, *output[1:])

        handle = self.modules[slot].register_forward_hook(transform)
        try:
            yield trace
        finally:
            handle.remove()
        if calls == 0:
            raise ConfigError(
                f"`{type(self.modules[slot]).__name__}` at placement {self.places[slot]} did not run as a module, so "
                "nothing was transformed. Choose another with `rtn_modules`."
            )

    def _transform(self, states: Tensor, slot: int, pinned: Tensor | None, trace: Trace) -> Tensor:
        seen = pinned if pinned is not None else (states.detach() if self.detach else states)
        with torch.autocast(states.device.type, enabled=False):
            change, gate = self.rtn.slots[slot](seen.to(self.rtn.slots[slot].down.weight.dtype))
        trace.input = seen.detach()
        trace.gate = None if gate is None else gate.detach().mean()
        trace.ratio = change.detach().norm() / states.detach().norm().clamp(min=1e-12)
        return states + change.to(states.dtype)
