"""The registry entry."""

from __future__ import annotations

from hf_xlt.registry import Paper, Strategy
from hf_xlt.strategies.xmaml.config import DEPENDENT_OF_RUNS, REFUSALS, XMAMLConfig
from hf_xlt.strategies.xmaml.cost import cost
from hf_xlt.strategies.xmaml.phases import xmaml_phases
from hf_xlt.strategies.xmaml.trainer import XMAMLTrainer

_PAPER = Paper(
    title="Zero-Shot Cross-Lingual Transfer with Meta Learning",
    authors="Farhad Nooralahzadeh, Giannis Bekoulis, Johannes Bjerva, Isabelle Augenstein",
    venue="EMNLP 2020, pages 4547-4562",
    url="https://arxiv.org/abs/2003.02739",
    bibtex="""@inproceedings{nooralahzadeh-etal-2020-zero,
  title = {Zero-Shot Cross-Lingual Transfer with Meta Learning},
  author = {Nooralahzadeh, Farhad and Bekoulis, Giannis and Bjerva, Johannes and Augenstein, Isabelle},
  booktitle = {Proceedings of the 2020 Conference on Empirical Methods in Natural Language Processing (EMNLP)},
  year = {2020},
  pages = {4547--4562},
}""",
)

STRATEGY = Strategy(
    name="xmaml",
    title="X-MAML",
    config_cls=XMAMLConfig,
    trainer_cls=XMAMLTrainer,
    summary="Fine-tune on the source, then meta-learn on labelled auxiliary languages (MAML, Reptile, ANIL).",
    paper=_PAPER,
    roles=("source", "auxiliary"),
    phases=xmaml_phases,
    refusals=REFUSALS,
    dependent=DEPENDENT_OF_RUNS,
    cost=cost,
    cost_note="with k inner steps (3k + 1) / 2 more per meta-update and auxiliary language",
    peft=True,
    notes=(
        "Follows the authors' published code: one inner step of gradient descent per auxiliary language, exact second "
        "order, Adam on the sum. Tables of the paper were not read and no published number is reproduced. At the "
        "code's inner rate the meta-gradient is nearly the plain gradient of the query half; the log says how nearly. "
        "Auxiliary languages have labels, so they are no zero-shot targets."
    ),
)
