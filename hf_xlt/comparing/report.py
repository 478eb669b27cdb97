"""A comparison as Markdown, JSON, CSV, plot, and one HTML file that can be mailed."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hf_xlt.comparing.comparison import Comparison
from hf_xlt.comparing.page import as_html
from hf_xlt.files import write_json, write_text
from hf_xlt.output import check_files, claim_output
from hf_xlt.results import markdown, plain

MARKDOWN_NAME, JSON_NAME, CSV_NAME = "comparison.md", "comparison.json", "comparison.csv"
PLOT_NAME, HTML_NAME = "comparison.png", "comparison.html"
METHOD = (
    "Runs are paired by seed. The interval is a percentile bootstrap that draws pairs of runs and, where runs kept "
    "their item scores, test items, both with replacement. p (runs) is the exact two-sided sign-flip test over pairs "
    "of runs; p (items) the randomisation test that exchanges two systems item by item; languages with equally many "
    "items are drawn together. p (Holm) adjusts p (items), or p (runs) where there are no items, for all conditions. "
    "A difference is called better or worse only when the interval leaves out 0 and the adjusted p is below 5 %."
)


def as_text(comparison: Comparison) -> str:
    """Return the comparison for a terminal."""
    parts = [comparison.heading(), plain(comparison.summary_table(), left=1)]
    parts += ["\n".join(comparison.sentences())] if comparison.differences else []
    parts.append(plain(comparison.language_table(), left=3))
    return "\n\n".join([*parts, *(f"Note: {note}" for note in comparison.notes)])


def describe(comparison: Comparison) -> str:
    """Return the comparison as Markdown."""
    parts = [comparison.heading(), markdown(comparison.summary_table(), left=1)]
    parts += ["\n".join(f"- {line}" for line in comparison.sentences())] if comparison.differences else []
    parts.append(markdown(comparison.language_table(), left=3))
    if comparison.notes:
        parts.append("\n".join(f"- {note[0].upper()}{note[1:]}" for note in comparison.notes))
    return "\n\n".join([*parts, METHOD]) + "\n"


def check_output(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that a comparison may not be written to; nothing is written.

    Raises:
        ConfigError: it is a file or read-only, or holds a comparison that may not be replaced.
    """
    names = (JSON_NAME, MARKDOWN_NAME, CSV_NAME, HTML_NAME, PLOT_NAME)
    check_files(folder, names, ("conditions", "differences", "method"), overwrite=overwrite, what="comparison")


def write_comparison(comparison: Comparison, folder: Path, overwrite: bool = False) -> list[str]:
    """Write all forms of a comparison.

    Args:
        comparison: what to write.
        folder: where to.
        overwrite: replace an earlier one.

    Returns:
        Names of the files written; the plot is left out where matplotlib is not installed.

    Raises:
        ConfigError: as `check_output`.
        RunError: it cannot be made.
    """
    check_output(folder, overwrite)
    claim_output(folder, overwrite=False)
    write_text(folder / MARKDOWN_NAME, describe(comparison))
    write_json(folder / JSON_NAME, {**comparison.to_dict(), "method": METHOD})
    write_text(folder / CSV_NAME, as_csv(comparison))
    write_text(folder / HTML_NAME, as_html(comparison, METHOD))
    drawn = [PLOT_NAME] if plot(folder / PLOT_NAME, comparison) else []
    return [MARKDOWN_NAME, JSON_NAME, CSV_NAME, HTML_NAME, *drawn]


def as_csv(comparison: Comparison) -> str:
    """Return one line per condition, seed and language: the main metric as a fraction."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["condition", "seed", "language", "role", comparison.metric])
    for name, languages in comparison.conditions.items():
        for code, spread in languages.items():
            for seed, value in zip(comparison.seeds[name], spread.values, strict=True):
                writer.writerow([name, "" if seed is None else seed, code, comparison.roles[code], repr(value)])
    return text.getvalue()


def plot(path: Path, comparison: Comparison) -> bool:
    """Draw the means of all conditions, source and targets, with standard deviations.

    Returns:
        False when matplotlib is not installed, and nothing was drawn.
    """
    from hf_xlt.plotting import load_pyplot, save_figure
    from hf_xlt.results import SOURCE, TARGET

    pyplot = load_pyplot()
    if pyplot is None:
        return False
    import numpy as np

    names = list(comparison.conditions)
    figure, axes = pyplot.subplots(figsize=(7, 1.6 + 0.5 * len(names)), layout="constrained")
    for offset, role, colour in ((-0.18, SOURCE, "tab:orange"), (0.18, TARGET, "tab:blue")):
        spreads = [comparison.average(name, role) for name in names]
        if any(spread is None for spread in spreads):
            continue
        means = [100 * spread.mean for spread in spreads]
        errors = [100 * float(np.std(s.values, ddof=1)) if len(s.values) > 1 else 0.0 for s in spreads]
        bars = axes.barh(
            np.arange(len(names)) + offset, means, 0.34, xerr=errors, color=colour, label=f"{role} languages"
        )
        axes.bar_label(bars, fmt="%.1f", padding=4, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=f"{comparison.metric.replace('_', ' ')} (%)", xlim=(0, 105))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    save_figure(figure, path)
    return True
