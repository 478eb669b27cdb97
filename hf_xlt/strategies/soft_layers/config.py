"""`SoftLayerSelectionConfig`: how the gates are learned and used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from hf_xlt.errors import ConfigError
from hf_xlt.strategies.soft_layers.checks import parse_map, parse_values, problems_of
from hf_xlt.training.config import XLTConfig


@dataclass
class SoftLayerSelectionConfig(XLTConfig):
    """Settings of soft layer selection, besides those of `XLTConfig`.

    The paper's body could not be read: no default is a published value. `ours` marks our choice; what was measured is
    said with it.

    Raises:
        ConfigError: values are out of range or contradict each other; the message lists all of them.
    """

    LOCAL_FILES: ClassVar[tuple[str, ...]] = ("gates",)

    mode: Literal["trajectory", "episodic", "online"] = field(
        default="trajectory",
        metadata={
            "help": "`trajectory`: learn the gates along a fine-tuning run, then fine-tune again from the pre-trained "
            "weights with them; `episodic`: the same, but learn them in episodes that all start from the pre-trained "
            "weights; `online`: learn them in the one run whose model is kept. Ours; on a planted task online is "
            "clearly worse."
        },
    )
    gate_type: Literal["constant", "table", "mlp", "recurrent"] = field(
        default="constant",
        metadata={
            "help": "`constant`: one gate per layer group; `table`: one per group and part of training; `mlp` and "
            "`recurrent`: a small network shared by all groups computes them from gradient and weight norms (needs "
            "inner_steps 1). Ours."
        },
    )
    granularity: Literal["layer", "sublayer", "tensor", "uniform"] = field(
        default="layer",
        metadata={
            "help": "What has a gate: each `layer`, its attention and the rest apart (`sublayer`), each `tensor`, or "
            "everything together (`uniform`), the control that tells selecting layers from tuning a rate. Ours."
        },
    )
    inner_steps: int = field(
        default=1,
        metadata={
            "help": "k, updates between two query batches, >= 1. Learning costs 1 + 1/k of plain training. Above 1 "
            "read what the audit says."
        },
    )
    meta_gradient: Literal["first_order", "exact"] = field(
        default="first_order",
        metadata={
            "help": "Gate gradients over several updates: `first_order` drops the curvature, `exact` goes back "
            "through the updates with a Hessian-vector product each (4 plain steps per update, and the weights of "
            "every one in memory). With inner_steps 1 first_order is exact."
        },
    )
    meta_learning_rate: float = field(
        default=0.1, metadata={"help": "Learning rate of the gates' Adam, >= 0. Ours, measured on a planted task."}
    )
    auxiliary_batch_size: int | None = field(
        default=None,
        metadata={"help": "Examples of a query batch, over all processes, >= 1. Unset: as many as an update has."},
    )
    auxiliary_schedule: Literal["round_robin", "sampled"] = field(
        default="round_robin", metadata={"help": "Which auxiliary language gives the next query batch."}
    )
    query_dropout: bool = field(
        default=False, metadata={"help": "Leave dropout on in query passes. Off, the gate gradients vary less."}
    )
    init_logit: float | None = field(
        default=None,
        metadata={
            "help": "Start of every gate's logit, which is also the prior. Unset: 0 (gate 0.5), or 2 (0.88) online."
        },
    )
    gate_maximum: float = field(default=1.0, metadata={"help": "Largest gate, > 0; 1 is the plain learning rate."})
    gate_temperature: float = field(default=1.0, metadata={"help": "Temperature of the sigmoid, > 0."})
    gate_normalization: Literal["none", "mean_one"] = field(
        default="none",
        metadata={
            "help": "`mean_one` rescales gates to a mean of 1, weighted by the groups' sizes: selection only, the "
            "overall rate stays as set. Against the bias of short horizons towards small steps."
        },
    )
    gradient_normalization: Literal["raw", "cosine"] = field(
        default="raw",
        metadata={
            "help": "`cosine` divides each gate's gradient by the norms of query gradient and update. Adam already "
            "takes out most differences of size."
        },
    )
    prior_weight: float = field(
        default=0.0, metadata={"help": "Weight of the squared distance of the logits from their start, >= 0."}
    )
    freezing_bonus: float = field(
        default=0.0, metadata={"help": "Weight of the sum of the gates in the objective, >= 0: closes undecided ones."}
    )
    table_bins: int = field(default=10, metadata={"help": "Parts of training that a table tells apart, >= 1."})
    gate_hidden: int = field(default=16, metadata={"help": "Hidden units of mlp and recurrent gates, 1 to 64."})
    always_open: list[str] = field(
        default_factory=lambda: ["head"],
        metadata={
            "help": "Groups without a gate (shell patterns): a new head needs its full rate. `none` gates all of them."
        },
    )
    separate_word_embeddings: bool = field(
        default=True,
        metadata={"help": "Give word embeddings, often half of all weights, a gate apart from other embeddings."},
    )
    layer_groups: str | None = field(
        default=None,
        metadata={
            "help": "JSON object of regular expressions of parameter names to groups, where the groups that are found "
            "do not fit."
        },
    )
    audit_episodes: int = field(
        default=2,
        metadata={
            "help": "With several inner steps and first_order: so many episodes of the run, evenly spaced, whose gate "
            "gradient is also computed exactly; a warning says where they disagree. 0 is none. Each takes about three "
            "times as long as another episode."
        },
    )
    gate_updates: int | None = field(
        default=None,
        metadata={"help": "Updates of the phase that learns the gates, >= 1. Unset: as many as fine-tuning makes."},
    )
    gates: str | None = field(
        default=None,
        metadata={
            "help": "A gates.json, or the directory of the run that learned it: fine-tune with these gates and learn "
            "none.",
        },
    )
    interpolate_gates: bool = field(
        default=False, metadata={"help": "Let a model of another depth take `gates` by relative depth."}
    )
    gate_values: str | None = field(
        default=None,
        metadata={
            "help": "Fix gates: a number for all groups, head included, or a JSON object from groups (shell patterns) "
            "to numbers, others 1. Learn none."
        },
    )
    profile: Literal["learned", "gradual_unfreezing", "layerwise_decay", "auto_rgn", "freeze_bottom"] = field(
        default="learned",
        metadata={
            "help": "Rivals that need no auxiliary labels, in place of learned gates: `gradual_unfreezing` (ULMFiT), "
            "`layerwise_decay` of the learning rate, `auto_rgn` (surgical fine-tuning), `freeze_bottom`."
        },
    )
    layer_decay: float = field(
        default=0.9, metadata={"help": "Factor per layer from the top of layerwise_decay, in [0, 1]."}
    )
    frozen_layers: int = field(
        default=3, metadata={"help": "Lowest layers that freeze_bottom freezes, >= 0, besides the embeddings."}
    )
    unfreezing_share: float = field(
        default=0.5, metadata={"help": "Share of training after which gradual_unfreezing has opened all, in (0, 1]."}
    )
    shuffle_gates: bool = field(
        default=False,
        metadata={
            "help": "Permute learned gates over the groups before fine-tuning with them: the control that tells which "
            "layers from how much."
        },
    )
    hard_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Freeze groups for real whose constant gate is below this, in the final fine-tuning; where they "
            "reach from the embeddings up, updates get cheaper."
        },
    )

    def __post_init__(self) -> None:
        """Validate the gates' settings together, then the rest."""
        if self.always_open == ["none"]:
            self.always_open = []
        problems = problems_of(self, SoftLayerSelectionConfig)
        if problems:
            raise ConfigError(f"{'; '.join(problems)}.")
        super().__post_init__()

    @property
    def learns(self) -> bool:
        """Whether gates are learned from auxiliary languages."""
        return self.gates is None and self.gate_values is None and self.profile == "learned"

    @property
    def first_logit(self) -> float:
        """Start of every gate's logit."""
        if self.init_logit is not None:
            return self.init_logit
        return 2.0 if self.mode == "online" else 0.0

    @property
    def patterns(self) -> dict[str, str]:
        """Regular expressions of parameter names to groups."""
        return parse_map(self.layer_groups) if self.layer_groups else {}

    @property
    def fixed_values(self) -> dict[str, float] | float | None:
        """The gates of `gate_values`."""
        return None if self.gate_values is None else parse_values(self.gate_values)

    @property
    def gate_options(self) -> dict[str, Any]:
        """How gates are made, as `GatesFile.options`."""
        return {
            "maximum": self.gate_maximum,
            "temperature": self.gate_temperature,
            "bins": self.table_bins,
            "hidden": self.gate_hidden,
            "mean_one": self.gate_normalization == "mean_one",
        }

    @property
    def grouping(self) -> dict[str, Any]:
        """How groups are found, as `GatesFile.grouping`."""
        return {
            "granularity": self.granularity,
            "separate_word_embeddings": self.separate_word_embeddings,
            "patterns": self.patterns,
        }
