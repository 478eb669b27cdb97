"""What a model's config may keep of the work it did before, and what is the new task's to say.

The architecture stays as it is, and so does how it pools. The kind of problem, the classes, and what a model is asked
to give out belong to the task; whoever loads the saved model goes by them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_xlt.data.labels import LabelInventory
    from hf_xlt.tasks import Task

# Not one of transformers' own: the probability from which a model with several labels says one.
THRESHOLD_FIELD = "decision_threshold"
# Of another task: its name, how texts were generated for it, from when on a label was said.
_LEFT_BEHIND = ("finetuning_task", "task_specific_params", "prefix", THRESHOLD_FIELD)
# Outputs that scoring would take for logits, or keep in memory for all examples.
_OUTPUTS = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}


def label_settings(task: Task, inventory: LabelInventory | None) -> dict[str, Any]:
    """Return the config's entries on the head of a task.

    Args:
        task: says its kind of problem.
        inventory: its classes; None for answers, which take two numbers per token, start and end.
    """
    if inventory is None:
        return {"problem_type": task.problem_type, "num_labels": 2}
    return {
        "problem_type": task.problem_type,
        "num_labels": len(inventory),
        "id2label": inventory.id2label,
        "label2id": inventory.label2id,
    }


def settle_config(config: Any, task: Task, inventory: LabelInventory | None, pad_token_id: int | None = None) -> Any:
    """Let a config say what the task says, and nothing of what its model did before.

    Args:
        config: as loaded; it is changed and returned.
        task: the task.
        inventory: its classes, or None for tasks without.
        pad_token_id: the padding token; None leaves the config's.
    """
    for name, value in label_settings(task, inventory).items():
        setattr(config, name, value)
    for name in _LEFT_BEHIND:
        if name in vars(config):
            delattr(config, name)
    settle_outputs(config)
    if pad_token_id is not None:
        put_padding(config, pad_token_id)
    return config


def settle_outputs(config: Any) -> None:
    """Let a model give out what a head gives, by name, and no states of its layers."""
    for name, value in _OUTPUTS.items():
        setattr(config, name, value)
    # Generation is no part of any task here, and a config that sets it cannot be saved.
    for name in config._get_generation_parameters():
        setattr(config, name, None)


def put_padding(config: Any, pad_token_id: int) -> None:
    """Let a config, and that of its text part, name the padding token."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        part.pad_token_id = pad_token_id
