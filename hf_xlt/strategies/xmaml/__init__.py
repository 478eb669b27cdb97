"""X-MAML: meta-learn, on labelled auxiliary languages, weights that adapt to a new language in a few steps.

After Nooralahzadeh, Bekoulis, Bjerva and Augenstein (2020), and the code that they published.
"""

from typing import TYPE_CHECKING

from hf_xlt.strategies import on_first_use

if TYPE_CHECKING:
    from hf_xlt.strategies.xmaml.config import XMAMLConfig as XMAMLConfig
    from hf_xlt.strategies.xmaml.entry import STRATEGY as STRATEGY
    from hf_xlt.strategies.xmaml.trainer import XMAMLTrainer as XMAMLTrainer


_PUBLIC = {"STRATEGY": ".entry", "XMAMLConfig": ".config", "XMAMLTrainer": ".trainer"}

__all__ = list(_PUBLIC)
if not TYPE_CHECKING:
    __getattr__ = on_first_use(__name__, _PUBLIC)
