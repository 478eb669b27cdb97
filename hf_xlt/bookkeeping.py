"""Filling the run record from what a run was asked, found and did."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

from hf_xlt.arguments import Arguments, non_default
from hf_xlt.averaging.shared_head import SharedHead
from hf_xlt.data.division import ID_COLUMN
from hf_xlt.data.overlap import seen_by_role
from hf_xlt.data.provenance import provenance
from hf_xlt.data.roles import DataPlan, DataSet
from hf_xlt.environment import hardware, shareable_arguments, shareable_command, versions
from hf_xlt.errors import ConfigError
from hf_xlt.languages import english_name, iso_code
from hf_xlt.modelling.attention import kernel_of
from hf_xlt.models import is_adapted
from hf_xlt.preparation import Prepared
from hf_xlt.record import RunRecord

LENGTH = "max_length"
# Not settings of the result: where things lie, what is shown, who is asked.
HIDDEN = frozenset(
    "output_dir logging_dir run_name config resume overwrite dry_run traceback hub_token hub_model_id hub_revision "
    "push_to_hub hub_strategy hub_private_repo hub_always_push resume_from_checkpoint deepspeed project "
    "trackio_space_id report_to disable_tqdm log_level log_level_replica logging_dir local_rank floor threads use_cpu "
    "logging_steps logging_strategy logging_first_step accelerator_config fsdp_config model dataset target_dataset "
    "auxiliary_dataset text_dataset generalized generalized_languages id_column share_head seeds strategies vary "
    "parallel_runs quiet json".split()
)

# What may differ when a run is resumed, since no weight and no score depends on it.
FREE_ON_RESUME = frozenset(
    "per_device_eval_batch_size eval_accumulation_steps eval_do_concat_batches eval_use_gather_object "
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context dataloader_in_order save_total_limit save_on_each_node log_on_each_node "
    "skip_memory_metrics torch_empty_cache_steps activation_checkpointing activation_checkpointing_kwargs "
    "gradient_checkpointing gradient_checkpointing_kwargs ddp_timeout include_num_input_tokens_seen "
    "logging_nan_inf_filter".split()
)
# The same where no checkpoint is selected and nothing stops early: when the run looks and saves.
_FREE_WITHOUT_SELECTION = frozenset(
    "eval_strategy eval_steps eval_delay eval_on_start save_strategy save_steps".split()
)

# Settings that older runs have not; at these values they change nothing.
_LATER = {"divide_seed": 0, "allow_shared_rows": False, "resize_embeddings": False, "embedding_rows": "all"}


def start_record(
    arguments: Arguments, prepared: Prepared, selection: dict[str, Any], argv: Sequence[str]
) -> RunRecord:
    """Make the record of a run that is about to start.

    Args:
        arguments: what the user asked for.
        prepared: what was found.
        selection: what chooses the checkpoint.
        argv: the command's arguments.
    """
    strategy, plan, task = arguments.strategy, prepared.plan, prepared.plan.task
    return RunRecord(
        strategy={
            "name": strategy.name,
            "title": strategy.title,
            "paper": dataclasses.asdict(strategy.paper) if strategy.paper else None,
            "defaults": defaults(arguments),
        },
        task={
            "name": task.name,
            "pipeline_tag": task.pipeline_tag,
            "auto_model": task.auto_model,
            "metric": task.metric,
        },
        arguments={**resolved(arguments), LENGTH: prepared.max_length},
        settings=_settings(arguments, prepared.max_length),
        model={"name": prepared.model.name, "revision": arguments.model.model_revision, **prepared.model.license()},
        data=describe_data(plan),
        languages=describe_languages(plan),
        labels=list(prepared.inventory.names) if prepared.inventory else [],
        few_shot=_few_shot(arguments),
        seeds=_seeds(arguments),
        selection=selection,
        versions=versions(),
        command=shareable_command(arguments.asked or argv, arguments.config.LOCAL_FILES),
        demo=arguments.embedded,
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _seeds(arguments: Arguments) -> dict[str, int]:
    data = arguments.data
    return {
        "seed": arguments.config.seed,
        **({"shot_seed": data.shot_seed} if data.shots else {}),
        **({"divide_seed": data.divide_seed} if data.divide_split else {}),
    }


def _settings(arguments: Arguments, max_length: int) -> dict[str, Any]:
    """Return what was set otherwise than by default; a length as it was used, and not as it was asked for."""
    settings = {**shareable_arguments(non_default(arguments), _hidden(arguments)), **_file_settings(arguments)}
    return {**settings, **({LENGTH: max_length} if LENGTH in settings else {})}


def resolved(arguments: Arguments) -> dict[str, Any]:
    """Return every shareable resolved argument by name."""
    # Settings of adapters or averages that are not there say nothing, and older runs have none.
    adapters = (arguments.peft,) if arguments.peft.peft else ()
    averages = (arguments.average,) if arguments.average.average else ()
    groups = (arguments.run, arguments.model, arguments.data, *adapters, *averages, arguments.config)
    values = {entry.name: getattr(group, entry.name) for group in groups for entry in dataclasses.fields(group)}
    values = {name: value for name, value in values.items() if _LATER.get(name, ...) != value}
    return {**shareable_arguments(values, _hidden(arguments)), **_file_settings(arguments)}


def _hidden(arguments: Arguments) -> frozenset[str]:
    """Return the names of the settings that the record does not hold as they were given."""
    return HIDDEN | set(arguments.config.LOCAL_FILES)


def defaults(arguments: Arguments) -> list[str]:
    """Return the names of the strategy's own settings that were left at their defaults."""
    from hf_xlt.training.config import XLTConfig

    shared = {entry.name for entry in dataclasses.fields(XLTConfig)}
    return [
        entry.name
        for entry in dataclasses.fields(arguments.config)
        if entry.name not in shared
        and getattr(arguments.config, entry.name)
        == (entry.default_factory() if callable(entry.default_factory) else entry.default)
    ]


def _few_shot(arguments: Arguments) -> dict[str, Any] | None:
    """Describe the choice of few-shot examples and where they go; None for zero-shot."""
    data = arguments.data
    if not data.shots:
        return None
    mode = arguments.strategy.name if arguments.strategy.uses_shots else data.few_shot_mode
    return {"shots": data.shots, "shot_seed": data.shot_seed, "mode": mode}


def _file_settings(arguments: Arguments) -> dict[str, str]:
    """Describe the files that settings name, of augmentation and of a shared head: by name and hash, never by path."""
    augmentation, donor = arguments.strategy.augmentation(arguments.config), arguments.sweep.share_head
    head = SharedHead(donor).settings() if donor else {}
    return {**(augmentation.settings() if augmentation else {}), **head}


def describe_data(plan: DataPlan) -> dict[str, Any]:
    """Describe each role's data: where from, which split, how many, and a hash of what was used.

    Test sets are hashed when they have been read, by `add_test_fingerprints`.
    """
    described: dict[str, Any] = {}
    for role, entries in plan.sets.items():
        if entries:
            described[role] = {
                "sources": sorted({entry.source.name for entry in entries}),
                "hub_ids": sorted({entry.source.hub_id for entry in entries if entry.source.hub_id}),
                "split": entries[0].split,
                **({"columns": dict(entries[0].columns)} if entries[0].columns else {}),
                **provenance([entry.source for entry in entries]),
                **_rows_of(plan, role, entries),
                **_written_in(entries),
                "examples": {entry.language: entry.size for entry in entries},
                "fingerprints": {
                    entry.language: entry.source.fingerprint(entry.language, entry.split)
                    for entry in entries
                    if not _is_test(role)
                },
            }
    return described


def _rows_of(plan: DataPlan, role: str, entries: Sequence[DataSet]) -> dict[str, Any]:
    """Say which rows of a role are parts of divided sets, and which have another role as well."""
    parts = {entry.language: entry.source.divided[entry.language][1] for entry in entries if entry.is_part}
    found: dict[str, Any] = {}
    if parts and plan.division is not None:
        found["divided"] = {"shares": dict(plan.division.shares), "seed": plan.division.seed, "wholes": parts}
        if plan.division.id_column != ID_COLUMN:
            found["divided"]["id_column"] = plan.division.id_column
    shared: dict[str, list[str]] = {}
    for entry in plan.shared:
        if entry.roles[1] == role:
            shared.setdefault(entry.language, []).append(entry.roles[0])
    return {**found, **({"shared_with": shared} if shared else {})}


def _written_in(entries: Sequence[DataSet]) -> dict[str, dict[str, str]]:
    """Name by language what rows are written in that are read as something else."""
    found = {entry.language: entry.reading.scheme for entry in entries if entry.reading and entry.reading.converts}
    return {"written_in": found} if found else {}


def add_test_fingerprints(record: RunRecord, plan: DataPlan) -> None:
    """Add what is known of the test sets once they have been read for scoring: hashes, and texts learned from."""
    for role, entries in plan.sets.items():
        if entries and _is_test(role):
            record.data[role]["fingerprints"] = {
                entry.language: entry.source.fingerprint(entry.language, entry.split) for entry in entries
            }
    for role, counts in seen_by_role(plan.seen).items():
        record.data[role]["seen"] = counts


def _is_test(role: str) -> bool:
    from hf_xlt.data.roles import AUXILIARY_TEST, SOURCE_TEST, TARGET_TEST

    return role in (SOURCE_TEST, TARGET_TEST, AUXILIARY_TEST)


def describe_languages(plan: DataPlan) -> dict[str, list[dict[str, str]]]:
    """Name the languages of each role."""
    groups = {"source": plan.source_languages, "target": plan.target_languages}
    if plan.auxiliary_languages:
        groups["auxiliary"] = plan.auxiliary_languages
    texts = tuple(entry.language for entry in plan.of_role("text"))
    if texts:
        groups["text"] = texts
    return {
        role: [{"code": code, "iso": iso_code(code), "name": english_name(code)} for code in codes]
        for role, codes in groups.items()
    }


def complete_hardware(record: RunRecord, arguments: Arguments, threads: int, model: Any) -> None:
    """Add what is known only once the model is loaded."""
    record.hardware = {**hardware(arguments.config, threads), "attention": kernel_of(model)}
    if is_adapted(model):
        from hf_xlt.adapters import describe, merged_size

        record.model["parameters"] = merged_size(model)
        record.model["adapter"] = describe(model)
    else:
        record.model["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    record.model["model_type"] = model.config.model_type
    record.model["revision"] = getattr(model.config, "_commit_hash", None) or record.model["revision"]


def check_same_run(record: RunRecord, arguments: Arguments, plan: DataPlan, labels: Sequence[str]) -> None:
    """Check that `--resume` continues the run that was started.

    Raises:
        ConfigError: the strategy, a setting or the data differ.
    """
    if record.strategy["name"] != arguments.strategy.name:
        raise ConfigError(
            f"the run to resume is of strategy `{record.strategy['name']}`, not `{arguments.strategy.name}`. "
            "Repeat its command and add `--resume`."
        )
    now = resolved(arguments)
    # Older records hold the length that was asked for.
    if record.arguments.get(LENGTH) != now.get(LENGTH):
        now[LENGTH] = plan.fitted.max_length
    for name in sorted((set(now) | set(record.arguments)) - free_on_resume(arguments)):
        if now.get(name) != record.arguments.get(name):
            raise ConfigError(
                f"the run to resume was started with `{name}` {record.arguments.get(name)!r}, not {now.get(name)!r}. "
                "Repeat its command and add `--resume`, or start anew in another `--output-dir`."
            )
    if list(labels) != record.labels:
        raise ConfigError("the run to resume has other labels: the source training data have changed since.")
    described = describe_data(plan)
    for role in set(described) | set(record.data):
        before, after = (side.get(role, {}).get("fingerprints") for side in (record.data, described))
        if not _is_test(role) and before != after:
            raise ConfigError(
                f"the {role} data have changed since the run was started; start anew in another `--output-dir`."
            )


def free_on_resume(arguments: Arguments) -> frozenset[str]:
    """Return the names of the settings that may differ when a run is resumed."""
    selects = arguments.config.load_best_model_at_end or arguments.run.early_stopping_patience
    return FREE_ON_RESUME if selects else FREE_ON_RESUME | _FREE_WITHOUT_SELECTION


def take_over(record: RunRecord, arguments: Arguments) -> None:
    """Let the record of a resumed run say with what it went on, where that may differ."""
    for kept, now in (
        (record.arguments, resolved(arguments)),
        (record.settings, shareable_arguments(non_default(arguments), _hidden(arguments))),
    ):
        for name in free_on_resume(arguments):
            kept.pop(name, None)
            if name in now:
                kept[name] = now[name]
