"""`RobustConfig`: which perturbation the model is trained against, and what does not go with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hf_xlt.errors import ConfigError
from hf_xlt.strategies.robust.augmentation import AugmentationSettings, augmentation_problems
from hf_xlt.strategies.robust.checks import choice_problems, combination_problems, range_problems
from hf_xlt.training.config import XLTConfig


@dataclass
class RobustConfig(AugmentationSettings, XLTConfig):
    """Settings of robust training, besides those of `XLTConfig`.

    Evidence in the help texts: `paper` is stated in the paper, `related work` is read in the code of the named
    project, `ours` is our choice. The paper's own radii, steps, step size, start, noise law and clean-loss weight
    could not be read, so no default claims to be the paper's.

    Raises:
        ConfigError: values are out of range; the message lists all of them.
    """

    method: Literal["none", "adv", "rs_rp", "freelb"] = field(
        default="adv",
        metadata={
            "help": "`adv`: adversarial training, `rs_rp`: randomized smoothing with random perturbations (both named "
            "in the paper, details ours), `freelb`: the weights train on every point of the ascent (related work: Zhu "
            "et al. 2020; with three or more steps, a uniform start and shared dropout there), `none`: plain "
            "fine-tuning."
        },
    )
    epsilon: float = field(
        default=0.01,
        metadata={
            "help": "Radius of the perturbation, >= 0; 0 is plain fine-tuning. Standard deviation per coordinate for "
            "gaussian noise, half-width per coordinate for uniform noise and the linf norm. Ours; first grids: 0.01, "
            "0.03, 0.1 for adv, 0.1, 0.3, 1.0 (l2 noise) for rs_rp."
        },
    )
    eps_mode: Literal["relative", "absolute"] = field(
        default="relative",
        metadata={
            "help": "`relative` multiplies epsilon and step_size by the mean L2 norm of the vocabulary's embeddings "
            "at the start of training, since these norms differ between models. Ours."
        },
    )
    norm: Literal["l2", "linf"] = field(default="l2", metadata={"help": "Norm of the ball of adv and freelb. Ours."})
    norm_scope: Literal["token", "sentence"] = field(
        default="token",
        metadata={
            "help": "One radius per `token`, or per `sentence` (the whole input, both sentences of a pair). A token "
            "radius does not depend on length. Ours."
        },
    )
    steps: int = field(
        default=1,
        metadata={
            "help": "Ascent steps of adv, >= 1; each costs 2/3 of a plain training step. Training passes of freelb, "
            "each a plain step, with an ascent step between two. Ours."
        },
    )
    step_size: float | None = field(
        default=None,
        metadata={
            "help": "Length of an ascent step, > 0, in the unit of epsilon. Unset: epsilon for one step, else "
            "1.5 * epsilon / steps. Ours."
        },
    )
    init: Literal["zero", "uniform", "gaussian"] = field(
        default="zero",
        metadata={
            "help": "Where the ascent starts; a random start helps with two or more steps. uniform with l2 as in "
            "FreeLB's code (related work), the rest ours."
        },
    )
    init_scale: float = field(
        default=1.0,
        metadata={
            "help": "Length of a random start, in (0, 1], as a share of the one that fits the ball. A small one makes "
            "the first ascent step that of VAT and SMART (related work). Ours."
        },
    )
    inner_loss: Literal["label", "kl"] = field(
        default="label",
        metadata={
            "help": "What adv's ascent raises: the loss of the `label`, or the divergence `kl` of the prediction from "
            "the unperturbed one, which needs no labels (related work: VAT, SMART) and a random start."
        },
    )
    linf_direction: Literal["sign", "maxnorm"] = field(
        default="sign",
        metadata={
            "help": "Ascent direction in the linf norm: the gradient's sign (ours), or the gradient divided by its "
            "largest entry (related work: FreeLB's code)."
        },
    )
    noise: Literal["gaussian", "uniform", "l2_ball", "l2_sphere"] = field(
        default="gaussian",
        metadata={
            "help": "Noise law of rs_rp. A token's gaussian noise has length about epsilon * sqrt(embedding width). "
            "Ours; gaussian is the law of the smoothing certificate (related work: Cohen et al. 2019)."
        },
    )
    num_samples: int = field(
        default=1,
        metadata={
            "help": "Noise draws of rs_rp per step, >= 1, losses averaged; each costs a plain step and, without a "
            "consistency term, no memory. Ours."
        },
    )
    clean_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight in [0, 1] of the unperturbed loss; above 0 it costs a further plain step, of which adv "
            "from a zero start saves 2/3 (dropout in its first ascent step is then on). At 1 nothing is perturbed. "
            "Ours; whether the paper mixes losses is unknown."
        },
    )
    consistency: Literal["none", "symkl"] = field(
        default="none",
        metadata={
            "help": "`symkl` trains on the unperturbed loss plus the symmetric KL divergence between the unperturbed "
            "and the perturbed prediction, which sees no label: with rs_rp this is R3F, with adv and inner_loss kl "
            "it is VAT or SMART without its proximal part (related work)."
        },
    )
    consistency_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the consistency term, >= 0; 0 is plain fine-tuning. Related work: R3F's default."
        },
    )
    detach_noised: bool = field(
        default=True,
        metadata={
            "help": "Stop the consistency term's gradient through the perturbed pass before the word embeddings. "
            "Related work: R3F and SMART do so in their code."
        },
    )
    inner_dropout: Literal["train", "shared", "eval"] = field(
        default="train",
        metadata={
            "help": "Dropout in the passes that search the perturbation, and in all training passes but one: masks of "
            "their own (`train`), those of that one (`shared`; related work: FreeLB), or, in the search alone, none "
            "(`eval`; also switches activation checkpointing off there, which takes more memory)."
        },
    )
    perturb_special_tokens: bool = field(
        default=True,
        metadata={
            "help": "Perturb special tokens such as [CLS] too; padding never is. Related work: FreeLB does so as well."
        },
    )
    start_step: int = field(
        default=0,
        metadata={
            "help": "First update that is perturbed, >= 0; earlier ones are plain fine-tuning. Helps against NaN at "
            "the start. Ours."
        },
    )
    smooth_predict: Literal["none", "vote", "mean_prob", "mean_logit"] = field(
        default="none",
        metadata={
            "help": "How predictions are made in every evaluation of the run, its final scores too: without noise "
            "(`none`), or over several draws of `noise` by most votes, mean probability or mean logit. The scores are "
            "then those of the smoothed model. Related work: Cohen et al. 2019."
        },
    )
    smooth_samples: int = field(
        default=16,
        metadata={"help": "Noise draws of smooth_predict per example, >= 1; each costs an evaluation. Ours."},
    )
    smooth_epsilon: float | None = field(
        default=None,
        metadata={"help": "Radius of smooth_predict's noise, >= 0, in the unit of epsilon. Unset: epsilon. Ours."},
    )

    def __post_init__(self) -> None:
        """Validate the perturbation's settings together, then the rest."""
        problems = choice_problems(self, RobustConfig) + range_problems(self) + combination_problems(self)
        problems += augmentation_problems(self)
        if problems:
            raise ConfigError(f"{'; '.join(problems)}.")
        super().__post_init__()

    @property
    def perturbs(self) -> bool:
        """Whether any update is other than plain fine-tuning."""
        idle = self.clean_weight == 1 if self.consistency == "none" else self.consistency_weight == 0
        return self.method != "none" and self.epsilon > 0 and not idle

    @property
    def smoothing_radius(self) -> float:
        """Radius of the noise at evaluation, in the unit of `epsilon`; 0 when predictions are plain."""
        if self.smooth_predict == "none":
            return 0.0
        return self.epsilon if self.smooth_epsilon is None else self.smooth_epsilon

    @property
    def training_passes(self) -> int:
        """Perturbed passes per micro-batch that train the weights."""
        return {"rs_rp": self.num_samples, "freelb": self.steps}.get(self.method, 1)

    @property
    def reuses_clean_pass(self) -> bool:
        """Whether the pass of the clean loss, which starts where the ascent does, gives its first gradient as well."""
        same_loss = self.inner_loss == "label" and self.inner_dropout != "eval" and self.label_smoothing_factor == 0
        return self.method == "adv" and 0 < self.clean_weight < 1 and self.init == "zero" and same_loss

    @property
    def bounds_coordinates(self) -> bool:
        """Whether the radius is a size per coordinate rather than the length of a vector."""
        return self.noise in ("gaussian", "uniform") if self.method == "rs_rp" else self.norm == "linf"

    @property
    def ascent_length(self) -> float:
        """Length of an ascent step, in the unit of `epsilon`."""
        if self.step_size is not None:
            return self.step_size
        return self.epsilon if self.steps == 1 else 1.5 * self.epsilon / self.steps
