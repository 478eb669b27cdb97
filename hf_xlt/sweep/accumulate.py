"""Averaging runs one after another: the mean over the first 1, 2, ..., R runs, each scored.

Source: Schmidt et al. (EMNLP Findings 2023), "One For All & All For One: Bypassing Hyperparameter Tuning with Model
Averaging For Cross-Lingual Transfer". Runs count the same.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.averaging.average import REQUIRE_EQUAL, average_checkpoints
from hf_xlt.averaging.heads import own_weights
from hf_xlt.averaging.inputs import weight_name
from hf_xlt.comparator_results import AVERAGED, LAST
from hf_xlt.errors import RunError
from hf_xlt.files import write_json
from hf_xlt.record import RunRecord
from hf_xlt.results import Results

if TYPE_CHECKING:
    from hf_xlt.arguments import DataArguments

ACCUMULATED_NAME = "accumulated.json"
OUTPUT_NAME = "averaged"
_SCRATCH = ".accumulating"


@dataclass(frozen=True)
class Accumulated:
    """Test scores of means over runs.

    Attributes:
        single: by kind (`averaged`: of each run the mean of its snapshots; `last`: its last weights), the scores of
            each run alone, in order; None where it was not scored.
        means: by kind, the scores of the mean over the first 1, 2, ..., R runs.
    """

    single: Mapping[str, tuple[Results | None, ...]]
    means: Mapping[str, tuple[Results, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {
            "single": {kind: [r.to_dict() if r else None for r in rows] for kind, rows in self.single.items()},
            "means": {kind: [r.to_dict() for r in rows] for kind, rows in self.means.items()},
        }


def accumulate(
    runs: Sequence[Path],
    folder: Path,
    averages: bool,
    command: str,
    score: Callable[[Path], Results],
    say: Callable[[str], None],
) -> Accumulated:
    """Average the first 1, 2, ..., R runs and score each mean; the last one stays in `averaged/`.

    What was scored before is not scored again.

    Args:
        runs: finished runs with one head, in order.
        folder: of the sweep.
        averages: whether each run saved the mean of its snapshots, with its last weights beside it.
        command: what was typed, for the record of the last mean.
        score: scores a model folder on the test sets.
        say: tells the user what is being done.

    Raises:
        ConfigError: the runs do not fit together, or their heads differ.
        RunError: a run's weights are gone.
    """
    kept, records = _Kept(folder / ACCUMULATED_NAME), [RunRecord.read(run) for run in runs]
    kinds = (AVERAGED, LAST) if averages else (LAST,)
    single, means = {}, {}
    for kind in kinds:
        is_output = kind == kinds[0]
        alone = tuple(record.scores if is_output else _last_of(record) for record in records)
        places = [_weights_of(run if is_output else own_weights(run)) for run in runs]
        rows = []
        for count in range(1, len(runs) + 1):
            key = f"{kind}-{count}"
            keeps = is_output and count == len(runs)
            output = folder / (OUTPUT_NAME if keeps else _SCRATCH)
            if key not in kept.rows or (keeps and not (output / "config.json").is_file()):
                if count == 1 and alone[0] is not None and not keeps:
                    kept.add(key, alone[0])
                else:
                    say(f"Averaging {count} run{'s' * (count > 1)} ({kind}).")
                    kept.add(key, _average(places[:count], output, command, score))
                    if not keeps:
                        shutil.rmtree(output)
            rows.append(kept.rows[key])
        single[kind], means[kind] = alone, tuple(rows)
    return Accumulated(single, means)


def _average(places: Sequence[Path], output: Path, command: str, score: Callable[[Path], Results]) -> Results:
    average_checkpoints(places, output, head=REQUIRE_EQUAL, command=command, overwrite=True)
    return score(output)


def _weights_of(folder: Path) -> Path:
    """Return a folder's weight file or index: a run's folder would stand for its checkpoints."""
    name = weight_name(folder)
    if name is None:
        raise RunError(
            f"`{folder}` holds no weights any more. Delete that run, and repeat the command with `--resume`."
        )
    return folder / name


def _last_of(record: RunRecord) -> Results | None:
    compared = record.comparator_scores
    return compared.rows.get(LAST) if compared else None


class _Kept:
    """The means that were scored, on disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, {}
        if path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            self.rows = {key: Results.from_dict(results) for key, results in values.items()}

    def add(self, key: str, results: Results) -> None:
        self.rows[key] = results
        write_json(self.path, {key: results.to_dict() for key, results in self.rows.items()})


def scorer(data: DataArguments, batch_size: int) -> Callable[[Path], Results]:
    """Return what scores a model folder on the test sets of a sweep, and completes the record of an average there.

    Args:
        data: data arguments of the sweep.
        batch_size: examples per batch.
    """
    from hf_xlt.scoring import evaluate_model

    def score(folder: Path) -> Results:
        plain = dataclasses.replace(data, generalized=False, generalized_languages=None)
        found = evaluate_model(str(folder), plain, batch_size=batch_size, output_dir=str(folder), overwrite=True)
        return found.results

    return score
