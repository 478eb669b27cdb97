"""What an update of robust training costs, from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_xlt.strategies.robust.config import RobustConfig


def cost(config: RobustConfig) -> float:
    """Return the cost of an update in plain steps, by the arithmetic of passes.

    A plain step is 3 units (forward, gradients of activations, gradients of weights), or 4 with activation
    checkpointing, which runs the forward pass twice. An ascent step lacks the gradients of weights. So, without
    checkpointing, for K ascent steps and n draws: `adv` (2K + 3) / 3, with a clean loss (2K + 6) / 3, or (2K + 4) / 3
    where the clean pass gives the first ascent step its gradient; `freelb` K; `rs_rp` n; with a clean loss 1 more.
    With a consistency term R3F takes 1 + n, and SMART (2K + 6) / 3. An ascent on the divergence from the clean
    prediction takes a forward pass for it where no clean pass is made.

    With frozen weights (LoRA) an ascent step is about a full plain step, which the settings here do not tell.
    """
    if not config.perturbs:
        return 1.0
    passes = config.training_passes + (1 if config.clean_weight > 0 or config.consistency != "none" else 0)
    if config.method != "adv":
        return float(passes)
    plain = 4 if config.gradient_checkpointing else 3
    ascent = 3 if config.gradient_checkpointing and config.inner_dropout != "eval" else 2
    ascents = config.steps - (1 if config.reuses_clean_pass else 0)
    reference = 1 if config.inner_loss == "kl" and config.consistency == "none" else 0
    return passes + (ascent * ascents + reference) / plain
