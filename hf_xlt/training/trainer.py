"""`XLTTrainer`: the stock Trainer with exact loss scaling, sealed checkpoints and evaluation per language.

Departures from `transformers.Trainer`, each for a reason:
- The task loss is a sum over units divided by the units of the whole update: the heads of BERT-like models ignore
  `num_items_in_batch`, which scales loss and gradients by the number of micro-batches and processes.
- A checkpoint is sealed after everything is in it, and older ones are deleted only then.
- Evaluation over languages is one pass over their concatenation, sorted by length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import EvalPrediction
from transformers.trainer_utils import has_length
from transformers.utils import logging

from hf_xlt.errors import ConfigError, RunError
from hf_xlt.languages import find_same
from hf_xlt.modelling.seen_rows import SeenRows
from hf_xlt.training.checkpoints import newest_complete, rotate, seal, unseal
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.embedding_rows import check_trainer, cut_for_training
from hf_xlt.training.languages import example_lengths, join_languages, language_metrics, names_beside_logits
from hf_xlt.training.loaders import EndlessLoader, concatenate_batches
from hf_xlt.training.losses import (
    IGNORED,
    batch_size,
    count_group_units,
    count_units,
    labels_of,
    mean_loss,
    per_example_losses,
)
from hf_xlt.training.refusals import (
    EVAL,
    check_arguments,
    check_label_smoothing,
    check_precision,
    check_refusals,
    check_selection,
    check_settings_of_phases,
    missing_metric,
    source_languages_of,
    with_selected,
)
from hf_xlt.training.reloading import ReloadingTrainer
from hf_xlt.training.sampling import EpochLengthSampler
from hf_xlt.training.state import ExtraState
from hf_xlt.training.stock_settings import check_start, check_used
from hf_xlt.training.updates import check_data, check_loader, check_made
from hf_xlt.training.window import UpdateWindow

JOINT = "few-shot"

logger = logging.get_logger(__name__)


class XLTTrainer(ReloadingTrainer):
    """Base of every strategy's trainer.

    A subclass overrides the smallest hook: `compute_loss` when the loss changes, `training_step` when there are
    several backward passes (then it calls `self.window.advance()` at its end), `strategy_state` and
    `load_strategy_state` when it trains something besides the model.
    """

    # Read by the stock `training_step`: our losses are already normalised over the whole update.
    loss_is_scaled_for_ga = True
    # Class of `args`; combinations that the strategy refuses; settings that only the phases of a run carry out, each
    # with what to do in their place; whether `eval_dataset` holds labels by language, which may select.
    config_cls: ClassVar[type] = XLTConfig
    refusals: ClassVar[Sequence[Any]] = ()
    settings_of_phases: ClassVar[Mapping[str, str]] = {}
    evaluates_labels: ClassVar[bool] = True

    def __init__(
        self,
        *args: Any,
        source_languages: Sequence[str] = (),
        joint_datasets: Mapping[str, Any] | None = None,
        role_datasets: Mapping[str, Mapping[str, Any]] | None = None,
        select_on_target_validation: bool = False,
        in_phases: bool = False,
        **kwargs: Any,
    ) -> None:
        """Build a trainer; other arguments as for `transformers.Trainer`.

        Args:
            *args: as for `Trainer`.
            source_languages: keys of `eval_dataset` that `eval_avg_*` averages over; the others are targets. May be
                empty where `eval_dataset` is one data set, or holds one language, which then is the source.
            joint_datasets: few-shot data per target language; every update then takes a batch of each besides the
                source batch, and the loss is the mean over languages (Schmidt et al. 2023, joint few-shot protocol).
            role_datasets: data sets by role and language that the strategy draws from beside the main loader
                (`endless_loader`).
            select_on_target_validation: let a metric of target languages select; the result is then an oracle's.
            in_phases: the trainer is one phase of a run, whose other phases carry out the settings it does not.
            **kwargs: as for `Trainer`.

        Raises:
            ConfigError: `args` is of another class or has settings that would be ignored, `eval_dataset` holds
                several languages and none is said to be a source, target labels would select, `nn.DataParallel` would
                be used, or a joint data set is empty.
        """
        config = kwargs.get("args", args[1] if len(args) > 1 else None)
        check_arguments(type(self), config)
        check_refusals(type(self), self._refused_by(config, kwargs))
        check_precision(config)
        check_start(config)
        self.in_phases = in_phases
        if not in_phases:
            self._check_alone(config, {**kwargs, "joint_datasets": joint_datasets})
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ConfigError(
                f"one process sees {self.args.n_gpu} GPUs. Start one process per GPU with `accelerate launch` or "
                "`torchrun`, or show it a single one with CUDA_VISIBLE_DEVICES."
            )
        # A class that passes labels on among others (Qwen 3.5) does not name them, and the stock Trainer drops them.
        self.label_names = self.label_names or ["labels"]
        # Counting units and scaling is done below; the model is never given `num_items_in_batch`.
        self.model_accepts_loss_kwargs = False
        check_label_smoothing(self.args, getattr(self.model, "config", None), self.label_names)
        self.select_on_target_validation = select_on_target_validation
        self.source_languages = tuple(source_languages)
        if self.evaluates_labels:
            self.source_languages = source_languages_of(self.eval_dataset, source_languages)
            check_selection(self)
        self.joint_datasets = dict(joint_datasets or {})
        self.role_datasets = {role: dict(datasets) for role, datasets in (role_datasets or {}).items()}
        self._loaders: dict[tuple[str, str], EndlessLoader] = {}
        self.window: UpdateWindow | None = None
        self._extra_state = ExtraState(self)
        self._ran_dry = False
        self.embedding_rows: SeenRows | None = None
        self.add_callback(self._extra_state)
        check_trainer(self)

    def _check_alone(self, config: Any, arguments: Mapping[str, Any]) -> None:
        """Refuse what only the phases of a run carry out; `arguments` are the trainer's own."""
        check_settings_of_phases(type(self), config)
        check_used(config)

    def _refused_by(self, config: Any, arguments: Mapping[str, Any]) -> Any:
        """Return the config as the strategy's refusals are to see it; `arguments` are the trainer's own."""
        return config

    # ---- Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train`; a checkpoint's extra state is restored with it.

        Args:
            resume_from_checkpoint: a checkpoint folder, or True for the newest complete one in `output_dir`.
            *args: as `Trainer.train`.
            **kwargs: as `Trainer.train`.

        Raises:
            ConfigError: there is no batch to train on, or target labels would select.
            RunError: the loss became non-finite, there is no complete checkpoint to resume from, or fewer updates
                were made than asked for.
        """
        if self.evaluates_labels:
            check_selection(self)
        check_data(self.args, self.train_dataset)
        if resume_from_checkpoint is True:
            newest = newest_complete(Path(self.args.output_dir))
            if newest is None:
                raise RunError(f"`{self.args.output_dir}` holds no complete checkpoint to resume from.")
            resume_from_checkpoint = str(newest)
        self._extra_state.resume_from(resume_from_checkpoint)
        self._ran_dry = False
        with cut_for_training(self) as self.embedding_rows:
            output = self._train_rows(resume_from_checkpoint, *args, **kwargs)
        stopped = check_made(self.state, self.control, self._ran_dry)
        if stopped and self.is_world_process_zero() and not self._extra_state.interrupted():
            logger.warning(stopped)
        return output

    def _train_rows(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train`, on the rows of word embeddings that are held meanwhile."""
        return super().train(*args, **kwargs)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple:
        """Count updates as `Trainer` does, from a loader that has at least one batch."""
        check_loader(args, dataloader, self.train_dataset)
        return super().set_initial_training_values(args, dataloader)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer 5.23 checks for the end only after an update, so a run resumed at its last update would do one more.
        if self._extra_state.training_was_over or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        before = self.state.global_step
        super()._run_epoch(*args, **kwargs)
        if self.state.global_step == before:
            # The next epoch would make none either; with data of unknown length there is no last one.
            self._ran_dry = self.control.should_training_stop = True

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "group_by_length" and has_length(dataset):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            update = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            return EpochLengthSampler(example_lengths(dataset).tolist(), update, seed)
        return super()._get_train_sampler(train_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Return the micro-batches of one update, and its units over all of them and all processes: (K,) by group."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and self.args.world_size > 1:
            self._ignore_repeated(batches[-1])
        window = UpdateWindow(self.args.seed, self.state.global_step, torch.zeros(1))
        batches = [self._extend(batch, number, window) for number, batch in enumerate(batches)]
        counts = torch.zeros(1 + len(self.joint_datasets), dtype=torch.float32, device=device)
        for batch, group in zip(batches, window.groups, strict=True):
            counts += count_group_units(batch, group, len(counts)).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        # An update without a single valid label has loss 0, not 0/0.
        window.units = counts.clamp(min=1.0)
        self.window = window
        return batches, window.units

    def _ignore_repeated(self, batch: dict[str, Any]) -> None:
        """Take the label from examples that Accelerate repeats to fill an epoch's last batch on every process."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return
        for labels in labels_of(batch).values():
            place = self.args.process_index * self._train_batch_size + torch.arange(len(labels), device=labels.device)
            if not labels.is_floating_point():
                labels[place >= state.remainder] = IGNORED

    def _extend(self, batch: dict[str, Any], number: int, window: UpdateWindow) -> dict[str, Any]:
        size = batch_size(batch)
        slot = number * self.args.world_size + self.args.process_index
        rows = torch.arange(size) + slot * self._train_batch_size
        if not self.joint_datasets:
            window.groups.append(None)
            window.rows.append(rows)
            return batch
        window_size = self.args.gradient_accumulation_steps * self.args.world_size * self._train_batch_size
        start = window.update * window_size + slot * self._train_batch_size
        drawn = [
            self.endless_loader(JOINT, language).draw(start, self._train_batch_size)
            for language in self.joint_datasets
        ]
        joint_rows = torch.arange(self._train_batch_size) + slot * self._train_batch_size
        window.rows.append(torch.cat([rows, *[joint_rows] * len(drawn)]))
        sizes = torch.tensor([size, *[self._train_batch_size] * len(drawn)])
        window.groups.append(torch.repeat_interleave(torch.arange(len(sizes)), sizes))
        device = next(value.device for value in batch.values() if isinstance(value, Tensor))
        drawn = [{key: other[key].to(device) for key in batch} for other in drawn]
        side = getattr(self.processing_class, "padding_side", "right")
        return concatenate_batches([batch, *drawn], self._pad_values(), side)

    def endless_loader(self, role: str, language: str) -> EndlessLoader:
        """Return the endless loader of one role and language; its draws are functions of a position alone.

        Raises:
            KeyError: no such data were given.
        """
        if (role, language) not in self._loaders:
            dataset = self.joint_datasets[language] if role == JOINT else self.role_datasets[role][language]
            collate = self._get_collator_with_removed_columns(self.data_collator, description=role)
            self._loaders[role, language] = EndlessLoader(
                dataset, collate, seed=self.args.seed, role=role, language=language
            )
        return self._loaders[role, language]

    def _pad_values(self) -> dict[str, int]:
        pad = getattr(self.processing_class, "pad_token_id", None)
        return {"input_ids": pad if pad is not None else 0, "labels": IGNORED}

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Do one micro-batch's forward and backward pass.

        Returns:
            Detached scalar: this micro-batch's share of the update's loss, times the number of processes.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.window.advance()
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the task loss: sum over units / units of the whole update, times the number of processes.

        Args:
            model: wrapped or bare.
            inputs: one batch; it is not changed.
            return_outputs: also return the model's outputs.
            num_items_in_batch: (K,) units of the update per language group; None (evaluation) means this batch's.

        Returns:
            Scalar loss, or (loss, outputs).
        """
        labels = labels_of(inputs)
        if self.compute_loss_func is not None or not labels:
            return super().compute_loss(model, dict(inputs), return_outputs, num_items_in_batch)
        outputs = model(**{key: value for key, value in inputs.items() if key not in labels})
        loss = self._normalised_loss(outputs, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _normalised_loss(self, outputs: Any, labels: dict[str, Tensor], units: Tensor | None) -> Tensor:
        config = self._bare_config()
        if units is None:
            units, scale = count_units(labels).float().clamp(min=1.0).reshape(1), 1
        else:
            scale = self.args.world_size
        if units.numel() > 1:
            group = self.window.group.to(units.device)
            weights = 1.0 / (units * units.numel())
            smoothing = self.args.label_smoothing_factor
            return (per_example_losses(outputs, labels, config, smoothing) * weights[group]).sum() * scale
        if self.label_smoother is not None and "labels" in labels:
            return self.label_smoother(outputs, labels["labels"], num_items_in_batch=units[0]) * scale
        return mean_loss(outputs, labels, config, units[0]) * scale

    def losses_per_example(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Run the model and return each example's summed loss, without label smoothing.

        Args:
            model: wrapped or bare.
            inputs: one batch with labels; it is not changed.

        Returns:
            (B,) float32.

        Raises:
            ConfigError: the batch has no labels.
        """
        labels = labels_of(inputs)
        if not labels:
            raise ConfigError("this strategy needs labels in every training batch.")
        outputs = model(**{key: value for key, value in inputs.items() if key not in labels})
        return per_example_losses(outputs, labels, self._bare_config())

    def bare_model(self) -> nn.Module:
        """Return the model without DDP or compilation wrappers."""
        return self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)

    def _bare_config(self) -> Any:
        return self.bare_model().config

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer.log`, and stop at a loss that is not finite.

        Raises:
            RunError: the training loss is NaN or infinite.
        """
        super().log(logs, start_time)
        for name in ("loss", "train_loss"):
            if name in logs and not math.isfinite(logs[name]):
                raise RunError(
                    f"the training loss is {logs[name]} at update {self.state.global_step}. Lower the learning "
                    "rate or the perturbation, check `max_grad_norm`, or use bf16 in place of fp16."
                )

    # ---- Evaluation

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate; a dict of languages is scored in one pass and averaged.

        Args:
            eval_dataset: one data set (as `Trainer.evaluate`) or `{language: data set}`.
            ignore_keys: as `Trainer.evaluate`.
            metric_key_prefix: prefix of every key.

        Returns:
            `<prefix>_<language>_<metric>`, `<prefix>_avg_<metric>` over source languages when there are any, and
            `<prefix>_target_avg_<metric>` over the others when there are any. `on_evaluate` is called once.

        Raises:
            ConfigError: there are several languages and none is said to be a source; or, in training, there is no
                metric of the name to select by.
        """
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(datasets, dict):
            return self._with_metric(super().evaluate(eval_dataset, ignore_keys, metric_key_prefix))
        languages = source_languages_of(datasets, self.source_languages)
        start = time.time()
        predictions = self.predict_languages(datasets, ignore_keys)
        per_language = {
            language: language_metrics(prediction, self.compute_metrics, self._bare_config())
            for language, prediction in predictions.items()
        }
        metrics = {
            f"{metric_key_prefix}_{language}_{name}": value
            for language, values in per_language.items()
            for name, value in values.items()
        }
        sources = [code for code in per_language if find_same(code, languages)]
        groups = {"avg": sources, "target_avg": [code for code in per_language if code not in sources]}
        for group, members in groups.items():
            for name in per_language[members[0]] if members else ():
                values = [per_language[language][name] for language in members]
                metrics[f"{metric_key_prefix}_{group}_{name}"] = sum(values) / len(values)
        seconds = time.time() - start
        count = sum(len(dataset) for dataset in datasets.values())
        metrics[f"{metric_key_prefix}_runtime"] = round(seconds, 4)
        metrics[f"{metric_key_prefix}_samples_per_second"] = round(count / max(seconds, 1e-9), 3)
        metrics = self._with_metric(with_selected(metrics, self.args.metric_for_best_model, metric_key_prefix))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _with_metric(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return the metrics of an evaluation; in training they must hold the one to select by."""
        asked = self.args.metric_for_best_model
        if self.is_in_train and asked is not None and f"{EVAL}{asked.removeprefix(EVAL)}" not in metrics:
            raise missing_metric(metrics, asked)
        return metrics

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Evaluate a batch as `Trainer.prediction_step`; keep nothing but the logits unless `ignore_keys` is given.

        Returns:
            Loss, logits and labels.
        """
        if ignore_keys is not None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with names_beside_logits(model, getattr(self.model, "config", None)) as ignored:
            return super().prediction_step(model, inputs, prediction_loss_only, ignored)

    def predict_languages(
        self, datasets: Mapping[str, Any], ignore_keys: list[str] | None = None
    ) -> dict[str, EvalPrediction]:
        """Predict several languages in one pass over their length-sorted concatenation.

        Args:
            datasets: map-style data sets by language; none empty.
            ignore_keys: outputs to leave out.

        Returns:
            Per language the logits and labels in the order of its data set.
        """
        joined = join_languages(datasets)
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            # The test loader: Trainer caches evaluation loaders by name when workers are persistent. It would also
            # drop an incomplete last batch.
            output = self.evaluation_loop(
                self.get_test_dataloader(joined.dataset),
                description="Evaluation",
                prediction_loss_only=False,
                ignore_keys=ignore_keys,
            )
        finally:
            self.compute_metrics, self.args.dataloader_drop_last = compute_metrics, drop_last
        return joined.split(output.predictions, output.label_ids)

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        # Trainer 5.23 shuffles evaluation under `group_by_length`; ours must keep its order.
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    # ---- Checkpoints

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what the strategy trains or counts besides the model: tensors, and JSON-able values."""
        return {}, {}

    def load_strategy_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `strategy_state` returned; called after the optimizer exists, before the first update."""

    def phase_facts(self) -> dict[str, Any]:
        """Return what the record is to say of this phase, JSON-able; called after training."""
        return {}

    def save_process_state(self, folder: Path) -> None:
        """Add to a checkpoint what each process has of its own; called on every process."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        others = unseal(folder) if self.args.should_save else frozenset()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.save_process_state(folder)
        if self.args.should_save:
            self._extra_state.write(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(folder, others)
            best = self.state.best_model_checkpoint
            rotate(folder.parent, limit, Path(best) if best else None)
