"""Finished runs found on disk, grouped into conditions: runs that differ in their seeds alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_xlt.errors import ConfigError
from hf_xlt.items import read_items
from hf_xlt.languages import find_variants
from hf_xlt.record import FINISHED, RECORD_NAME, RunRecord
from hf_xlt.results import AUXILIARY, SOURCE

# How deep below a folder runs are looked for: a sweep's runs lie one below it, several sweeps' two.
_DEPTH = 2
_TESTS = ("source test", "target", "auxiliary test")
# Settings that make no other condition: seeds, and what changes nothing in the result.
_SEEDS = frozenset({"seed", "data_seed", "shot_seed", "average_compare", "batch_eval_metrics"})


@dataclass(frozen=True)
class ComparedRun:
    """A finished run.

    Attributes:
        folder: where it lies.
        record: what it was.
        items: per language (N, 2) item scores; None where it kept none.
    """

    folder: Path
    record: RunRecord
    items: Mapping[str, np.ndarray] | None

    @property
    def seed(self) -> int | None:
        """Its seed; None of an average over runs."""
        return self.record.seeds.get("seed")


@dataclass(frozen=True)
class Condition:
    """Runs that differ in their seeds alone.

    Attributes:
        name: strategy, with the settings that set it apart from others of that strategy.
        runs: by seed, rising.
    """

    name: str
    runs: tuple[ComparedRun, ...]


def find_runs(places: Sequence[str], notes: list[str]) -> list[ComparedRun]:
    """Find finished runs in folders of runs.

    Args:
        places: run directories, or folders with runs in them.
        notes: what the user should know is added here.

    Raises:
        ConfigError: a place is missing, or holds no finished run.
    """
    found: dict[Path, ComparedRun] = {}
    for place in map(Path, places):
        if not place.is_dir():
            raise ConfigError(f"`{place}` is missing; give run directories, or a folder with runs.")
        folders = list(_runs_below(place, _DEPTH))
        if not folders:
            raise ConfigError(f"`{place}` holds no run: there is no `{RECORD_NAME}` in it or up to two folders below.")
        for folder in folders:
            record = RunRecord.read(folder)
            if record.status != FINISHED or record.scores is None:
                notes.append(f"`{folder}` is left out: it is not finished and scored ({record.status}).")
                continue
            kept = read_items(folder)
            items = kept[1] if kept is not None and kept[0] == record.scores.metric else None
            found.setdefault(folder.resolve(), ComparedRun(folder, record, items))
    if not found:
        raise ConfigError(f"there is no finished run in {', '.join(f'`{place}`' for place in places)}.")
    _check_same_task(list(found.values()))
    return list(found.values())


def _runs_below(place: Path, depth: int) -> Iterator[Path]:
    if (place / RECORD_NAME).is_file():
        yield place
    elif depth:
        for path in sorted(place.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                yield from _runs_below(path, depth - 1)


def _check_same_task(runs: Sequence[ComparedRun]) -> None:
    first = runs[0]
    for run in runs[1:]:
        mine, other = (entry.record.scores.metric for entry in (first, run))
        if run.record.task["name"] != first.record.task["name"] or mine != other:
            raise ConfigError(
                f"`{first.folder}` is scored by {mine} on {first.record.task['name']}, and `{run.folder}` by {other} "
                f"on {run.record.task['name']}; compare runs of one task."
            )


def group(runs: Sequence[ComparedRun], notes: list[str]) -> list[Condition]:
    """Group runs into conditions, in the order in which they were found.

    Raises:
        ConfigError: a condition has two runs with one seed.
    """
    by_strategy: dict[str, list[ComparedRun]] = {}
    for run in runs:
        by_strategy.setdefault(_strategy(run), []).append(run)
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault(_name(run, by_strategy[_strategy(run)]), []).append(run)
    for name, members in groups.items():
        seeds: dict[int | None, ComparedRun] = {}
        for run in members:
            other = seeds.setdefault(run.seed, run)
            if other is not run:
                raise ConfigError(
                    f"`{other.folder}` and `{run.folder}` are both `{name}` with seed {run.seed}; leave out one."
                )
    conditions = [Condition(name, tuple(sorted(runs, key=lambda r: r.seed or 0))) for name, runs in groups.items()]
    notes += [*_confounded(conditions), *_unequal_labels(conditions)]
    return conditions


def settings_of(run: ComparedRun) -> dict[str, Any]:
    """Return what may set a run apart from others; seeds are left out, and settings of data that it did not take."""
    unused = tuple(f"{role}_" for role in (AUXILIARY, "text") if role not in run.record.data)
    arguments = run.record.arguments.items()
    values = {name: value for name, value in arguments if name not in _SEEDS and not name.startswith(unused)}
    return {"model": run.record.model.get("name"), **values}


def _name(run: ComparedRun, others: Sequence[ComparedRun]) -> str:
    own, all_settings = settings_of(run), [settings_of(other) for other in others]
    differing = [
        name
        for name in dict.fromkeys(key for settings in all_settings for key in settings)
        if any(settings.get(name) != own.get(name) for settings in all_settings)
    ]
    # Of files, records hold name and hash: that there is one says enough here.
    shown = [
        name.replace("_", " ") if "SHA-256" in str(own[name]) else f"{name}={own[name]}"
        for name in differing
        if own.get(name) is not None
    ]
    return ", ".join([_strategy(run), *shown])


def _strategy(run: ComparedRun) -> str:
    count = len(run.record.parents)
    return f"average of {count} run{'s' * (count != 1)}" if count else run.record.strategy["name"]


def _confounded(conditions: Sequence[Condition]) -> list[str]:
    """Say which settings that all strategies have differ between conditions of different strategies."""
    settings = [(condition.name, settings_of(condition.runs[0])) for condition in conditions]
    shared = set.intersection(*(set(values) for _, values in settings))
    notes = []
    for name in sorted(shared - {"strategy"}):
        values = {str(entry[name]) for _, entry in settings}
        told = all(f"{name}=" in condition for condition, _ in settings)
        if len(values) > 1 and not told:
            listed = ", ".join(f"{entry[name]} in `{condition}`" for condition, entry in settings)
            notes.append(f"`{name}` differs as well: {listed}.")
    return notes


def _unequal_labels(conditions: Sequence[Condition]) -> list[str]:
    """Say in which languages conditions had labels in training, where that differs."""
    labelled = {}
    for condition in conditions:
        languages = condition.runs[0].record.languages
        codes = [entry["code"] for role in (SOURCE, AUXILIARY) for entry in languages.get(role, ())]
        labelled.setdefault(", ".join(codes), []).append(f"`{condition.name}`")
    if len(labelled) < 2:
        return []
    told = "; ".join(f"{', '.join(names)} in {codes}" for codes, names in labelled.items())
    return [f"labelled training data differ, and with them what the conditions know: {told}."]


def shared_languages(runs: Sequence[ComparedRun], notes: list[str]) -> list[str]:
    """Return the languages that all runs scored on the same test data in one role, in the order of the first run.

    A language that is a target to one run and had labels in another cannot be compared.

    Raises:
        ConfigError: there is none.
    """
    kept, left = [], []
    for score in runs[0].record.scores.scores:
        tested = {_tested(run, score.language) for run in runs}
        (kept if len(tested) == 1 and None not in tested else left).append(score.language)
    others = {entry.language for run in runs for entry in run.record.scores.scores} - {*kept, *left}
    left += sorted(others)
    if not kept:
        raise ConfigError("no language was scored on the same test data by all runs; there is nothing to compare.")
    if left:
        notes.append(
            f"not scored by all runs on the same test data and in the same role, and left out: {', '.join(left)}."
        )
        notes.extend(
            f"{' and '.join(group)} are one language; runs that call it by different codes are not compared in it."
            for group in find_variants(left)
        )
    return kept


def _tested(run: ComparedRun, language: str) -> tuple[str, str] | None:
    """Return a language's role in a run and the fingerprint of what it was tested on."""
    scored = {entry.language: entry.role for entry in run.record.scores.scores}
    if language not in scored:
        return None
    for role in _TESTS:
        found = run.record.data.get(role, {}).get("fingerprints", {}).get(language)
        if found is not None:
            return scored[language], str(found)
    return None
