"""MetaXL: a small network transforms source representations so that training on them helps a low-resource target.

After Xia, Zheng, Mukherjee, Shokouhi, Neubig and Awadallah (2021): bi-level training on a few labelled target rows.
The abstract and introduction of the paper were read; the rest follows the authors' published code, and each setting's
help says which. The second-order gradient is exact and restricted to the network, so it costs what the mathematics
costs. Further ways to it (`hypergrad`), several source languages (`source_sampling`, after MetaXLR) and the paper's
baselines (`method`) are settings of the same strategy.
"""

from typing import TYPE_CHECKING

from hf_xlt.strategies import on_first_use

if TYPE_CHECKING:
    from hf_xlt.strategies.metaxl.config import MetaXLConfig as MetaXLConfig
    from hf_xlt.strategies.metaxl.entry import STRATEGY as STRATEGY
    from hf_xlt.strategies.metaxl.trainer import MetaXLTrainer as MetaXLTrainer


_PUBLIC = {"STRATEGY": ".entry", "MetaXLConfig": ".config", "MetaXLTrainer": ".trainer"}

__all__ = list(_PUBLIC)
if not TYPE_CHECKING:
    __getattr__ = on_first_use(__name__, _PUBLIC)
