"""Pieces of text that all cards share: lists, table cells, the facts of a reproduction, an example in a language."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from hf_xlt.record import RunRecord

_EXAMPLE_DATE = datetime.date(2026, 1, 5)


def listed(names: list[str]) -> str:
    """Join names with commas and a last `and`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def table_cell(text: str) -> str:
    """Keep a text within one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def plain_name(record: RunRecord) -> str:
    """Name the encoder that a run started from, where it is not on the Hub."""
    if record.model.get("name"):
        return f"`{record.model['name']}`"
    kind = record.model.get("model_type")
    return f"An encoder of type `{kind}`" if kind else "An encoder"


def example(languages: Iterable[dict[str, str]]) -> tuple[str, str, str]:
    """Return a date written out in the first language that CLDR knows.

    Args:
        languages: as the record describes them.

    Returns:
        The text, one word in it that names the month or the day of the week (empty if neither is found), and the
        language's name.
    """
    from babel import Locale, UnknownLocaleError
    from babel.dates import format_date

    for language in (*languages, {"iso": "en", "name": "English"}):
        try:
            locale = Locale.parse(language["iso"])
        except (UnknownLocaleError, ValueError):
            continue
        text = format_date(_EXAMPLE_DATE, "full", locale=locale)
        words = (format_date(_EXAMPLE_DATE, pattern, locale=locale) for pattern in ("MMMM", "EEEE"))
        return text, next((word for word in words if word in text), ""), language["name"]
    raise AssertionError("CLDR has English")


def _updates(phase: dict[str, Any]) -> str:
    """Say how many updates a phase made, and how many it was to make where these are more."""
    asked = phase.get("updates_asked")
    of = f" of {asked:,}" if asked is not None and asked != phase["updates"] else ""
    return f"{phase['updates']:,}{of} updates"


def facts(record: RunRecord, timed: str) -> list[tuple[str, str]]:
    """Return what reproducing a run takes, as rows of name and value.

    Args:
        record: the run.
        timed: what its time was spent on.
    """
    hardware = record.hardware
    processes, threads = hardware.get("processes"), hardware.get("threads")
    device = ", ".join(filter(None, [hardware.get("device"), hardware.get("processor")]))
    if processes and threads:
        device += f"; {processes} process{'es' * (processes > 1)} with {threads} thread{'s' * (threads > 1)}"
    parameters = record.model.get("parameters")
    phases = [f"{phase['name']}: {_updates(phase)}" for phase in record.phases if "updates" in phase]
    rows = [
        ("Parameters", f"{parameters:,}" if parameters else ""),
        ("Base model revision", record.model.get("revision") or ""),
        ("Labels", ", ".join(record.labels)),
        ("Training", "; ".join(phases)),
        ("Time", f"{record.wall_time_seconds:,.0f} s for {timed}" if record.wall_time_seconds else ""),
        ("Hardware", device),
        ("Attention in training", hardware.get("attention") or ""),
        ("Versions", ", ".join(f"{package} {version}" for package, version in record.versions.items())),
        ("Date", record.created),
    ]
    return [(name, table_cell(value)) for name, value in rows if value]
