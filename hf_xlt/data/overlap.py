"""Rows that would serve in two roles: the same ones in the same place, and copies of them elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_xlt.data.tables import Rows
from hf_xlt.errors import ConfigError, setting
from hf_xlt.languages import english_name

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xlt.data.roles import DataPlan, DataSet

# Columns that are what a model reads; the others are what it is to say.
_INPUTS = ("text", "text_pair", "tokens", "question", "context")


@dataclass(frozen=True)
class Shared:
    """Rows of two roles, permitted by `--allow-shared-rows`.

    Attributes:
        roles: the role that had them first, and the other.
        language: code of the second one's language.
        where: what the data are.
    """

    roles: tuple[str, str]
    language: str
    where: str

    def describe(self) -> str:
        """Say it in a sentence."""
        permission = setting("allow_shared_rows").strip("`")
        return f"{self.where}: the same rows serve as {self.roles[0]} and {self.roles[1]} data ({permission})."


@dataclass
class Claims:
    """Who has which rows: each has one role, unless the user permits more.

    Attributes:
        permitted: whether rows may have two roles.
        harmless: pairs of roles that may share rows at any time.
        shared: filled with what was permitted.
    """

    permitted: bool
    harmless: Collection[frozenset[str]]
    shared: list[Shared] = field(default_factory=list)
    _taken: list[tuple[str, Rows, DataSet]] = field(default_factory=list, repr=False)

    def holders(self, role: str, rows: Rows) -> list[DataSet]:
        """Return the data sets of other roles that have some of these rows."""
        return [
            entry
            for other, taken, entry in self._taken
            if other != role and frozenset((role, other)) not in self.harmless and rows.shares(taken)
        ]

    def take(self, entry: DataSet, rows: Rows) -> None:
        """Give rows a role.

        Raises:
            ConfigError: they have another one, and the user does not permit that.
        """
        for other in self.holders(entry.role, rows):
            if not self.permitted:
                raise ConfigError(refusal(entry, other))
            self.shared.append(Shared((other.role, entry.role), entry.language, entry.where))
        self._taken.append((entry.role, rows, entry))


def refusal(entry: DataSet, other: DataSet) -> str:
    """Say that rows would have two roles, and what to do."""
    return (
        f"{entry.where}: the same rows would be {other.role} data (split `{other.split}`) and {entry.role} data "
        f"(split `{entry.split}`). Name another split, or other data, for one of them; or divide the set with "
        f"{setting('divide_split', 'train=0.8,validation=0.1,test=0.1')}. {setting('allow_shared_rows')} permits "
        f"it, and the card says so."
    )


@dataclass(frozen=True)
class Seen:
    """Test rows of one language whose text was, to the letter, learned from.

    Attributes:
        role: of the test set.
        language: its code.
        rows: number of its rows.
        counts: how many of them are in the data of each role that is learned from.
    """

    role: str
    language: str
    rows: int
    counts: Mapping[str, int]

    def describe(self) -> str:
        """Say it in a sentence."""
        parts = ", ".join(f"{count:,} in the {role} data" for role, count in self.counts.items())
        return (
            f"{english_name(self.language)} ({self.language}): of {self.rows:,} test rows these have a text that was, "
            f"to the letter, learned from: {parts}."
        )


def find_seen(plan: DataPlan, inventory: Any) -> list[Seen]:
    """Count test rows whose text is, to the letter, that of a training, auxiliary or few-shot row of any language.

    Args:
        plan: the data; test sets are read.
        inventory: label inventory, by which shots are chosen; None for tasks without.

    Returns:
        One entry per test set that has such rows.

    Raises:
        ConfigError: a set cannot be read.
    """
    from hf_xlt.data.roles import AUXILIARY, AUXILIARY_TEST, SHOTS, SOURCE_TEST, TARGET_TEST, TRAINING

    learned: dict[str, set[int]] = {}
    for entry in plan.of_role(TRAINING, AUXILIARY, SHOTS):
        table = entry.read()
        if entry.role == SHOTS:
            table = plan.take_shots(entry, table, inventory)
        learned.setdefault(entry.role, set()).update(_hashes(table, entry.columns))
    if not learned:
        return []
    found = []
    for entry in plan.of_role(SOURCE_TEST, TARGET_TEST, AUXILIARY_TEST):
        hashes = _hashes(entry.read(), entry.columns)
        counts = {role: sum(value in known for value in hashes) for role, known in learned.items()}
        counts = {role: count for role, count in counts.items() if count}
        if counts:
            found.append(Seen(entry.role, entry.language, len(hashes), counts))
    return found


def _hashes(table: Dataset, columns: Mapping[str, str]) -> list[int]:
    """Hash the inputs of each row; 64 bits tell all rows that fit into memory apart."""
    names = [columns[role] for role in _INPUTS if role in columns]
    values = [_column(table, name) for name in names]
    return [hash(row) for row in zip(*values, strict=True)]


def _column(table: Dataset, name: str) -> Sequence[Any]:
    values = table.select_columns([name]).with_format("arrow")[:][name].to_pylist()
    return [tuple(value) if isinstance(value, list) else value for value in values]


def seen_by_role(found: Iterable[Seen]) -> dict[str, dict[str, dict[str, int]]]:
    """Return counts as records have them: by role of the test, language, and role of what was learned from."""
    told: dict[str, dict[str, dict[str, int]]] = {}
    for entry in found:
        told.setdefault(entry.role, {})[entry.language] = dict(entry.counts)
    return told
