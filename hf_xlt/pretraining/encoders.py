"""Building new encoders with a masked-LM head."""

from __future__ import annotations

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
