"""The registry entry."""

from __future__ import annotations

from hf_xlt.registry import Paper, Strategy
from hf_xlt.strategies.robust.augmentation import DEPENDENT_OF_RUNS, plan_augmentation
from hf_xlt.strategies.robust.checks import REFUSALS
from hf_xlt.strategies.robust.config import RobustConfig
from hf_xlt.strategies.robust.cost import cost
from hf_xlt.strategies.robust.search import trial
from hf_xlt.strategies.robust.trainer import RobustTrainer

_PAPER = Paper(
    title="Improving Zero-Shot Cross-Lingual Transfer Learning via Robust Training",
    authors="Kuan-Hao Huang, Wasi Uddin Ahmad, Nanyun Peng, Kai-Wei Chang",
    venue="EMNLP 2021, pages 1684-1697",
    url="https://arxiv.org/abs/2104.08645",
    bibtex="""@inproceedings{huang-etal-2021-improving-zero,
  title = {Improving Zero-Shot Cross-Lingual Transfer Learning via Robust Training},
  author = {Huang, Kuan-Hao and Ahmad, Wasi Uddin and Peng, Nanyun and Chang, Kai-Wei},
  booktitle = {Proceedings of the 2021 Conference on Empirical Methods in Natural Language Processing},
  year = {2021},
  pages = {1684--1697},
}""",
)

STRATEGY = Strategy(
    name="robust",
    title="Robust training",
    config_cls=RobustConfig,
    trainer_cls=RobustTrainer,
    summary="Fine-tune on the source language against worst-case (ADV) or random (RS-RP) noise in the embeddings.",
    paper=_PAPER,
    refusals=REFUSALS,
    dependent=DEPENDENT_OF_RUNS,
    cost=cost,
    augmentation=plan_augmentation,
    peft=True,
    trial=trial,
    notes=(
        "In the spirit of the paper: its abstract names adversarial training and randomized smoothing in the "
        "embedding space. What it does not state for ADV and RS-RP (layer, norm, radius, steps, start, noise law, "
        "weight of the clean loss) is our choice. Word embeddings are perturbed, as the abstract's first version "
        "words it; contextual embeddings only as far as the perturbation propagates. No published number is "
        "reproduced. RS-DA follows the authors' published code, with the table of neighbours it is given. FreeLB, "
        "the consistency terms (R3F, VAT, SMART without its proximal part) and smoothed prediction come from related "
        "work. Scores are of the model without noise unless the setting `smooth_predict` names another way."
    ),
)
