"""Meta-pretraining: an encoder is pre-trained on one language, then on many, before fine-tuning.

After Chi, Huang, Liu, Bai and Mao (2021), of whose paper we could read the abstract and the opening. "Meta" is their
word; there is no inner loop, the two phases follow one another. Everything beyond the two phases (objectives, mixture,
lengths, schedule, vocabulary) is our choice, and the contrastive objective is our addition.
"""

from hf_xlt.strategies import on_first_use

_PUBLIC = {
    "STRATEGY": ".entry",
    "MetaPretrainingConfig": ".config",
    "MetaPretrainingTrainer": ".trainer",
    "Phase": "hf_xlt.pretraining.plan",
    "Source": "hf_xlt.pretraining.plan",
}

__all__ = list(_PUBLIC)
__getattr__ = on_first_use(__name__, _PUBLIC)
