"""How rows are read before a task sees them: columns of labels put together, schemes of tags put into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, close_match, setting
from hf_xlt.tasks import Reading, Task

if TYPE_CHECKING:
    from hf_xlt.arguments import DataArguments
    from hf_xlt.data.roles import DataPlan, DataSet

# What labels in one column each are read into.
_LABEL_LIST = "label columns"


def columns_reading(arguments: DataArguments, task: Task, present: Sequence[str], where: str) -> Any:
    """Return what reads the columns that `--label-columns` names as one.

    Args:
        arguments: what the user asked for.
        task: the task.
        present: columns of the data set.
        where: what it is, for messages.

    Raises:
        ConfigError: the task has one label per row, or a column is missing or named twice.
    """
    names = tuple(arguments.label_columns or ())
    if task.read_columns is None:
        raise ConfigError(f"task `{task.name}` has no {setting('label_columns')}; it has one label per row.")
    if arguments.label_column or len(set(names)) < max(len(names), 2):
        raise ConfigError(
            f"{setting('label_columns')} names two or more columns, each once, in place of {setting('label_column')}."
        )
    missing = [name for name in names if name not in present]
    if missing:
        raise ConfigError(
            f"{where} has no column `{missing[0]}`, which {setting('label_columns')} names; its columns are "
            f"{', '.join(present)}.{close_match(missing[0], present)}"
        )
    return task.read_columns(names, _LABEL_LIST, where)


def settle_readings(plan: DataPlan, names: Sequence[str] | None) -> None:
    """Let the task say how the rows of each data set are to be read, and add to the plan's notes what it says.

    Every set is looked at, test sets too: what cannot be read is told before anything is trained.

    Args:
        plan: its sets are replaced by ones that know.
        names: names of the labels where the data have numbers only, or None.

    Raises:
        ConfigError: a set cannot be read, or not for this task.
    """
    from hf_xlt.data.roles import TEXT, TRAINING

    if plan.task.find_reading is None:
        return
    found: dict[tuple[int, str, str], Reading | None] = {}
    noted: dict[str, Reading] = {}

    def settled(entry: DataSet) -> DataSet:
        key = (id(entry.source), entry.language, entry.split)
        if entry.reading is None and key not in found:
            found[key] = plan.task.find_reading(entry.read_as_written(), entry.columns, names)
            if found[key] is not None:
                noted[entry.where] = found[key]
        return entry if entry.reading is not None else replace(entry, reading=found[key])

    plan.sets = {
        role: entries if role == TEXT else [settled(entry) for entry in entries] for role, entries in plan.sets.items()
    }
    plan.notes += plan.task.describe_readings(noted) if plan.task.describe_readings else []
    for entry in plan.of_role(TRAINING):
        if entry.reading is not None and entry.reading.converts and plan.given_labels:
            plan.given_labels = entry.reading.read_names(plan.given_labels)
