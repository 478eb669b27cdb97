"""Averaging checkpoints and runs on disk: what is averaged, how exactly, and what is refused.

Source: Schmidt, Vulić and Glavaš (2023), "Free Lunch: Robust Cross-Lingual Transfer via Model Checkpoint Averaging",
and the authors' code; averages over runs with other hyper-parameters: Schmidt, Vulić and Glavaš (2023), "One For All &
All For One". Unlike that code it reads blocks by position and never holds a model in memory, sums above the precision
of the weights, and leaves integers alone. It does not merge models of different tasks.

Importing this package loads neither torch nor transformers.
"""

from importlib import import_module

_PUBLIC = {
    "AverageReport": "hf_xlt.averaging.report",
    "CheckpointAveragingCallback": "hf_xlt.averaging.callback",
    "average_checkpoints": "hf_xlt.averaging.average",
    "average_runs": "hf_xlt.averaging.heads",
    "extract_head": "hf_xlt.averaging.heads",
    "load_shared_head": "hf_xlt.averaging.heads",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    """Import a public name on first use.

    Raises:
        AttributeError: `name` is not public.
    """
    if name not in _PUBLIC:
        raise AttributeError(f"module `hf_xlt.averaging` has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
