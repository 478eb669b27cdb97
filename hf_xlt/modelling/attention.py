"""Which attention kernel a run trains with on a CPU, where the user chose none.

Measured (`benchmarks/attention.py`, docs/results.md): in bfloat16 an update of a BERT-like encoder takes 9 to 24 %
less time with eager attention than with `scaled_dot_product_attention` at 32 to 128 tokens. In float32 the two differ
by no more than 2 % there, and scoring gains nothing in either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

EAGER = "eager"
# Longer inputs are quicker so too, but eager attention keeps weights of length x length of every head and layer.
LONGEST = 128


def choose_kernel(config: TrainingArguments, length: int) -> str | None:
    """Return the attention kernel to train with; None leaves it to transformers.

    Args:
        config: of the run.
        length: of the longest input, in tokens.
    """
    packed = getattr(config, "row_length", 0) or 0
    short = max(length, packed) <= LONGEST
    return EAGER if config.device.type == "cpu" and config.bf16 and short and not config.torch_compile else None


def kernel_of(model: Any) -> str | None:
    """Return the name of the attention kernel that a model computes with; None where it has but one."""
    return getattr(model.config, "_attn_implementation", None)


def score_with_default(model: PreTrainedModel) -> None:
    """Let a model that was trained with a chosen kernel score with the one that it would be loaded with."""
    # Models without it were not given another one either.
    if getattr(model, "_supports_sdpa", False):
        model.set_attn_implementation("sdpa")
