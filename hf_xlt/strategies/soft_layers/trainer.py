"""`SoftLayerSelectionTrainer`: fine-tuning whose updates are gated by layer, with gates that are learned or known.

Source: Xu et al. (2021), from the abstract; the update rule is a reconstruction. With every gate at 1 each bit is that
of plain fine-tuning, learning or not: query passes leave weights, `.grad`, schedulers and the global random number
generators as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_xlt.errors import ConfigError, RunError
from hf_xlt.randomness import read_generators
from hf_xlt.strategies.soft_layers.checks import REFUSALS
from hf_xlt.strategies.soft_layers.config import SoftLayerSelectionConfig
from hf_xlt.strategies.soft_layers.episodes import Episode, load_passes, passes_file, save_passes
from hf_xlt.strategies.soft_layers.gates_file import GATES_NAME, GatesFile
from hf_xlt.strategies.soft_layers.gating import GatedOptimizer
from hf_xlt.strategies.soft_layers.learning import Learning
from hf_xlt.strategies.soft_layers.meta_gradient import check_differentiable
from hf_xlt.strategies.soft_layers.query import AUXILIARY
from hf_xlt.strategies.soft_layers.rates import check_optimizer
from hf_xlt.strategies.soft_layers.replay import MicroBatch
from hf_xlt.strategies.soft_layers.report import describe, leave_gates, movement_of
from hf_xlt.strategies.soft_layers.setup import GateSetup
from hf_xlt.strategies.soft_layers.source import ComputedGates
from hf_xlt.training.trainer import XLTTrainer


class SoftLayerSelectionTrainer(XLTTrainer):
    """Gates the update of each layer group; takes a `SoftLayerSelectionConfig`.

    While gates are learned, every k updates a query batch of an auxiliary language (`role_datasets["auxiliary"]`)
    gives the gate gradient, and Adam updates the gates. The optimizer and its schedule are the run's own.

    Attributes:
        setup: the layer groups and where their gates come from.
        learning: what learns them; None while they are known.
        start: copies on the CPU of the trained weights before the first update; None before training, and while gates
            are learned for another model or with a copy of the weights at hand.
        movement: how far each layer group went; None where there is no `start`.

    Raises:
        ConfigError: there are no auxiliary data to learn from, no group has a gate, given gates are of other groups,
            or the optimizer's learning rate cannot be gated.
    """

    config_cls = SoftLayerSelectionConfig
    refusals = REFUSALS
    settings_of_phases = {"gate_updates": "set `max_steps` to the updates that learn the gates."}

    def __init__(
        self,
        *args: Any,
        gates: GatesFile | None = None,
        group_of: Callable[[str], str | None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Build a trainer; other arguments as for `XLTTrainer`.

        Args:
            *args: as for `XLTTrainer`.
            gates: gates to fine-tune with; None learns them, or takes those that the config names.
            group_of: maps a parameter's name to its layer group, or to None to leave it to the rules.
            **kwargs: as for `XLTTrainer`.
        """
        self._given_gates = gates is not None
        super().__init__(*args, **kwargs)
        config: SoftLayerSelectionConfig = self.args
        file = GatesFile.read(config.gates) if gates is None and config.gates else gates
        self.setup = GateSetup.make(self.model, config, file, group_of)
        self.gated: GatedOptimizer | None = None
        self.learning: Learning | None = None
        self.start: dict[str, Tensor] | None = None
        self.movement: dict[str, Any] | None = None
        if self.setup.learns:
            if not self.role_datasets.get(AUXILIARY):
                raise ConfigError(
                    "there are no auxiliary languages to learn gates from: give labelled data of some in "
                    "`role_datasets['auxiliary']` (`auxiliary_dataset` of a run), or gates that are known (`gates`, "
                    "`gate_values`, `profile`)."
                )
            self.learning = Learning(self)
        self.add_callback(_AfterUpdate(self))

    def _refused_by(self, config: SoftLayerSelectionConfig, arguments: Mapping[str, Any]) -> SoftLayerSelectionConfig:
        if not self._given_gates:
            return config
        # Nothing is learned with gates that are given, whatever their source.
        known = copy.copy(config)
        known.gates = GATES_NAME
        return known

    def _check_alone(self, config: SoftLayerSelectionConfig, arguments: Mapping[str, Any]) -> None:
        super()._check_alone(config, arguments)
        if config.learns and not self._given_gates and config.mode != "online":
            raise ConfigError(
                f"`mode` {config.mode} learns gates and then fine-tunes again from the pre-trained weights with them, "
                "and `SoftLayerSelectionTrainer` alone makes one training, whose weights are not those. Set `mode` to "
                "online, give gates that are known (`gates`, `gate_values`, `profile`), or let `hf-xlt run --strategy "
                "soft-layers` make both."
            )

    # ---- Training

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer as `Trainer` does, one parameter group per layer group, and gate its steps.

        Raises:
            ConfigError: it was given from outside, or its learning rate cannot be gated.
        """
        if self.gated is not None:
            return self.optimizer
        if self.optimizer is not None:
            raise ConfigError("an optimizer that exists cannot be gated; name it by `optim` in the config.")
        optimizer = super().create_optimizer(model)
        check_optimizer(optimizer)
        if self.learning is not None and self.learning.goes_back:
            check_differentiable(type(optimizer))
        self.gated = GatedOptimizer(optimizer, self.setup.group_numbers(), self._choose)
        if isinstance(self.setup.source, ComputedGates):
            self.setup.source.momenta = optimizer.state
        return optimizer

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `XLTTrainer.train`.

        Raises:
            RunError: as there, or the checkpoint is of a run without gates.
        """
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise RunError(
                "the checkpoint's optimizer has other parameter groups than one per layer group: it is of a run "
                "without gates or with other groups. Start anew in another `output_dir`."
            ) from error

    def _train_rows(self, *args: Any, **kwargs: Any) -> Any:
        if self.start is None and self._tells_movement():
            trained = ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)
            self.start = {name: weight.detach().to("cpu", copy=True) for name, weight in trained}
        output = super()._train_rows(*args, **kwargs)
        if self.start is not None:
            # Now, while the word embedding holds the rows that its copy holds.
            self.movement = movement_of(self)
        return output

    def _tells_movement(self) -> bool:
        # Learning holds one copy of the weights at the most, and its model is thrown away unless it is online.
        config = self.args
        return self.learning is None or (config.mode == "online" and config.inner_steps == 1)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Do one micro-batch as `XLTTrainer.training_step`, and note what the gates look at."""
        window, place = self.window, self.window.current
        if self.learning is not None and self.learning.records():
            kept = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
            states = read_generators(self.args.device)
            self.learning.episode.passes.append(MicroBatch(self._prepare_inputs(kept), window, place, states))
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.setup.needs_loss:
            self.setup.add_loss(loss, first=place == 0)
        return loss

    @property
    def progress(self) -> float:
        """Share of training that is done, in [0, 1]."""
        return min(self.state.global_step / max(self.state.max_steps, 1), 1.0)

    def _choose(self) -> list[float]:
        """Return the gates of the update that is about to be made: one per layer group."""
        if self.setup.needs_loss:
            self.setup.settle_loss(self.accelerator, self.args.world_size)
        if self.learning is not None:
            return self.learning.before_update()
        return self.setup.choose(self.progress)

    def after_update(self) -> None:
        """Go on with the episode; called at the end of every update, with gradients cleared."""
        if self.learning is None or self.gated is None:
            return
        if not self.gated.stepped:
            # A gradient scaler passed over the update: what the episode did is not known.
            self.learning.episode = Episode()
            return
        self.gated.stepped = False
        self.learning.after_update()

    # ---- Log, files, checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `XLTTrainer.log`; with the training loss also every gate and their mean (`gates/<group>`).

        Raises:
            RunError: as there, or the gates of the processes have come apart.
        """
        if "loss" in logs and self.gated is not None and len(self.gated.gates):
            if self.learning is not None and self.args.world_size > 1:
                own = torch.tensor(self.gated.gates, dtype=torch.float32, device=self.args.device)
                if bool((self.accelerator.gather(own).reshape(-1, len(own)) != own).any()):
                    raise RunError("the gates of the processes have come apart; please report this.")
            values = dict(zip(self.setup.groups.names, self.gated.gates, strict=True))
            logs.update({f"gates/{name}": value for name, value in values.items()})
            logs["gates/mean"] = sum(values.values()) / len(values)
        super().log(logs, start_time)

    def leave_files(self, folder: Path) -> None:
        """Write `gates.json`, and plots where matplotlib is installed, beside a saved model."""
        leave_gates(self, folder)

    def phase_facts(self) -> dict[str, Any]:
        """Return what the record is to say: the gates, the evidence for each, the audit."""
        return {"soft_layers": describe(self)}

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the gates, their optimizer, the evidence, and the episode under way."""
        if self.learning is not None:
            return self.learning.state()
        if isinstance(self.setup.source, ComputedGates):
            return {f"gates/{name}": value for name, value in self.setup.source.gates.state_dict().items()}, {}
        return {}, {}

    def load_strategy_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `strategy_state` returned."""
        if self.learning is not None:
            path = passes_file(self._extra_state.folder, self.args.process_index)
            passes = load_passes(path, self.args.seed, self.args.device) if path.is_file() else []
            self.learning.load(tensors, values, passes)
        elif tensors:
            own = {name.removeprefix("gates/"): value for name, value in tensors.items()}
            self.setup.source.gates.load_state_dict(own)

    def save_process_state(self, folder: Path) -> None:
        """Write this process's examples of an episode that the checkpoint cuts short."""
        if self.learning is not None and self.learning.episode.steps:
            save_passes(passes_file(folder, self.args.process_index), self.learning.episode.steps)


class _AfterUpdate(TrainerCallback):
    """Tells the trainer that an update is done, before it is logged, evaluated and saved."""

    def __init__(self, trainer: SoftLayerSelectionTrainer) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.trainer.after_update()
