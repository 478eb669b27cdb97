"""Scores per language and what is read off them: averages, the worst language, the transfer gap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_xlt.languages import english_name

SOURCE = "source"
TARGET = "target"
AUXILIARY = "auxiliary"
ROLES = (SOURCE, TARGET, AUXILIARY)

# Models whose scores stand beside a run's, by the name of their column, and what they are.
FLOOR = "floor"
ZERO_SHOT = "zero-shot"
BESIDE = {
    ZERO_SHOT: "the model that training started from, without the target examples",
    FLOOR: "plain fine-tuning of the same length from random weights",
}


@dataclass(frozen=True)
class LanguageScore:
    """Scores of one language on one test set.

    Attributes:
        language: code as in the data.
        role: `source`, `target`, or `auxiliary` for a language that had labels in training beside the source.
        examples: number of test examples.
        metrics: values by metric name; fractions in [0, 1], `loss` in nats per unit.
    """

    language: str
    role: str
    examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Results:
    """Scores of one model over languages.

    Attributes:
        metric: name of the main metric, which averages and rankings use.
        scores: one entry per language, source languages first, auxiliary ones last.
    """

    metric: str
    scores: tuple[LanguageScore, ...]

    def value(self, language: str) -> float:
        """Return the main metric of a language.

        Raises:
            KeyError: the language was not scored.
        """
        for score in self.scores:
            if score.language == language:
                return score.metrics[self.metric]
        raise KeyError(language)

    def of_role(self, role: str) -> tuple[LanguageScore, ...]:
        """Return the scores of the languages of a role."""
        return tuple(score for score in self.scores if score.role == role)

    def average(self, role: str) -> float | None:
        """Return the unweighted mean of the main metric over languages of a role; None when none was scored."""
        values = [score.metrics[self.metric] for score in self.of_role(role)]
        return sum(values) / len(values) if values else None

    @property
    def source_average(self) -> float | None:
        """Unweighted mean of the main metric over source languages; None when none was scored."""
        return self.average(SOURCE)

    @property
    def target_average(self) -> float | None:
        """Unweighted mean of the main metric over target languages; None when none was scored."""
        return self.average(TARGET)

    @property
    def transfer_gap(self) -> float | None:
        """Source average minus target average; None when one of them is missing."""
        if self.source_average is None or self.target_average is None:
            return None
        return self.source_average - self.target_average

    @property
    def worst_language(self) -> str | None:
        """Code of the target language with the lowest main metric; None when no target was scored."""
        targets = self.of_role(TARGET)
        return min(targets, key=lambda score: score.metrics[self.metric]).language if targets else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, averages included; `from_dict` is its inverse."""
        return {
            "metric": self.metric,
            "languages": {
                score.language: {"role": score.role, "examples": score.examples, "metrics": dict(score.metrics)}
                for score in self.scores
            },
            "source_average": self.source_average,
            "target_average": self.target_average,
            "transfer_gap": self.transfer_gap,
            "worst_language": self.worst_language,
            **({"auxiliary_average": self.average(AUXILIARY)} if self.of_role(AUXILIARY) else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Results:
        """Rebuild from `to_dict`; the averages are computed anew.

        Raises:
            KeyError: a key is missing.
        """
        scores = tuple(
            LanguageScore(language, entry["role"], entry["examples"], dict(entry["metrics"]))
            for language, entry in values["languages"].items()
        )
        return cls(values["metric"], scores)

    def summary_lines(self, beside: Mapping[str, Results] | None = None) -> list[str]:
        """Say the averages in sentences, with those of other models beside them (`BESIDE`)."""
        lines = []
        if self.target_average is not None:
            count = len(self.of_role(TARGET))
            languages = "1 language" if count == 1 else f"{count} languages"
            lines.append(f"Target average {percent(self.target_average)}, over {languages}")
            worst = self.worst_language
            lines.append(f"Worst language {percent(self.value(worst))}, {english_name(worst)} ({worst})")
        if self.transfer_gap is not None:
            lines.append(f"Transfer gap   {percent(self.transfer_gap)} points (source average minus target average)")
        auxiliary = self.of_role(AUXILIARY)
        if auxiliary:
            names = ", ".join(score.language for score in auxiliary)
            lines.append(f"Auxiliary      {percent(self.average(AUXILIARY))}, over {names}: not in the target average")
        for name, other in (beside or {}).items():
            if other.target_average is not None:
                source = "" if other.source_average is None else f", source {percent(other.source_average)}"
                title = name.capitalize().ljust(14)
                lines.append(f"{title} {percent(other.target_average)}{source}: {BESIDE[name]}")
        return lines

    def table(self, beside: Mapping[str, Results] | None = None) -> list[list[str]]:
        """Return rows of text, header first: language, role, number of examples, metrics in percent.

        Args:
            beside: further models, whose main metric becomes a column of that name.
        """
        metrics = [self.metric] + sorted(
            {name for score in self.scores for name in score.metrics} - {self.metric, "loss"}
        )
        rows = [["language", "code", "role", "n", *(metric.replace("_", " ") for metric in metrics), *(beside or {})]]
        others = [
            {score.language: score.metrics[self.metric] for score in other.scores} for other in (beside or {}).values()
        ]
        for score in self.scores:
            row = [english_name(score.language), score.language, score.role, f"{score.examples:,}"]
            row += [percent(score.metrics[metric]) if metric in score.metrics else "" for metric in metrics]
            row += [percent(values[score.language]) if score.language in values else "" for values in others]
            rows.append(row)
        return rows


def percent(value: float) -> str:
    """Print a fraction in [0, 1] as percent with one decimal."""
    return f"{100 * value:.1f}"


def markdown(rows: list[list[str]], left: int = 3) -> str:
    """Render rows of text, header first, as a Markdown table; columns after the first `left` are right-aligned."""
    header, *body = rows
    ruler = [":--" if i < left else "--:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ruler, *body])


def plain(rows: list[list[str]], left: int = 3) -> str:
    """Render rows of text, header first, in columns for a terminal; those after the first `left` right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
