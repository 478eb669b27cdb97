"""Scoring a run's snapshots beside their mean: each on validation data once, the chosen ones on test data once.

Source: Schmidt et al. (2023) and the code of Schmidt et al. (EMNLP Findings 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_xlt.averaging.snapshots import check_snapshots, snapshot_folder
from hf_xlt.comparator_results import AVERAGED, COMPARATORS, LAST, SOURCE_DEV, TARGET_DEV_ORACLE, Comparators
from hf_xlt.files import write_json, write_text
from hf_xlt.languages import find_same
from hf_xlt.results import SOURCE, Results, markdown

JSON_NAME = "comparators.json"
TABLE_NAME = "comparators.md"


def compare(
    asked: Sequence[str],
    run: Path,
    steps: Sequence[int],
    average: Results,
    score: Callable[[Path, Mapping[str, Any]], Results],
    validation: Mapping[str, Any],
    tests: Mapping[str, Any],
) -> Comparators:
    """Score the rivals of a run's average.

    Args:
        asked: names of the rivals (`COMPARATORS`).
        run: the run's directory, with its snapshots.
        steps: updates of the snapshots, rising.
        average: test scores of their mean.
        score: scores the model in a folder on features by language.
        validation: features by language: source languages, and for the oracle every target language.
        tests: features by language.

    Returns:
        The scores of all of them and of the average.

    Raises:
        RunError: a snapshot is gone.
    """
    check_snapshots(run, tuple(steps))
    choosing = set(asked) & {SOURCE_DEV, TARGET_DEV_ORACLE}
    values: dict[int, dict[str, float]] = {}
    for step in steps if choosing else ():
        results = score(snapshot_folder(run, step), validation)
        values[step] = {entry.language: results.value(entry.language) for entry in results.scores}
    sources = [entry.language for entry in average.of_role(SOURCE)]
    known = [code for code in validation if find_same(code, sources)]
    chosen = choose_snapshots(asked, steps, values, list(tests), known)
    scored = {}
    for step in sorted({step for picked in chosen.values() for step in picked.values()}):
        languages = {code for picked in chosen.values() for code, other in picked.items() if other == step}
        wanted = {code: features for code, features in tests.items() if code in languages}
        scored |= {(step, entry.language): entry for entry in score(snapshot_folder(run, step), wanted).scores}
    rows = {
        name: average
        if name == AVERAGED
        else Results(average.metric, tuple(scored[chosen[name][e.language], e.language] for e in average.scores))
        for name in COMPARATORS
        if name == AVERAGED or name in chosen
    }
    return Comparators(average.metric, rows, chosen, values)


def choose_snapshots(
    asked: Sequence[str],
    steps: Sequence[int],
    values: Mapping[int, Mapping[str, float]],
    languages: Sequence[str],
    sources: Sequence[str],
) -> dict[str, dict[str, int]]:
    """Choose the snapshot that each language is scored with, by rival; of equal ones the earliest.

    Args:
        asked: names of the rivals.
        steps: updates of the snapshots, rising.
        values: by step, the main metric on validation data per language.
        languages: those that are scored.
        sources: source languages with validation data; their mean chooses for `source_dev`, and for the source
            languages of the oracle.
    """
    chosen = {}
    if LAST in asked:
        chosen[LAST] = dict.fromkeys(languages, steps[-1])
    if not values:
        return chosen
    best = max(steps, key=lambda step: sum(values[step][code] for code in sources))
    if SOURCE_DEV in asked:
        chosen[SOURCE_DEV] = dict.fromkeys(languages, best)
    if TARGET_DEV_ORACLE in asked:
        chosen[TARGET_DEV_ORACLE] = {
            code: max(steps, key=lambda step, code=code: values[step][code])
            if code in values[best] and not find_same(code, sources)
            else best
            for code in languages
        }
    return chosen


def write_comparators(folder: Path, compared: Comparators | None) -> None:
    """Write `comparators.json` and `comparators.md`, or delete those of an earlier run."""
    if compared is None:
        for name in (JSON_NAME, TABLE_NAME):
            (folder / name).unlink(missing_ok=True)
        return
    write_json(folder / JSON_NAME, compared.to_dict())
    notes = "\n".join(f"- {note}" for note in compared.notes())
    write_text(folder / TABLE_NAME, f"{compared.heading()}\n\n{markdown(compared.table(), left=2)}\n\n{notes}\n")
