"""`MetaPretrainingTrainer`: one phase of pre-training on masked tokens, translation pairs and a teacher's states.

The name follows the paper; there is no inner loop. A pre-training is a sequence of such trainers, each with its own
optimizer and schedule.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_xlt.errors import ConfigError
from hf_xlt.launch import is_first_process
from hf_xlt.pretraining.batches import BatchNumbers, Layout, PhaseBatches, PhaseText, batch_loader
from hf_xlt.pretraining.evaluation import held_out_losses
from hf_xlt.pretraining.meter import Meter
from hf_xlt.pretraining.objectives import (
    IGNORED,
    contrastive_losses,
    distillation_losses,
    hidden_states,
    masked_lm_loss,
    sentence_vectors,
)
from hf_xlt.pretraining.plan import CONTRASTIVE, DISTILL, DISTILL_TOKENS, Phase
from hf_xlt.pretraining.stream_states import StreamStates
from hf_xlt.pretraining.teacher import Places, Teacher, keep_states
from hf_xlt.strategies.meta_pretraining.carry import CarriedMoments
from hf_xlt.strategies.meta_pretraining.config import PHASE_FIELDS, REFUSALS, MetaPretrainingConfig
from hf_xlt.strategies.meta_pretraining.embeddings_first import EmbeddingsFirst
from hf_xlt.strategies.meta_pretraining.fit import (
    check_distillation,
    check_model,
    check_whole,
    first_position,
    pooling_of,
)
from hf_xlt.strategies.meta_pretraining.unseen_rows import UnseenRows
from hf_xlt.training.trainer import XLTTrainer
from hf_xlt.training.window import UpdateWindow

_MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


class MetaPretrainingTrainer(XLTTrainer):
    """Trains one phase.

    The loss of an update is sum_o w_o L_o over the objectives o: L_mlm and L_tlm are means over the masked tokens of
    the whole update, L_contrastive is the mean over its translation pairs, L_distill the mean over its texts plus
    `token_weight` times the mean over the tokens that student and teacher have in common. The negatives of a pair are
    those of its micro-batch on its device, so the contrastive loss depends on how an update is split; the others do
    not.
    """

    config_cls = MetaPretrainingConfig
    refusals = REFUSALS
    settings_of_phases = dict.fromkeys(
        PHASE_FIELDS, "the trainer makes one phase, as its argument `phase` and the fields of `TrainingArguments` say."
    )
    # What is held out has no labels.
    evaluates_labels = False

    def __init__(
        self,
        *args: Any,
        phase: Phase,
        text: PhaseText,
        phase_index: int = 0,
        steps_before: int = 0,
        moments: CarriedMoments | None = None,
        **kwargs: Any,
    ) -> None:
        """Build the trainer of one phase; other arguments as for `XLTTrainer`.

        Args:
            *args: as for `Trainer`.
            phase: objectives, mixture and masking; its steps are `args.max_steps`.
            text: what it reads.
            phase_index: its number in the run, for logs and checkpoints.
            steps_before: updates of the phases before it, for the logs.
            moments: those of the phase before, under `optimizer_carry`.
            **kwargs: as for `XLTTrainer`. `processing_class` must be the tokenizer.

        Raises:
            ConfigError: model, tokenizer and phase do not fit together.
        """
        if text.held_out and kwargs.get("eval_dataset") is None:
            kwargs["eval_dataset"] = dict(text.held_out)
        super().__init__(*args, **kwargs)
        self.phase, self.phase_index, self.steps_before = phase, phase_index, steps_before
        own = self.args
        layout = Layout(own.per_device_train_batch_size, own.row_length, own.process_index, own.world_size)
        check_model(self.model, self.processing_class, own.row_length)
        lost = own.max_failed_shards
        self.batches = PhaseBatches(phase, text, self.processing_class, own.seed, layout, lost)
        self.streams = StreamStates(text, own.process_index, own.world_size, own.dataloader_num_workers, lost)
        self.weights = phase.weights
        self.pooling = pooling_of(self.args.pooling, self.bare_model().config)
        # A teacher's vector is a mean; the student's own head may read another place, which then has to hold it too.
        self.poolings = ("mean", self.pooling) if self.args.pooling == "auto" else (self.pooling,)
        self.poolings = tuple(dict.fromkeys(self.poolings))
        self.teacher: Teacher | None = None
        self._teacher_hash: str | None = None
        if DISTILL in phase.objectives:
            check_distillation(phase, self.bare_model().config, text.teacher.tokenizer, bool(text.held_out))
        self._meter = Meter()
        self.unseen = UnseenRows(phase, text, self.processing_class)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            check_whole(phase)
        else:
            self.add_callback(self.unseen)
            self.add_callback(moments or CarriedMoments(phase))
        if phase.embedding_warmup_steps:
            self.add_callback(EmbeddingsFirst(phase.embedding_warmup_steps))

    # ---- Data

    def get_train_dataloader(self) -> DataLoader:
        """Return the phase's batches for this process, in order; the stock resume skips by number."""
        workers = self.args.dataloader_num_workers
        count = self.args.max_steps * self.args.gradient_accumulation_steps
        if self.batches.distillation is not None and self.teacher is None:
            self._follow_teacher(count * self.args.world_size)
        numbers = BatchNumbers(self.batches, count, workers, self.streams.readers)
        pinned = self.args.dataloader_pin_memory and self.args.device.type == "cuda"
        return batch_loader(numbers, workers, self.args.dataloader_prefetch_factor, pinned)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Fetch the micro-batches of one update and count masked tokens per objective, and pairs, over all of them.

        Returns:
            The micro-batches, and the units as a (K,) tensor: masked tokens of each objective, then pairs.
        """
        start = time.perf_counter()
        batches = self.streams.take([next(epoch_iterator) for _ in range(num_batches)])
        self._meter.waited += time.perf_counter() - start
        counts = self._over_processes(sum(map(self._units, batches)).to(device))
        if self.streams.shards:
            self.streams.check(self._over_processes(self.streams.count().to(device)))
        self.window = UpdateWindow(self.args.seed, self.state.global_step, counts.clamp(min=1.0))
        return batches, self.window.units

    def _follow_teacher(self, slots: int) -> None:
        """Load the teacher, and have its states of all texts that are drawn at hand."""
        own, phase, texts = self.args, self.phase, self.batches.distillation
        self.teacher = Teacher(phase.teacher, own.device, self.compute_loss_context_manager)
        self._teacher_hash = self.teacher.fingerprint()
        precision = "bfloat16" if own.bf16 else "float16" if own.fp16 else "float32"
        waiting = self.accelerator.wait_for_everyone
        places = Places(Path(own.output_dir), own.process_index, own.world_size, waiting, precision)
        width = self.bare_model().config.get_text_config().hidden_size
        texts.cache, line = keep_states(self.teacher, texts, slots, self.batches.texts_per_batch, width, phase, places)
        if is_first_process():
            print(f"Phase {phase.name}: {line}", flush=True)  # noqa: T201

    def _over_processes(self, counts: Tensor) -> Tensor:
        return self.accelerator.reduce(counts, reduction="sum") if self.args.world_size > 1 else counts

    def _units(self, batch: Mapping[str, Any]) -> Tensor:
        kinds = range(len(self.phase.masked))
        counts = [float(batch["labels"][batch["objective"] == kind].ne(IGNORED).sum()) for kind in kinds]
        if "pair_numbers" in batch:
            counts.append(float(len(batch["pair_numbers"])))
        if "text_input_ids" in batch:
            counts.append(float(len(batch["text_input_ids"])))
            counts += [float(batch["state_mask"].sum())] if DISTILL_TOKENS in self.weights else []
        return torch.tensor(counts)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Do one micro-batch's forward and backward pass; frozen rows keep no gradient."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.unseen.mask_gradients()
        return loss

    # ---- Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """Compute sum_o w_o L_o, this micro-batch's share of it, times the number of processes.

        Args:
            model: wrapped or bare.
            inputs: a batch of `PhaseBatches`.
            return_outputs: not supported; the model's outputs are not kept.
            num_items_in_batch: (K,) units of the update.

        Returns:
            Scalar loss.
        """
        units = self._units(inputs).clamp(min=1.0) if num_items_in_batch is None else num_items_in_batch
        scales = torch.tensor(list(self.weights.values()), device=units.device) / units
        bare, loss = self.bare_model(), torch.zeros((), device=units.device)
        if "labels" in inputs:
            chosen = {name: inputs[name] for name in _MODEL_INPUTS if name in inputs}
            if "position_ids" in chosen:
                chosen["position_ids"] = chosen["position_ids"] + first_position(bare)
            rows = scales[inputs["objective"].to(scales.device)]
            masked = masked_lm_loss(model, bare, chosen, inputs["labels"], rows, self.args.chunk_rows)
            self._meter.add("masked", masked, inputs["input_ids"].numel())
            loss = loss + masked
        if "pair_numbers" in inputs:
            pairs = self._contrastive(model, bare, inputs).sum() * scales[list(self.weights).index(CONTRASTIVE)]
            self._meter.add("contrastive", pairs, int(inputs["pair_attention_mask"].sum()))
            loss = loss + pairs
        if "text_input_ids" in inputs:
            loss = loss + self._distillation(model, bare, inputs, scales)
        return loss * self.args.world_size

    def _contrastive(self, model: nn.Module, bare: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        sides = {"input_ids": inputs["pair_input_ids"], "attention_mask": inputs["pair_attention_mask"]}
        left, right = sentence_vectors(model, bare, sides, self.pooling).chunk(2)
        numbers = inputs["pair_numbers"]
        return contrastive_losses(left, right, self.phase.temperature, numbers[:, None] == numbers[None, :])

    def _distillation(self, model: nn.Module, bare: nn.Module, inputs: dict[str, Any], scales: Tensor) -> Tensor:
        sides = {"input_ids": inputs["text_input_ids"], "attention_mask": inputs["text_attention_mask"]}
        if "missing" in inputs:
            self.teacher.complete(inputs, self.batches.distillation)
        hidden = hidden_states(model, bare, sides)
        texts, tokens = distillation_losses(hidden, inputs, self.phase.match, self.poolings)
        names, read = list(self.weights), int(sides["attention_mask"].sum())
        loss = texts.sum() * scales[names.index(DISTILL)]
        self._meter.add(DISTILL, loss, read)
        if tokens is not None:
            part = tokens.sum() * scales[names.index(DISTILL_TOKENS)]
            self._meter.add(DISTILL_TOKENS, part, 0)
            loss = loss + part
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Sequence[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Compute the masked-LM loss per language on held-out documents, with the same masks each time.

        Args:
            eval_dataset: documents by language; None takes those held out.
            ignore_keys: not used.
            metric_key_prefix: prefix of every key.

        Returns:
            `<prefix>_<language>_loss`, and `<prefix>_avg_loss` over languages.
        """
        documents = self.eval_dataset if eval_dataset is None else eval_dataset
        losses = held_out_losses(self, documents or {})
        metrics = {f"{metric_key_prefix}_{language}_loss": value for language, value in losses.items()}
        if losses:
            metrics[f"{metric_key_prefix}_avg_loss"] = sum(losses.values()) / len(losses)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def phase_facts(self) -> dict[str, Any]:
        """Return the masked-LM loss on held-out documents and the skipped shards per language, if there are any."""
        facts: dict[str, Any] = {"skipped_shards": dict(self.streams.skipped)} if self.streams.skipped else {}
        if self.eval_dataset:
            losses = held_out_losses(self, self.eval_dataset)
            facts["held_out_loss"] = {language: round(value, 4) for language, value in losses.items()}
        return facts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the phase, the update over all phases, parts of the loss, speed, unseen rows and skipped shards."""
        if "loss" in logs:
            logs |= self._meter.read(self.args.world_size, self.args.gradient_accumulation_steps)
            logs |= self.unseen.log_entries() | self.streams.log_entries()
        step = self.steps_before + self.state.global_step
        super().log({**logs, "phase": self.phase.name, "total_step": step}, start_time)

    # ---- State

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the phase's definition and how far its text is read."""
        rows = self.batches.rows_before(self.state.global_step * self.args.gradient_accumulation_steps)
        return {}, {
            "phase": self.phase.definition(),
            "phase_index": self.phase_index,
            "fingerprint": self.phase.fingerprint(),
            **({"teacher": self._teacher_hash} if self._teacher_hash else {}),
            "shares": self.batches.shares,
            "rows": rows,
            "tokens": {
                code: count * self.batches.body for code, count in self.batches.rows_per_language(rows).items()
            },
        }

    def load_strategy_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Check that the phase is the same, and restore the streams.

        Raises:
            ConfigError: the phase's definition changed, or streamed text meets another number of readers under
                `strict_resume`.
            RunError: the streams' state is damaged.
        """
        changed = self.phase.changes_from(values["phase"])
        if changed and not self.args.allow_phase_change:
            raise ConfigError(
                f"phase `{self.phase.name}` was started with another definition (changed: {', '.join(changed)}). "
                "Restore it, or resume with `allow_phase_change`."
            )
        if values.get("teacher") != self._teacher_hash and not self.args.allow_phase_change:
            raise ConfigError(
                f"phase `{self.phase.name}` was started with another teacher: the weights in `{self.phase.teacher}` "
                "have changed. Restore them, or resume with `allow_phase_change`."
            )
        self.streams.load(self._extra_state.folder, self.args.strict_resume)

    def save_process_state(self, folder: Path) -> None:
        """Write where this process's streams are."""
        self.streams.save(folder)
