"""What a sweep over strategies ends in: the comparison of its runs with those of the first strategy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_xlt.comparing.comparison import compare_runs
from hf_xlt.comparing.report import as_text, write_comparison
from hf_xlt.streams import print_document
from hf_xlt.sweep.execute import say
from hf_xlt.sweep.members import Member

FOLDER_NAME = "comparison"


def finish_comparison(members: Sequence[Member], folder: Path, as_json: bool) -> None:
    """Compare the runs of a sweep, write all forms of the comparison, and print it.

    Args:
        members: the runs, all finished; the first one's strategy is the baseline.
        folder: of the sweep.
        as_json: print it as one JSON document as well.

    Raises:
        ConfigError: the runs cannot be compared.
    """
    comparison = compare_runs([str(folder / member.name) for member in members], members[0].strategy)
    written = write_comparison(comparison, folder / FOLDER_NAME, overwrite=True)
    say(f"\n{as_text(comparison)}\n\nSaved in {folder / FOLDER_NAME}: {', '.join(written)}.")
    if as_json:
        print_document(comparison.to_dict())
