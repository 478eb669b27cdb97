"""What the figures of a card do not show, as far as the record tells; and under which licences its parts stand."""

from __future__ import annotations

from hf_xlt.model_cards.metadata import base_model
from hf_xlt.model_cards.text import listed
from hf_xlt.model_cards.transfer import is_oracle
from hf_xlt.model_cards.trimming import limit as trimmed
from hf_xlt.record import RunRecord

# Roles whose data shaped the weights.
_TRAINED_ON = ("source", "few-shot", "auxiliary", "text")
# What is said of languages of a role that were not scored: of one, of several.
_ROLES = {
    "source": ("", ""),
    "target": ("", ""),
    "auxiliary": (
        ", an auxiliary language with labels in training",
        ", auxiliary languages with labels in training",
    ),
    "text": (", of which only unlabelled text was used", ", of which only unlabelled text was used"),
}


def limits(record: RunRecord) -> list[str]:
    """Return one sentence or two per limit."""
    found = []
    if record.demo:
        found.append("This is a demonstration on a toy task: its numbers say nothing about any other task.")
    if is_oracle(record):
        found.append("Target-language labels chose the checkpoint, so the target scores are oracle figures.")
    if record.scores is None:
        found.append("The model was not scored: nothing is known about its quality in any language.")
    else:
        found += _unscored_languages(record)
        found += _rows(record)
        if not record.parents:
            found.append("One training run: how much the scores vary with the seed was not measured.")
        found.append("Scores hold for the test sets named here; other text, dialects and scripts were not tested.")
    if record.trimming:
        found.append(trimmed(record.trimming))
    return found + _licenses(record)


def _unscored_languages(record: RunRecord) -> list[str]:
    told, sentences = {score.language for score in record.scores.scores}, []
    for role, words in _ROLES.items():
        missing = [language for language in record.languages.get(role, []) if language["code"] not in told]
        told |= {language["code"] for language in missing}
        names = [f"{language['name']} ({language['code']})" for language in missing]
        if names:
            sentences.append(f"Not evaluated in {listed(names)}{words[len(names) > 1]}.")
    return sentences


def _rows(record: RunRecord) -> list[str]:
    """Say which test rows were learned from or selected on, and which sets were divided by chance."""
    found, divided = [], {}
    for role, entry in record.data.items():
        for language, others in (entry.get("shared_with") or {}).items():
            found.append(
                f"The {role} rows of {_named(record, language)} are {listed(others)} rows as well, as the user asked: "
                "scores on such rows say little."
            )
        if entry.get("divided"):
            facts = entry["divided"]
            shares = ", ".join(f"{name} {share:g}" for name, share in facts["shares"].items())
            for source in entry.get("sources") or ():
                by = f", rows of one `{facts['id_column']}` together" if "id_column" in facts else ""
                divided[source] = f"`{source}` was divided into splits by chance: {shares} (seed {facts['seed']}{by})."
    found += divided.values()
    return found + _seen(record)


def _seen(record: RunRecord) -> list[str]:
    """Say how many test rows have a text that was learned from."""
    parts = []
    for entry in record.data.values():
        for language, counts in (entry.get("seen") or {}).items():
            rows = (entry.get("examples") or {}).get(language, 0)
            told = listed([f"{count:,} in the {role} data" for role, count in counts.items()])
            parts.append(f"{_named(record, language)} {told} (of {rows:,} rows)")
    if not parts:
        return []
    return [f"Some test rows have a text that is, to the letter, one that was learned from: {'; '.join(parts)}."]


def _named(record: RunRecord, code: str) -> str:
    names = {language["code"]: language["name"] for role in record.languages.values() for language in role}
    return f"{names.get(code, code)} ({code})"


def _licenses(record: RunRecord) -> list[str]:
    """Say which licences are known, and of what none is."""
    base = base_model(record)
    known, unknown = [], []
    if record.model.get("license"):
        known.append(f"the base model's is {record.model['license']}")
    elif base and not record.demo:
        unknown.append(f"the base model `{base}`")
    sources: dict[str, str | None] = {}
    for role in _TRAINED_ON:
        entry = record.data.get(role) or {}
        for source in entry.get("sources") or ():
            sources[source] = (entry.get("licenses") or {}).get(source)
    for source, name in sources.items():
        if name:
            known.append(f"that of `{source}` is {name}")
        elif not record.demo:
            unknown.append(f"the data `{source}`")
    sentences = [f"Licences: {'; '.join(known)}."] if known else []
    if unknown:
        sentences.append(f"The record holds no licence of {listed(unknown)}: look there before you pass the model on.")
    return sentences
