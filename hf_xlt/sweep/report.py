"""The table of a sweep: each run, mean and spread over them, and the means over runs that share a head."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_xlt.arguments import Arguments
from hf_xlt.environment import shareable_command
from hf_xlt.files import write_json, write_text
from hf_xlt.record import RunRecord
from hf_xlt.results import SOURCE, TARGET, Results, markdown, percent, plain
from hf_xlt.sweep.accumulate import OUTPUT_NAME, Accumulated, accumulate, scorer
from hf_xlt.sweep.execute import say
from hf_xlt.sweep.members import DONOR, Member

JSON_NAME = "sweep_results.json"
TABLE_NAME = "sweep_results.md"
_GROUPS = (SOURCE, TARGET)


def finish_sweep(arguments: Arguments, members: Sequence[Member], folder: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Write and print a sweep's table, once all its runs are finished; average runs that share a head.

    Args:
        arguments: of the sweep.
        members: its runs.
        folder: of the sweep.
        argv: arguments as typed.

    Returns:
        The figures, JSON-able.

    Raises:
        ConfigError: runs cannot be averaged.
        RunError: a run's weights are gone.
    """
    records = {member.name: RunRecord.read(folder / member.name) for member in members}
    runs = [member for member in members if member.name != DONOR]
    accumulated = None
    if arguments.sweep.share_head is not None:
        score = scorer(arguments.data, arguments.config.per_device_eval_batch_size)
        places = [folder / member.name for member in runs]
        accumulated = accumulate(
            places,
            folder,
            arguments.average.average,
            shareable_command(arguments.asked or argv, arguments.config.LOCAL_FILES),
            score,
            say,
        )
    rows = table(members, {name: record.scores for name, record in records.items()})
    parts = [rows] + ([accumulated_table(accumulated)] if accumulated else [])
    metric = records[runs[0].name].task["metric"].replace("_", " ")
    heading = f"Test scores in percent: {metric}, unweighted mean over languages."
    values = _values(members, records, accumulated)
    write_json(folder / JSON_NAME, values)
    write_text(folder / TABLE_NAME, "\n\n".join([heading, *(markdown(part, left=1) for part in parts)]) + "\n")
    say("\n" + "\n\n".join([heading, *(plain(part, left=1) for part in parts)]))
    if accumulated:
        say(
            "\nEach mean is over the first so many runs, which share the donor's head; target scores chose nothing."
            f"\nSaved in {folder / OUTPUT_NAME}: the mean over all runs.\nNext: hf-xlt push {folder / OUTPUT_NAME} "
            "USER/NAME"
        )
    say(f"The table is in {folder / TABLE_NAME}, and its figures in {folder / JSON_NAME}.")
    return values


def _average(results: Results | None, role: str) -> float | None:
    return results.average(role) if results is not None else None


def _cell(value: float | None) -> str:
    return "" if value is None else percent(value)


def table(members: Sequence[Member], scores: dict[str, Results]) -> list[list[str]]:
    """Return rows of text, header first: each run, then mean and standard deviation over those that are no donor."""
    varied = list(dict.fromkeys(name for member in members for name in member.settings))
    rows = [["run", "seed", *(name.replace("_", " ") for name in varied), *(f"{role} average" for role in _GROUPS)]]
    for member in members:
        settings = [member.settings.get(name, "") for name in varied]
        values = [_cell(_average(scores[member.name], role)) for role in _GROUPS]
        rows.append([member.name, str(member.seed), *settings, *values])
    cells = []
    for role in _GROUPS:
        values = [_average(scores[member.name], role) for member in members if member.name != DONOR]
        cells.append(_spread([value for value in values if value is not None]))
    rows.append(["mean ± deviation", "", *([""] * len(varied)), *cells])
    return rows


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = percent(statistics.mean(values))
    return f"{mean} ± {percent(statistics.stdev(values))}" if len(values) > 1 else mean


def accumulated_table(accumulated: Accumulated) -> list[list[str]]:
    """Return rows of text, header first: by number of runs, the run alone and the mean so far, per kind."""
    header, count = ["runs averaged"], 0
    for kind, means in accumulated.means.items():
        header += [f"{kind}, run alone: target", f"{kind}, mean: target", f"{kind}, mean: source"]
        count = len(means)
    rows = [header]
    for number in range(count):
        row = [str(number + 1)]
        for kind, means in accumulated.means.items():
            # The mean over one run is that run.
            alone = means[0] if number == 0 else accumulated.single[kind][number]
            row += [_cell(_average(alone, TARGET)), *(_cell(means[number].average(role)) for role in (TARGET, SOURCE))]
        rows.append(row)
    return rows


def _values(
    members: Sequence[Member], records: dict[str, RunRecord], accumulated: Accumulated | None
) -> dict[str, Any]:
    runs = {
        member.name: {"seed": member.seed, "settings": member.settings, "results": records[member.name].results}
        for member in members
    }
    return {"runs": runs, "accumulated": accumulated.to_dict() if accumulated else None}
