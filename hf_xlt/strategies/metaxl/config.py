"""`MetaXLConfig`: the RTN, the meta gradient, the target batches and the baselines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hf_xlt.errors import ConfigError
from hf_xlt.strategies.metaxl.checks import choice_problems, combination_problems, range_problems
from hf_xlt.training.config import XLTConfig


@dataclass
class MetaXLConfig(XLTConfig):
    """Settings of MetaXL, besides those of `XLTConfig`.

    Evidence in the help texts: `paper` is stated in its abstract or introduction, `published code` is read in the
    authors' repository, `ours` is our choice. The paper's method section and tables could not be read.

    Defaults that differ from `XLTConfig`, all of the published code's scripts: `per_device_train_batch_size` 10,
    `learning_rate` 3e-5, `num_train_epochs` 20, `warmup_steps` 0.1, `max_grad_norm` 10.

    Raises:
        ConfigError: values are out of range; the message lists all of them.
    """

    per_device_train_batch_size: int = field(
        default=10, metadata={"help": "Source examples per device and micro-batch (published code)."}
    )
    learning_rate: float = field(
        default=3e-5,
        metadata={"help": "Peak learning rate of the model, and length of the virtual step (published code)."},
    )
    num_train_epochs: float = field(default=20.0, metadata={"help": "Passes over the source data (published code)."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up; below 1 a share of all updates (published code)."}
    )
    max_grad_norm: float = field(
        default=10.0, metadata={"help": "Clip the model's gradient to this norm (published code)."}
    )
    method: Literal["metaxl", "joint", "target_only"] = field(
        default="metaxl",
        metadata={
            "help": "`metaxl`, or a baseline of the paper on the same batches: `joint` training on source and target "
            "without RTN, `target_only`. Joint training with RTN is metaxl with hypergrad none."
        },
    )
    baseline: Literal["matched", "published"] = field(
        default="matched",
        metadata={
            "help": "How joint and target_only train. `matched`: on the target examples that train the model in "
            "metaxl, with its reduction, clipping and number of updates (ours). `published`: on whole target batches, "
            "mean of both losses, no clipping; target_only counts epochs on the target data (published code)."
        },
    )
    hypergrad: Literal["exact", "finite_difference", "evograd", "none"] = field(
        default="exact",
        metadata={
            "help": "Gradient of the meta loss to the RTN. `exact`: second differentiation, restricted to it (the "
            "published code's value at a third of its cost). `finite_difference`: central differences, less memory. "
            "`evograd`: Bohdal et al. 2021, another and noisy quantity. `none`: the RTN trains with the model (the "
            "ablation JT+RTN)."
        },
    )
    update_order: Literal["sequential", "reuse"] = field(
        default="sequential",
        metadata={
            "help": "`sequential` steps the RTN and then computes the model's gradient with it (published code). "
            "`reuse` takes the gradient of the virtual step for the model: about 1/3 cheaper, and nearly the same at "
            "the published learning rates (ours)."
        },
    )
    meta_every: int = field(
        default=1,
        metadata={"help": "Update the RTN in every so many updates, >= 1; above 1 is not the published algorithm."},
    )
    meta_grad_scale: Literal["eta", "unit"] = field(
        default="eta",
        metadata={
            "help": "`eta` keeps the factor of the virtual step's length in the meta gradient (published code): at "
            "small rates the RTN's weight decay can then outweigh it. `unit` drops the factor (ours)."
        },
    )
    inner_lr: float | None = field(
        default=None,
        metadata={"help": "Length of the virtual step, >= 0. Unset: the model's rate at the update (published code)."},
    )
    fd_scale: float = field(
        default=1e-4,
        metadata={"help": "Shift of finite_difference, as a share of the weights' norm, > 0. Ours, measured."},
    )
    evograd_population: int = field(default=2, metadata={"help": "Candidates of evograd, >= 2 (EvoGrad's code)."})
    evograd_sigma: float = field(
        default=1e-3, metadata={"help": "Noise on the head's weights in evograd, > 0 (EvoGrad's code)."}
    )
    evograd_temperature: float = field(
        default=0.05, metadata={"help": "Temperature over evograd's candidates, > 0 (EvoGrad's code)."}
    )
    rtn_layers: list[int] = field(
        default_factory=lambda: [-1],
        metadata={
            "help": "Placements of the RTN: 0 the embeddings' output, k after layer k, -1 after the last one, where "
            "the published scripts have it. Several make a pass each, and their losses are mixed."
        },
    )
    rtn_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Paths of modules whose output is transformed, in place of rtn_layers. Ours."},
    )
    rtn_bottleneck: int = field(
        default=192, metadata={"help": "Width of the RTN's inner layer, >= 1 (published code)."}
    )
    rtn_activation: Literal["relu", "gelu", "tanh"] = field(
        default="relu",
        metadata={"help": "Activation of the RTN (relu: published code). Without rtn_detach_input take gelu."},
    )
    rtn_gate: Literal["tied", "separate", "none"] = field(
        default="tied",
        metadata={
            "help": "Gate per token: a further output of the same network (`tied`, published scripts), a network of "
            "its own (`separate`), or `none`."
        },
    )
    rtn_init: Literal["xavier", "zero_out"] = field(
        default="xavier",
        metadata={"help": "`xavier` (published code), or `zero_out`: training starts as joint training does (ours)."},
    )
    rtn_detach_input: bool = field(
        default=True,
        metadata={
            "help": "Stop the gradient at the RTN's input, so that the source loss reaches the encoder by the skip "
            "connection alone (published code)."
        },
    )
    rtn_lr: float = field(default=1e-6, metadata={"help": "Peak learning rate of the RTN, >= 0 (published scripts)."})
    rtn_weight_decay: float = field(
        default=5e-4, metadata={"help": "L2 decay in the RTN's gradient, >= 0 (published code)."}
    )
    rtn_warmup_ratio: float = field(
        default=0.1, metadata={"help": "Share of updates in which the RTN's rate rises, in [0, 1] (published code)."}
    )
    rtn_max_grad_norm: float = field(
        default=0.0, metadata={"help": "Clip the meta gradient to this norm; 0 does not (published code)."}
    )
    target_batch_size: int | None = field(
        default=None,
        metadata={"help": "Target examples per device and micro-batch, >= 1. Unset: as many as source examples."},
    )
    portion: int = field(
        default=2,
        metadata={
            "help": "1/portion of each target batch trains the model and the rest is the meta loss, >= 2 (published "
            "code)."
        },
    )
    inner_target_loss: bool = field(
        default=True,
        metadata={
            "help": "Train the model on source and target (published code); off: on the source alone, with whole "
            "target batches as meta loss."
        },
    )
    batch_split: Literal["position", "first"] = field(
        default="position",
        metadata={
            "help": "Which part of a target batch trains the model: every portion-th example (ours, the same for any "
            "number of processes), or the `first` ones (published code)."
        },
    )
    target_resplit: bool = field(
        default=True,
        metadata={
            "help": "Split the target examples anew in each pass over them (published code); off: an example is for "
            "ever in one part."
        },
    )
    loss_reduction: Literal["sum", "mean"] = field(
        default="sum", metadata={"help": "Source and target loss are added (published code) or averaged (ours)."}
    )
    source_sampling: Literal["mixed", "uniform", "proportional", "temperature", "exp3"] = field(
        default="mixed",
        metadata={
            "help": "With several source languages: batches of all (`mixed`, published code), or of one language per "
            "update, drawn with equal chance, by size, by size ** (1 / sampling_temperature), or by a bandit on the "
            "meta loss (`exp3`, MetaXLR)."
        },
    )
    sampling_temperature: float = field(
        default=2.0, metadata={"help": "T of source_sampling temperature, > 0; 1 is by size. Ours."}
    )
    exp3_gamma: float = field(default=0.01, metadata={"help": "Exploration of exp3, in (0, 1] (MetaXLR's code)."})
    exp3_reward_scale: float = field(
        default=2.5, metadata={"help": "Meta loss that is the full reward of exp3, > 0 (MetaXLR's code)."}
    )
    diagnostics: bool = field(
        default=False,
        metadata={
            "help": "After training, measure how far source and target representations are apart with and without "
            "RTN, and draw them into representations.png (needs matplotlib)."
        },
    )
    diagnostics_examples: int = field(
        default=100, metadata={"help": "Examples of each side for diagnostics, >= 2. Ours."}
    )
    save_rtn: bool = field(
        default=False,
        metadata={"help": "Also save the RTN beside the model, in rtn/; the model itself never needs it."},
    )

    def __post_init__(self) -> None:
        """Validate the settings of MetaXL together, then the rest."""
        problems = choice_problems(self, MetaXLConfig) + range_problems(self) + combination_problems(self)
        if problems:
            raise ConfigError(f"{'; '.join(problems)}.")
        if self.method != "metaxl" and self.baseline == "published":
            self.max_grad_norm = 0.0
        super().__post_init__()

    @property
    def bilevel(self) -> bool:
        """Whether the RTN is trained by a meta gradient."""
        return self.method == "metaxl" and self.hypergrad != "none"

    @property
    def trains_on_target_alone(self) -> bool:
        """Whether the main loader goes through the target examples, by which epochs are then counted."""
        return self.method == "target_only" and self.baseline == "published"

    @property
    def places(self) -> list[int | str]:
        """Where the RTN's slots are."""
        return list(self.rtn_modules or self.rtn_layers)

    @property
    def target_size(self) -> int:
        """Target examples per device and micro-batch."""
        return self.target_batch_size or self.per_device_train_batch_size

    @property
    def split_portion(self) -> int | None:
        """1/portion of a target batch trains the model; None when none of it does, or all of it in a baseline."""
        whole = self.method != "metaxl" and self.baseline == "published"
        return None if whole or not self.inner_target_loss else self.portion

    @property
    def loss_shares(self) -> tuple[float, float]:
        """Weights of the source and the target loss that train the model."""
        if self.method == "target_only":
            return 0.0, 1.0
        if not self.inner_target_loss:
            return 1.0, 0.0
        published = self.method == "joint" and self.baseline == "published"
        return (0.5, 0.5) if published or self.loss_reduction == "mean" else (1.0, 1.0)
