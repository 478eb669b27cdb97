"""From arguments and data to what the phases of a run are built from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_xlt.arguments import Arguments, needs_validation
from hf_xlt.averaging.shared_head import FrozenHeadCheck, SharedHead
from hf_xlt.data.augmentation import EQUAL_UPDATES, join_features
from hf_xlt.data.generalized import choose_pair_sets
from hf_xlt.data.labels import LabelInventory
from hf_xlt.data.overlap import find_seen
from hf_xlt.data.roles import (
    AUXILIARY,
    SHOTS,
    TARGET_VALIDATION,
    TEXT,
    TRAINING,
    VALIDATION,
    DataPlan,
    DataSet,
    resolve_data,
)
from hf_xlt.errors import ConfigError, close_match
from hf_xlt.evaluation import encoder
from hf_xlt.modelling.attention import choose_kernel
from hf_xlt.modelling.classes import describe_head
from hf_xlt.modelling.tokens import Fitted, fit_tokenizer
from hf_xlt.models import ModelSource
from hf_xlt.record import LAST_CHECKPOINT, SOURCE_VALIDATION
from hf_xlt.record import TARGET_VALIDATION as ORACLE
from hf_xlt.tasks import Task, get_task
from hf_xlt.training.interruption import InterruptionFlag
from hf_xlt.training.phases import OWN, RunContext, RunPhase, single_phase
from hf_xlt.training.phases import SHOTS as COUNTS_SHOTS
from hf_xlt.training.phases import TRAINING as COUNTS_TRAINING
from hf_xlt.training.refusals import check_precision
from hf_xlt.training.updates import count_updates, no_batch


@dataclass
class Prepared:
    """A run ready to start.

    Attributes:
        context: what its phases are built from.
        plan: its data.
        inventory: its labels, or None for tasks without.
        model: where its encoder comes from.
        max_length: longest input in tokens.
        kernel: attention kernel that was chosen for training; None where the user, or transformers, chose.
    """

    context: RunContext
    plan: DataPlan
    inventory: LabelInventory | None
    model: ModelSource
    max_length: int
    kernel: str | None = None


def plan_run(arguments: Arguments) -> tuple[DataPlan, dict[str, Any]]:
    """Find the data of a run, read what its plan needs of them, and settle what selects its model.

    Returns:
        The data, and the selection.

    Raises:
        ConfigError: the data cannot be used, or not as asked; or the model's directory is missing.
    """
    source = find_model(arguments)
    plan = resolve_data(
        arguments.data,
        get_task(arguments.data.task),
        needs_validation=needs_validation(arguments.config) or arguments.average.compares_validation,
        target_validation=arguments.average.compares_oracle,
    )
    selection = settle_selection(arguments, plan.task)
    arguments.strategy.check_data(arguments.config, plan)
    note_augmentation(arguments, plan)
    if arguments.data.generalized:
        choose_pair_sets(plan, arguments.data)
    plan.fitted = fit_tokenizer(source, plan.task, arguments.data.max_length, arguments.model.resize_embeddings)
    plan.notes.extend(plan.fitted.notes)
    check_precision(arguments.config)
    plan_updates(arguments, plan)
    if arguments.run.dry_run:
        # Nothing is trained, so that reading the tests chooses nothing.
        note_found(plan, plan.read_training()[1])
    return plan, selection


def note_found(plan: DataPlan, inventory: LabelInventory | None) -> list[str]:
    """Count test rows whose text is learned from, which the plan keeps, and look at the head that the model has.

    Returns:
        What was added to the plan's notes.

    Raises:
        ConfigError: a set cannot be read.
    """
    plan.seen = find_seen(plan, inventory)
    told = [entry.describe() for entry in plan.seen] + describe_head(plan.fitted.source.load_config(), inventory)
    plan.notes += told
    return told


@dataclass(frozen=True)
class PlannedPhase:
    """One phase of a run that has not begun.

    Attributes:
        phase: as the strategy has it; its name is empty where it is the only one.
        updates: that it will make.
    """

    phase: RunPhase
    updates: int


def plan_updates(arguments: Arguments, plan: DataPlan, exact: bool = False) -> list[PlannedPhase]:
    """Count the updates of every phase, as its trainer will.

    Args:
        arguments: of the run.
        plan: its data.
        exact: encode data whose rows may become several features, which takes time; else rows are counted there,
            unless they would make no update.

    Raises:
        ConfigError: a phase would make no update.
    """
    config, strategy = arguments.config, arguments.strategy
    phases = strategy.phases(config) if strategy.phases else [RunPhase("", single_phase(strategy.trainer_cls))]
    sizes, planned = _sizes(arguments, plan, exact), []
    for phase in phases:
        updates = phase.updates
        if phase.examples != OWN:
            updates = count_updates(config, sizes[phase.examples], updates)
        if updates == 0 and plan.task.splits_rows and not exact:
            return plan_updates(arguments, plan, exact=True)
        if updates == 0:
            raise no_batch(config, sizes[phase.examples], f"phase `{phase.name}`" if phase.name else "training")
        planned.append(PlannedPhase(phase, updates))
    return planned


def _sizes(arguments: Arguments, plan: DataPlan, exact: bool) -> dict[str, int]:
    """Count what the loaders of a run's phases go through, by `RunPhase.examples`."""
    config, strategy = arguments.config, arguments.strategy
    augmentation = strategy.augmentation(config)
    copies = augmentation.copies if augmentation else 1
    if exact and plan.task.splits_rows:
        sources, shots = _count_features(arguments, plan)
        copies = copies if augmentation and augmentation.mode == EQUAL_UPDATES else 1
    else:
        sources, shots = (sum(entry.size for entry in plan.of_role(role)) for role in (TRAINING, SHOTS))
    training = sources * copies
    if strategy.trains_on(config) == "target":
        training = shots
    elif arguments.data.few_shot_mode == "concat" and not strategy.uses_shots:
        training += shots
    return {COUNTS_TRAINING: training, COUNTS_SHOTS: shots}


def _count_features(arguments: Arguments, plan: DataPlan) -> tuple[int, int]:
    """Encode the source training data and the shots, and return the number of features of each."""
    tables, inventory = plan.read_training()
    tokenizer, max_length = plan.fitted.tokenizer, plan.fitted.max_length

    def encoder_of(entry: DataSet) -> Callable[[Any], Any]:
        return encoder(entry, plan, tokenizer, inventory, max_length)

    sources = _source_features(arguments, plan, tables, encoder_of)
    shots = [encoder_of(entry)(plan.take_shots(entry, entry.read(), inventory)) for entry in plan.of_role(SHOTS)]
    return sum(map(len, sources)), sum(map(len, shots))


def settle_selection(arguments: Arguments, task: Task) -> dict[str, Any]:
    """Settle what chooses the checkpoint, and write it into the config.

    Returns:
        The record's `selection`: `protocol`, `metric`, `languages`, `oracle`.

    Raises:
        ConfigError: the metric to select by is none, or is a target language's without leave.
    """
    config, data = arguments.config, arguments.data
    saves_best = str(getattr(config.save_strategy, "value", config.save_strategy)) == "best"
    unselected = {"protocol": LAST_CHECKPOINT, "metric": None, "languages": [], "oracle": False}
    if not (config.load_best_model_at_end or saves_best or arguments.run.early_stopping_patience is not None):
        return unselected
    oracle = data.select_on_target_validation
    allowed = [f"avg_{name}" for name in (*task.metrics, "loss")]
    allowed += [f"{language}_{name}" for language in data.source_languages for name in (*task.metrics, "loss")]
    if oracle:
        allowed += [f"target_avg_{name}" for name in (*task.metrics, "loss")]
    if "metric_for_best_model" not in arguments.explicit:
        config.metric_for_best_model = f"{'target_avg' if oracle else 'avg'}_{task.metric}"
    name = config.metric_for_best_model.removeprefix("eval_")
    name = f"avg_{name}" if f"avg_{name}" in allowed else name
    if name not in allowed:
        raise ConfigError(
            f"`--metric-for-best-model {name}` is none of {', '.join(allowed)}.{close_match(name, allowed)} "
            "Target-language validation selects only with `--select-on-target-validation`."
        )
    config.metric_for_best_model = f"eval_{name}"
    if "greater_is_better" not in arguments.explicit:
        config.greater_is_better = not name.endswith("loss")
    if not config.load_best_model_at_end:
        return unselected
    # A target average is asked for by its own name; `avg_*` stays on source languages under either protocol.
    uses_target = name.startswith("target_avg_")
    return {
        "protocol": ORACLE if uses_target else SOURCE_VALIDATION,
        "metric": name,
        "languages": [] if uses_target else list(data.source_languages),
        "oracle": uses_target,
    }


def note_augmentation(arguments: Arguments, plan: DataPlan) -> None:
    """Add to a plan's notes what happens to the source training data.

    Raises:
        ConfigError: a table or a filter cannot be used.
    """
    augmentation = arguments.strategy.augmentation(arguments.config)
    if augmentation is not None:
        plan.notes.append(augmentation.describe())


def find_model(arguments: Arguments) -> ModelSource:
    """Return where the run's encoder comes from.

    Raises:
        ConfigError: a path that is no directory.
    """
    choice = arguments.model
    return ModelSource.find(
        choice.model,
        revision=choice.model_revision,
        trust_remote_code=choice.trust_remote_code,
        attn_implementation=choice.attn_implementation,
    )


def prepare(arguments: Arguments, plan: DataPlan, flag: InterruptionFlag) -> Prepared:
    """Read and encode what is trained and selected on, and say how the encoder is loaded.

    Raises:
        ConfigError: data, tokenizer or model cannot be used.
    """
    tables, inventory = plan.read_training()
    fitted: Fitted = plan.fitted
    source, tokenizer, max_length = fitted.source, fitted.tokenizer, fitted.max_length
    kernel = None
    if source.attn_implementation is None and not source.trust_remote_code:
        kernel = choose_kernel(arguments.config, max_length)
        source = dataclasses.replace(source, attn_implementation=kernel)

    def encoder_of(entry: DataSet) -> Callable[[Any], Any]:
        return encoder(entry, plan, tokenizer, inventory, max_length)

    def features(entry: DataSet, table: Any = None) -> Any:
        return encoder_of(entry)(entry.read() if table is None else table)

    shared = SharedHead(arguments.sweep.share_head) if arguments.sweep.share_head else None
    shots = {
        entry.language: features(entry, plan.take_shots(entry, entry.read(), inventory))
        for entry in plan.of_role(SHOTS)
    }
    sources = _source_features(arguments, plan, tables, encoder_of)
    training, joint, roles = _place_shots(arguments, sources, shots)
    _settle_updates(arguments, sources, training)
    roles |= {AUXILIARY: {entry.language: features(entry) for entry in plan.of_role(AUXILIARY)}}
    roles |= {TEXT: {entry.language: entry.read() for entry in plan.of_role(TEXT)}}
    if len(sources) > 1:
        languages = [entry.language for entry in plan.of_role(TRAINING)]
        roles |= {TRAINING: dict(zip(languages, sources, strict=True))}
    context = RunContext(
        strategy=arguments.strategy,
        config=arguments.config,
        task=plan.task,
        tokenizer=tokenizer,
        load_model=_model_loader(arguments, source, plan.task, inventory, shared),
        training=training,
        validation={entry.language: features(entry) for entry in _selected_on(arguments, plan)},
        source_languages=plan.source_languages,
        joint=joint,
        roles={role: sets for role, sets in roles.items() if sets},
        compute_metrics=plan.task.compute_metrics(inventory),
        flag=flag,
        patience=arguments.run.early_stopping_patience,
        load_masked_lm=_masked_lm_loader(arguments, source),
        averaging=arguments.average,
        extra_callbacks=lambda: [FrozenHeadCheck(shared)] if shared else [],
        select_on_target_validation=arguments.data.select_on_target_validation,
    )
    return Prepared(context, plan, inventory, source, max_length, kernel)


def _selected_on(arguments: Arguments, plan: DataPlan) -> list[DataSet]:
    """Return the validation sets that training looks at; others only score what is compared with an average."""
    if not needs_validation(arguments.config):
        return []
    roles = (VALIDATION, TARGET_VALIDATION) if arguments.data.select_on_target_validation else (VALIDATION,)
    return plan.of_role(*roles)


def _source_features(
    arguments: Arguments, plan: DataPlan, tables: dict[str, Any], encoder_of: Callable[[DataSet], Callable[[Any], Any]]
) -> list[Any]:
    """Encode the source training rows by language, augmented where the strategy says so."""
    augmentation, entries = arguments.strategy.augmentation(arguments.config), plan.of_role(TRAINING)
    if augmentation is None:
        return [encoder_of(entry)(tables[entry.language]) for entry in entries]
    return [
        augmentation.encode(tables[entry.language], entry.columns, entry.language, encoder_of(entry))
        for entry in entries
    ]


def _settle_updates(arguments: Arguments, sources: list[Any], training: Any) -> None:
    """Give the baseline of equal updates as many as the augmented run makes, with inputs counted as they are here."""
    augmentation = arguments.strategy.augmentation(arguments.config)
    if augmentation is not None and augmentation.mode == EQUAL_UPDATES:
        left_out = (augmentation.copies - 1) * sum(map(len, sources))
        arguments.config.max_steps = count_updates(arguments.config, len(training) + left_out)


def _place_shots(
    arguments: Arguments, sources: list[Any], shots: dict[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, dict[str, Any]]]:
    """Give the shots to the strategy where it needs them, else to the joint loss or to the training data.

    Returns:
        The training features, the joint ones by language, and those by role.
    """
    joint, roles = {}, {}
    if arguments.strategy.uses_shots:
        roles = {"target": shots}
    elif arguments.data.few_shot_mode == "joint":
        joint = shots
    else:
        sources = [*sources, *shots.values()]
    return join_features(sources), joint, roles


def _model_loader(
    arguments: Arguments,
    source: ModelSource,
    task: Task,
    inventory: LabelInventory | None,
    shared: SharedHead | None,
) -> Callable[[Path | None], Any]:
    """Return what loads the run's encoder, or the model in a folder."""

    def load(folder: Path | None) -> Any:
        from transformers import set_seed

        # The new head's weights come from the global generator, wherever it stands.
        set_seed(arguments.config.seed)
        model = (source if folder is None else source.left_in(folder)).load(task, inventory)
        if shared is not None:
            # Frozen before there is an optimizer, whose weight decay would move it.
            shared.put(model)
        return adapt(model, arguments, task)

    return load


def adapt(model: Any, arguments: Arguments, task: Task) -> Any:
    """Put adapters into a model where `--peft` asks for them.

    Raises:
        ConfigError: a module that was named is not in the model.
    """
    if arguments.peft.peft is None:
        return model
    from hf_xlt.adapters import wrap

    return wrap(model, arguments.peft, task, arguments.config.seed, bool(arguments.sweep.share_head))


def _masked_lm_loader(arguments: Arguments, source: ModelSource) -> Callable[[Path | None], Any]:
    """Return what loads the run's encoder, or the one in a folder, with its masked-LM head."""

    def load(folder: Path | None) -> Any:
        start = source if folder is None else source.left_in(folder)
        return start.load_masked_lm(arguments.config.seed)[0]

    return load
