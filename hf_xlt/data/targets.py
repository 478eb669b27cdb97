"""Opening what the user named as data, and choosing the languages to transfer to."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_xlt.data.division import ID_COLUMN, DividedSource, Division
from hf_xlt.data.joining import check_id_column
from hf_xlt.data.patterns import missing_language, parse_language_map
from hf_xlt.data.sources import Source, make_source
from hf_xlt.errors import ConfigError, setting
from hf_xlt.languages import check_code, check_no_target, find_same, find_variants, is_code
from hf_xlt.tasks import COLUMN_ROLES, Task

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xlt.arguments import DataArguments
    from hf_xlt.data.roles import DataSet

ALL_LANGUAGES = "all"


@dataclass
class Target:
    """One `--target-dataset`: its source, and the languages it is limited to."""

    source: Source
    limited_to: tuple[str, ...]

    def left_out(self, split: str, used: Collection[str] = ()) -> list[str]:
        """Say what lies there and is not used, where no languages were named."""
        return [] if self.limited_to else self.source.left_out(split, used)

    def strange(self, split: str) -> list[str]:
        """Return the names that are no codes, where no languages were named."""
        return [] if self.limited_to else self.source.strange(split)


def target_sources(opener: Opener, source: Source) -> list[Target]:
    """Return the target data: those that were named, or else the source's."""
    arguments = opener.arguments
    if not arguments.target_dataset:
        return [Target(source, ())]
    return [opener.open_target(spec, arguments.target_split) for spec in arguments.target_dataset]


def _places(targets: Sequence[Target]) -> str:
    """Name target data as the user did."""
    return ", ".join(f"`{_place(target.source)}`" for target in targets)


def _place(source: Source) -> str:
    return getattr(source, "pattern", None) or getattr(source, "spec", source.name)


def all_with(language: str, split: str, candidates: Iterable[Source]) -> Iterator[Source]:
    """Return the sources that have a language's split."""
    for candidate in candidates:
        try:
            if language in candidate.languages(split):
                yield candidate
        except ConfigError:
            continue


def variants_with(language: str, split: str, candidates: Iterable[Source]) -> Iterator[tuple[str, Source]]:
    """Return the codes under which sources have a language's split, and the sources; the language's own code first."""
    candidates = list(candidates)
    yield from ((language, source) for source in all_with(language, split, candidates))
    for candidate in candidates:
        try:
            codes = candidate.languages(split)
        except ConfigError:
            continue
        yield from ((code, candidate) for code in codes if code != language and find_same(code, [language]))


@dataclass
class Opener:
    """Opens data of every role alike: names of languages mapped, sets divided, as the user asks.

    Attributes:
        arguments: what the user asked for.
        task: the task, which names the columns.
        division: how sets without splits are divided, or None.
        opened: filled with every source.
    """

    arguments: DataArguments
    task: Task
    division: Division | None = None
    opened: list[Source] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the map of names."""
        self.names = parse_language_map(self.arguments.language_map)

    def open(self, spec: str, split: str, is_text: bool = False) -> Source:
        """Open a source.

        Args:
            spec: what the user typed.
            split: what it serves as where it has no splits.
            is_text: whether it is text without labels, which is divided only beside labels in the same place.

        Raises:
            ConfigError: it is no data.
        """
        source = make_source(spec, self.arguments.language_column, split, self.names)
        places = {os.path.abspath(_place(other)) for other in self.opened}
        if self.division is not None and (not is_text or os.path.abspath(_place(source)) in places):
            source = DividedSource(source, self.division, self._keys)
        self.opened.append(source)
        return source

    def _keys(self, table: Dataset, where: str) -> tuple[Sequence[object], Sequence[object] | None]:
        """Return the ids of rows, or their numbers, and their classes where the task has some."""
        name, id_column = self.task.class_column, self.division.id_column
        given = {role: getattr(self.arguments, f"{role}_column") for role in COLUMN_ROLES}
        classes = table[self.task.find_columns(table.column_names, given, where)[name]][:] if name else None
        if id_column != ID_COLUMN:
            check_id_column(table.column_names, id_column, where)
        ids = table[id_column][:] if id_column in table.column_names else range(len(table))
        return (range(len(table)) if None in ids else ids), classes

    def open_target(self, spec: str, split: str, is_text: bool = False) -> Target:
        """Open `CODES=DATA`, or data alone; see `open`."""
        codes, separator, rest = spec.partition("=")
        names = [code.strip() for code in codes.split(",") if code.strip()]
        # Folders may be called `lang={lang}`.
        in_path = rest.startswith("{") and not all(map(is_code, names))
        if separator and not in_path and not any(char in codes for char in "/{."):
            return Target(self.open(rest, split, is_text), tuple(map(check_code, names)))
        return Target(self.open(spec, split, is_text), ())

    def describe_parts(self, parts: Iterable[DataSet]) -> list[str]:
        """Say in sentences what was divided, of the sets that are parts."""
        divided: dict[str, dict[str, str]] = {}
        for entry in parts:
            whole = entry.source.divided[entry.language][0]
            what = f"the split `{whole}`" if whole else "one set without splits"
            divided.setdefault(entry.source.name, {})[entry.language] = what
        stratified = ", stratified by class" * (self.task.class_column is not None)
        return [
            f"`{name}` ({', '.join(sorted(wholes))}): {' or '.join(sorted(set(wholes.values())))}, divided by chance "
            f"into {self.division.describe()}{stratified}."
            for name, wholes in divided.items()
        ]

    def check_used(self, divides: bool) -> None:
        """Check that what was asked for was of use.

        Raises:
            ConfigError: nothing was divided, or the data have no language of a name that is mapped.
        """
        if self.division is not None and not divides:
            there = sorted({name for source in self.opened for name in getattr(source, "inner", source).splits()})
            raise ConfigError(
                f"{setting('divide_split')} divides nothing: the data have the splits {', '.join(there) or 'none'}, "
                f"and only "
                "data with one of the parts at most, or with one split, are divided. Leave it out, or name others."
            )
        unused = sorted(set(self.names.codes) - self.names.used)
        if unused:
            raise ConfigError(
                f"{setting('language_map')} names `{unused[0]}`, and no data of this run have a language of that "
                f"name. Correct "
                "it, or leave it out."
            )


def target_languages(
    arguments: DataArguments, targets: Sequence[Target], auxiliary: Sequence[str], notes: list[str]
) -> tuple[tuple[str, ...], dict[str, Source]]:
    """Choose the target languages, and for each where its data lie: the first source that has it.

    An auxiliary language has labels in training: scoring it among the zero-shot targets would flatter their average.
    """
    split = arguments.target_split
    homes: dict[str, Source] = {}
    for target in targets:
        for language in target.limited_to or target.source.languages(split):
            first = homes.setdefault(language, target.source)
            if first is not target.source and _is_wanted(language, arguments):
                notes.append(f"`{language}` is in {_name(first)} and in {_name(target.source)}; the first is used.")
    with_labels = {"a source": arguments.source_languages, "an auxiliary": auxiliary}
    labelled = [*arguments.source_languages, *auxiliary]
    present = [language for language in homes if not find_same(language, labelled)]
    for role, others in with_labels.items():
        check_no_target(others, arguments.target_languages, role)
    if ALL_LANGUAGES in arguments.target_languages:
        chosen = present
        used = (*labelled, *homes)
        variants = _labelled_variants(homes, with_labels)
        notes += variants
        notes += [sentence for target in targets for sentence in target.left_out(split, used)]
        if not chosen and auxiliary:
            raise ConfigError(
                f"every language of the target data is an auxiliary one ({', '.join(auxiliary)}), so no zero-shot "
                f"target is left. Name fewer with {setting('auxiliary_languages')}."
            )
        if not chosen and variants:
            raise ConfigError(f"no target language is left. {' '.join(variants)} Give target data of other languages.")
        if not chosen:
            raise ConfigError(
                f"no target language has a `{split}` split in {_places(targets)}.{_what_is_there(targets, split)} "
                f"Check the pattern, or name the split with {setting('target_split')}."
            )
    else:
        chosen = list(arguments.target_languages)
        for language in chosen:
            if language not in homes:
                strange = [name for target in targets for name in target.strange(split)]
                raise ConfigError(
                    f"target language `{language}` has no `{split}` split in {_places(targets)}."
                    f"{missing_language(language, sorted(homes), strange)}"
                    f"{'' if homes else _what_is_there(targets, split)}"
                )
    notes += [
        f"{' and '.join(f'`{code}`' for code in group)} are one language; each is a target of its own "
        "and counts in the averages."
        for group in find_variants(chosen)
    ]
    return tuple(chosen), {language: homes[language] for language in chosen}


def _labelled_variants(homes: Iterable[str], with_labels: Mapping[str, Iterable[str]]) -> list[str]:
    """Say which languages of target data have labels in training under another code."""
    found = [(code, role, find_same(code, others)) for role, others in with_labels.items() for code in homes]
    return [
        f"`{code}` is {role} language under another code (`{known}`), so it has labels and is no target."
        for code, role, known in found
        if known not in (None, code)
    ]


def _is_wanted(language: str, arguments: DataArguments) -> bool:
    wanted = arguments.target_languages
    return not find_same(language, arguments.source_languages) and (ALL_LANGUAGES in wanted or language in wanted)


def _name(source: Source) -> str:
    return f"`{source.name}`"


def _what_is_there(targets: Sequence[Target], split: str) -> str:
    """Say which splits lie there, and which names that are no codes."""
    splits = sorted({name for target in targets for name in target.source.splits()})
    told = f" Splits there: {', '.join(splits)}." if splits and split not in splits else ""
    left_out = [sentence for target in targets for sentence in target.left_out(split)]
    return " ".join([told, *left_out])
