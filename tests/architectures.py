"""Tiny models of the architectures that transformers has heads for, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny import SPECIAL, WORDS, make_rows, make_tokenizer, write_data, write_rows
from transformers import AutoConfig, AutoModel, set_seed
from transformers.models.auto import modeling_auto

TASKS = {
    "text-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "question-answering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}
# These need packages that are not installed, or are many times as large as all others however small their config.
_LEFT_OUT = {"layoutlmv2", "qwen3_asr"}
WHOLE_LIBRARY = {task: sorted(set(kinds) - _LEFT_OUT) for task, kinds in TASKS.items()}
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
_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
_MIXED = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
# What a general rule cannot know.
_OWN: dict[str, dict[str, Any]] = {
    "axk1": {"head_dim": 8},
    "deepseek_v3": {"head_dim": 8},
    "deepseek_v2": {"head_dim": 8, "num_experts_per_tok": 2, "topk_method": "greedy"},
    # Left to itself it makes new modules at its first short input, which moves the generator of the dropout masks.
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "falcon": {"num_kv_heads": 2},
    "funnel": {"architectures": ["FunnelModel"], "block_sizes": [1, 1], "block_repeats": [1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8, "use_mamba_kernels": False},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_5": _MIXED,
    "qwen3_5_text": _MIXED,
    "qwen3_next": _MIXED,
    "reformer": {
        "attn_layers": ["local", "lsh"],
        # Its product of positions takes texts of just one length.
        "axial_pos_embds": False,
        "local_attn_chunk_length": 64,
        "lsh_attn_chunk_length": 64,
    },
    "t5": {"decoder_start_token_id": 0},
    "gptj": {"rotary_dim": 8},
    "luke": {"entity_vocab_size": 8},
    "lilt": {"hidden_size": 48, "num_attention_heads": 2},
    "esm": {"position_embedding_type": "rotary", "mask_token_id": 4},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "layer_types": ["mamba", "hybrid", "hybrid"],
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "layer_types": ["mamba", "hybrid"]},
}
# Configs that are parts of others.
_PARTS = ("text_config", "vision_config", "encoder", "decoder")


def make_config(kind: str, **changes: Any) -> Any:
    """A config of two layers of width 32 and the vocabulary of the tiny tokenizer."""
    return AutoConfig.for_model(kind, **{**_small(AutoConfig.for_model(kind), _OWN.get(kind, {})), **changes})


def _small(plain: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Return what makes a config small: its sizes, or those of the configs that it is made of."""
    parts = {name: getattr(plain, name, None) for name in _PARTS}
    parts = {name: part for name, part in parts.items() if hasattr(part, "to_dict")}
    if parts:
        return {name: {**part.to_dict(), **_small(part, own)} for name, part in parts.items()}
    ids = {name: number for name, number in _IDS.items() if getattr(plain, name, None) is not None}
    return {**_sizes(plain), **ids, **own}


def _sizes(config: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {"vocab_size": len(SPECIAL) + len(WORDS)}
    for names, size in ((_WIDTHS, 32), (_LAYERS, 2), (_HEADS, 2), (_INNER, 48)):
        sizes |= dict.fromkeys(names.split(), size)
    types = getattr(config, "layer_types", None)
    sizes |= {**_OTHERS, **({"layer_types": types[:2]} if isinstance(types, list) else {})}
    own = {name: size for name, size in sizes.items() if _is_settable(config, name, type(size))}
    return {"vocab_size": sizes["vocab_size"], **own}


def _is_settable(config: Any, name: str, kind: type) -> bool:
    """Say whether a config has a setting of some type that is no property which it derives from others."""
    value = getattr(config, name, None)
    if not isinstance(value, kind):
        return False
    try:
        setattr(config, name, value)
    except (AttributeError, NotImplementedError):
        return False
    return True


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


def write_task(task: str, folder: Path, languages: Sequence[str] = ("en", "de")) -> str:
    """Write train, validation and test of some languages for a task; return the pattern."""
    if task == "text-classification":
        return write_data(folder, languages=tuple(languages), train=12)
    for language in languages:
        for split, count in (("train", 12), ("validation", 6), ("test", 8)):
            words = [row["text"].split() for row in make_rows(language, count, 1)]
            if task == "token-classification":
                rows = [{"tokens": each, "tags": ["A" if int(w[1:]) < 30 else "B" for w in each]} for each in words]
            else:
                answers = [{"text": [each[1]], "answer_start": [len(each[0]) + 1]} for each in words]
                rows = [
                    {"question": "w1 w2", "context": " ".join(each), "answers": answer}
                    for each, answer in zip(words, answers, strict=True)
                ]
            write_rows(folder / f"{split}.{language}.jsonl", rows)
    return str(folder / "{split}.{lang}.jsonl")
