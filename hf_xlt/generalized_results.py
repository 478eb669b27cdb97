"""Scores of every ordered pair of languages, and their averages; renders tables without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_xlt.languages import english_name
from hf_xlt.results import percent, plain

LOSS = "loss"
# A matrix of up to so many languages fits a terminal of 80 columns; above, each language gets a line.
NARROW = 10

ALL, SAME, DIFFERENT, WITH_SOURCE, WITHOUT_SOURCE = "all", "diagonal", "off_diagonal", "with_source", "without_source"
_GROUPS = {
    ALL: "all ordered pairs",
    SAME: "one language: the standard scores",
    DIFFERENT: "two languages",
    WITH_SOURCE: "two languages, one of them a source language",
    WITHOUT_SOURCE: "two languages, neither a source language",
}


@dataclass(frozen=True)
class GeneralizedResults:
    """Scores of one model on pairs whose sentences are in two languages.

    Attributes:
        metric: name of the main metric.
        languages: L codes, source languages first.
        source_languages: those of them with training labels.
        examples: number of examples of every pair of languages.
        matrix: per metric L rows, for the language of the first sentence, of L values, for that of the second;
            fractions in [0, 1], `loss` in nats per unit. The diagonal holds the standard scores.
    """

    metric: str
    languages: tuple[str, ...]
    source_languages: tuple[str, ...]
    examples: int
    matrix: Mapping[str, tuple[tuple[float, ...], ...]]

    def value(self, first: str, second: str, metric: str | None = None) -> float:
        """Return the score of the pairs with one language's first and another's second sentences.

        Raises:
            ValueError: a language was not scored.
        """
        row, column = self.languages.index(first), self.languages.index(second)
        return self.matrix[metric or self.metric][row][column]

    def _pairs(self, group: str) -> Iterator[tuple[str, str]]:
        """Return the ordered pairs of a group."""
        for first in self.languages:
            for second in self.languages:
                with_source = first in self.source_languages or second in self.source_languages
                if (
                    group == ALL
                    or (group == SAME and first == second)
                    or (group == DIFFERENT and first != second)
                    or (group == WITH_SOURCE and first != second and with_source)
                    or (group == WITHOUT_SOURCE and first != second and not with_source)
                ):
                    yield first, second

    def count(self, group: str) -> int:
        """Return the number of ordered pairs of a group: `all`, `diagonal`, `off_diagonal`, `with_source`, ..."""
        return sum(1 for _ in self._pairs(group))

    def average(self, group: str, metric: str | None = None) -> float | None:
        """Return the unweighted mean over a group of ordered pairs; None when the group is empty."""
        return _mean([self.value(first, second, metric) for first, second in self._pairs(group)])

    def row_average(self, language: str, place: int, metric: str | None = None) -> float | None:
        """Return the mean over pairs of two languages in which one stands first (`place` 0) or second (1)."""
        pairs = [pair for pair in self._pairs(DIFFERENT) if pair[place] == language]
        return _mean([self.value(*pair, metric) for pair in pairs])

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, averages included; `from_dict` is its inverse."""
        return {
            "metric": self.metric,
            "languages": list(self.languages),
            "source_languages": list(self.source_languages),
            "examples": self.examples,
            "pairs": {group: self.count(group) for group in _GROUPS},
            "averages": {metric: {group: self.average(group, metric) for group in _GROUPS} for metric in self.matrix},
            "matrix": {metric: [list(row) for row in rows] for metric, rows in self.matrix.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GeneralizedResults:
        """Rebuild from `to_dict`; the averages are computed anew.

        Raises:
            KeyError: a key is missing.
        """
        return cls(
            values["metric"],
            tuple(values["languages"]),
            tuple(values["source_languages"]),
            values["examples"],
            {metric: tuple(tuple(row) for row in rows) for metric, rows in values["matrix"].items()},
        )

    def metrics(self) -> list[str]:
        """Return the names of the metrics, the main one first, without the loss."""
        return [self.metric, *sorted(set(self.matrix) - {self.metric, LOSS})]

    def averages_table(self) -> list[list[str]]:
        """Return rows of text, header first: kind of pair, number of pairs, metrics in percent."""
        rows = [["first and second sentence in", "pairs", *(name.replace("_", " ") for name in self.metrics())]]
        for group, words in _GROUPS.items():
            if self.count(group):
                values = [percent(self.average(group, metric)) for metric in self.metrics()]
                rows.append([words, f"{self.count(group):,}", *values])
        return rows

    def matrix_table(self, metric: str | None = None) -> list[list[str]]:
        """Return rows of text, header first: the first sentence's language down, the second's across, in percent."""
        rows = [["first \\ second", *self.languages]]
        for first in self.languages:
            rows.append([first, *(percent(self.value(first, second, metric)) for second in self.languages)])
        return rows

    def language_table(self) -> list[list[str]]:
        """Return rows of text, header first: each language's main metric alone, and standing first and second."""
        rows = [["language", "code", "with itself", "first", "second"]]
        for code in self.languages:
            values = [self.value(code, code), self.row_average(code, 0), self.row_average(code, 1)]
            rows.append([english_name(code), code, *map(percent, values)])
        return rows

    def heading(self) -> str:
        """Say what was scored."""
        return (
            f"Generalized setting, {self.metric.replace('_', ' ')} in percent over {self.examples:,} examples: first "
            "sentence in one language, second in another."
        )

    def describe(self) -> str:
        """Return what to print: the matrix where it fits a terminal, else a line per language; then the averages."""
        if len(self.languages) <= NARROW:
            scores = "  First sentence's language down, second's across.\n" + plain(self.matrix_table(), left=1)
        else:
            scores = "  Means over the other languages, standing first and second.\n"
            scores += plain(self.language_table(), left=2)
        return f"{self.heading()}\n\n{scores}\n\n{plain(self.averages_table(), left=1)}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
