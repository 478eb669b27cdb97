"""Data by role: what a run trains on, selects on and scores on, resolved and checked before any model is loaded.

Test sets are checked here (file, columns, size, that every row can be scored); their labels choose nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hf_xlt.data.division import Division, parse_division
from hf_xlt.data.labels import LabelInventory, alike, named
from hf_xlt.data.overlap import Claims, Seen, Shared
from hf_xlt.data.readings import columns_reading, settle_readings
from hf_xlt.data.row_checks import check_rows
from hf_xlt.data.shots import shot_order
from hf_xlt.data.sources import Source
from hf_xlt.data.targets import (
    ALL_LANGUAGES,
    Opener,
    Target,
    all_with,
    target_languages,
    target_sources,
    variants_with,
)
from hf_xlt.errors import ConfigError, close_match, setting
from hf_xlt.languages import find_same
from hf_xlt.tasks import COLUMN_ROLES, Reading, Task, column_setting

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xlt.arguments import DataArguments
    from hf_xlt.modelling.tokens import Fitted

TRAINING = "source"
VALIDATION = "validation"
TARGET_VALIDATION = "target validation"
SHOTS = "few-shot"
SOURCE_TEST = "source test"
TARGET_TEST = "target"
AUXILIARY = "auxiliary"
AUXILIARY_TEST = "auxiliary test"
TEXT = "text"
LABEL_ROLES = ("label", "tags")
# Text without labels may be that of labelled rows, as long as these are not scored or selected on.
_HARMLESS = frozenset(frozenset((TEXT, role)) for role in (TRAINING, SHOTS, AUXILIARY))


@dataclass(frozen=True)
class DataSet:
    """One split of one language in one role.

    Attributes:
        role: one of the constants above.
        language: code as in the data.
        split: name of the split.
        source: where it lies.
        columns: the task's columns by their role in it.
        rows: number of rows in the split; of few-shot sets `limit` are taken.
        limit: how many examples to take; None takes all.
        reading: how the rows are to be read; None for as they are.
    """

    role: str
    language: str
    split: str
    source: Source
    columns: Mapping[str, str]
    rows: int
    limit: int | None = None
    reading: Reading | None = None

    @property
    def size(self) -> int:
        """Number of examples that are used."""
        return self.rows if self.limit is None else min(self.rows, self.limit)

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a divided set."""
        return self.source.rows(self.language, self.split).part is not None

    @property
    def place(self) -> str:
        """Where the data lie, without what is not to be shared: the pattern, or the id and configuration."""
        configuration = getattr(self.source, "configuration", "")
        return f"{self.source.name}:{configuration}" if configuration else self.source.name

    @property
    def where(self) -> str:
        """What the data are, for messages."""
        return f"{self.source.name} ({self.language}, {self.split})"

    def read(self) -> Dataset:
        """Read the rows, all of them, with labels by name wherever the data have names."""
        table, column = self.read_as_written(), self.label_column
        return table if column is None else named(table, column)

    def read_as_written(self) -> Dataset:
        """Read the rows with labels as they stand, of which some kinds say the order of the classes."""
        table = self.source.read(self.language, self.split)
        return table if self.reading is None else self.reading(table)

    @property
    def label_column(self) -> str | None:
        """The column of labels, whichever role the task gives it; None for data without."""
        return next((self.columns[role] for role in LABEL_ROLES if role in self.columns), None)


@dataclass
class DataPlan:
    """The data of a run.

    Attributes:
        task: the task.
        source_languages: languages with training labels.
        target_languages: languages to transfer to.
        sets: every data set by role, languages in order.
        shot_seed: seed of the choice of shots.
        given_labels: class names the user gave, or None.
        window_overlap: tokens that neighbouring windows of a long input share.
        notes: what the user should know, in sentences.
        division: how sets were divided into splits, or None.
        shared: rows that have two roles, by the user's leave.
        seen: test rows whose text was learned from; filled when tests are read.
        fitted: the model and the tokenizer that the data are for, once both are known.
    """

    task: Task
    source_languages: tuple[str, ...]
    target_languages: tuple[str, ...]
    sets: dict[str, list[DataSet]]
    shot_seed: int
    given_labels: Sequence[str] | None
    window_overlap: int = 0
    notes: list[str] = field(default_factory=list)
    division: Division | None = None
    shared: list[Shared] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    fitted: Fitted | None = None

    @property
    def auxiliary_languages(self) -> tuple[str, ...]:
        """Languages other than the source with labels in training, which are therefore no targets."""
        trained = [entry.language for entry in self.of_role(AUXILIARY)]
        tested = (entry.language for entry in self.of_role(AUXILIARY_TEST))
        return tuple(dict.fromkeys((*trained, *(code for code in tested if not find_same(code, trained)))))

    def set_apart(self, auxiliary: Collection[str]) -> None:
        """Score languages as auxiliary ones: the model to be scored had labels in them, so they are no targets."""
        targets = self.of_role(TARGET_TEST)
        self.sets[AUXILIARY_TEST] = [
            replace(entry, role=AUXILIARY_TEST) for entry in targets if find_same(entry.language, auxiliary)
        ]
        self.sets[TARGET_TEST] = [entry for entry in targets if not find_same(entry.language, auxiliary)]
        self.target_languages = tuple(code for code in self.target_languages if not find_same(code, auxiliary))

    def of_role(self, *roles: str) -> list[DataSet]:
        """Return the data sets of some roles."""
        return [entry for role in roles for entry in self.sets.get(role, [])]

    def read_training(self) -> tuple[dict[str, Dataset], LabelInventory | None]:
        """Read the source training rows and the label inventory.

        Raises:
            ConfigError: the labels cannot be used.
        """
        entries = self.of_role(TRAINING)
        if self.task.find_labels is None:
            return {entry.language: entry.read() for entry in entries}, None
        written = [entry.read_as_written() for entry in entries]
        inventory = self.task.find_labels(written, entries[0].columns, self.given_labels)
        tables = zip(entries, written, strict=True)
        return {entry.language: named(table, entry.label_column) for entry, table in tables}, inventory

    def take_shots(self, entry: DataSet, table: Dataset, inventory: LabelInventory | None) -> Dataset:
        """Choose a language's few-shot examples: stratified, nested over budgets."""
        labels = None
        if self.task.class_column is not None and inventory is not None:
            labels = inventory.indices(list(table[entry.columns[self.task.class_column]]), None, entry.where)
        order = shot_order(labels, len(table), seed=self.shot_seed, language=entry.language)
        return table.select(order[: entry.limit])


def resolve_data(
    arguments: DataArguments,
    task: Task,
    *,
    needs_validation: bool,
    target_validation: bool = False,
    scores: bool = True,
    trains: bool = True,
    divided_before: Division | None = None,
    strict: bool = True,
) -> DataPlan:
    """Find every data set that a run needs and check that it is there, has its columns and is not empty.

    Args:
        arguments: what the user asked for.
        task: the task, which names the columns.
        needs_validation: whether a source validation split is used.
        target_validation: whether one of the target languages is used even where it selects no checkpoint.
        scores: whether test sets are scored.
        trains: whether training sets are read.
        divided_before: how the run that made a model divided its data, where the arguments ask for no division.
        strict: whether a division or a language map that is of no use is an error.

    Raises:
        ConfigError: a file, column, language or split is missing, a set is empty, or rows would have two roles.
    """
    languages = tuple(arguments.source_languages)
    division = parse_division(arguments.divide_split, arguments.divide_seed, arguments.id_column) or divided_before
    finder = _Finder(arguments, task, Opener(arguments, task, division))
    serves = arguments.source_split if trains else arguments.target_split
    source = finder.opener.open(arguments.dataset, serves)
    sets: dict[str, list[DataSet]] = {}
    notes: list[str] = finder.notes
    if trains:
        sets[TRAINING] = finder.find(TRAINING, dict.fromkeys(languages, source), arguments.source_split)
    targets = target_sources(finder.opener, source)
    if trains:
        sets[AUXILIARY] = finder.find_beside(AUXILIARY, arguments.auxiliary_dataset, arguments.auxiliary_languages)
    auxiliary = [entry.language for entry in sets.get(AUXILIARY, [])]
    chosen, homes = target_languages(arguments, targets, auxiliary, notes)
    if trains:
        sets[TEXT] = finder.find_beside(TEXT, arguments.text_dataset, arguments.text_languages)
    if needs_validation:
        sets[VALIDATION] = finder.find(VALIDATION, dict.fromkeys(languages, source), arguments.validation_split)
    if arguments.select_on_target_validation or target_validation:
        sets[TARGET_VALIDATION] = finder.find(TARGET_VALIDATION, homes, arguments.validation_split)
    if arguments.shots:
        sets[SHOTS] = finder.find(SHOTS, homes, arguments.few_shot_split, limit=arguments.shots)
        notes += [
            f"{entry.where} has {entry.rows} examples, fewer than the {arguments.shots} shots asked for."
            for entry in sets[SHOTS]
            if entry.rows < arguments.shots
        ]
    if scores:
        sets[SOURCE_TEST] = list(finder.find_source_test(source, languages, targets, notes))
        sets[TARGET_TEST] = finder.find(TARGET_TEST, homes, arguments.target_split)
        sets[AUXILIARY_TEST] = list(finder.find_auxiliary_test(sets.get(AUXILIARY, []), targets))
    if task.find_threshold and not needs_validation:
        sets[VALIDATION] = list(finder.find_if_there(VALIDATION, source, languages, arguments.validation_split))
    parts = [entry for role in sets for entry in sets[role] if entry.is_part]
    notes += finder.opener.describe_parts(parts)
    for note, places in finder.told.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        notes.append(f"{places[0]}{more}: {note}")
    if strict:
        finder.opener.check_used(bool(parts))
    _check_same_columns(entry for role in sets if role != TEXT for entry in sets[role])
    shots, labels, overlap = arguments.shot_seed, arguments.labels, arguments.window_overlap
    plan = DataPlan(task, languages, chosen, sets, shots, labels, overlap, notes)
    plan.division, plan.shared = division, finder.claims.shared
    plan.notes += [entry.describe() for entry in plan.shared]
    settle_readings(plan, labels)
    if not trains:
        return plan
    inventory = _settle_labels(plan) if task.find_labels else None
    labelled = [entry for role in plan.sets if role != TEXT for entry in plan.sets[role]]
    # Several labels in a row are read by their task alone.
    plan.notes += check_rows(labelled, None if task.find_threshold else inventory)
    return plan


def _settle_labels(plan: DataPlan) -> LabelInventory:
    """Let the labels of the training data settle how the task is scored."""
    _, inventory = plan.read_training()
    plan.task = plan.task.given_labels(inventory)
    plan.notes += [
        f"`{one}` and `{other}` are two labels, which differ in case or blanks alone; make them one in the data if "
        "they are meant to be."
        for one, other in alike(inventory.names)
    ]
    return inventory


def _check_same_columns(entries: Iterable[DataSet]) -> None:
    first: DataSet | None = None
    for entry in entries:
        first = first or entry
        if set(entry.columns) != set(first.columns):
            lacking, other = sorted([first, entry], key=lambda side: len(side.columns))
            role = sorted(set(other.columns) - set(lacking.columns))[0]
            raise ConfigError(
                f"{other.where} has a `{role}` column (`{other.columns[role]}`), but {lacking.where} has none. "
                f"All data of a run are single texts or all are pairs; {column_setting(role)} names it."
            )


def _without_sources(languages: Sequence[str], arguments: DataArguments) -> list[str]:
    """Take the source languages out of the auxiliary ones, unless they were named."""
    named = [code for code in arguments.auxiliary_languages if find_same(code, arguments.source_languages)]
    if languages and named:
        source = find_same(named[0], arguments.source_languages)
        other = "" if source == named[0] else f" (it is `{source}` under another code)"
        raise ConfigError(
            f"`{named[0]}` is both a source and an auxiliary language{other}; leave it out of "
            f"{setting('auxiliary_languages')}."
        )
    others = [code for code in languages if not find_same(code, arguments.source_languages)]
    if languages and not others:
        raise ConfigError("the auxiliary data hold no language but the source; give data of another.")
    return others


@dataclass
class _Finder:
    """Looks data sets up and checks them."""

    arguments: DataArguments
    task: Task
    opener: Opener
    notes: list[str] = field(default_factory=list)
    told: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.claims = Claims(self.arguments.allow_shared_rows, _HARMLESS)

    def find(self, role: str, homes: Mapping[str, Source], split: str, limit: int | None = None) -> list[DataSet]:
        return [self._check(role, language, split, source, limit) for language, source in homes.items()]

    def find_beside(self, role: str, specs: Sequence[str] | None, languages: Sequence[str]) -> list[DataSet]:
        split = getattr(self.arguments, f"{role}_split")
        found: dict[str, Source] = {}
        for spec in specs or ():
            target = self.opener.open_target(spec, split, role == TEXT)
            for language in target.limited_to or target.source.languages(split):
                found.setdefault(language, target.source)
            if ALL_LANGUAGES in languages:
                lines = target.left_out(split, self.arguments.source_languages)
                self.notes += [line for line in lines if line not in self.notes]
        chosen = list(found) if ALL_LANGUAGES in languages else list(languages)
        missing = [language for language in chosen if language not in found]
        if specs and missing:
            raise ConfigError(
                f"{role} language `{missing[0]}` is not in the {role} data.{close_match(missing[0], found)} "
                f"Languages there: {', '.join(sorted(found)) or 'none'}."
            )
        chosen = [language for language in chosen if language in found]
        if role == AUXILIARY:
            chosen = _without_sources(chosen, self.arguments)
        return self.find(role, {language: found[language] for language in chosen}, split)

    def find_source_test(
        self, source: Source, languages: Sequence[str], targets: Sequence[Target], notes: list[str]
    ) -> Iterator[DataSet]:
        """Find the source languages' test sets; one that is missing costs the transfer gap, not the run."""
        split, targets_named = self.arguments.target_split, bool(self.arguments.target_dataset)
        for language in languages:
            homes = list(variants_with(language, split, (source, *(target.source for target in targets))))
            permitted = self.arguments.allow_shared_rows
            free = ((code, home) for code, home in homes if permitted or not self._taken(code, split, home))
            # Where one data set is for everything, sharing rows is the user's error; beside named targets, chance.
            home = next(free, None) if targets_named or not homes else homes[0]
            if home is not None:
                if home[0] != language:
                    notes.append(f"Source language `{language}` is tested on `{home[0]}`, the same language.")
                yield self._check(SOURCE_TEST, home[0], split, home[1], None)
            elif homes:
                code, place = homes[0]
                notes.append(
                    f"Source language `{language}`: its `{split}` rows are in use as "
                    f"{self._taken(code, split, place)[0].role} data, so no transfer gap can be given for it."
                )
            else:
                notes.append(
                    f"Source language `{language}` has no `{split}` split: no transfer gap can be given for it."
                )

    def find_if_there(self, role: str, source: Source, languages: Sequence[str], split: str) -> Iterator[DataSet]:
        """Find the languages' sets of a split that a run can do without.

        Rows that have another role are left alone, unless the user permits both. A split that the user named must be
        there.
        """
        if split != type(self.arguments).validation_split:
            yield from self.find(role, dict.fromkeys(languages, source), split)
            return
        for language in languages:
            for home in all_with(language, split, (source,)):
                if self.claims.permitted or not self.claims.holders(role, home.rows(language, split)):
                    yield self._check(role, language, split, home, None)

    def find_auxiliary_test(self, auxiliary: Sequence[DataSet], targets: Sequence[Target]) -> Iterator[DataSet]:
        """Find the auxiliary languages' test sets, where there are any: they are scored apart from the targets."""
        split = self.arguments.target_split
        for entry in auxiliary:
            homes = variants_with(entry.language, split, (entry.source, *(target.source for target in targets)))
            # What was trained on is no test, also where it is named a second time as target data.
            free = ((code, home) for code, home in homes if not self._taken(code, split, home))
            code, home = next(free, (None, None))
            if code is not None:
                yield self._check(AUXILIARY_TEST, code, split, home, None)

    def _taken(self, language: str, split: str, source: Source) -> list[DataSet]:
        """Return the data sets of other roles that have some of a test's rows."""
        return self.claims.holders(SOURCE_TEST, source.rows(language, split))

    def _check(self, role: str, language: str, split: str, source: Source, limit: int | None) -> DataSet:
        shape = source.inspect(language, split)
        where = f"{source.name} ({language}, {split})"
        if shape.rows == 0:
            raise ConfigError(f"{where} is empty: it has no rows to use as {role} data.")
        if shape.note and where not in self.told.setdefault(shape.note, []):
            self.told[shape.note].append(where)
        given = {role: getattr(self.arguments, f"{role}_column") for role in COLUMN_ROLES}
        present, reading = shape.columns, None
        if self.arguments.label_columns and role != TEXT:
            reading = columns_reading(self.arguments, self.task, present, where)
            present, given["label"] = (*present, reading.column), reading.column
        columns = self.task.find_columns(present, given, where) if role != TEXT else {}
        entry = DataSet(role, language, split, source, columns, shape.rows, limit, reading)
        self.claims.take(entry, source.rows(language, split))
        return entry
