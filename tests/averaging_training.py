"""A stock Trainer over tiny data, and callbacks that watch it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import make_features, make_model, make_tokenizer
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from hf_xlt.averaging.parameters import named_weights


def make_trainer(
    folder: Path,
    *callbacks: TrainerCallback,
    model: torch.nn.Module | None = None,
    trainer_cls: type[Trainer] = Trainer,
    eval_count: int = 0,
    **settings: Any,
) -> Trainer:
    """A stock Trainer over 48 rows, 8 at a time: 6 updates are an epoch."""
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 10,
        "learning_rate": 1e-2,
        "save_steps": 5,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": [],
    }
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    return trainer_cls(
        model=make_model() if model is None else model,
        args=TrainingArguments(**{**defaults, **settings}),
        train_dataset=make_features(48),
        eval_dataset=make_features(eval_count, seed=5) if eval_count else None,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


class Recorder(TrainerCallback):
    """Keeps the weights after every update, in float64."""

    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = {
            name: value.detach().double().clone() for name, value in named_weights(model).items()
        }

    def mean(self, steps: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Average some of them."""
        return {
            name: torch.stack([self.weights[step][name] for step in steps]).mean(0)
            for name in self.weights[min(self.weights)]
        }


class Stop(TrainerCallback):
    """Ends training after an update, as early stopping does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def assert_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Check that all tensors agree to 1e-6 of their size."""
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        difference = (weights[name].double() - value.double()).norm()
        assert difference <= 1e-6 * value.double().norm(), name


def load_averaged(folder: Path, name: str = "averaged") -> dict[str, torch.Tensor]:
    """Load the weights that the callback wrote."""
    return load_file(folder / name / "model.safetensors")


class WatchingTrainer(Trainer):
    """Keeps the weights that each evaluation sees; fails in the one after update `fail_at`."""

    fail_at = None

    def evaluate(self, *args, **kwargs):
        self.seen = getattr(self, "seen", {})
        self.seen[self.state.global_step] = {
            name: value.detach().clone() for name, value in named_weights(self.model).items()
        }
        metrics = super().evaluate(*args, **kwargs)
        if self.state.global_step == self.fail_at:
            raise RuntimeError("evaluation failed")
        return metrics
