"""Cross-lingual transfer for the Hugging Face Trainer: labels in one language, users in a hundred.

Importing this package loads neither torch nor transformers; public names are imported on first use.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The same names as in `_PUBLIC`, from where each is defined, for checkers of types and editors.
    from hf_xlt.averaging.average import average_checkpoints as average_checkpoints
    from hf_xlt.averaging.callback import CheckpointAveragingCallback as CheckpointAveragingCallback
    from hf_xlt.averaging.heads import average_runs as average_runs
    from hf_xlt.errors import ConfigError as ConfigError
    from hf_xlt.errors import RunError as RunError
    from hf_xlt.evaluation import Results as Results
    from hf_xlt.evaluation import score as score
    from hf_xlt.record import RunRecord as RunRecord
    from hf_xlt.registry import STRATEGIES as STRATEGIES
    from hf_xlt.registry import Strategy as Strategy
    from hf_xlt.registry import get_strategy as get_strategy
    from hf_xlt.strategies.finetune import FinetuneConfig as FinetuneConfig
    from hf_xlt.strategies.finetune import FinetuneTrainer as FinetuneTrainer
    from hf_xlt.strategies.metaxl.config import MetaXLConfig as MetaXLConfig
    from hf_xlt.strategies.metaxl.trainer import MetaXLTrainer as MetaXLTrainer
    from hf_xlt.strategies.robust.config import RobustConfig as RobustConfig
    from hf_xlt.strategies.robust.trainer import RobustTrainer as RobustTrainer
    from hf_xlt.strategies.soft_layers.config import SoftLayerSelectionConfig as SoftLayerSelectionConfig
    from hf_xlt.strategies.soft_layers.trainer import SoftLayerSelectionTrainer as SoftLayerSelectionTrainer
    from hf_xlt.strategies.xmaml.config import XMAMLConfig as XMAMLConfig
    from hf_xlt.strategies.xmaml.trainer import XMAMLTrainer as XMAMLTrainer
    from hf_xlt.tasks import TASKS as TASKS
    from hf_xlt.training.config import XLTConfig as XLTConfig
    from hf_xlt.training.trainer import XLTTrainer as XLTTrainer

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


if not TYPE_CHECKING:
    # A checker of types would take every name for one of ours.

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
