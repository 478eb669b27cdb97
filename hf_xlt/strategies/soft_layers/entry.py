"""The registry entry."""

from __future__ import annotations

from hf_xlt.registry import Paper, Strategy
from hf_xlt.strategies.soft_layers.checks import DEPENDENT_OF_RUNS, REFUSALS
from hf_xlt.strategies.soft_layers.config import SoftLayerSelectionConfig
from hf_xlt.strategies.soft_layers.cost import cost
from hf_xlt.strategies.soft_layers.phases import soft_layer_phases
from hf_xlt.strategies.soft_layers.setup import trial
from hf_xlt.strategies.soft_layers.trainer import SoftLayerSelectionTrainer

_PAPER = Paper(
    title="Soft Layer Selection with Meta-Learning for Zero-Shot Cross-Lingual Transfer",
    authors="Weijia Xu, Batool Haider, Jason Krone, Saab Mansour",
    venue="MetaNLP workshop at ACL-IJCNLP 2021, pages 11-18",
    url="https://arxiv.org/abs/2107.09840",
    bibtex="""@inproceedings{xu-etal-2021-soft,
  title = {Soft Layer Selection with Meta-Learning for Zero-Shot Cross-Lingual Transfer},
  author = {Xu, Weijia and Haider, Batool and Krone, Jason and Mansour, Saab},
  booktitle = {Proceedings of the 1st Workshop on Meta Learning and Its Applications to Natural Language Processing},
  year = {2021},
  pages = {11--18},
  url = {https://aclanthology.org/2021.metanlp-1.2},
}""",
)

STRATEGY = Strategy(
    name="soft-layers",
    title="Soft layer selection",
    config_cls=SoftLayerSelectionConfig,
    trainer_cls=SoftLayerSelectionTrainer,
    summary="Learn from labelled auxiliary languages how much each layer may move, then fine-tune on the source.",
    paper=_PAPER,
    roles=("source", "auxiliary"),
    waived_roles=lambda config: () if config.learns else ("auxiliary",),
    phases=soft_layer_phases,
    refusals=REFUSALS,
    dependent=DEPENDENT_OF_RUNS,
    cost=cost,
    peft=True,
    trial=trial,
    notes=(
        "A re-implementation from the abstract; the update rule is a reconstruction: one gate per layer group "
        "multiplies the optimizer's update, and is learned from the query loss on auxiliary languages after one or "
        "several gated updates on the source. The head is not gated. Auxiliary languages have labels, so they are no "
        "zero-shot targets. No published number is reproduced."
    ),
)
