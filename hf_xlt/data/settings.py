"""Settings of data that a run or an evaluation would ignore, by what would have to be asked for besides."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from hf_xlt.data.sources import EMBEDDED, SUFFIXES
from hf_xlt.errors import ConfigError
from hf_xlt.registry import Dependent, dependent, unused_problems

if TYPE_CHECKING:
    from hf_xlt.arguments import DataArguments
    from hf_xlt.tasks import Task


def _places(data: DataArguments) -> Iterator[str]:
    for places in ([data.dataset], data.target_dataset, data.auxiliary_dataset, data.text_dataset):
        yield from (place for place in places or () if place is not None)


def _may_have_language_column(data: DataArguments) -> bool:
    """Say whether any of the data are such as may name languages in a column."""
    named = (place.lower().endswith(SUFFIXES) and "{lang}" in place for place in _places(data))
    return not all(known or place == EMBEDDED for known, place in zip(named, _places(data), strict=True))


DEPENDENT = (
    dependent("few_shot_split shot_seed few_shot_mode", lambda data: data.shots > 0, "`--shots`"),
    dependent("auxiliary_languages auxiliary_split", lambda data: data.auxiliary_dataset, "`--auxiliary-dataset`"),
    dependent("text_languages text_split", lambda data: data.text_dataset, "`--text-dataset`"),
    dependent("divide_seed", lambda data: data.divide_split, "`--divide-split`"),
    dependent("id_column", lambda data: data.generalized or data.divide_split, "`--generalized` or `--divide-split`"),
    dependent(
        "language_column",
        _may_have_language_column,
        "data whose languages stand in a column: one file, or a Hub id, without {lang} in its place",
    ),
)


def _of_task(task: Task) -> tuple[Dependent, ...]:
    return (
        dependent("labels", lambda data: task.find_labels is not None, "tasks with classes"),
        dependent("window_overlap", lambda data: "context" in task.columns, "the task question-answering"),
    )


def check_data_used(data: DataArguments, task: Task, asked: Collection[str] | None, *more: Dependent) -> None:
    """Refuse settings of data that nothing would read.

    Args:
        data: what was asked for.
        task: the task.
        asked: settings that the user set; None takes all that differ from their defaults.
        *more: further entries of the table.

    Raises:
        ConfigError: there are some.
    """
    usual = type(data)()

    def changed(names: Sequence[str]) -> list[str]:
        # Lists that are not given are filled in.
        return [name for name in names if getattr(data, name) != getattr(usual, name)]

    table = (*DEPENDENT, *_of_task(task), *more)
    problems = unused_problems(data, table, among=asked, changed=changed, spelt=flag)
    if problems:
        raise ConfigError(f"{'; '.join(problems)}.")


def flag(name: str) -> str:
    """Write a setting as its flag."""
    return f"`--{name.replace('_', '-')}`"
