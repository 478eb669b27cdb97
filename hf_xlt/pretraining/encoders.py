"""Building encoders with a masked-LM head: new ones, and ones of some layers of another."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from hf_xlt.errors import ConfigError, close_match
from hf_xlt.models import readable_errors

# What a config calls a special token, and what the tokenizer does.
_TOKEN_IDS = {
    "pad_token_id": "pad_token_id",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "cls_token_id": "cls_token_id",
    "sep_token_id": "sep_token_id",
}
# Fields that some configs leave out of their written form while they have their default value.
_RARE_FIELDS = ("attn_implementation", "num_labels", "layer_types", "rope_parameters")


def new_encoder(shape: dict[str, Any], tokenizer: Any, seed: int, attn_implementation: str | None) -> Any:
    """Build an encoder with random weights in float32.

    Args:
        shape: `model_type` and fields of its config; the vocabulary and special tokens come from the tokenizer.
        tokenizer: of the encoder.
        seed: of the weights.
        attn_implementation: attention kernel, or None.

    Raises:
        ConfigError: the type is unknown or has no masked-LM head, or a value cannot be used.
    """
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM, set_seed

    settings = {name: getattr(tokenizer, attribute, None) for name, attribute in _TOKEN_IDS.items()}
    settings = {name: value for name, value in settings.items() if value is not None}
    for name, other in (("bos_token_id", "cls_token_id"), ("eos_token_id", "sep_token_id")):
        if other in settings:
            settings.setdefault(name, settings[other])
    settings |= {"vocab_size": len(tokenizer)} | shape
    with readable_errors(f"a new {shape['model_type']}"):
        config = AutoConfig.for_model(**settings)
        # A config takes any name; only those that it has by itself mean something.
        known = set(type(config)().to_dict()) | {"model_type", *_RARE_FIELDS}
        unknown = sorted(set(shape) - known)
        if unknown:
            raise ConfigError(
                f"a {shape['model_type']} config has no field {unknown[0]!r}.{close_match(unknown[0], known)}"
            )
        set_seed(seed)
        return AutoModelForMaskedLM.from_config(
            config, attn_implementation=attn_implementation, dtype=torch.float32
        ).train()


def choose_layers(asked: int | Sequence[int], depth: int) -> list[int]:
    """Return the numbers of the layers that are asked for, from 0.

    Args:
        asked: the numbers, in rising order; or how many, spread evenly from the first to the last.
        depth: how many layers there are.

    Raises:
        ConfigError: there are not so many, or the numbers do not rise.
    """
    if isinstance(asked, int):
        if not 1 <= asked <= depth:
            raise ConfigError(f"`student_layers` is {asked}; the model has {depth} layers: give 1 to {depth}.")
        return [round(place * (depth - 1) / (asked - 1)) for place in range(asked)] if asked > 1 else [0]
    numbers = list(asked)
    rising = all(first < second for first, second in zip(numbers, numbers[1:], strict=False))
    if not numbers or not rising or numbers[0] < 0 or numbers[-1] >= depth:
        raise ConfigError(
            f"`student_layers` is {','.join(map(str, numbers)) or 'empty'}; give numbers from 0 to {depth - 1} in "
            "rising order, each once."
        )
    return numbers


def with_layers(model: Any, asked: int | Sequence[int]) -> Any:
    """Return a model of some of the layers of another; embeddings and all else are copied.

    Args:
        model: with a masked-LM head; it is not changed.
        asked: as `choose_layers`.

    Raises:
        ConfigError: as `choose_layers`, or the model's layers are not of one make.
    """
    import torch
    from transformers import AutoModelForMaskedLM

    depth = model.config.num_hidden_layers
    numbers = choose_layers(asked, depth)
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth
    ]
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(numbers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in numbers]
    unfit = ConfigError(
        f"`student_layers`: the layers of `{type(model).__name__}` cannot be taken one by one. Leave it out, or start "
        "from a new `model`."
    )
    if len(stacks) != 1:
        raise unfit
    places = {number: place for place, number in enumerate(numbers)}
    pattern = re.compile(re.escape(stacks[0]) + r"\.(\d+)\.")
    weights = {}
    for name, tensor in model.state_dict().items():
        found = pattern.match(name)
        if found is None:
            weights[name] = tensor
        elif int(found[1]) in places:
            weights[f"{stacks[0]}.{places[int(found[1])]}.{name[found.end() :]}"] = tensor
    try:
        smaller = AutoModelForMaskedLM.from_config(
            config, attn_implementation=model.config._attn_implementation, dtype=torch.float32
        )
        smaller.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise unfit from error
    smaller.config._name_or_path = model.config._name_or_path
    smaller.name_or_path = model.name_or_path
    return smaller.train()
