"""The comparison of conditions: means over seeds, paired differences to a baseline, intervals, tests."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_xlt.arguments import RunArguments
from hf_xlt.comparing.runs import ComparedRun, Condition, find_runs, group, shared_languages
from hf_xlt.comparing.statistics import (
    PairedItems,
    bootstrap_interval,
    bootstrap_runs,
    holm,
    item_test,
    sign_flip_test,
)
from hf_xlt.errors import ConfigError, close_match, setting
from hf_xlt.languages import english_name
from hf_xlt.results import SOURCE, TARGET, percent

# The strategy that a run has unasked is the one that others are measured against.
BASELINE = RunArguments.strategy
LEVEL = 0.05


@dataclass(frozen=True)
class Spread:
    """Values of a condition over its runs, fractions in [0, 1]."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.mean(self.values)

    def words(self) -> str:
        """Mean and, of several runs, standard deviation, in percent."""
        if len(self.values) < 2:
            return percent(self.mean)
        return f"{percent(self.mean)} ± {percent(statistics.stdev(self.values))}"


@dataclass(frozen=True)
class Difference:
    """A condition against the baseline, by the unweighted mean over target languages.

    Attributes:
        seeds: of the pairs.
        values: per pair; fractions.
        interval: 95 % bootstrap interval of the mean, over runs and, where they are known, items.
        over_items: whether items were known.
        p_runs: of the exact sign-flip test over pairs of runs.
        p_items: of the randomisation test over items, or None.
        p_adjusted: the latter, else the former, adjusted for all conditions (Holm).
    """

    seeds: tuple[int | None, ...]
    values: tuple[float, ...]
    interval: tuple[float, float]
    over_items: bool
    p_runs: float
    p_items: float | None
    p_adjusted: float

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.mean(self.values)

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval: one pair of runs without items has no spread to draw from."""
        return self.over_items or len(self.values) > 1

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds 0, or the adjusted test does not reach 5 %."""
        return self.interval[0] <= 0 <= self.interval[1] or self.p_adjusted >= LEVEL

    def reading(self) -> str:
        """Say what it means."""
        if len(self.values) < 2:
            return "one pair of runs: how much seeds matter is not known"
        if self.is_noise:
            return "within noise"
        return "better" if self.mean > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """Conditions on the languages that all of their runs scored on the same data.

    Attributes:
        metric: name of the main metric.
        baseline: name of the condition that the others are compared with.
        roles: role by language, source languages first.
        conditions: per condition and language its values.
        seeds: per condition its seeds.
        differences: per condition but the baseline; those without a common seed are not there.
        notes: what the reader should know.
    """

    metric: str
    baseline: str
    roles: Mapping[str, str]
    conditions: Mapping[str, Mapping[str, Spread]]
    seeds: Mapping[str, tuple[int | None, ...]]
    differences: Mapping[str, Difference]
    notes: tuple[str, ...]

    def average(self, condition: str, role: str) -> Spread | None:
        """Return the unweighted means over languages of a role, by run; None when there is none."""
        columns = [self.conditions[condition][code].values for code, own in self.roles.items() if own == role]
        return Spread(tuple(statistics.mean(values) for values in zip(*columns, strict=True))) if columns else None

    def letters(self) -> dict[str, str]:
        """Return a short name for each condition: A, B, ..., Z, A1, ..."""
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        return {
            name: alphabet[number % 26] + (str(number // 26) if number >= 26 else "")
            for number, name in enumerate(self.conditions)
        }

    def summary_table(self) -> list[list[str]]:
        """Return rows of text, header first: a condition each, in percent."""
        head = ["condition", "runs", "source", "targets", "against baseline", "95 % interval"]
        rows, letters = [[*head, "p (runs)", "p (items)", "p (Holm)", "reading"]], self.letters()
        for name in self.conditions:
            averages = [self.average(name, role) for role in (SOURCE, TARGET)]
            row = [f"{letters[name]} {name}", str(len(self.seeds[name])), *(a.words() if a else "" for a in averages)]
            gap = self.differences.get(name)
            if gap is None:
                row += ["baseline" if name == self.baseline else "no common seed", "", "", "", "", ""]
            else:
                low, high = (f"{100 * value:+.1f}" for value in gap.interval)
                p_items = "" if gap.p_items is None else f"{gap.p_items:.4f}"
                interval = f"{low} to {high}" if gap.has_interval else ""
                row += [f"{100 * gap.mean:+.1f}", interval, f"{gap.p_runs:.4f}", p_items]
                row += [f"{gap.p_adjusted:.4f}", gap.reading()]
            rows.append(row)
        return rows

    def language_table(self) -> list[list[str]]:
        """Return rows of text, header first: a language each, means over runs in percent."""
        rows = [["language", "code", "role", *self.letters().values()]]
        for code, role in self.roles.items():
            values = [spreads[code].words() for spreads in self.conditions.values()]
            rows.append([english_name(code), code, role, *values])
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {
            "metric": self.metric,
            "baseline": self.baseline,
            "languages": dict(self.roles),
            "conditions": {
                name: {
                    "seeds": list(self.seeds[name]),
                    "languages": {code: list(spread.values) for code, spread in languages.items()},
                }
                for name, languages in self.conditions.items()
            },
            "differences": {
                name: {**asdict(gap), "mean": gap.mean, "reading": gap.reading()}
                for name, gap in self.differences.items()
            },
            "sentences": self.sentences(),
            "notes": list(self.notes),
        }

    def sentences(self) -> list[str]:
        """Say of each condition what its difference from the baseline is worth."""
        lines = []
        for name, gap in self.differences.items():
            told = f"`{name}` against `{self.baseline}`: {100 * gap.mean:+.1f} points on the targets"
            if gap.has_interval:
                low, high = (f"{100 * value:+.1f}" for value in gap.interval)
                told += f" (95 % interval {low} to {high})"
            lines.append(f"{told}: {gap.reading()}.")
        return lines

    def heading(self) -> str:
        """Say what was compared."""
        targets = sum(role == TARGET for role in self.roles.values())
        return (
            f"{self.metric.replace('_', ' ').capitalize()} on test data in percent, mean ± standard deviation over "
            f"runs; averages over {targets} target language{'s' * (targets != 1)}; differences from "
            f"`{self.baseline}` with the same seed."
        )


def compare_runs(places: Sequence[str], baseline: str | None = None) -> Comparison:
    """Compare finished runs.

    Args:
        places: run directories, or folders with runs.
        baseline: name of a condition, or its beginning; None takes `finetune`, else the first condition.

    Raises:
        ConfigError: there is nothing to compare, or no such baseline.
    """
    notes: list[str] = []
    runs = find_runs(places, notes)
    conditions = group(runs, notes)
    languages = shared_languages(runs, notes)
    roles = {entry.language: entry.role for entry in runs[0].record.scores.scores if entry.language in languages}
    base = _choose_baseline(conditions, baseline)
    conditions = [base, *(condition for condition in conditions if condition is not base)]
    gaps = _differences(conditions, base, [code for code, role in roles.items() if role == TARGET], notes)
    values = {
        condition.name: {
            code: Spread(tuple(run.record.scores.value(code) for run in condition.runs)) for code in languages
        }
        for condition in conditions
    }
    seeds = {condition.name: tuple(run.seed for run in condition.runs) for condition in conditions}
    return Comparison(runs[0].record.scores.metric, base.name, roles, values, seeds, gaps, tuple(notes))


def _choose_baseline(conditions: Sequence[Condition], asked: str | None) -> Condition:
    names = [condition.name for condition in conditions]
    matching = [condition for condition in conditions if condition.name.startswith(asked or BASELINE)]
    exact = [condition for condition in conditions if condition.name == asked]
    if asked is not None and len(exact or matching) != 1:
        problem = "is no condition" if not matching else f"is the beginning of {len(matching)} conditions"
        raise ConfigError(
            f"{setting('baseline', asked)} {problem}.{close_match(asked, names)} Conditions: "
            f"{', '.join(f'`{name}`' for name in names)}."
        )
    return (exact or matching or list(conditions))[0]


def _differences(
    conditions: Sequence[Condition], base: Condition, targets: Sequence[str], notes: list[str]
) -> dict[str, Difference]:
    if not targets:
        notes.append("no target language was scored by all runs: there are no differences to test.")
        return {}
    raw = {}
    for condition in conditions:
        if condition is base:
            continue
        theirs = {run.seed: run for run in base.runs}
        pairs = [(run, theirs[run.seed]) for run in condition.runs if run.seed in theirs]
        if not pairs:
            notes.append(f"`{condition.name}` and `{base.name}` have no seed in common, so nothing is paired.")
            continue
        if len(pairs) < max(len(condition.runs), len(base.runs)):
            count = f"{len(pairs)} seed{'s' * (len(pairs) > 1)}"
            notes.append(f"`{condition.name}`: {count} in common with `{base.name}`; nothing else is paired.")
        raw[condition.name] = _test(pairs, targets)
    decisive = [found["p_runs"] if found["p_items"] is None else found["p_items"] for found in raw.values()]
    adjusted = dict(zip(raw, holm(decisive), strict=True))
    few = sorted({len(found["values"]) for found in raw.values() if 2 / 2 ** len(found["values"]) >= LEVEL})
    for count in few:
        notes.append(
            f"with {count} pair{'s' * (count != 1)} of runs the test over runs cannot go below "
            f"{min(2 / 2**count, 1):g}: it takes 6 to reach 5 %."
        )
    return {name: Difference(**found, p_adjusted=adjusted[name]) for name, found in raw.items()}


def _test(pairs: Sequence[tuple[ComparedRun, ComparedRun]], targets: Sequence[str]) -> dict[str, Any]:
    values = tuple(
        statistics.mean(ours.record.scores.value(code) - theirs.record.scores.value(code) for code in targets)
        for ours, theirs in pairs
    )
    found = {
        "seeds": tuple(ours.seed for ours, _ in pairs),
        "values": values,
        "p_runs": sign_flip_test(values),
    }
    items = _paired_items(pairs, targets)
    if items is None:
        return {**found, "interval": bootstrap_runs(values), "over_items": False, "p_items": None}
    return {**found, "interval": bootstrap_interval(items), "over_items": True, "p_items": item_test(items)}


def _paired_items(
    pairs: Sequence[tuple[ComparedRun, ComparedRun]], targets: Sequence[str]
) -> dict[str, PairedItems] | None:
    """Return the item scores of all pairs; None where a run kept none."""
    import numpy as np

    runs = [run for pair in pairs for run in pair]
    if any(run.items is None or not set(targets) <= set(run.items) for run in runs):
        return None
    if any(len({run.items[code].shape for run in runs}) > 1 for code in targets):
        return None
    return {
        code: PairedItems(
            np.stack([ours.items[code] for ours, _ in pairs]), np.stack([theirs.items[code] for _, theirs in pairs])
        )
        for code in targets
    }
