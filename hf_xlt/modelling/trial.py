"""One forward pass on two rows of the data before anything is written: what a model cannot do shows here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, one_line, setting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_xlt.tasks import Task


def try_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    config: Any,
    around: Callable[[Any, Any, Mapping[str, Any]], AbstractContextManager[Any]] = lambda *_: nullcontext(),
) -> None:
    """Run a model on some rows, as training would.

    Args:
        model: with the task's head; it is left on the training device, in training mode.
        tokenizer: it pads.
        rows: features of one or more examples.
        task: what the head is for, for messages.
        config: training arguments, for device and precision.
        around: entered around the pass: what the strategy does to the model there, see `Strategy.trial`.

    Raises:
        ConfigError: the pass fails, the strategy cannot train such a model, or the outputs are other than the task is
            scored by.
    """
    import torch

    if config.deepspeed or config.fsdp:
        # Their weights are divided only once there is a trainer.
        return
    names = [name for name in tokenizer.model_input_names if name in rows[0]]
    batch = tokenizer.pad([{name: row[name] for name in names} for row in rows], return_tensors="pt")
    device = config.device
    half = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else None
    kinds = [device] if device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(devices=kinds),
            torch.no_grad(),
            torch.autocast(device.type, dtype=half, enabled=half is not None),
        ):
            model.to(device).train()
            batch = batch.to(device)
            with around(model, config, batch):
                outputs = model(**batch)
    except (torch.OutOfMemoryError, MemoryError, ConfigError):
        raise
    except Exception as error:
        raise ConfigError(
            f"{kind_of(model)} cannot be trained for {task.name}: it fails on the first rows of the data "
            f"({type(error).__name__}: {one_line(error).rstrip('.')}). Choose another model, or another "
            f"{setting('max_length')}."
        ) from error
    _check_outputs(model, outputs, batch["input_ids"], task)


def first_rows(features: Any) -> list[Mapping[str, Any]]:
    """Return the first rows of features: two, so that there is padding, where there are so many."""
    return [features[number] for number in range(min(2, len(features)))]


def kind_of(model: Any) -> str:
    """Say in words what architecture a model is of."""
    return f"a model of the kind `{model.config.model_type}`"


def _check_outputs(model: PreTrainedModel, outputs: Any, inputs: torch.Tensor, task: Task) -> None:
    """Refuse outputs of another shape than the task is scored by: (B, C), (B, T, C), or twice (B, T)."""
    examples, length = inputs.shape
    expected = {
        "AutoModelForSequenceClassification": {"logits": (examples, model.config.num_labels)},
        "AutoModelForTokenClassification": {"logits": (examples, length, model.config.num_labels)},
        "AutoModelForQuestionAnswering": {"start_logits": (examples, length), "end_logits": (examples, length)},
    }
    for name, shape in expected[task.auto_model].items():
        found = outputs.get(name)
        if found is None or tuple(found.shape) != shape:
            given = "nothing" if found is None else f"{list(found.shape)} numbers"
            raise ConfigError(
                f"{kind_of(model)} cannot be trained for {task.name}: as `{name}` it gives {given} for "
                f"{examples} texts of {length} tokens, and {list(shape)} are needed. Choose another model."
            )
