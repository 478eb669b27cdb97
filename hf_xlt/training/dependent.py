"""Settings that only some values of other settings use: changed where nothing reads them, they are refused.

Which they are is a table beside the settings themselves; who asks for one that would be ignored gets an error that
says what it goes with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from hf_xlt.errors import shortened


@dataclasses.dataclass(frozen=True)
class Dependent:
    """Settings that are read in some states only.

    Attributes:
        names: fields of one dataclass.
        used: whether they are read, from the object that holds them.
        needs: what they go with, as the end of the sentence `it goes with ...`.
    """

    names: tuple[str, ...]
    used: Callable[[Any], bool]
    needs: str


def dependent(names: str, used: Callable[[Any], bool], needs: str) -> Dependent:
    """Make an entry of a table from names that are separated by blanks."""
    return Dependent(tuple(names.split()), used, needs)


def changed_fields(config: Any, names: Sequence[str]) -> list[str]:
    """Return which of some fields of a dataclass differ from their defaults."""
    entries = {entry.name: entry for entry in dataclasses.fields(config)}
    changed = []
    for name in names:
        entry = entries[name]
        made = entry.default_factory is not dataclasses.MISSING
        default = entry.default_factory() if made else entry.default
        value = getattr(config, name)
        # Enumerations are declared by their value.
        if getattr(value, "value", value) != getattr(default, "value", default):
            changed.append(name)
    return changed


def unused_problems(
    config: Any,
    table: Sequence[Dependent],
    *,
    among: Collection[str] | None = None,
    changed: Callable[[Sequence[str]], Sequence[str]] | None = None,
    spelt: Callable[[str], str] = lambda name: f"`{name}`",
) -> list[str]:
    """Say which settings differ from their defaults although nothing reads them.

    Args:
        config: a dataclass, or any object where `changed` is given.
        table: what depends on what.
        among: the settings that were asked for; None looks at all.
        changed: which of some settings differ from their defaults; None asks the dataclass.
        spelt: how a setting is written in messages.

    Returns:
        A clause for each, to be joined by semicolons.
    """
    problems = []
    for entry in table:
        names = [name for name in entry.names if among is None or name in among]
        for name in changed(names) if changed else changed_fields(config, names):
            if not entry.used(config):
                value = shortened(getattr(getattr(config, name), "value", getattr(config, name)))
                problems.append(f"{spelt(name)} is {value} and would be ignored: it goes with {entry.needs}")
    return problems
