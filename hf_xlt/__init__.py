"""Cross-lingual transfer for the Hugging Face Trainer: labels in one language, users in a hundred.

Importing this package loads neither torch nor transformers; public names are imported on first use.
"""

from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "setup.cfg").is_file():
    # Standing in a checkout, `hf_xlt.cli` and `hf_xlt.model_cards` live one level up.
    __path__.append(str(_CHECKOUT))

_PUBLIC = {
    "ConfigError": "hf_xlt.errors",
    "RunError": "hf_xlt.errors",
    "RunRecord": "hf_xlt.record",
    "STRATEGIES": "hf_xlt.registry",
    "Strategy": "hf_xlt.registry",
    "get_strategy": "hf_xlt.registry",
    "TASKS": "hf_xlt.tasks",
    "Results": "hf_xlt.evaluation",
    "score": "hf_xlt.evaluation",
    "average_checkpoints": "hf_xlt.averaging.average",
    "average_runs": "hf_xlt.averaging.heads",
    "CheckpointAveragingCallback": "hf_xlt.averaging.callback",
    "XLTConfig": "hf_xlt.training.config",
    "XLTTrainer": "hf_xlt.training.trainer",
    "FinetuneConfig": "hf_xlt.strategies.finetune",
    "FinetuneTrainer": "hf_xlt.strategies.finetune",
    "MetaXLConfig": "hf_xlt.strategies.metaxl",
    "MetaXLTrainer": "hf_xlt.strategies.metaxl",
    "RobustConfig": "hf_xlt.strategies.robust",
    "RobustTrainer": "hf_xlt.strategies.robust",
    "SoftLayerSelectionConfig": "hf_xlt.strategies.soft_layers",
    "SoftLayerSelectionTrainer": "hf_xlt.strategies.soft_layers",
    "XMAMLConfig": "hf_xlt.strategies.xmaml",
    "XMAMLTrainer": "hf_xlt.strategies.xmaml",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    """Import a public name on first use.

    Raises:
        AttributeError: `name` is not public.
    """
    if name not in _PUBLIC:
        raise AttributeError(f"module `hf_xlt` has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
