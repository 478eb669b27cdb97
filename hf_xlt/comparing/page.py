"""A comparison as one HTML page that needs nothing outside it: to mail, for phones, the dark, and screen readers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_xlt.comparing.comparison import Comparison, Difference

# The columns of the summary in the order of the page: what a difference is worth stands before its tests.
_ORDER = ("condition", "against baseline", "95 % interval", "reading", "targets", "source", "runs")
_STEPS = (1, 2, 5)


def as_html(comparison: Comparison, method: str) -> str:
    """Return the page.

    Args:
        comparison: what to show.
        method: how the figures were made.
    """
    import jinja2

    from hf_xlt import __version__

    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    gaps = comparison.differences
    return environment.get_template("report.html.jinja").render(
        title="Comparison of runs",
        heading=comparison.heading().replace("`", ""),
        findings=[
            (_kind(gap), line.replace("`", "").removesuffix(f": {gap.reading()}."), gap.reading())
            for gap, line in zip(gaps.values(), comparison.sentences(), strict=True)
        ],
        summary=_summary(comparison),
        kinds=[_kind(gaps.get(name)) for name in comparison.conditions],
        languages=comparison.language_table(),
        key="; ".join(f"{letter}: {name}" for name, letter in comparison.letters().items()),
        baseline=comparison.baseline,
        plot=_figure(gaps),
        notes=[note.replace("`", "") for note in comparison.notes],
        method=method,
        version=__version__,
        table=_table,
    )


def _kind(gap: Difference | None) -> str:
    """Return the class of a difference: what it is worth decides its colour."""
    if gap is None:
        return ""
    if gap.is_noise or len(gap.values) < 2:
        return "noise"
    return "better" if gap.mean > 0 else "worse"


def _summary(comparison: Comparison) -> list[list[str]]:
    rows = comparison.summary_table()
    places = [rows[0].index(name) for name in _ORDER]
    places += [place for place in range(len(rows[0])) if place not in places]
    return [[row[place] for place in places] for row in rows]


def _table(rows: list[list[str]], name: str, key: str, kinds: Sequence[str] | None) -> Any:
    """Return a table whose first column heads the rows, in a region that the keyboard can scroll."""
    from markupsafe import Markup

    head = Markup("").join(Markup('<th scope="col">{}</th>').format(cell) for cell in rows[0])
    reading = rows[0].index("reading") if kinds is not None else None
    body = []
    for number, (first, *cells) in enumerate(rows[1:]):
        line = Markup('<tr><th scope="row">{}</th>').format(first)
        for place, cell in enumerate(cells, 1):
            if place == reading and cell:
                line += Markup('<td class="{}">{}</td>').format(kinds[number], cell)
            else:
                line += Markup("<td>{}</td>").format(cell)
        body.append(line + Markup("</tr>"))
    whole = (
        '<p class="key">{}</p>\n<div class="wide" role="region" aria-label="{}" tabindex="0">\n<table>\n'
        '<caption class="hidden">{}</caption>\n'
        "<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>\n</div>"
    )
    return Markup(whole).format(key, name, name, head, Markup("\n").join(body))


def _figure(gaps: Mapping[str, Difference]) -> dict[str, Any] | None:
    """Return where everything stands in the drawing of the differences, in percent of its width."""
    if not gaps:
        return None
    ends = [0.0, *(100 * value for gap in gaps.values() for value in (*gap.interval, gap.mean))]
    step = _step(max(ends) - min(ends))
    low, high = (math.floor(min(ends) / step) * step, math.ceil(max(ends) / step) * step)
    high = high if high > low else low + step

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    rows = []
    for name, gap in gaps.items():
        left, right = (place(100 * value) for value in gap.interval)
        rows.append(
            {
                "name": name,
                "text": f"{100 * gap.mean:+.1f}",
                "kind": _kind(gap),
                "low": left,
                "width": round(right - left, 2) if gap.has_interval else None,
                "mean": place(100 * gap.mean),
            }
        )
    count = round((high - low) / step)
    digits = max(0, -math.floor(math.log10(step)))
    values = [low + step * number for number in range(count + 1)]
    ticks = [
        {"place": place(value), "text": "0" if abs(value) < step / 2 else f"{value:+.{digits}f}"} for value in values
    ]
    return {"zero": place(0.0), "rows": rows, "ticks": ticks}


def _step(span: float) -> float:
    """Return a round distance between ticks, of which about five cover a span."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next((factor * power for factor in _STEPS if factor * power >= span / 5), 10 * power)
