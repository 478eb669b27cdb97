"""The phases of a pre-training as phases of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import SchedulerType
from transformers.trainer_utils import IntervalStrategy

from hf_xlt.data.roles import TEXT, DataPlan
from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.batches import PhaseText
from hf_xlt.pretraining.plan import REDRAW, Phase
from hf_xlt.strategies.meta_pretraining.carry import CarriedMoments, last_checkpoint
from hf_xlt.strategies.meta_pretraining.config import OPTIMIZER_SETTINGS, two_phases
from hf_xlt.strategies.meta_pretraining.trainer import MetaPretrainingTrainer
from hf_xlt.training.checkpoints import newest_complete
from hf_xlt.training.phases import OWN, RunContext, RunPhase, single_phase
from hf_xlt.training.trainer import XLTTrainer

FINETUNE = "finetune"


def pretraining_phases(
    phases: Sequence[Phase], load_text: Callable[[RunContext, Phase, Any], PhaseText], **changes: Any
) -> list[RunPhase]:
    """Make phases of a run out of phases of a pre-training.

    Args:
        phases: in order.
        load_text: returns the text of a phase, tokenised with the tokenizer that is its last argument.
        **changes: config fields that differ from the run's.
    """
    made, before = [], 0
    for index, phase in enumerate(phases):
        made.append(_run_phase(phases[: index + 1], before, load_text, changes))
        before += phase.steps
    return made


def _run_phase(
    phases: Sequence[Phase],
    steps_before: int,
    load_text: Callable[[RunContext, Phase, Any], PhaseText],
    changes: dict[str, Any],
) -> RunPhase:
    *earlier, phase = phases

    def build(context: RunContext, folder: Path, previous: Path | None) -> MetaPretrainingTrainer:
        settings = {"max_steps": phase.steps, **changes}
        if phase.learning_rate is not None:
            settings["learning_rate"] = phase.learning_rate
        config = context.config_for(folder, **settings)
        moments = _moments(earlier, phase, folder, previous)
        model, tokenizer = context.load_masked_lm(previous), context.tokenizer_of(previous)
        if earlier and earlier[-1].unseen_rows == REDRAW:
            _redraw(
                model, tokenizer, [load_text(context, before, tokenizer) for before in earlier], phase, config.seed
            )
        if phase.tokenizer is not None:
            model, tokenizer = _change_vocabulary(model, tokenizer, phase, config.seed)
        text = load_text(context, phase, tokenizer)
        return context.build_trainer(
            MetaPretrainingTrainer,
            config,
            model,
            phase=phase,
            text=text,
            phase_index=len(earlier),
            steps_before=steps_before,
            moments=moments,
            train_dataset=None,
            eval_dataset=None,
            data_collator=None,
            compute_metrics=None,
            processing_class=tokenizer,
            source_languages=(),
            joint_datasets=None,
            role_datasets=None,
        )

    return RunPhase(phase.name, build, phase.fingerprint(), phase.steps, examples=OWN)


def _moments(earlier: Sequence[Phase], phase: Phase, folder: Path, previous: Path | None) -> CarriedMoments:
    before = earlier[-1] if earlier else None
    # A phase that was cut short goes on with its own optimizer.
    if not phase.optimizer_carry or newest_complete(folder) is not None:
        return CarriedMoments(phase, before)
    if before is None or previous is None:
        raise ConfigError(f"phase `{phase.name}`: `optimizer_carry` needs a phase before it. Leave it out.")
    return CarriedMoments(phase, before, last_checkpoint(previous.parent, before, phase))


def _redraw(model: Any, tokenizer: Any, texts: Sequence[PhaseText], phase: Phase, seed: int) -> None:
    from hf_xlt.launch import is_first_process
    from hf_xlt.pretraining.unseen import redraw_rows, seen_pieces

    rows = len(model.get_input_embeddings().weight)
    seen = [seen_pieces(text, tokenizer, rows) for text in texts]
    if any(part is None for part in seen):
        raise ConfigError("`unseen_rows: redraw` needs text that is not streamed in all phases so far.")
    count = redraw_rows(model, np.logical_or.reduce(seen), seed)
    if is_first_process():
        print(  # noqa: T201
            f"Phase {phase.name}: {count:,} of {rows:,} embeddings are drawn anew; no text so far holds their pieces.",
            flush=True,
        )


def _change_vocabulary(model: Any, tokenizer: Any, phase: Phase, seed: int) -> tuple[Any, Any]:
    from hf_xlt.models import load_tokenizer
    from hf_xlt.pretraining.vocabulary import find_init, swap_vocabulary

    new = load_tokenizer(phase.tokenizer)
    report = swap_vocabulary(model, tokenizer, new, find_init(phase.embedding_init), seed)
    print(f"Phase {phase.name}: {report.line()}", flush=True)  # noqa: T201
    return model, new


def check_text(config: Any, plan: DataPlan) -> None:
    """Refuse text that lacks the language of the first phase, before anything is written.

    Raises:
        ConfigError: it does.
    """
    two_phases(config, tuple(entry.language for entry in plan.of_role(TEXT)))


def task_phases(config: Any) -> list[RunPhase]:
    """Return the phases of `--strategy meta-pretrain`: monolingual, multilingual, then fine-tuning on the task.

    The text is that of the role `text`; which languages it has is known only when a phase is built.
    """

    def load_text(context: RunContext, phase: Phase, tokenizer: Any) -> PhaseText:
        from hf_xlt.launch import is_first_process
        from hf_xlt.pretraining.loading import corpora_of_tables, phase_text
        from hf_xlt.pretraining.report import report_phase

        tables = context.roles[TEXT]
        # Resolved now, against the text that is there.
        resolved = next(known for known in two_phases(config, tuple(sorted(tables))) if known.name == phase.name)
        corpora = corpora_of_tables(tables, tokenizer, resolved)
        text = phase_text(corpora, config.seed, config.held_out_share)
        if is_first_process():
            own = copy.copy(config)
            own.per_device_train_batch_size, own.gradient_accumulation_steps = config.pretraining_batch_size, 1
            for warning in report_phase(resolved, text, len(tokenizer), own).warnings:
                print(f"Warning: phase {phase.name}: {warning}", flush=True)  # noqa: T201
        return text

    settings: dict[str, Any] = {
        **OPTIMIZER_SETTINGS,
        "lr_scheduler_type": SchedulerType(OPTIMIZER_SETTINGS["lr_scheduler_type"]),
        "per_device_train_batch_size": config.pretraining_batch_size,
        "gradient_accumulation_steps": 1,
        "eval_strategy": IntervalStrategy.NO,
        "load_best_model_at_end": False,
        "label_smoothing_factor": 0.0,
        # They are of the schedule that the fine-tuning follows.
        "lr_scheduler_kwargs": None,
    }
    phases = two_phases(config, (config.meta_language, "all"))
    return [*pretraining_phases(phases, load_text, **settings), RunPhase(FINETUNE, single_phase(XLTTrainer))]
