"""The gates drawn: over time, at the end, and what speaks for each."""

from __future__ import annotations

from pathlib import Path

from hf_xlt.plotting import load_pyplot, save_figure
from hf_xlt.strategies.soft_layers.card import CLOSE, OPEN, PLOT_NAME
from hf_xlt.strategies.soft_layers.gates_file import GatesFile

_COLOURS = {OPEN: "tab:green", CLOSE: "tab:red"}
_UNDECIDED = "tab:gray"


def plot_gates(file: GatesFile, folder: Path) -> Path | None:
    """Draw a file of gates: a heat map of gates over updates, and bars of the final ones, coloured by the evidence.

    Args:
        file: the gates.
        folder: where `gates.png` goes.

    Returns:
        The picture; None where matplotlib is not installed or nothing was learned.
    """
    pyplot = load_pyplot()
    rows = file.history.get("gates") or []
    if pyplot is None or not rows:
        return None
    names, count = file.groups, len(file.groups)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 1.2 + 0.28 * count), sharey=True, layout="constrained")
    columns = [list(column) for column in zip(*rows, strict=True)]
    top = max(file.options.get("maximum", 1.0), max(map(max, rows)))
    image = left.imshow(columns, aspect="auto", origin="lower", vmin=0, vmax=top, cmap="viridis", interpolation="none")
    updates = file.history["updates"]
    ticks = sorted({0, (len(updates) - 1) // 2, len(updates) - 1})
    left.set_xticks(ticks, [str(updates[tick]) for tick in ticks])
    left.set_yticks(range(count), names)
    left.set_xlabel("update")
    left.set_title("gate over training")
    figure.colorbar(image, ax=left, shrink=0.8)
    verdicts = [file.evidence.get(name, {}).get("verdict") for name in names]
    right.barh(range(count), file.gates, color=[_COLOURS.get(verdict, _UNDECIDED) for verdict in verdicts])
    mean = sum(file.gates) / count
    right.axvline(mean, color="black", linewidth=0.8, linestyle="--")
    for number, name in enumerate(names):
        ratio = file.evidence.get(name, {}).get("signal_to_noise", 0.0)
        right.text(min(file.gates[number], top) + 0.01 * top, number, f"{ratio:.1f}", va="center", fontsize=7)
    right.set_xlim(0, 1.12 * top)
    right.set_xlabel("final gate (number: signal to noise; dashes: mean)")
    right.set_title("green: open, red: close, grey: no evidence")
    save_figure(figure, folder / PLOT_NAME)
    return folder / PLOT_NAME
