"""Checkpoint averaging: plain fine-tuning whose output is the mean of its snapshots.

After Schmidt, Vulić and Glavaš (2023): ten snapshots of one run, evenly spaced, each counting the same. The work is in
`hf_xlt.averaging`; every other strategy averages with `--average`.
"""

from __future__ import annotations

from hf_xlt.registry import Paper, Strategy
from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer

_PAPER = Paper(
    title="Free Lunch: Robust Cross-Lingual Transfer via Model Checkpoint Averaging",
    authors="Fabian David Schmidt, Ivan Vulić, Goran Glavaš",
    venue="ACL 2023, long papers",
    url="https://aclanthology.org/2023.acl-long.314",
    bibtex="""@inproceedings{schmidt-etal-2023-free,
  title = {Free Lunch: Robust Cross-Lingual Transfer via Model Checkpoint Averaging},
  author = {Schmidt, Fabian David and Vuli{\\'c}, Ivan and Glava{\\v{s}}, Goran},
  booktitle = {Proceedings of the 61st Annual Meeting of the Association for Computational Linguistics},
  year = {2023},
  url = {https://aclanthology.org/2023.acl-long.314},
  note = {arXiv:2305.16834},
}""",
)

STRATEGY = Strategy(
    name="averaging",
    title="Checkpoint averaging",
    config_cls=FinetuneConfig,
    trainer_cls=FinetuneTrainer,
    summary="Fine-tune on the source language and average snapshots of the run, so that no checkpoint is chosen.",
    paper=_PAPER,
    peft=True,
    averages=True,
    notes=(
        "Which snapshots, how many and how they are weighted follow the authors' published code. The body and the "
        "tables of the paper were not read, and no published number is reproduced. A mean of early snapshots can be "
        "worse than the last weights, which lie beside the output in last/."
    ),
)
