"""What an update of MetaXL costs, from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_xlt.strategies.metaxl.config import MetaXLConfig


def cost(config: MetaXLConfig) -> float:
    """Return the cost of an update in plain steps on the source batch, by the arithmetic of passes.

    Inside, a forward pass over the source batch is 1 and a backward pass 2 (3 with activation checkpointing). With
    source and target batches of one size and portion 2, joint training is 4.5; `exact` adds 4.5
    for the inner passes, 1.5 for v and 2 for the second differentiation: 12.5 in sequence, 8 with `reuse`. Each slot
    beside the first adds its source passes. With accumulation the inner source passes of `exact` run twice.
    """
    backward = 3.0 if config.gradient_checkpointing else 2.0
    plain = 1.0 + backward
    size = config.target_size / config.per_device_train_batch_size
    portion = config.split_portion
    if config.method == "target_only":
        return 1.0 if portion is None else size / portion
    if config.method == "joint":
        return 1.0 + (size if portion is None else size / portion)
    slots = len(config.places)
    trained, meta = (0.0, size) if portion is None else (size / portion, size - size / portion)
    main = plain * (slots + trained)
    if config.hypergrad == "none":
        return main / plain
    second = slots * 2.0
    if config.hypergrad == "evograd":
        extra = config.evograd_population * (slots + trained) + meta
    else:
        inner = plain * (slots + trained)
        if config.hypergrad == "exact" and config.gradient_accumulation_steps > 1:
            second += slots * plain
        if config.hypergrad == "exact" and config.gradient_checkpointing:
            second += slots
        extra = inner + plain * meta + second
        if config.update_order == "reuse":
            extra -= main
    return (main + extra / config.meta_every) / plain
