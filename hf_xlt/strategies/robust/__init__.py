"""Robust training: fine-tune on the source language against noise in the embedding space.

After Huang, Ahmad, Peng and Chang (2021). In the spirit of the paper: the body of the paper was not available when
this was written, so the details of ADV and RS-RP that its abstract does not state are our choices, labelled in the
help of each setting. RS-DA, the variant whose code the authors published, works on text before it is encoded: it is
`augmenter: synonyms`, goes with every method, and is as they published it with `method: none`. Related methods share
the machinery: FreeLB, and training on the divergence of predictions under noise (R3F, VAT, SMART). A model can be
scored by smoothed prediction (`smoothing`), whose votes certify a radius (`certificate`).
"""

from typing import TYPE_CHECKING

from hf_xlt.strategies import on_first_use

if TYPE_CHECKING:
    from hf_xlt.strategies.robust.config import RobustConfig as RobustConfig
    from hf_xlt.strategies.robust.entry import STRATEGY as STRATEGY
    from hf_xlt.strategies.robust.trainer import RobustTrainer as RobustTrainer


_PUBLIC = {"STRATEGY": ".entry", "RobustConfig": ".config", "RobustTrainer": ".trainer"}

__all__ = list(_PUBLIC)
if not TYPE_CHECKING:
    __getattr__ = on_first_use(__name__, _PUBLIC)
