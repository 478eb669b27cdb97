"""The registry entry."""

from __future__ import annotations

from hf_xlt.registry import Paper, Strategy
from hf_xlt.strategies.metaxl.checks import REFUSALS
from hf_xlt.strategies.metaxl.config import MetaXLConfig
from hf_xlt.strategies.metaxl.cost import cost
from hf_xlt.strategies.metaxl.trainer import MetaXLTrainer, trial

_PAPER = Paper(
    title="MetaXL: Meta Representation Transformation for Low-resource Cross-lingual Learning",
    authors="Mengzhou Xia, Guoqing Zheng, Subhabrata Mukherjee, Milad Shokouhi, Graham Neubig, Ahmed Hassan Awadallah",
    venue="NAACL 2021",
    url="https://arxiv.org/abs/2104.07908",
    bibtex="""@inproceedings{xia-etal-2021-metaxl,
  title = {{MetaXL}: Meta Representation Transformation for Low-resource Cross-lingual Learning},
  author = {Xia, Mengzhou and Zheng, Guoqing and Mukherjee, Subhabrata and Shokouhi, Milad and Neubig, Graham and
    Awadallah, Ahmed Hassan},
  booktitle = {Proceedings of the 2021 Conference of the North American Chapter of the Association for Computational
    Linguistics: Human Language Technologies},
  year = {2021},
}""",
)

STRATEGY = Strategy(
    name="metaxl",
    title="MetaXL",
    config_cls=MetaXLConfig,
    trainer_cls=MetaXLTrainer,
    summary="Learn, from a few labelled target examples, to transform source representations so that they help most.",
    paper=_PAPER,
    roles=("source", "target"),
    optional_roles=(),
    refusals=REFUSALS,
    cost=cost,
    peft=True,
    trial=trial,
    trains_on=lambda config: "target" if config.trains_on_target_alone else "source",
    notes=(
        "The abstract and introduction of the paper were read; where they are silent the method follows the authors' "
        "published code: the model trains on the source batch and on a part of each target batch, the other part is "
        "the meta loss, and the gradient reaches the encoder by the skip connection alone. The public code's second "
        "derivative mixes weights before and after the virtual step; here it is exact. The model's optimizer is the "
        "Trainer's AdamW, where theirs is Adam with L2 decay. No published number is reproduced. The exported model "
        "has no trace of the transformation network."
    ),
)
