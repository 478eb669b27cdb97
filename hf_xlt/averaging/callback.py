"""`CheckpointAveragingCallback`: the mean of a run's snapshots, kept while it trains.

Source: Schmidt, Vulić and Glavaš (2023), "Free Lunch: Robust Cross-Lingual Transfer via Model Checkpoint Averaging";
their code averages ten checkpoints of a run after it, each counting the same, which is the default here. Unlike there
no checkpoint is kept for it: a running mean in float32 takes one copy of the trained weights, and what is frozen stays
as it is in the model.

It works in a stock `transformers.Trainer` and in those of this package.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_xlt.averaging.growing import GrowingAverage
from hf_xlt.averaging.model_folder import check_name, write_model
from hf_xlt.averaging.parameters import check_whole, named_weights, send_to_all, trained_names
from hf_xlt.averaging.schedule import LAST_K, UNIFORM, WEIGHTED, Schedule, interval_of
from hf_xlt.averaging.state_file import SCHEMA, STATE_NAME, check_state, find_state, write_state
from hf_xlt.averaging.summary import KEY
from hf_xlt.averaging.trajectory import early_snapshot_note
from hf_xlt.errors import ConfigError, RunError, setting

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_xlt.modelling.seen_rows import SeenRows

_NOT_FINITE = -1


def _check_choices(mode: str, weight_fn: Any, dtype: torch.dtype, output_name: str | None) -> None:
    if (mode == WEIGHTED) != (weight_fn is not None):
        raise ConfigError("`mode` weighted needs `weight_fn`, and no other mode takes it.")
    if dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"`dtype` is {dtype}; a mean is kept in torch.float32 or torch.float64.")
    check_name(output_name)


class CheckpointAveragingCallback(TrainerCallback):
    """Averages a run's snapshots while it trains, and puts the average into the model at the end.

    Snapshots are taken after optimizer steps, so gradient accumulation does not change their number. When training
    stops early the mean is over those that were taken. Checkpoints hold the state of the average; a run that was cut
    and resumed on a CPU ends with the same bits.

    Args:
        every: a share of all updates (0.1: ten snapshots), a number of updates, `"epoch"` or `"save"`. The last
            update counts in any case, once.
        mode: `uniform`; `weighted` (by `weight_fn`); `last_k`; `ema` (m ← β m + (1 - β) θ per snapshot).
        start: leave out earlier snapshots: up to 1 a share of all updates, beyond it an update.
        last_k: how many, with `last_k`; only these are sampled, so no copies are kept.
        ema_decay: β, with `ema`.
        weight_fn: an update's weight, finite and 0 or more, with `weighted`.
        device: where the mean lies.
        dtype: of the mean, float32 or float64.
        evaluate_average: evaluate the average instead of the weights in training; needs `attach`.
        swap_at_end: put the average into the model after training. None does, except where
            `load_best_model_at_end` has put the best checkpoint there.
        output_name: subfolder of `output_dir` for the averaged model; None writes none.
        strict_resume: refuse to resume without the state of the average; False warns and starts a new one.
        resume_from: folder of the checkpoint that training resumes from, where that is not in `output_dir`.
    """

    state_name = KEY
    # What the note on early snapshots advises.
    # The setting that leaves early snapshots out.
    start_name = "start"

    def __init__(
        self,
        every: float | int | str = 0.1,
        mode: str = UNIFORM,
        start: float = 0.0,
        last_k: int | None = None,
        ema_decay: float | None = None,
        weight_fn: Callable[[int], float] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        evaluate_average: bool = False,
        swap_at_end: bool | None = None,
        output_name: str | None = "averaged",
        strict_resume: bool = True,
        resume_from: str | Path | None = None,
    ) -> None:
        """Set up from the arguments of the class; nothing is allocated before the first snapshot.

        Raises:
            ConfigError: a value cannot be used, or two contradict each other.
        """
        self.schedule = Schedule(every, mode, start, last_k, ema_decay)
        self.schedule.check()
        _check_choices(mode, weight_fn, dtype, output_name)
        self.weight_fn, self.evaluate_average, self.swap_at_end = weight_fn, evaluate_average, swap_at_end
        self.output_name, self.strict_resume, self.resume_from = output_name, strict_resume, resume_from
        self._average = GrowingAverage(device, dtype, ema_decay)
        self._names: tuple[str, ...] = ()
        self._weights: dict[int, float] = {}
        self._step = 0
        self._kept_by_trainer = self._attached = self._in_training = self._is_applied = False
        self._to_resume: tuple[list[Path], bool] | None = None
        self._loaded: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """The updates whose snapshots are in the average so far, on the first process."""
        return tuple(self._average.steps)

    def tell(self, text: str) -> None:
        """Warn the user."""
        warnings.warn(text, UserWarning, stacklevel=3)

    # ---- Training

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        train_dataloader: Any = None,
        **kwargs: object,
    ) -> None:
        """Settle which updates count.

        Raises:
            ConfigError: weights are divided over processes, or the schedule does not fit the run.
        """
        check_whole(model, args)
        if self.evaluate_average and not self._attached:
            raise ConfigError("`evaluate_average` needs the trainer: call `callback.attach(trainer)` before training.")
        if self.evaluate_average and args.load_best_model_at_end:
            self.tell("`load_best_model_at_end` selects by the score of the average, which checkpoints do not hold.")
        self._names = trained_names(model)
        interval = interval_of(self.schedule.every, args, state, train_dataloader)
        self._weights = {step: self._weight(step) for step in self.schedule.steps(state.max_steps, interval)}
        self._step, self._in_training, self._kept_by_trainer = state.global_step, True, False
        if state.global_step == 0:
            self._average.clear()
            self._to_resume = self._loaded = None
            return
        given = args.resume_from_checkpoint
        places = [given if isinstance(given, str) else None, Path(args.output_dir) / f"checkpoint-{self._step}"]
        self._to_resume = ([Path(place) for place in (*places, self.resume_from) if place], args.process_index == 0)

    def _weight(self, step: int) -> float:
        weight = 1.0 if self.weight_fn is None else float(self.weight_fn(step))
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"`weight_fn` gives {weight} for update {step}; weights are finite and 0 or more.")
        return weight

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Go on from the checkpoint, when training resumes."""
        self._settle()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """Take a snapshot where one is due.

        Raises:
            RunError: weights that were frozen when training began have been opened since.
        """
        self._settle()
        self._step = state.global_step
        weight = self._weights.get(self._step, 0.0)
        if not weight or args.process_index != 0:
            return
        weights = named_weights(model)
        opened = sorted({name for name, value in weights.items() if value.requires_grad} - set(self._names))
        if opened:
            raise RunError(
                f"`{opened[0]}` was frozen when training began and is trained by update {self._step}, so there is no "
                "mean of it. Open all weights that are ever trained before training, or train without averaging."
            )
        self._average.add({name: weights[name] for name in self._names}, weight, self._step)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        processing_class: Any = None,
        **kwargs: object,
    ) -> None:
        """Write the averaged model, and leave it in memory where that was asked for.

        Raises:
            RunError: there is nothing that could be averaged.
        """
        self._settle()
        self._in_training = False
        if args.process_index == 0:
            self._tell_of_early_snapshots(args, state)
        has_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        stays = self.swap_at_end if self.swap_at_end is not None else not has_best
        if self.output_name is None and not stays:
            return
        if has_best and self.swap_at_end is None and self.output_name is not None and args.process_index == 0:
            self.tell(
                f"the best checkpoint is in memory, and the average in `{self.output_name}`. `swap_at_end=True` puts "
                "the average into memory, `swap_at_end=False` keeps the best one without this warning."
            )
        if stays:
            self.swap_in_for_good(model, args)
            self._write(model, processing_class, args)
        else:
            with self.applied(model, args, must=True):
                self._write(model, processing_class, args)

    def _write(self, model: nn.Module, processing_class: Any, args: TrainingArguments) -> None:
        if self.output_name is not None and args.process_index == 0:
            write_model(model, processing_class, Path(args.output_dir) / self.output_name)
        if args.world_size > 1:
            # The other processes may read it from here on.
            torch.distributed.barrier()

    def _tell_of_early_snapshots(self, args: TrainingArguments, state: TrainerState) -> None:
        """Say when the mean holds weights that were hardly trained."""
        if len(self.steps) > 1 and self.schedule.mode in (UNIFORM, WEIGHTED):
            warms_up = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) != "constant"
            warmup = args.get_warmup_steps(state.max_steps) if warms_up else 0
            note = early_snapshot_note(state.log_history, self.steps[0], setting(self.start_name, 0.2), warmup)
            if note is not None:
                self.tell(note)

    # ---- The average in the model

    def swap_in(self, model: nn.Module, args: TrainingArguments) -> bool:
        """Put the average so far into the model, on every process; buffers and frozen weights stay.

        Returns:
            Whether there is a snapshot; without one nothing is changed.

        Raises:
            RunError: a snapshot held NaN or infinity.
        """
        count = self._agreed_count(args)
        if count == _NOT_FINITE:
            raise RunError(
                "the average holds NaN or infinity: training diverged. Lower the learning rate; there is no average."
            )
        if count == 0:
            return False
        weights = named_weights(model)
        with torch.no_grad():
            for name in self._names:
                if args.process_index == 0:
                    weights[name].copy_(self._average.means[name])
                send_to_all(weights[name].data, args)
        return True

    def swap_in_for_good(self, model: nn.Module, args: TrainingArguments) -> None:
        """Put the average into the model after training; without a snapshot the model stays, with a warning.

        Raises:
            RunError: training ended before the first of the last k snapshots, or no snapshot weighs anything.
        """
        if self.swap_in(model, args):
            return
        if self.schedule.mode == LAST_K:
            raise RunError(
                f"training stopped after update {self._step}, before the first of the last {self.schedule.last_k} "
                f"snapshots (update {next(iter(self._weights))}), so there is no average. Take another mode or a "
                "longer training; the checkpoints are kept."
            )
        if self.schedule.mode == WEIGHTED:
            raise RunError("`weight_fn` gave every snapshot the weight 0, so there is no average.")
        if args.process_index == 0:
            self.tell("training ended before the first snapshot: the model is the last one, not an average.")

    @contextlib.contextmanager
    def applied(self, model: nn.Module, args: TrainingArguments, must: bool = False) -> Iterator[None]:
        """Hold the average in the model inside the block; the weights come back bit for bit, whatever happens there.

        Args:
            model: to change; called on every process.
            args: training arguments.
            must: training is over, so that a missing average is told of.
        """
        weights = named_weights(model)
        before = {name: weights[name].detach().clone() for name in self._names}
        self._is_applied = True
        try:
            self.swap_in_for_good(model, args) if must else self.swap_in(model, args)
            yield
        finally:
            self._is_applied = False
            with torch.no_grad():
                for name, value in before.items():
                    weights[name].copy_(value)

    def widen(self, rows: SeenRows) -> None:
        """Let the average hold the whole word embedding, of which training held some rows."""
        means = self._average.means
        if rows.name in means:
            means[rows.name] = rows.whole(means[rows.name]).to(self._average.device)

    def _agreed_count(self, args: TrainingArguments) -> int:
        """Return the number of snapshots, or that they are not finite, as the first process knows it."""
        count = torch.zeros(1, dtype=torch.int64, device=args.device)
        if args.process_index == 0:
            count += len(self.steps) if self._average.is_finite() else _NOT_FINITE
        send_to_all(count, args)
        return int(count)

    def attach(self, trainer: Trainer) -> CheckpointAveragingCallback:
        """Let a trainer's evaluations during training see the average, if `evaluate_average` is set.

        Before the first snapshot they see the weights in training.

        Args:
            trainer: stock or ours; the callback is added to it where it is not there yet.
        """
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._attached, evaluate = True, trainer.evaluate

        @functools.wraps(evaluate)
        def evaluate_average(*args: Any, **kwargs: Any) -> dict[str, float]:
            # The stock Trainer evaluates several data sets by calling itself.
            if not (self.evaluate_average and self._in_training) or self._is_applied:
                return evaluate(*args, **kwargs)
            self._settle()
            with self.applied(trainer.model, trainer.args):
                return evaluate(*args, **kwargs)

        trainer.evaluate = evaluate_average
        return self

    # ---- Checkpoints

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Put the state into the checkpoint that the stock Trainer has just written."""
        if self._kept_by_trainer:
            self._kept_by_trainer = False
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        # A hyper-parameter search saves elsewhere and never resumes.
        if args.process_index == 0 and folder.is_dir():
            write_state(folder, *self._state())

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state for a checkpoint of a Trainer of this package, which then keeps it."""
        self._kept_by_trainer = True
        return self._state()

    def load_strategy_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take the state of such a checkpoint; it is checked when training begins."""
        self._loaded = (tensors, values)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self._settle()
        tensors, values = self._average.state()
        count = len(values["steps"])
        return tensors, {"schema": SCHEMA, "step": self._step, "count": count, **values, **self._definition()}

    def _definition(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the one that was cut."""
        plan = hashlib.sha256(json.dumps(sorted(self._weights.items())).encode()).hexdigest()
        dtype = str(self._average.dtype).removeprefix("torch.")
        return {"settings": {**asdict(self.schedule), "dtype": dtype}, "plan": plan}

    def _settle(self) -> None:
        """Go on from the checkpoint; late, as the order of callbacks decides who restores first.

        Raises:
            RunError: the checkpoint holds no average, one of another update, or one that was defined otherwise.
        """
        if self._to_resume is None:
            return
        (folders, is_first), loaded = self._to_resume, self._loaded
        self._to_resume = self._loaded = None
        self._average.clear()
        if not is_first:
            return
        saved = loaded or find_state(folders, self._step)
        if saved is not None:
            check_state(*saved, self._step, self._definition(), self._names)
            self._average.restore(*saved)
        elif self.strict_resume:
            raise RunError(
                f"training resumes after update {self._step}, and there is no `{STATE_NAME}` of it, so the average of "
                "the updates before is lost. Resume from a checkpoint that has one, name its folder with "
                "`resume_from`, or start a new average with `strict_resume=False`."
            )
        else:
            self.tell(f"no `{STATE_NAME}` was found: the average holds snapshots after update {self._step} only.")
