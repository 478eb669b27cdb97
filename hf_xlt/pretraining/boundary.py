"""What may pass from one phase to the next besides the model: refused here before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.plan import REDRAW, Phase

# Their state is one pair of moments per parameter, of its shape.
_CARRIED = ("adamw_torch", "adamw_torch_fused")


def check_boundaries(phases: Sequence[Phase], config: Any, new_encoder: bool) -> None:
    """Check that the phases can follow each other as they ask to.

    Args:
        phases: in order.
        config: the `MetaPretrainingConfig` that they share.
        new_encoder: whether the first phase starts from random weights.

    Raises:
        ConfigError: a phase carries an optimizer over that will not be there, or redraws rows of which it is not
            known whether they were trained.
    """
    for index, phase in enumerate(phases):
        if phase.optimizer_carry:
            _check_carry(phase, index, config)
        if phase.unseen_rows == REDRAW:
            _check_redraw(phases[: index + 1], new_encoder)


def _check_carry(phase: Phase, index: int, config: Any) -> None:
    where = f"phase `{phase.name}`: `optimizer_carry`"
    if index == 0:
        raise ConfigError(f"{where}: it is the first phase, and there is no optimizer before it. Leave it out.")
    saving, optimizer = str(config.save_strategy.value), str(getattr(config.optim, "value", config.optim))
    if saving not in ("steps", "epoch"):
        raise ConfigError(
            f"{where} takes the optimizer from the last checkpoint of the phase before, and with `save_strategy: "
            f"{saving}` there is none of its last update. Set `save_strategy: steps`."
        )
    if config.load_best_model_at_end:
        raise ConfigError(
            f"{where} continues from the last update, `load_best_model_at_end` from the best one. Leave one of them "
            "out."
        )
    if optimizer not in _CARRIED:
        raise ConfigError(f"{where} works with `optim` {' or '.join(_CARRIED)}; it is {optimizer}.")


def _check_redraw(phases: Sequence[Phase], new_encoder: bool) -> None:
    where = f"phase `{phases[-1].name}`: `unseen_rows: redraw`"
    if not new_encoder:
        raise ConfigError(
            f"{where} is for a new encoder. This one comes with embeddings, and which of them were trained is not "
            "known; take `leave` or `freeze`."
        )
    for phase in phases:
        if phase.tokenizer is not None:
            raise ConfigError(
                f"{where} does not go with a new tokenizer (phase `{phase.name}`): which of its embeddings were "
                "trained is not known. Take `leave` or `freeze`."
            )
        if any(source.streaming for source in phase.sources):
            raise ConfigError(
                f"{where} does not go with streamed text (phase `{phase.name}`), whose pieces are known only when it "
                "is read. Take `leave`."
            )
