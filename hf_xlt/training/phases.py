"""A run as a list of phases; a plain strategy has one.

Each phase is one `Trainer.train()` with its own optimizer, schedule and checkpoints, in
`output_dir/phase-<i>-<name>/`, or directly in `output_dir` when there is only one. `phases.json` is replaced after a
phase's final model is complete, so a killed run never skips a phase nor repeats a finished one.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_xlt.errors import ConfigError, Interrupted, RunError, one_line, setting
from hf_xlt.files import sync_file, sync_folder, write_json
from hf_xlt.modelling.saving import save_final
from hf_xlt.modelling.trial import kind_of
from hf_xlt.models import ModelError, is_adapted, readable_errors
from hf_xlt.training.averaged import add_averaging, put_average
from hf_xlt.training.checkpoints import newest_complete, remove_incomplete, step_of
from hf_xlt.training.interruption import InterruptionCallback, InterruptionFlag

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_xlt.averaging.arguments import AverageArguments
    from hf_xlt.registry import Strategy
    from hf_xlt.tasks import Task
    from hf_xlt.training.trainer import XLTTrainer

# What a model raises that cannot take part in a computation.
_UNFIT = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)

LEDGER_NAME = "phases.json"
FINAL_NAME = "final"
TRAIN = "train"
TRAINING, SHOTS, OWN = "training", "shots", "own"


@runtime_checkable
class LeavesFiles(Protocol):
    """A trainer that leaves files of its own beside a phase's model; the last phase's lie in the run's directory."""

    def leave_files(self, folder: Path) -> None:
        """Write them; called on the first process, after the model is saved."""


@dataclass(frozen=True)
class RunPhase:
    """One training of a run.

    Attributes:
        name: part of its folder's name.
        build: makes its trainer from the context, the phase's folder, and the model folder that the phase before
            left (None for the first).
        fingerprint: hash of what defines the phase; a finished phase may not be defined otherwise on resuming. None
            where the run's arguments, which are compared as a whole, say it all.
        updates: how many updates it makes; None where that depends on the training data.
        examples: what its loader counts: the run's `TRAINING`, its `SHOTS`, or `OWN`, which never runs out.
        cost: cost of one update in plain fine-tuning steps, from the number of auxiliary languages; None where the
            registry's `cost` of an update holds.
    """

    name: str
    build: Callable[[RunContext, Path, Path | None], XLTTrainer]
    fingerprint: str | None = None
    updates: int | None = None
    cost: Callable[[int], float] | None = None
    examples: str = TRAINING


@dataclass
class RunContext:
    """What phases are built from.

    Attributes:
        strategy: registry entry.
        config: the run's config; phases copy it.
        task: the task; None for a pre-training without one.
        tokenizer: tokenizer of the run's encoder.
        load_model: loads the run's encoder, or the model in a folder, with the task's head.
        training: features to train on.
        validation: features to select on, by language.
        source_languages: languages that `eval_avg_*` averages over.
        joint: few-shot features by language for joint training; empty otherwise.
        roles: features by role and language for what the strategy draws from beside the main loader.
        compute_metrics: the task's metrics.
        flag: whether a signal asked the run to stop.
        patience: evaluations without progress before stopping early, or None.
        extra_callbacks: further callbacks, made anew for every phase.
        load_masked_lm: loads the run's encoder, or the model in a folder, with its masked-LM head.
        averaging: what the run averages; None leaves that to the strategy.
        select_on_target_validation: whether target-language labels may select.
    """

    strategy: Strategy
    config: Any
    task: Task | None
    tokenizer: PreTrainedTokenizerBase
    load_model: Callable[[Path | None], PreTrainedModel]
    training: Any
    validation: Mapping[str, Any]
    source_languages: Sequence[str]
    joint: Mapping[str, Any]
    roles: Mapping[str, Mapping[str, Any]]
    compute_metrics: Any
    flag: InterruptionFlag
    patience: int | None = None
    extra_callbacks: Callable[[], list[TrainerCallback]] = list
    load_masked_lm: Callable[[Path | None], PreTrainedModel] | None = None
    averaging: AverageArguments | None = None
    select_on_target_validation: bool = False

    def config_for(self, folder: Path, **changes: Any) -> Any:
        """Copy the run's config for one phase.

        Args:
            folder: the phase's folder.
            **changes: fields that differ, as already resolved values.
        """
        config = copy.copy(self.config)
        config.output_dir = str(folder)
        for name, value in changes.items():
            setattr(config, name, value)
        return config

    def build_trainer(
        self, trainer_cls: type[XLTTrainer], config: Any, model: PreTrainedModel, **changes: Any
    ) -> XLTTrainer:
        """Make a trainer with everything that phases share.

        Args:
            trainer_cls: its class.
            config: of the phase.
            model: to train.
            **changes: constructor arguments that differ.

        Raises:
            ConfigError: the settings cannot be used together, or need a package that is not installed.
        """
        if is_adapted(model) and config.ddp_find_unused_parameters is None:
            # Every adapter takes part in every pass. The Trainer's choice for a model that is not of `transformers` is
            # to search for unused parameters, which takes time and fails under reentrant activation checkpointing.
            config.ddp_find_unused_parameters = False
        callbacks = [InterruptionCallback(self.flag), *self.extra_callbacks()]
        if self.patience is not None:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=self.patience))
        arguments = {
            "model": model,
            "args": config,
            "data_collator": self.task.collator(self.tokenizer) if self.task else None,
            "train_dataset": self.training,
            "eval_dataset": dict(self.validation) or None,
            "processing_class": self.tokenizer,
            "compute_metrics": self.compute_metrics,
            "callbacks": callbacks,
            "source_languages": self.source_languages,
            "joint_datasets": self.joint,
            "role_datasets": self.roles,
            "select_on_target_validation": self.select_on_target_validation,
            "in_phases": True,
        }
        try:
            return trainer_cls(**{**arguments, **changes})
        except ConfigError:
            raise
        except (ValueError, ImportError) as error:
            raise ConfigError(str(error)) from error
        except RuntimeError as error:
            # Reporting callbacks say so of a package that is not installed.
            if "to be installed" not in str(error):
                raise
            raise ConfigError(str(error)) from error

    def phases(self) -> Sequence[RunPhase]:
        """Return the strategy's phases."""
        if self.strategy.phases:
            return self.strategy.phases(self.config)
        return [RunPhase(TRAIN, single_phase(self.strategy.trainer_cls))]

    def tokenizer_of(self, folder: Path | None) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the model that a phase left, or the run's."""
        from transformers import AutoTokenizer

        if folder is None:
            return self.tokenizer
        with readable_errors(str(folder)):
            return AutoTokenizer.from_pretrained(folder)


def single_phase(trainer_cls: type[XLTTrainer]) -> Callable[[RunContext, Path, Path | None], XLTTrainer]:
    """Return what builds a phase that trains the task with the run's own settings."""

    def build(context: RunContext, folder: Path, previous: Path | None) -> XLTTrainer:
        return context.build_trainer(trainer_cls, context.config_for(folder), context.load_model(previous))

    return build


@dataclass
class Ledger:
    """Which phases are done; lies in `phases.json`.

    Attributes:
        folder: the run's output directory.
        done: name, updates, seconds, training loss of each finished phase.
    """

    folder: Path
    done: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """Read a run's ledger; a run without one has no phase done.

        Raises:
            RunError: it is damaged.
        """
        path = folder / LEDGER_NAME
        if not path.is_file():
            return cls(folder)
        try:
            return cls(folder, json.loads(path.read_text(encoding="utf-8"))["phases"])
        except (ValueError, KeyError) as error:
            raise RunError(
                f"`{path}` is damaged; delete the run, or start anew with {setting('overwrite')}."
            ) from error

    def add(self, entry: dict[str, Any]) -> None:
        """Mark a phase as done, atomically."""
        self.done.append(entry)
        write_json(self.folder / LEDGER_NAME, {"phases": self.done})


def phase_folders(phases: Sequence[RunPhase], folder: Path) -> list[tuple[Path, Path]]:
    """Return each phase's folder and the folder of its final model."""
    if len(phases) == 1:
        return [(folder, folder)]
    own = [folder / f"phase-{index}-{phase.name}" for index, phase in enumerate(phases)]
    return [(path, path / FINAL_NAME) for path in own]


def run_phases(
    context: RunContext, folder: Path, resume: bool, only: str | None = None
) -> tuple[XLTTrainer | None, Ledger]:
    """Train all phases that are not done yet; the last one's model ends in `folder`.

    Args:
        context: what phases are built from.
        folder: the run's output directory; it exists.
        resume: continue from the newest complete checkpoint of the phase that was cut short.
        only: name of the one phase to train now; those before it must be done. None trains all.

    Returns:
        The last phase's trainer, or None when every phase was done before; and the ledger.

    Raises:
        ConfigError: a finished phase is now defined otherwise, or a phase before `only` is not done.
        Interrupted: a signal stopped the run; its checkpoint is saved.
        RunError: training failed in a way that the message explains.
    """
    phases, ledger, trainer, previous = context.phases(), Ledger.read(folder), None, None
    for index, (phase, (own, final)) in enumerate(zip(phases, phase_folders(phases, folder), strict=True)):
        if index < len(ledger.done):
            check_finished(phase.name, phase.fingerprint, ledger.done[index])
            _check_kept(phase, final)
            previous = final
            continue
        if only not in (None, phase.name):
            if only in [later.name for later in phases[index + 1 :]]:
                raise ConfigError(
                    f"phase `{only}` continues from `{phase.name}`, which is not done; train that first."
                )
            break
        trainer = _build(context, phase, own, previous)
        averaging = add_averaging(context, trainer, folder) if index == len(phases) - 1 else None
        entry = _train(trainer, phase, own, resume)
        if averaging is not None:
            entry |= put_average(averaging, trainer, folder, _save)
        if trainer.args.should_save:
            final.mkdir(parents=True, exist_ok=True)
            _save(trainer, final)
            if index == len(phases) - 1 and final != folder:
                _publish(final, folder)
            ledger.add(entry)
        else:
            ledger.done.append(entry)
        trainer.accelerator.wait_for_everyone()
        previous = final
    return trainer, ledger


def _save(trainer: XLTTrainer, folder: Path) -> None:
    """Save a phase's model; adapters are merged into it and lie beside it as well."""
    model = trainer.bare_model()
    if is_adapted(model):
        from hf_xlt.adapters import ADAPTER_NAME, merged

        save_final(merged(model), trainer.processing_class, folder, {ADAPTER_NAME: model})
    else:
        save_final(model, trainer.processing_class, folder)
    if isinstance(trainer, LeavesFiles):
        trainer.leave_files(folder)


def check_finished(name: str, fingerprint: str | None, done: dict[str, Any]) -> None:
    """Refuse to build on a finished phase that is defined otherwise by now.

    Args:
        name: what the phase at this place is called now.
        fingerprint: hash of its definition now.
        done: its entry in the ledger.

    Raises:
        ConfigError: its name or its definition changed.
    """
    if (done["name"], done.get("fingerprint")) != (name, fingerprint):
        raise ConfigError(
            f"phase `{done['name']}` is finished, and its definition has changed since. Restore it, or start anew in "
            f"another {setting('output_dir')}."
        )


def _check_kept(phase: RunPhase, final: Path) -> None:
    if not (final / "config.json").is_file():
        raise ConfigError(
            f"phase `{phase.name}` is finished, but its model is not in `{final}`. A run of one phase keeps its model "
            "elsewhere; to add phases to it, start a new run from its model."
        )


def _build(context: RunContext, phase: RunPhase, folder: Path, previous: Path | None) -> XLTTrainer:
    try:
        return phase.build(context, folder, previous)
    except ModelError as error:
        if previous is None or error.path != str(previous):
            raise
        # It is the run's own work: there is nowhere to copy it from.
        raise RunError(
            f"the model that the phase before `{phase.name}` left in `{previous}` {error.problem.rstrip('.')}. Delete "
            f"`{folder.parent}`, or start anew with {setting('overwrite')}."
        ) from error


def _train(trainer: XLTTrainer, phase: RunPhase, folder: Path, resume: bool) -> dict[str, Any]:
    checkpoint = None
    if resume:
        removed = remove_incomplete(folder) if trainer.args.should_save else []
        trainer.accelerator.wait_for_everyone()
        checkpoint = newest_complete(folder)
        if trainer.args.should_save:
            _tell_resume(checkpoint, removed)
    start = time.monotonic()
    try:
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except _UNFIT as error:
        ours = isinstance(error, (ConfigError, RunError, torch.OutOfMemoryError, torch.AcceleratorError))
        if ours or checkpoint or trainer.state.global_step or trainer.args.world_size > 1:
            raise
        raise ConfigError(
            f"{kind_of(trainer.bare_model())} cannot be trained by {type(trainer).__name__}: the first update fails "
            f"({type(error).__name__}: {one_line(error).rstrip('.')}). Choose another model or "
            f"another {setting('strategy')}."
        ) from error
    finally:
        # A signal from here on stops at once: there is nothing left to save.
        _end_of_training(trainer)
    if any(cb.stopped for cb in trainer.callback_handler.callbacks if isinstance(cb, InterruptionCallback)):
        step = trainer.state.global_step
        raise Interrupted(f"stopped after update {step} of {trainer.state.max_steps}; `checkpoint-{step}` is saved.")
    return {
        "name": phase.name,
        "updates": output.global_step,
        **({"updates_asked": asked} if (asked := trainer.state.max_steps) > output.global_step else {}),
        "resumed_from": step_of(checkpoint) if checkpoint else None,
        "seconds": round(time.monotonic() - start, 2),
        "training_loss": output.training_loss,
        "selected_checkpoint": _selected(trainer),
        **({"fingerprint": phase.fingerprint} if phase.fingerprint else {}),
        **trainer.phase_facts(),
    }


def _tell_resume(checkpoint: Path | None, removed: Sequence[Path]) -> None:
    """Say where a run goes on, and which checkpoints were too damaged to go on from."""
    for folder in removed:
        print(f"Note: `{folder.name}` is incomplete or damaged; it was removed.", file=sys.stderr)  # noqa: T201
    place = f"after `{checkpoint.name}`" if checkpoint else "from the start: there is no complete checkpoint"
    print(f"Resuming {place}.", file=sys.stderr, flush=True)  # noqa: T201


def _end_of_training(trainer: XLTTrainer) -> None:
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, InterruptionCallback):
            callback.flag.training = False


def _selected(trainer: XLTTrainer) -> int | None:
    best = trainer.state.best_model_checkpoint
    return step_of(Path(best)) if trainer.args.load_best_model_at_end and best else None


def _publish(final: Path, folder: Path) -> None:
    """Copy the last phase's model to the run's directory, each file beside and then renamed."""
    for path in sorted(final.rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(final)
            target.parent.mkdir(exist_ok=True)
            part = target.with_name(f".{path.name}.part")
            shutil.copy2(path, part)
            sync_file(part)
            os.replace(part, target)
            sync_folder(target.parent)
