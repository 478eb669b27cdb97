"""The tasks, one row each."""

from __future__ import annotations

from hf_xlt.errors import ConfigError, close_match
from hf_xlt.tasks.base import Column, Encoding, Reading, Task, column_setting
from hf_xlt.tasks.classification import TEXT_CLASSIFICATION
from hf_xlt.tasks.multi_label import MULTI_LABEL_CLASSIFICATION
from hf_xlt.tasks.question_answering import QUESTION_ANSWERING
from hf_xlt.tasks.tagging import TOKEN_CLASSIFICATION

__all__ = ["COLUMN_ROLES", "TASKS", "Column", "Encoding", "Reading", "Task", "column_setting", "get_task"]

TASKS = {
    task.name: task
    for task in (TEXT_CLASSIFICATION, MULTI_LABEL_CLASSIFICATION, TOKEN_CLASSIFICATION, QUESTION_ANSWERING)
}
COLUMN_ROLES = tuple(dict.fromkeys(role for task in TASKS.values() for role in task.columns))


def get_task(name: str) -> Task:
    """Look a task up.

    Raises:
        ConfigError: the name is unknown; the message lists the known ones.
    """
    if name not in TASKS:
        known = ", ".join(f"`{known}`" for known in TASKS)
        raise ConfigError(f"unknown task {name!r}.{close_match(name, TASKS)} Known tasks: {known}.")
    return TASKS[name]
