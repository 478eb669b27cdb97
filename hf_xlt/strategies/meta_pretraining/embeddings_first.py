"""Training the embeddings alone for a while after a change of vocabulary."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class EmbeddingsFirst(TrainerCallback):
    """Leaves everything but the word embeddings untouched in the first updates after a change of vocabulary."""

    def __init__(self, steps: int) -> None:
        """Hold everything else for `steps` updates."""
        self.steps = steps

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the other gradients: without one, a parameter is neither moved nor decayed."""
        if state.global_step >= self.steps:
            return
        model = kwargs["model"]
        kept = {id(model.get_input_embeddings().weight)}
        if model.get_output_embeddings() is not None:
            kept |= {id(parameter) for parameter in model.get_output_embeddings().parameters()}
        for parameter in model.parameters():
            if id(parameter) not in kept:
                parameter.grad = None
