"""One set divided into splits by chance: the same parts in every run, process and language.

Rows are put in an order that the seed and their ids (or else their numbers) decide, each class spread over all of it,
and the order is cut. So parts have about the classes' shares of the whole, and translations that share id and label
are in the same part in every language that has the same ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_xlt.data.tables import Rows, Shape, Source
from hf_xlt.errors import ConfigError, setting

if TYPE_CHECKING:
    from datasets import Dataset

_KEY = "divide"
ID_COLUMN = "id"


@dataclass(frozen=True)
class Division:
    """How sets without splits of their own are divided.

    Attributes:
        shares: share of the rows by name of the part; they sum to 1.
        seed: decides which row is in which part.
        only: fingerprints of the sets to divide; None divides all that have one split, or none.
        id_column: whose equal values keep rows together, where the data have it.
    """

    shares: tuple[tuple[str, float], ...]
    seed: int = 0
    only: frozenset[str] | None = None
    id_column: str = ID_COLUMN

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(name for name, _ in self.shares)

    def describe(self) -> str:
        """Say it in words."""
        shares = ", ".join(f"{name} {share:g}" for name, share in self.shares)
        by = f", by `{self.id_column}`" if self.id_column != ID_COLUMN else ""
        return f"{shares} (seed {self.seed}{by})"

    def cut(self, ids: Sequence[Any], classes: Sequence[Any] | None, where: str) -> dict[str, list[int]]:
        """Divide rows.

        Args:
            ids: of each row; rows with the same id stay together.
            classes: of each row, or None.
            where: what is divided, for messages.

        Returns:
            Row numbers by part, ascending.

        Raises:
            ConfigError: a part would be empty.
        """
        # Imports torch, which reading arguments must not.
        from hf_xlt.data.shots import shot_order

        members: dict[str, list[int]] = {}
        for row, identifier in enumerate(ids):
            members.setdefault(str(identifier), []).append(row)
        names = sorted(members)
        labels = None
        if classes is not None:
            numbers = {label: number for number, label in enumerate(sorted({str(label) for label in classes}))}
            labels = [numbers[str(classes[members[name][0]])] for name in names]
        order = shot_order(labels, len(names), seed=self.seed, language=_KEY)
        cut, start, total = {}, 0, 0.0
        for name, share in self.shares:
            total += share
            stop = round(min(total, 1.0) * len(names))
            cut[name] = sorted(row for place in order[start:stop] for row in members[names[place]])
            start = stop
            if not cut[name]:
                raise ConfigError(
                    f"{where} has {len(ids)} rows, too few for {setting('divide_split')}: `{name}` ({share:g}) "
                    f"would be empty."
                )
        return cut


def parse_division(entries: Sequence[str] | None, seed: int, id_column: str = ID_COLUMN) -> Division | None:
    """Read `NAME=SHARE` entries.

    Args:
        entries: such as `train=0.8`; several in one are separated by commas. None or nothing divides nothing.
        seed: of the division.
        id_column: whose equal values keep rows together.

    Raises:
        ConfigError: an entry is none, a name comes twice, or the shares do not sum to 1.
    """
    shares: dict[str, float] = {}
    for entry in (part.strip() for value in entries or () for part in str(value).split(",")):
        if not entry:
            continue
        name, _, text = (part.strip() for part in entry.partition("="))
        try:
            share = float(text)
        except ValueError:
            share = 0.0
        if not name or not 0 < share < 1 or name in shares:
            raise ConfigError(
                f"{setting('divide_split', entry)}: give each part once, with its share between 0 and 1, such as "
                "`train=0.8,validation=0.1,test=0.1`."
            )
        shares[name] = share
    if shares and abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(
            f"the shares of {setting('divide_split')} sum to {sum(shares.values()):g}; they must sum to 1."
        )
    return Division(tuple(shares.items()), seed, id_column=id_column) if shares else None


@dataclass
class DividedSource:
    """A source whose sets are divided where they have one split, or none.

    Attributes:
        inner: where the data lie.
        division: into which parts.
        keys: gives the ids and the classes (or None) of a set's rows.
        divided: filled while parts are asked for: by language the split that was divided, None for a set without
            splits, and the fingerprint of the whole.
    """

    inner: Source
    division: Division
    keys: Callable[[Dataset, str], tuple[Sequence[Any], Sequence[Any] | None]]
    divided: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    _cuts: dict[str, dict[str, list[int]]] = field(default_factory=dict, repr=False)

    def __getattr__(self, name: str) -> Any:
        """Ask the source itself for what dividing does not change."""
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _whole(self, language: str, split: str | None) -> tuple[bool, str | None]:
        """Return whether a split of a language is a part of a divided set, and which split that is; None is all."""
        if split not in self.division.parts:
            return False, None
        there = self.inner.splits(language)
        existing = [name for name in self.division.parts if name in there]
        if len(existing) > 1 or (not existing and len(there) > 1) or not (there or self._may_be_single):
            return False, None
        whole = existing[0] if existing else there[0] if there else None
        fingerprint = self.inner.fingerprint(language, whole)
        if self.division.only is not None and fingerprint not in self.division.only:
            return False, None
        self.divided[language] = (whole, fingerprint)
        return True, whole

    def languages(self, split: str) -> list[str]:
        """Return the languages that have a split, or a set that it is a part of."""
        there = self.inner.splits()
        bases = there or ([None] if self._may_be_single else [])
        codes: set[str] = set()
        for base in bases if split in self.division.parts else ():
            codes |= {code for code in self.inner.languages(base) if self._whole(code, split)[0]}
        if not codes:
            return self.inner.languages(split)
        return sorted(codes | set(self.inner.languages(split) if split in there else ()))

    @property
    def _may_be_single(self) -> bool:
        # Data sets of the Hub always have splits; none are known of one that cannot be had.
        return hasattr(self.inner, "default_split")

    def splits(self, language: str | None = None) -> list[str]:
        """Return the names of the splits there, parts included."""
        there = self.inner.splits(language)
        one = len([name for name in there if name in self.division.parts]) <= 1 and self.division.only is None
        return list(dict.fromkeys([*self.division.parts, *there])) if one else there

    def left_out(self, split: str, used: Collection[str] = ()) -> list[str]:
        """Say what lies there and is not used; a part is in all languages that the whole is in."""
        there = self.inner.splits()
        if split in self.division.parts and split not in there:
            used = {*used, *self.languages(split)}
            split = there[0] if there else getattr(self.inner, "default_split", None) or split
        return self.inner.left_out(split, used)

    def inspect(self, language: str, split: str) -> Shape:
        """Return columns and size of a part."""
        if not self._whole(language, split)[0]:
            return self.inner.inspect(language, split)
        table = self.read(language, split)
        return Shape(tuple(table.column_names), len(table))

    def read(self, language: str, split: str) -> Dataset:
        """Read a part."""
        is_part, whole = self._whole(language, split)
        if not is_part:
            return self.inner.read(language, split)
        table = self.inner.read(language, whole)
        if language not in self._cuts:
            where = f"{self.inner.name} ({language})"
            ids, classes = self.keys(table, where)
            self._cuts[language] = self.division.cut(ids, classes, where)
        return table.select(self._cuts[language][split])

    def fingerprint(self, language: str, split: str) -> str:
        """Hash a part: the whole, and how it is divided."""
        is_part, whole = self._whole(language, split)
        if not is_part:
            return self.inner.fingerprint(language, split)
        text = f"{self.inner.fingerprint(language, whole)} {self.division.shares} {self.division.seed} {split}"
        if self.division.id_column != ID_COLUMN:
            text += f" {self.division.id_column}"
        return hashlib.sha256(text.encode()).hexdigest()

    def rows(self, language: str, split: str) -> Rows:
        """Say which rows these are."""
        is_part, whole = self._whole(language, split)
        rows = self.inner.rows(language, whole if is_part else split)
        return rows._replace(part=split) if is_part else rows
