"""The registry entry."""

from __future__ import annotations

from hf_xlt.registry import ACCUMULATION, PADDING, PROCESSES, RESUME, Paper, Strategy
from hf_xlt.strategies.meta_pretraining.config import DEPENDENT_OF_RUNS, REFUSALS, MetaPretrainingConfig
from hf_xlt.strategies.meta_pretraining.phases import check_text, task_phases
from hf_xlt.strategies.meta_pretraining.trainer import MetaPretrainingTrainer

_PAPER = Paper(
    title="Cross-Lingual Language Model Meta-Pretraining",
    authors="Zewen Chi, Heyan Huang, Luyang Liu, Yu Bai, Xian-Ling Mao",
    venue="arXiv 2109.11129, 2021",
    url="https://arxiv.org/abs/2109.11129",
    bibtex="""@article{chi-etal-2021-meta-pretraining,
  title = {Cross-Lingual Language Model Meta-Pretraining},
  author = {Chi, Zewen and Huang, Heyan and Liu, Luyang and Bai, Yu and Mao, Xian-Ling},
  journal = {arXiv preprint arXiv:2109.11129},
  year = {2021},
}""",
)

STRATEGY = Strategy(
    name="meta-pretrain",
    title="Meta-pretraining",
    config_cls=MetaPretrainingConfig,
    trainer_cls=MetaPretrainingTrainer,
    summary="Pre-train on unlabelled text in two phases, one language and then many, and fine-tune on the source.",
    paper=_PAPER,
    roles=("source", "text"),
    phases=task_phases,
    check_data=check_text,
    invariances=frozenset({ACCUMULATION, PROCESSES, RESUME, PADDING}),
    refusals=REFUSALS,
    dependent=DEPENDENT_OF_RUNS,
    cost_note="pre-training comes on top",
    notes=(
        "From the abstract: the paper's two phases, monolingual and then multilingual. Objectives, mixture of "
        "languages, lengths, schedule and vocabulary are our choices, and the contrastive objective is our addition. "
        "There is no gradient-based meta-learning in it. No published number is reproduced."
    ),
)
