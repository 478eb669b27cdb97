"""How tags write spans, and reading each way as IOB2.

All are read as IOB2, in which models are trained and spans are compared:
- IOB1 (CoNLL-2003 as first published): `I-` opens a span, `B-` only one right behind another of its type. Plain IO is
  read the same.
- IOE1 and IOE2: `E-` ends a span; no `B-`.
- BIOES (IOBES), BILOU, BMES and BMEWO: the last word of a span and a span of one word have letters of their own.

IOB1 and IOB2 use the same letters, and only the openings tell them apart: behind `O`, another type or nothing, a span
opens with `I-` in the one and with `B-` in the other. What most openings of a data set say holds for all of it. Under
IOB2 an opening `I-` is then an annotator's slip, which strict scoring counts as no span; under IOB1 an opening `B-` is
one, and opens a span all the same. A data set without a span says nothing, and needs no reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_xlt.errors import ConfigError, few, setting
from hf_xlt.tasks.spans import BEGIN, INSIDE, OUTSIDE

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

IOB2, IOB1, IOE = "IOB2", "IOB1", "IOE"
_BEGINS, _INSIDES, _ENDS, _SINGLES = "B", "IM", "EL", "SUW"
_LETTERS = _BEGINS + _INSIDES + _ENDS + _SINGLES
_READ = "tags read as IOB2"
_SHOWN = 6


def is_spans(names: Sequence[str]) -> bool:
    """Say whether class names are tags of spans under any scheme: `O`, and a known letter, a hyphen and a type."""
    typed = [name for name in names if name != OUTSIDE]
    fit = all(len(name) > 2 and name[0] in _LETTERS and name[1] == "-" for name in typed)
    return bool(typed) and fit and (OUTSIDE in names or any(name.startswith(BEGIN) for name in typed))


def as_iob2(name: str) -> str:
    """Return what a tag is under IOB2, by its letter alone: `S-X` is `B-X`, `E-X` is `I-X`."""
    if name == OUTSIDE:
        return name
    return (BEGIN if name[0] in _BEGINS + _SINGLES else INSIDE) + name[2:]


def iob2_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the IOB2 tags of the types in tags of any scheme, types in order; both tags of each."""
    found: dict[str, None] = {}
    for name in names:
        tags = (name,) if name == OUTSIDE else (BEGIN + name[2:], INSIDE + name[2:])
        found |= dict.fromkeys(tags)
    return tuple(found)


@dataclass(frozen=True)
class TagReading:
    """How the tags of one data set are read.

    Attributes:
        scheme: how they are written.
        column: where they stand.
        given: their names where the data have numbers only, else None.
        spans: number of spans.
        slips: how many of them open against the scheme.
    """

    scheme: str
    column: str
    given: tuple[str, ...] | None
    spans: int
    slips: int

    @property
    def converts(self) -> bool:
        """Whether reading changes the tags."""
        return self.scheme != IOB2

    def __call__(self, table: Dataset) -> Dataset:
        """Return the rows with IOB2 tags: a list of `ClassLabel`, or of the numbers that the names were given for."""
        from datasets import ClassLabel, List, Value

        tags = _Tags.of(table, self.column, self.given)
        if tags is None or not self.converts:
            return table
        names = iob2_names(tags.names)
        names = self.given or (names if tags.ordered else tuple(sorted(names)))
        index = {name: number for number, name in enumerate(names)}
        inside, begin = (
            np.array([index.get(name if name == OUTSIDE else letter + name[2:], -1) for name in tags.names])
            for letter in (INSIDE, BEGIN)
        )
        numbers = np.where(tags.opens(self.scheme), begin[tags.codes], inside[tags.codes])
        ends = np.cumsum(tags.lengths)
        rows = [numbers[start:end].tolist() for start, end in zip(ends - tags.lengths, ends, strict=True)]
        feature = List(Value("int64") if self.given else ClassLabel(names=list(names)))
        # Added before the old one goes: a table without columns has no rows.
        added = table.add_column(_READ, rows, feature=feature)
        return added.remove_columns([self.column]).rename_column(_READ, self.column)

    def read_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return IOB2 tags for the names of all tags as the user gives them."""
        return tuple(names) if self.given or not is_spans(names) else iob2_names(names)


@dataclass(frozen=True)
class _Tags:
    """The tags of a table, sentence after sentence.

    Attributes:
        names: tags by their codes.
        codes: (N,) the code of each word's tag.
        lengths: number of words of each sentence.
        ordered: whether the tags are numbers, whose names have an order.
        declared: whether the data name them.
    """

    names: tuple[str, ...]
    codes: np.ndarray
    lengths: np.ndarray
    ordered: bool
    declared: bool

    @classmethod
    def of(cls, table: Dataset, column: str, given: Sequence[str] | None) -> _Tags | None:
        """Read a column; None where it holds no lists, or others than names or known numbers."""
        import pyarrow as pa
        import pyarrow.compute as pc

        values = table.select_columns([column]).with_format("arrow")[:][column]
        listed = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        if not len(table) or not listed or values.null_count:
            return None
        lengths = pc.list_value_length(values).to_numpy().astype(np.int64)
        flat = pc.list_flatten(values).combine_chunks()
        if flat.null_count:
            return None
        feature = table.features[column]
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type):
            return cls(*_encoded(flat), lengths, False, True)
        if not pa.types.is_integer(flat.type) or not (names or given):
            return None
        codes = flat.to_numpy(zero_copy_only=False).astype(np.int64)
        inside = not len(codes) or (codes.min() >= 0 and codes.max() < len(names or given))
        return cls(tuple(names or given), codes, lengths, True, bool(names)) if inside else None

    def letters(self) -> np.ndarray:
        """Return (N,) the letter of each tag; `O` outside of spans."""
        return np.array([name[0] for name in self.names])[self.codes]

    def continues(self) -> np.ndarray:
        """Return (N,) whether the word before, in the same sentence, has a tag of the same type."""
        kinds = {name[2:] for name in self.names if name != OUTSIDE}
        numbers = {kind: number for number, kind in enumerate(sorted(kinds))}
        kind = np.array([-1 if name == OUTSIDE else numbers[name[2:]] for name in self.names])[self.codes]
        return (kind >= 0) & (kind == self._before(kind, -1))

    def opens(self, scheme: str) -> np.ndarray:
        """Return (N,) which words open a span under a scheme."""
        letters = self.letters()
        opens = np.isin(letters, list(_BEGINS + _SINGLES))
        if scheme in (IOB1, IOE):
            opens |= (letters != OUTSIDE) & ~self.continues()
        if scheme == IOE:
            opens |= (letters != OUTSIDE) & np.isin(self._before(letters, OUTSIDE), list(_ENDS + _SINGLES))
        return opens

    def _before(self, values: np.ndarray, first: Any) -> np.ndarray:
        """Return each word's left neighbour in its sentence; `first` where it has none."""
        moved = np.concatenate([values[:1], values[:-1]])
        starts = np.cumsum(self.lengths) - self.lengths
        moved[starts[self.lengths > 0]] = first
        return moved


def _encoded(flat: pa.Array) -> tuple[tuple[str, ...], np.ndarray]:
    coded = flat.dictionary_encode()
    return tuple(coded.dictionary.to_pylist()), coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def find_reading(table: Dataset, columns: Mapping[str, str], given: Sequence[str] | None) -> TagReading | None:
    """Find out how a data set writes spans.

    Args:
        table: its rows.
        columns: the task's columns by their role.
        given: names of the tags where the data have numbers only, or None.

    Returns:
        How it is read; None for tags that are no spans, and for rows that another check refuses.

    Raises:
        ConfigError: the tags are numbers, and their IOB2 tags are not among the names given for them.
    """
    column = columns["tags"]
    tags = _Tags.of(table, column, given)
    if tags is None or not is_spans(tags.names):
        return None
    letters, opening = tags.letters(), ~tags.continues()
    begins = np.isin(letters, list(_BEGINS + _SINGLES))
    with_b, with_i = int(np.sum(begins & opening)), int(np.sum(~begins & (letters != OUTSIDE) & opening))
    scheme = _scheme({name[0] for name in tags.names if name != OUTSIDE}, set(letters.tolist()))
    scheme = scheme or (IOB1 if with_i > with_b else IOB2)
    slips = {IOB1: with_b, IOE: 0}.get(scheme, with_i)
    spans = int(np.sum(tags.opens(scheme) | (opening & (letters != OUTSIDE))))
    numbers = tuple(given) if given and not tags.declared and tags.ordered else None
    reading = TagReading(scheme, column, numbers, spans, slips)
    if numbers and reading.converts:
        lacking = [name for name in iob2_names(tags.names) if name not in numbers]
        if lacking:
            raise ConfigError(
                f"the tags in column `{column}` are numbers, and the names that {setting('labels')} gives them are "
                f"those of "
                f"{scheme}: `{lacking[0]}` is missing to read them as IOB2. Give the tags as names in the data."
            )
    return reading


def _scheme(named: set[str], used: set[str]) -> str | None:
    """Name the scheme by the letters of all tags and of those that occur; None where openings must tell."""
    if named <= set("BI"):
        return None
    # Without a letter for beginnings, only what stands before a word says whether it opens a span.
    without_beginnings = "B" not in used and bool(used & set(_INSIDES + _ENDS))
    return IOE if without_beginnings else _with_ends(named)


def _with_ends(named: set[str]) -> str:
    if named & set("LU"):
        return "BILOU"
    if "W" in named:
        return "BMEWO"
    return "BMES" if "M" in named else "BIOES"


def describe_readings(readings: Mapping[str, TagReading]) -> list[str]:
    """Say which data sets are read otherwise than they are written, and where they have slips.

    Args:
        readings: by what the data set is, for messages.

    Returns:
        Sentences; none where all is plain IOB2.
    """
    notes = []
    for scheme in dict.fromkeys(reading.scheme for reading in readings.values()):
        of_scheme = {where: reading for where, reading in readings.items() if reading.scheme == scheme}
        slips = [
            f"{where}: {reading.slips:,} of {reading.spans:,}" for where, reading in of_scheme.items() if reading.slips
        ]
        if scheme != IOB2:
            notes.append(
                f"tags are {scheme}, and are read as IOB2, which the model learns and is scored by, in "
                f"{few(list(of_scheme), _SHOWN)}."
            )
            words = f"spans that open otherwise than in {scheme} are read as they stand"
        else:
            words = "spans that open with `I-` are none under IOB2, and scored so, as by seqeval's strict mode"
        if slips:
            notes.append(f"{words}; {few(slips, _SHOWN)}.")
    return notes
