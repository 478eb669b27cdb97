"""The model card of a run: a pure function of its record.

What the record does not hold the card does not say; unknown facts are left out.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from hf_xlt.model_cards import pretraining, scores, transfer, trimming
from hf_xlt.model_cards.checks import check
from hf_xlt.model_cards.limits import limits
from hf_xlt.model_cards.metadata import base_model, build, data_sets, metric_words, model_name
from hf_xlt.model_cards.text import facts, listed, plain_name, table_cell
from hf_xlt.model_cards.usage import peft_class, snippet
from hf_xlt.record import RunRecord
from hf_xlt.results import markdown

__all__ = ["CARD_NAME", "check", "is_generated", "render"]

CARD_NAME = "README.md"
TEMPLATE_NAME = "model_card.md.jinja"

_SIGNATURE = "<!-- Rendered by hf_xlt from xlt_run.json; digest {digest} -->\n"
_SIGNED = re.compile(r"(.*)" + re.escape(_SIGNATURE).replace(r"\{digest\}", "([0-9a-f]{16})"), re.DOTALL)
# Of more target languages the introduction gives the number, and the table of settings the names.
_NAMED_TARGETS = 12


def render(record: RunRecord, repo_id: str | None = None, adapter: bool = False) -> str:
    """Render the card.

    Args:
        record: a run, scored or not.
        repo_id: where the model will be on the Hub; None writes the loading snippet for the run's own folder.
        adapter: whether the card is that of the run's LoRA adapter, not of the model that it is merged into.

    Returns:
        The card with its metadata; the same record and repository give the same bytes.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hf_xlt.model_cards", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    if pretraining.is_pretraining(record):
        template, values = pretraining.TEMPLATE_NAME, pretraining.describe(record, repo_id)
    else:
        template, values = TEMPLATE_NAME, _describe(record, repo_id, adapter)
    text = environment.get_template(template).render(record=record, **values)
    text = re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n\n"
    return text + _SIGNATURE.format(digest=_digest(text))


def _describe(record: RunRecord, repo_id: str | None, adapter: bool) -> dict[str, Any]:
    """Return what the template of a run with a task says beside the record."""
    return {
        "metadata": build(record, repo_id, adapter=adapter).to_yaml(line_break="\n"),
        "title": model_name(record, repo_id),
        "introduction": _introduction(record, adapter),
        "is_oracle": transfer.is_oracle(record),
        "results": scores.results(record),
        "comparators": scores.comparators(record),
        "generalized": scores.generalized(record),
        "settings": transfer.settings(record),
        "default_settings": transfer.default_settings(record),
        "strategy_words": " ".join(filter(None, transfer.strategy_words(record))),
        "adapter": transfer.adapter(record, adapter),
        "average": transfer.average(record),
        "blocks": transfer.blocks(record),
        "snippet": snippet(record, repo_id or ".", adapter),
        "peft_class": peft_class(record) if adapter else "",
        "is_local": repo_id is None,
        "commands": transfer.commands(record),
        "names_local": _names_local(record),
        "facts": facts(record, "training and scoring"),
        "data": _data(record),
        "limits": limits(record),
        "trimming": trimming.section(record.trimming, bool(record.results)) if record.trimming else "",
        "data_sets": data_sets(record),
        "citations": _citations(record),
    }


def is_generated(text: str) -> bool:
    """Say whether a card is as it was rendered: nobody has edited it since."""
    match = _SIGNED.fullmatch(text)
    return match is not None and _digest(match[1]) == match[2]


def is_card(text: str) -> bool:
    """Say whether a text was a rendered card once, whatever has been edited since."""
    return _SIGNATURE.partition("{")[0] in text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _introduction(record: RunRecord, adapter: bool) -> str:
    """Say in plain words what the model is."""
    base, task = base_model(record), metric_words(record.task["name"]).replace("-", " ")
    start = f"[{base}](https://huggingface.co/{base})" if base else plain_name(record)
    if adapter:
        start = f"A LoRA adapter for {start}"
    auxiliary, targets = _names(record, "auxiliary"), _names(record, "target")
    text = f"{start}, trained for {task} on labelled examples in {listed(_names(record, 'source'))}"
    if auxiliary:
        text += f" and, as auxiliary language{'s' * (len(auxiliary) > 1)}, {listed(auxiliary)}"
    if not targets:
        return f"{text}."
    text += f", for use in {'another language' if len(targets) == 1 else f'{len(targets)} other languages'}"
    text += f": {listed(targets)}." if len(targets) <= _NAMED_TARGETS else ", listed below."
    if record.few_shot:
        return f"{text} It also saw {transfer.shots(record)}."
    if record.selection.get("oracle") or transfer.labelled_targets(record):
        return text
    return f"{text} This training used no labelled example in {'it' if len(targets) == 1 else 'any of them'}."


def _names(record: RunRecord, role: str) -> list[str]:
    return [language["name"] for language in record.languages.get(role, [])]


def _names_local(record: RunRecord) -> bool:
    """Say whether the command names files or folders that lay on the machine of the run."""
    sources = (source for entry in record.data.values() for source in entry.get("sources") or ())
    return record.model.get("name") is None or any("{" in source or "." in source for source in sources)


def _data(record: RunRecord) -> str:
    """Return the table of data sets, one row per role and language, or nothing."""
    rows = [["role", "language", "source", "split", "n", "fingerprint"]]
    for role, entry in record.data.items():
        for language, count in (entry.get("examples") or {}).items():
            fingerprint = (entry.get("fingerprints") or {}).get(language, "")
            cells = [role, language, ", ".join(entry.get("sources") or ()), entry.get("split") or ""]
            rows.append([table_cell(cell) for cell in cells] + [f"{count:,}", fingerprint[:16]])
    table = markdown(rows) if len(rows) > 1 else ""
    schemes: dict[str, list[str]] = {}
    for role, entry in record.data.items():
        for language, scheme in (entry.get("written_in") or {}).items():
            schemes.setdefault(scheme, []).append(f"{role} {language}")
    read = [f"Tags written in {scheme} were read as IOB2: {', '.join(sets)}." for scheme, sets in schemes.items()]
    return "\n\n".join([table, *read])


def _citations(record: RunRecord) -> list[str]:
    """Return the BibTeX entries that the data sets give of themselves, each once."""
    entries = (entry for role in record.data.values() for entry in role.get("citations") or ())
    return list(dict.fromkeys(entry.strip() for entry in entries))
