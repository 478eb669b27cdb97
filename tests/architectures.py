"""Tiny models of the architectures that transformers has heads for, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import SPECIAL, WORDS, make_tokenizer
from transformers import AutoConfig, AutoModel, set_seed
from transformers.models.auto import modeling_auto

TASKS = {
    "text-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "question-answering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}
_WIDTHS = "hidden_size d_model n_embd dim embed_dim emb_dim d_embed word_embed_proj_dim embedding_size hidden_dim"
_LAYERS = (
    "num_hidden_layers encoder_layers decoder_layers num_layers num_decoder_layers n_layers n_layer num_encoder_layers"
)
_HEADS = (
    "num_attention_heads encoder_attention_heads decoder_attention_heads n_heads n_head num_heads num_key_value_heads "
    "num_decoder_attention_heads num_encoder_attention_heads"
)
_INNER = (
    "intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim d_ff d_inner hidden_dim n_inner moe_intermediate_size "
    "shared_expert_intermediate_size feed_forward_size ffn_hidden_size"
)
_OTHERS = {
    "max_position_embeddings": 64,
    "head_dim": 16,
    "d_head": 16,
    "d_kv": 16,
    "attention_head_size": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
# What a general rule cannot know.
_OWN: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"head_dim": 8},
    "deepseek_v2": {"head_dim": 8, "num_experts_per_tok": 2, "topk_method": "greedy"},
    # Left to itself it makes new modules at its first short input, which moves the generator of the dropout masks.
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "t5": {"decoder_start_token_id": 0},
    "gptj": {"rotary_dim": 8},
    "lilt": {"hidden_size": 48, "num_attention_heads": 2},
    "esm": {"position_embedding_type": "rotary", "mask_token_id": 4},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}


def make_config(kind: str, **changes: Any) -> Any:
    """A config of two layers of width 32 and the vocabulary of the tiny tokenizer."""
    plain = AutoConfig.for_model(kind)
    own = {**_sizes(plain), **_OWN.get(kind, {}), **changes}
    for name in ("text_config",):
        if getattr(plain, name, None) is not None:
            own = {name: {**getattr(plain, name).to_dict(), **_sizes(getattr(plain, name))}, **_OWN.get(kind, {})}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        if getattr(plain, name, None) is not None and "text_config" not in own:
            own.setdefault(name, {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}.get(name, 2))
    return AutoConfig.for_model(kind, **own)


def _sizes(config: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {"vocab_size": len(SPECIAL) + len(WORDS)}
    for names, size in ((_WIDTHS, 32), (_LAYERS, 2), (_HEADS, 2), (_INNER, 48)):
        for name in names.split():
            if isinstance(getattr(config, name, None), int):
                sizes[name] = size
    for name, size in _OTHERS.items():
        if isinstance(getattr(config, name, None), int):
            sizes[name] = size
    types = getattr(config, "layer_types", None)
    if isinstance(types, list):
        sizes["layer_types"] = types[:2]
    return sizes


def save_model(kind: str, folder: Path, **changes: Any) -> Path:
    """Save a bare model of one architecture, and the tiny tokenizer, into a folder."""
    set_seed(0)
    model = AutoModel.from_config(make_config(kind, **changes))
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    # As tokenizers of models without segments have it.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.eos_token = "[SEP]"
    tokenizer.init_kwargs |= {"model_input_names": tokenizer.model_input_names, "eos_token": "[SEP]"}
    tokenizer.save_pretrained(folder)
    return folder
