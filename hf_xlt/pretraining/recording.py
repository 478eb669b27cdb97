"""What a pre-training writes into its record: nothing of it names a place on this machine."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_xlt.pretraining.plan_file import Plan
from hf_xlt.pretraining.report import PhaseReport
from hf_xlt.record import RunRecord

# Where nothing predicts masked words, the output layer is as it was before, if there was one.
_VECTORS = {"pipeline_tag": "feature-extraction", "auto_model": "AutoModel"}
TASK = {"name": "fill-mask", "pipeline_tag": "fill-mask", "auto_model": "AutoModelForMaskedLM", "metric": "loss"}
_SECRET = ("hub_token",)
# What one invocation asks for, and repeating the pre-training does not.
_ONCE = ("--overwrite", "--resume")


def start_record(
    plan: Plan, config: Any, strategy: Any, source: Any, model: Any, threads: int, command: Sequence[str]
) -> RunRecord:
    """Make the record of a pre-training that is about to start.

    Args:
        plan: what is asked for, as the command line changed it.
        config: the config that all phases share.
        strategy: registry entry.
        source: the `ModelSource` of the encoder to continue, or None for a new one.
        model: the encoder before the first update.
        threads: CPU threads of a process.
        command: arguments after `hf-xlt pretrain`.
    """
    from hf_xlt.environment import hardware, versions

    return RunRecord(
        strategy={
            "name": strategy.name,
            "title": strategy.title,
            "paper": dataclasses.asdict(strategy.paper),
        },
        task={**TASK, **({} if any(phase.masked for phase in plan.phases) else _follows(plan))},
        arguments=_arguments(plan, config),
        settings=settings(plan),
        model={
            "name": source.name if source else None,
            "new": plan.model if source is None else None,
            "revision": getattr(model.config, "_commit_hash", None),
            "parameters": model.num_parameters(),
            "model_type": model.config.model_type,
            "tokenizer": _tokenizer_name(plan.tokenizer),
            **(source.license() if source else {}),
        },
        seeds={"seed": config.seed},
        versions=versions(),
        hardware=hardware(config, threads),
        command=shlex.join(["hf-xlt", "pretrain", *(_without_folders(part) for part in command if part not in _ONCE)]),
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _follows(plan: Plan) -> dict[str, str]:
    return _VECTORS if any(phase.teacher for phase in plan.phases) else {}


def settings(plan: Plan) -> dict[str, Any]:
    """Return the plan's training arguments, and its phases under `phases`."""
    from hf_xlt.environment import shareable_arguments

    return {
        **shareable_arguments(plan.training, _SECRET),
        **({} if plan.student_layers is None else {"student_layers": plan.student_layers}),
        "phases": [phase.definition() for phase in plan.phases],
    }


def describe_phase(report: PhaseReport) -> dict[str, Any]:
    """Describe the text of a phase.

    Returns:
        `sources` (shareable names), `hub_ids` among them, `row_tokens` (tokens of all its packed rows), and by
        language `tokens` of text, `shares` of the mixture and masked-LM `epochs`; `estimated` lists the languages
        whose size is an estimate. With distillation `teacher`, as `describe_teacher`.
    """
    from hf_xlt.data.sources import make_source, shareable_pattern

    sources = report.phase.sources
    hub_ids = {make_source(source.text, None, source.split).hub_id for source in sources} - {None}
    return {
        "sources": sorted({shareable_pattern(source.text) for source in sources}),
        "hub_ids": sorted(hub_ids),
        "row_tokens": int(report.tokens),
        "tokens": {code: int(size) for code, size in report.sizes.items()},
        "estimated": sorted(report.estimated),
        "shares": {code: round(share, 6) for code, share in report.shares.items()},
        "epochs": {code: round(value, 3) for code, value in report.epochs.items()},
        **({"teacher": describe_teacher(report.phase.teacher)} if report.phase.teacher else {}),
    }


def describe_teacher(name: str) -> dict[str, str]:
    """Return how a card calls a teacher, `name`, and `license`, `license_link` as far as its own card says them."""
    from hf_xlt.models import ModelSource

    source = ModelSource.find(name)
    return {"name": source.name or Path(name).name, **source.license()}


def describe_languages(data: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Name the languages of all phases, each once, in the order of the phases and then of their codes.

    Args:
        data: by phase what `describe_phase` returns.
    """
    from hf_xlt.languages import describe_language

    codes = dict.fromkeys(code for entry in data.values() for code in sorted(entry.get("tokens") or {}))
    return [describe_language(code) for code in codes]


def _arguments(plan: Plan, config: Any) -> dict[str, Any]:
    from hf_xlt.bookkeeping import HIDDEN
    from hf_xlt.environment import shareable_arguments

    # The number of updates is each phase's own.
    hidden = HIDDEN | {"max_steps", "num_train_epochs", *_SECRET}
    values = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}
    return shareable_arguments({**values, "attn_implementation": plan.attn_implementation}, hidden)


def _tokenizer_name(name: str | None) -> str | None:
    if name is None:
        return None
    return Path(name).name if os.path.isdir(name) else name


def _without_folders(part: str) -> str:
    """Keep of a path its last part, also behind `--flag=`."""
    prefix, separator, value = part.rpartition("=")
    return f"{prefix}{separator}{Path(value).name}" if "/" in value else part
