"""`MetaPretrainingTrainer`: one phase of pre-training on masked tokens and translation pairs.

The name follows the paper; there is no inner loop. A pre-training is a sequence of such trainers, each with its own
optimizer and schedule.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_xlt.errors import ConfigError, RunError
from hf_xlt.files import write_json
from hf_xlt.pretraining.batches import READER_STATE, BatchNumbers, Layout, PhaseBatches, PhaseText, batch_loader
from hf_xlt.pretraining.evaluation import held_out_losses
from hf_xlt.pretraining.meter import Meter
from hf_xlt.pretraining.objectives import IGNORED, base_model, contrastive_losses, masked_lm_loss, sentence_vectors
from hf_xlt.pretraining.plan import CONTRASTIVE, Phase
from hf_xlt.training.trainer import XLTTrainer
from hf_xlt.training.window import UpdateWindow

_MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


class MetaPretrainingTrainer(XLTTrainer):
    """Trains one phase.

    The loss of an update is sum_o w_o L_o over the objectives o: L_mlm and L_tlm are means over the masked tokens of
    the whole update, L_contrastive is the mean over its translation pairs. The negatives of a pair are those of its
    micro-batch on its device, so the contrastive loss depends on how an update is split; the other two do not.
    """

    def __init__(
        self, *args: Any, phase: Phase, text: PhaseText, phase_index: int = 0, steps_before: int = 0, **kwargs: Any
    ) -> None:
        """Build the trainer of one phase; other arguments as for `XLTTrainer`.

        Args:
            *args: as for `Trainer`.
            phase: objectives, mixture and masking; its steps are `args.max_steps`.
            text: what it reads.
            phase_index: its number in the run, for logs and checkpoints.
            steps_before: updates of the phases before it, for the logs.
            **kwargs: as for `XLTTrainer`. `processing_class` must be the tokenizer.

        Raises:
            ConfigError: model, tokenizer and phase do not fit together.
        """
        super().__init__(*args, **kwargs)
        self.phase, self.phase_index, self.steps_before = phase, phase_index, steps_before
        layout = Layout(
            self.args.per_device_train_batch_size,
            self.args.row_length,
            self.args.process_index,
            self.args.world_size,
        )
        check_model(self.model, self.processing_class, self.args.row_length)
        self.batches = PhaseBatches(phase, text, self.processing_class, self.args.seed, layout)
        self.weights = [*phase.masked.values()]
        if CONTRASTIVE in phase.objectives:
            self.weights.append(phase.objectives[CONTRASTIVE])
        self.pooling = _pooling(self.args.pooling, self.bare_model().config)
        self._stream_states: dict[str, Any] = {}
        self._meter = Meter()
        if text.held_out and self.eval_dataset is None:
            self.eval_dataset = dict(text.held_out)
        if phase.embedding_warmup_steps:
            self.add_callback(_EmbeddingsFirst(phase.embedding_warmup_steps))

    # ---- Data

    def get_train_dataloader(self) -> DataLoader:
        """Return the phase's batches for this process, in order; the stock resume skips by number."""
        workers = self.args.dataloader_num_workers
        count = self.args.max_steps * self.args.gradient_accumulation_steps
        numbers = BatchNumbers(self.batches, count, workers, self._stream_states)
        return batch_loader(numbers, workers, self.args.dataloader_prefetch_factor)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Fetch the micro-batches of one update and count masked tokens per objective, and pairs, over all of them.

        Returns:
            The micro-batches, and the units as a (K,) tensor: masked tokens of each objective, then pairs.
        """
        start = time.perf_counter()
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        self._meter.waited += time.perf_counter() - start
        for batch in batches:
            self._stream_states |= batch.pop(READER_STATE, {})
        counts = torch.zeros(len(self.weights), dtype=torch.float32, device=device)
        for batch in batches:
            counts += self._units(batch).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self.window = UpdateWindow(self.args.seed, self.state.global_step, counts.clamp(min=1.0))
        return batches, self.window.units

    def _units(self, batch: Mapping[str, Any]) -> Tensor:
        counts = []
        for index in range(len(self.phase.masked)):
            counts.append(float(batch["labels"][batch["objective"] == index].ne(IGNORED).sum()))
        if "pair_numbers" in batch:
            counts.append(float(len(batch["pair_numbers"])))
        return torch.tensor(counts)

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
        scales = torch.tensor(self.weights, device=units.device) / units
        bare, loss = self.bare_model(), torch.zeros((), device=units.device)
        if "labels" in inputs:
            chosen = {name: inputs[name] for name in _MODEL_INPUTS if name in inputs}
            if "position_ids" in chosen:
                chosen["position_ids"] = chosen["position_ids"] + _first_position(bare)
            rows = scales[inputs["objective"].to(scales.device)]
            masked = masked_lm_loss(model, bare, chosen, inputs["labels"], rows, self.args.chunk_rows)
            self._meter.add("masked", masked, inputs["input_ids"].numel())
            loss = loss + masked
        if "pair_numbers" in inputs:
            pairs = self._contrastive(model, bare, inputs).sum() * scales[-1]
            self._meter.add("contrastive", pairs, int(inputs["pair_attention_mask"].sum()))
            loss = loss + pairs
        return loss * self.args.world_size

    def _contrastive(self, model: nn.Module, bare: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        sides = {"input_ids": inputs["pair_input_ids"], "attention_mask": inputs["pair_attention_mask"]}
        left, right = sentence_vectors(model, bare, sides, self.pooling).chunk(2)
        numbers = inputs["pair_numbers"]
        return contrastive_losses(left, right, self.phase.temperature, numbers[:, None] == numbers[None, :])

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the phase, the update over all phases, the parts of the loss and the speed."""
        if "loss" in logs:
            logs |= self._meter.read(self.args.world_size, self.args.gradient_accumulation_steps)
        logs = {**logs, "phase": self.phase.name, "total_step": self.steps_before + self.state.global_step}
        super().log(logs, start_time)

    # ---- State

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the phase's definition and how far its text is read."""
        micro = self.state.global_step * self.args.gradient_accumulation_steps
        rows = self.batches.rows_before(micro)
        return {}, {
            "phase": self.phase.definition(),
            "phase_index": self.phase_index,
            "fingerprint": self.phase.fingerprint(),
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
            RunError: the streams' state is missing.
        """
        if values["fingerprint"] != self.phase.fingerprint() and not self.args.allow_phase_change:
            changed = sorted(
                key for key, value in self.phase.definition().items() if values["phase"].get(key) != value
            )
            raise ConfigError(
                f"phase `{self.phase.name}` was started with another definition (changed: {', '.join(changed)}). "
                "Restore it, or resume with `--allow-phase-change`."
            )
        if self.batches.text.streams:
            self._load_streams(Path(self._extra_state.folder))

    def _load_streams(self, folder: Path) -> None:
        path = folder / f"data_state-rank{self.args.process_index}.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise RunError(
                f"`{path.name}` in `{folder.name}` is damaged; resume from an earlier checkpoint."
            ) from error
        layout = [self.args.world_size, self.args.dataloader_num_workers]
        if saved is not None and saved["layout"] == layout:
            self._stream_states |= saved["readers"]
            return
        before = (
            f"{saved['layout'][0]} processes and {saved['layout'][1]} loader workers" if saved else "fewer processes"
        )
        message = (
            f"the run was saved with {before} and goes on with {layout[0]} and {layout[1]}: streamed text starts "
            "over, so some rows are read again."
        )
        if self.args.strict_resume:
            raise ConfigError(f"{message} Resume with the same numbers, or without `--strict-resume`.")
        print(f"Warning: {message}", flush=True)  # noqa: T201

    def save_process_state(self, folder: Path) -> None:
        """Write where this process's streams are."""
        if self.batches.text.streams:
            layout = [self.args.world_size, self.args.dataloader_num_workers]
            path = folder / f"data_state-rank{self.args.process_index}.json"
            write_json(path, {"layout": layout, "readers": self._stream_states})


def check_model(model: nn.Module, tokenizer: Any, row_length: int) -> None:
    """Refuse a model that the tokenizer or the row length does not fit.

    Raises:
        ConfigError: the vocabulary is smaller than the tokenizer's, the tokenizer cannot mask, or rows are longer
            than the position table.
    """
    config = getattr(model, "config", None)
    if tokenizer is None or tokenizer.mask_token_id is None:
        raise ConfigError("pre-training needs a tokenizer with a mask token; this one has none.")
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer):,} pieces and the model {config.vocab_size:,} rows; they do not "
            "belong together. Give the model's own tokenizer, or `hf-xlt swap-vocab` first."
        )
    longest = getattr(config, "max_position_embeddings", None) or row_length
    # RoBERTa's table starts after the padding index.
    longest -= _first_position(model)
    if row_length > longest:
        raise ConfigError(f"`row_length` is {row_length}, the model's position table ends at {longest}.")


def _first_position(bare: nn.Module) -> int:
    """Return the position id of a document's first token: 0, or the one after padding in RoBERTa-like tables."""
    table = getattr(getattr(base_model(bare), "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def _pooling(asked: str, config: Any) -> str:
    if asked != "auto":
        return asked
    return "mean" if getattr(config, "classifier_pooling", None) == "mean" else "first"


class _EmbeddingsFirst(TrainerCallback):
    """Leaves everything but the word embeddings untouched in the first updates after a change of vocabulary."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the other gradients: without one, a parameter is neither moved nor decayed."""
        if state.global_step >= self.steps:
            return
        model = kwargs["model"]
        kept = {id(model.get_input_embeddings().weight)}
        if model.get_output_embeddings() is not None:
            kept |= {id(parameter) for parameter in model.get_output_embeddings().parameters()}
        for parameter in model.parameters():
            if id(parameter) not in kept:
                parameter.grad = None
