"""The card's YAML header: what the Hub indexes, in the values it accepts.

Sent are ISO codes, Hub ids and figures of the record; what is unknown is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_xlt.averaging.summary import is_oracle
from hf_xlt.languages import language_identity
from hf_xlt.record import RunRecord
from hf_xlt.results import AUXILIARY, SOURCE, TARGET

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")

# The Hub's oldest models have no namespace; any other bare name is not a Hub id.
BARE_HUB_IDS = frozenset(
    "bert-base-multilingual-cased bert-base-multilingual-uncased bert-base-cased bert-base-uncased "
    "distilbert-base-multilingual-cased xlm-roberta-base xlm-roberta-large roberta-base roberta-large "
    "xlm-mlm-100-1280 xlm-mlm-17-1280".split()
)

# Values of `license` that the Hub knows and encoders carry; another one is written as `other` with its name.
KNOWN_LICENSES = frozenset(
    "apache-2.0 mit cc0-1.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cc-by-nc-nd-4.0 bsd bsd-2-clause bsd-3-clause gpl gpl-2.0 gpl-3.0 lgpl lgpl-3.0 agpl-3.0 mpl-2.0 "
    "afl-3.0 artistic-2.0 openrail openrail++ bigscience-openrail-m bigscience-bloom-rail-1.0 unlicense ecl-2.0 gemma "
    "llama2 llama3 llama3.1 llama3.2 unknown other".split()
)

# The Hub's names of metrics, where ours say more.
# What a role was tested on, in the record.
_TESTS = {SOURCE: "source test", TARGET: "target", AUXILIARY: "auxiliary test"}
_METRIC_TYPES = {"macro_f1": "f1", "micro_f1": "f1", "squad_f1": "f1", "squad_exact_match": "exact_match"}
_METRIC_ARGUMENTS = {"macro_f1": {"average": "macro"}, "micro_f1": {"average": "micro"}}


def base_model(record: RunRecord) -> str | None:
    """Return the Hub id of the model that training started from, or None when it has none."""
    name = record.model.get("name")
    if not name or not HUB_ID.fullmatch(name):
        return None
    return name if "/" in name or name in BARE_HUB_IDS else None


def data_sets(record: RunRecord) -> list[str]:
    """Return the Hub ids of all data, in the order of their roles, each once."""
    ids = (hub_id for entry in record.data.values() for hub_id in entry.get("hub_ids") or ())
    return list(dict.fromkeys(hub_id for hub_id in ids if HUB_ID.fullmatch(hub_id)))


def iso_codes(record: RunRecord) -> list[str]:
    """Return the ISO codes of all languages, source languages first, each once."""
    roles = sorted(record.languages, key=lambda role: role != "source")
    codes = (language_identity(language["code"]) for role in roles for language in record.languages[role])
    return list(dict.fromkeys(code for code in codes if LANGUAGE_CODE.fullmatch(code)))


def model_name(record: RunRecord, repo_id: str | None) -> str:
    """Return what the model is called: the repository's name, or encoder and strategy."""
    if repo_id:
        return repo_id.split("/")[-1]
    name = record.model.get("name") or record.model.get("model_type") or "encoder"
    return f"{name.split('/')[-1]}-{record.strategy['name']}"


def metric_words(metric: str) -> str:
    """Write a metric's name in words."""
    return metric.replace("_", " ")


def build(
    record: RunRecord, repo_id: str | None, more_tags: Sequence[str] = (), adapter: bool = False
) -> ModelCardData:
    """Build the header.

    Args:
        record: a run.
        repo_id: where the model will be on the Hub, or None.
        more_tags: tags beside the package, the field and the strategy.
        adapter: whether an adapter is described, not the model that it is merged into.

    Returns:
        Metadata that the Hub's own check accepts.
    """
    from huggingface_hub import ModelCardData

    results = eval_results(record)
    types = [result.metric_type for result in results]
    method = (record.model.get("adapter") or {}).get("method")
    relation = {"base_model_relation": "adapter"} if adapter and base_model(record) else {}
    return ModelCardData(
        language=iso_codes(record) or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=record.task.get("pipeline_tag"),
        base_model=base_model(record),
        datasets=data_sets(record) or None,
        metrics=list(dict.fromkeys(types)) or None,
        tags=["hf_xlt", "cross-lingual-transfer", record.strategy["name"], *([method] if method else []), *more_tags],
        # Without results the name would become a field of its own, which the Hub does not know.
        model_name=model_name(record, repo_id) if results else None,
        eval_results=results or None,
        **relation,
        **_license(record),
    )


def _license(record: RunRecord) -> dict[str, str]:
    name = record.model.get("license")
    if not name:
        return {}
    known = name.lower() in KNOWN_LICENSES
    fields = {"license": name.lower()} if known else {"license": "other", "license_name": _slug(name)}
    return {**fields, **({"license_link": record.model["license_link"]} if record.model.get("license_link") else {})}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def eval_results(record: RunRecord) -> list[EvalResult]:
    """Return every score of every language, and the averages over source and over target languages."""
    from huggingface_hub import EvalResult

    scores = record.scores
    if scores is None:
        return []
    results = []
    for score in scores.scores:
        language = _name(record, score.language)
        for metric, value in score.metrics.items():
            if metric != "loss":
                place = _place(record, score.role, f"{language} test set", score.language)
                results.append(EvalResult(**place, **_metric(metric), metric_value=value))
    for role, value in ((SOURCE, scores.source_average), (TARGET, scores.target_average)):
        count = len(scores.of_role(role))
        # The mean over one source language is that language's own entry.
        if value is not None and (role == TARGET or count > 1):
            place = _place(record, role, f"mean of {count} {role} language{'s' * (count > 1)}", f"average-{role}")
            results.append(EvalResult(**place, **_metric(scores.metric), metric_value=value))
    return results


def _place(record: RunRecord, role: str, what: str, config: str) -> dict[str, Any]:
    """Name task and data set of a score; the Hub groups figures by these fields."""
    data = record.data.get(_TESTS[role]) or {}
    sources, hub_ids = data.get("sources") or ["test data"], data.get("hub_ids") or []
    if role == TARGET and is_oracle(record.selection, record.phases):
        # Figures travel without the card's warning.
        what += ", oracle selection on target labels"
    if role == AUXILIARY:
        what += ", a language with labels in training"
    kind = hub_ids[0] if len(hub_ids) == 1 and len(sources) == 1 else _slug(_without_placeholders(sources[0]))
    return {
        "task_type": record.task.get("pipeline_tag") or record.task["name"],
        "dataset_type": kind or "test-data",
        "dataset_name": f"{', '.join(sources)}, {what}",
        "dataset_config": config,
        "dataset_split": data.get("split"),
    }


def _without_placeholders(pattern: str) -> str:
    """Reduce a file pattern to its fixed words: `topic/{split}.{lang}.parquet` to `topic`."""
    return re.sub(r"\{\w*\}|\.(parquet|jsonl|json|csv|tsv)$", " ", pattern)


def _metric(metric: str) -> dict[str, Any]:
    return {
        "metric_type": _METRIC_TYPES.get(metric, metric),
        "metric_name": metric_words(metric),
        "metric_args": _METRIC_ARGUMENTS.get(metric),
    }


def _name(record: RunRecord, code: str) -> str:
    for languages in record.languages.values():
        for language in languages:
            if language["code"] == code:
                return language["name"]
    return code
