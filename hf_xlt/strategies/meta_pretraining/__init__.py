"""Meta-pretraining: an encoder is pre-trained on one language, then on many, before fine-tuning.

After Chi, Huang, Liu, Bai and Mao (2021), of whose paper we could read the abstract and the opening. "Meta" is their
word; there is no inner loop, the two phases follow one another. Everything beyond the two phases (objectives, mixture,
lengths, schedule, vocabulary) is our choice, and the contrastive objective is our addition.
"""

from typing import TYPE_CHECKING

from hf_xlt.strategies import on_first_use

if TYPE_CHECKING:
    from hf_xlt.pretraining.plan import Phase as Phase
    from hf_xlt.pretraining.plan import Source as Source
    from hf_xlt.strategies.meta_pretraining.config import MetaPretrainingConfig as MetaPretrainingConfig
    from hf_xlt.strategies.meta_pretraining.entry import STRATEGY as STRATEGY
    from hf_xlt.strategies.meta_pretraining.trainer import MetaPretrainingTrainer as MetaPretrainingTrainer


_PUBLIC = {
    "STRATEGY": ".entry",
    "MetaPretrainingConfig": ".config",
    "MetaPretrainingTrainer": ".trainer",
    "Phase": "hf_xlt.pretraining.plan",
    "Source": "hf_xlt.pretraining.plan",
}

__all__ = list(_PUBLIC)
if not TYPE_CHECKING:
    __getattr__ = on_first_use(__name__, _PUBLIC)
