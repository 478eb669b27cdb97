"""Drawing where matplotlib is installed, the same bytes for the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_pyplot() -> Any:
    """Return `matplotlib.pyplot`, drawing to files; None when matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG beside its place, then rename; close it."""
    from matplotlib import pyplot

    part = path.with_name(f".{path.name}.part.png")
    # No date or version inside: the same scores give the same bytes.
    figure.savefig(part, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    part.replace(path)
