"""The layer groups of a run and where their gates come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_xlt.errors import ConfigError, one_line, setting
from hf_xlt.modelling.trial import kind_of
from hf_xlt.strategies.soft_layers.config import SoftLayerSelectionConfig
from hf_xlt.strategies.soft_layers.gates import make_gates
from hf_xlt.strategies.soft_layers.gates_file import GatesFile
from hf_xlt.strategies.soft_layers.groups import HEAD, LayerGroups, find_groups, layer_number, matches
from hf_xlt.strategies.soft_layers.source import ComputedGates, FixedGates, GateSource, ProfileGates


@dataclass
class GateSetup:
    """What is gated, and by what.

    Attributes:
        groups: all layer groups.
        gated: those with a gate, in order; the others are open.
        source: gives their gates.
        learns: whether the gates are learned.
        file: where the gates came from, if from a file.
        members: the tensors of each gated group.
        frozen: groups that are frozen for real.
    """

    groups: LayerGroups
    gated: tuple[str, ...]
    source: GateSource
    learns: bool
    file: GatesFile | None
    members: list[list[Tensor]]
    frozen: tuple[str, ...] = ()
    _named: dict[str, Tensor] = field(default_factory=dict)
    _loss: Tensor | None = None

    @classmethod
    def make(
        cls,
        model: nn.Module,
        config: SoftLayerSelectionConfig,
        file: GatesFile | None,
        group_of: Callable[[str], str | None] | None,
    ) -> GateSetup:
        """Find the groups of a model and the gates that a config asks for.

        Raises:
            ConfigError: no layer is found, no group has a gate, or given gates do not fit the model.
        """
        apart = [] if config.fixed_values is not None else config.always_open if file is None else file.open_groups
        grouping = config.grouping if file is None else file.grouping
        groups = find_groups(model, **grouping, group_of=group_of, apart=apart)
        if file is None and config.fixed_values is None and group_of is None and not grouping["patterns"]:
            _check_layers(model, groups, grouping["granularity"])
        for pattern in apart if file is None else ():
            if pattern != HEAD and not any(matches(name, [pattern]) for name in groups.names):
                raise ConfigError(
                    f"`always_open`: no group is called {pattern!r}; there are {', '.join(groups.names)}."
                )
        gated = tuple(name for name in groups.names if not matches(name, apart))
        if not gated:
            raise ConfigError("every layer group is in `always_open`, so there is no gate; leave some out.")
        named = dict(model.named_parameters())
        source, learns = _source(config, file, groups, gated)
        members = [[named[name] for name in groups.members[group]] for group in gated]
        setup = cls(groups, gated, source, learns, file, members, _named=named)
        if config.hard_threshold is not None and not learns:
            setup._freeze(config.hard_threshold)
        return setup

    def _freeze(self, threshold: float) -> None:
        values = self.source.choose(0.0, self.members) if not isinstance(self.source, ProfileGates) else []
        closed = [name for name, value in zip(self.gated, values, strict=bool(values)) if value < threshold]
        for name in closed:
            for parameter in self.groups.members[name]:
                self._named[parameter].requires_grad_(False)
        self.frozen = tuple(closed)

    def trained(self) -> tuple[list[Tensor], list[int]]:
        """Return all trained tensors and the number of each one's group."""
        index = self.groups.index_of()
        found = [(tensor, index[name]) for name, tensor in self._named.items() if tensor.requires_grad]
        return [tensor for tensor, _ in found], [number for _, number in found]

    def group_numbers(self) -> dict[int, int]:
        """Return the number of each trained tensor's group, by its identity."""
        index = self.groups.index_of()
        return {id(self._named[name]): number for name, number in index.items()}

    def gated_numbers(self) -> list[int]:
        """Return the numbers of the gated groups among all."""
        return [self.groups.names.index(name) for name in self.gated]

    def spread(self, values: Sequence[float]) -> list[float]:
        """Return the gates of all groups from those of the gated ones; the others are open."""
        own: Mapping[str, float] = dict(zip(self.gated, values, strict=True))
        return [own.get(name, 1.0) for name in self.groups.names]

    def choose(self, progress: float) -> list[float]:
        """Return the gates of all groups for the update at hand."""
        return self.spread(self.source.choose(progress, self.members))

    # ---- The source loss, for gates that look at it

    @property
    def needs_loss(self) -> bool:
        """Whether gates are computed from features of the update."""
        return isinstance(self.source, ComputedGates) and self.source.gates.needs_features

    def add_loss(self, loss: Tensor, first: bool) -> None:
        """Add a micro-batch's share of the update's loss."""
        self._loss = loss.detach() if first or self._loss is None else self._loss + loss.detach()

    def settle_loss(self, accelerator: Any, processes: int) -> None:
        """Let the gates see the update's loss, the same on every process."""
        loss = torch.zeros(()) if self._loss is None else self._loss.float()
        if processes > 1:
            loss = accelerator.reduce(loss, reduction="mean")
        self.source.loss = float(loss)


@contextmanager
def trial(model: nn.Module, config: SoftLayerSelectionConfig, batch: Mapping[str, Any]) -> Iterator[None]:
    """Find the groups and gates that a run would begin with, before the pass that is made inside.

    Raises:
        ConfigError: as `GateSetup.make`; or the model gives no query gradient in evaluation mode.
    """
    GateSetup.make(model, config, GatesFile.read(config.gates) if config.gates else None, None)
    if config.learns and not config.query_dropout:
        _try_query(model, batch)
    yield


def _try_query(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Refuse models that can be differentiated in training mode alone (Reformer), before updates are made.

    Raises:
        ConfigError: the model is one.
    """
    looked_up: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        looked_up.append(output.detach().requires_grad_())
        return looked_up[-1]

    try:
        # Reversible layers give no gradient to their weights unless one goes through them to their input.
        hook = model.get_input_embeddings().register_forward_hook(keep)
    except (AttributeError, NotImplementedError):
        # Characters are looked up in several tables (CANINE): layers of that kind are not reversible.
        return
    training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            outputs = model(**batch).to_tuple()
            loss = sum(part.float().sum() for part in outputs if isinstance(part, Tensor))
            if looked_up:
                torch.autograd.grad(loss, looked_up[0], allow_unused=True)
    except (AssertionError, RuntimeError) as error:
        if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
            raise
        raise ConfigError(
            f"{kind_of(model)} gives no gradient without dropout ({one_line(error).rstrip('.')}). Set "
            f"{setting('query_dropout')}, or choose another model."
        ) from error
    finally:
        hook.remove()
        model.train(training)


def _check_layers(model: nn.Module, groups: LayerGroups, granularity: str) -> None:
    """Refuse to select among layers where there are none: a single gate would stand for all of the encoder.

    Raises:
        ConfigError: the grouping is by layer, and no group is one.
    """
    if granularity in ("layer", "sublayer") and all(layer_number(name) is None for name in groups.names):
        raise ConfigError(
            f"no layers are found in `{type(model).__name__}`: no module list is as long as its config says it is "
            "deep, or all layers share their weights (ALBERT). Set `granularity` to `tensor` or `uniform`, or name "
            "groups with `layer_groups`."
        )


def _source(
    config: SoftLayerSelectionConfig, file: GatesFile | None, groups: LayerGroups, gated: Sequence[str]
) -> tuple[GateSource, bool]:
    sizes = [groups.sizes[name] for name in gated]
    if config.fixed_values is not None:
        return FixedGates(config.fixed_values, gated), False
    if config.profile != "learned":
        own = {"decay": config.layer_decay, "layers": config.frozen_layers, "share": config.unfreezing_share}
        return ProfileGates(config.profile, gated, **own), False
    if file is not None:
        seed = config.seed if config.shuffle_gates else None
        gates = file.build(gated, sizes, interpolate=config.interpolate_gates, shuffle_seed=seed)
        return ComputedGates(gates.requires_grad_(False), gated), False
    options = config.gate_options
    weights = sizes if options.pop("mean_one") else None
    gates = make_gates(config.gate_type, len(gated), init=config.first_logit, weights=weights, **options)
    return ComputedGates(gates, gated), True
