"""What could have been taken in place of a run's average, and how it scores; renders tables without torch.

The names tell apart what one word of the literature does not: in the code of Schmidt et al. (2023) `oracle` means
source validation in one place and target validation in another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_xlt.languages import english_name
from hf_xlt.results import SOURCE, TARGET, Results, percent

LAST = "last"
SOURCE_DEV = "source_dev"
AVERAGED = "averaged"
TARGET_DEV_ORACLE = "target_dev_oracle"
COMPARATORS = {
    LAST: "the last snapshot",
    SOURCE_DEV: "the snapshot that is best on source-language validation data",
    AVERAGED: "the mean of the snapshots",
    TARGET_DEV_ORACLE: "for each language the snapshot that is best on its own validation data: an oracle, which true "
    "transfer does not have",
}


@dataclass(frozen=True)
class Comparators:
    """Test scores of a run's average and of its rivals.

    Attributes:
        metric: name of the main metric.
        rows: test scores by name (`COMPARATORS`), in the order in which they are shown.
        chosen: by name of the rivals, the update of the snapshot that each language was scored with.
        validation: by update of a snapshot, the main metric on validation data per language; fractions in [0, 1].
    """

    metric: str
    rows: Mapping[str, Results]
    chosen: Mapping[str, Mapping[str, int]]
    validation: Mapping[int, Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; `from_dict` is its inverse."""
        return {
            "metric": self.metric,
            "rows": {name: results.to_dict() for name, results in self.rows.items()},
            "chosen": {name: dict(steps) for name, steps in self.chosen.items()},
            "validation": {str(step): dict(values) for step, values in self.validation.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparators:
        """Rebuild from `to_dict`; averages are computed anew.

        Raises:
            KeyError: a key is missing.
        """
        return cls(
            values["metric"],
            {name: Results.from_dict(results) for name, results in values["rows"].items()},
            {name: dict(steps) for name, steps in values["chosen"].items()},
            {int(step): dict(scores) for step, scores in values["validation"].items()},
        )

    def table(self) -> list[list[str]]:
        """Return rows of text, header first: averages, then languages, with a column of percent for each rival."""
        rows = [["language", "code", *(name.replace("_", " ") for name in self.rows)]]
        first = next(iter(self.rows.values()))
        for title, role in (("Source average", SOURCE), ("Target average", TARGET)):
            if first.of_role(role):
                values = [results.average(role) for results in self.rows.values()]
                rows.append([title, "", *map(percent, values)])
        for score in first.scores:
            values = [results.value(score.language) for results in self.rows.values()]
            rows.append([english_name(score.language), score.language, *map(percent, values)])
        return rows

    def notes(self) -> list[str]:
        """Say what each column is, and which snapshots were chosen."""
        lines = []
        for name in self.rows:
            steps = sorted(set(self.chosen.get(name, {}).values()))
            of_steps = f" (after update {', '.join(f'{step:,}' for step in steps)})" if steps else ""
            lines.append(f"{name.replace('_', ' ')}: {COMPARATORS[name]}{of_steps}.")
        return lines

    def heading(self) -> str:
        """Say what was scored."""
        return (
            f"What could have been taken in place of the average, {self.metric.replace('_', ' ')} on test data in "
            f"percent; {len(self.validation) or 'the last'} snapshot{'s' * (len(self.validation) > 1)} "
            f"{'were' if len(self.validation) > 1 else 'was'} compared. None of this chose what the run saved."
        )
