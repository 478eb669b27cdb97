"""The model card of a run: a pure function of its record.

What the record does not hold the card does not say; unknown facts are left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from hf_xlt.averaging import summary
from hf_xlt.model_cards import pretraining
from hf_xlt.model_cards.checks import check
from hf_xlt.model_cards.metadata import base_model, build, metric_words, model_name
from hf_xlt.model_cards.text import example, facts, listed, plain_name, table_cell
from hf_xlt.record import LAST_CHECKPOINT, RunRecord
from hf_xlt.results import BESIDE, SOURCE, TARGET, markdown, percent

__all__ = ["CARD_NAME", "check", "is_generated", "render"]

CARD_NAME = "README.md"
# Of more languages the card holds the averages, and `generalized.md` the matrix.
_MATRIX_LANGUAGES = 8
TEMPLATE_NAME = "model_card.md.jinja"

_SIGNATURE = "<!-- Rendered by hf_xlt from xlt_run.json; digest {digest} -->\n"
_SIGNED = re.compile(r"(.*)" + re.escape(_SIGNATURE).replace(r"\{digest\}", "([0-9a-f]{16})"), re.DOTALL)

# Tasks for which transformers has a pipeline, with the name that the snippet gives it.
_PIPELINES = {"text-classification": "classify", "token-classification": "tag"}

# transformers 5 has no pipeline for this one.
_QUESTION_ANSWERING = "question-answering"
_ANSWER = """\
# A text that is longer than the model's input is cut.
inputs = tokenizer(question, context, truncation="only_second", return_offsets_mapping=True, return_tensors="pt")
places = inputs.pop("offset_mapping")[0]
outside = torch.tensor([part != 1 for part in inputs.sequence_ids(0)])
with torch.no_grad():
    output = model(**inputs)
start, end = (logits[0].masked_fill(outside, float("-inf")) for logits in (output.start_logits, output.end_logits))
# The best first and last token of the text, at most 30 tokens with those in between.
allowed = torch.ones(len(end), len(end)).triu().tril(29).bool()
first, last = divmod((start[:, None] + end).where(allowed, float("-inf")).argmax().item(), len(end))
print(context[places[first][0] : places[last][1]].strip())"""


def render(record: RunRecord, repo_id: str | None = None) -> str:
    """Render the card.

    Args:
        record: a run, scored or not.
        repo_id: where the model will be on the Hub; None writes the loading snippet for the run's own folder.

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
        template, values = TEMPLATE_NAME, _describe(record, repo_id)
    text = environment.get_template(template).render(record=record, **values)
    text = re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n\n"
    return text + _SIGNATURE.format(digest=_digest(text))


def _describe(record: RunRecord, repo_id: str | None) -> dict[str, Any]:
    """Return what the template of a run with a task says beside the record."""
    return {
        "metadata": build(record, repo_id).to_yaml(line_break="\n"),
        "title": model_name(record, repo_id),
        "introduction": _introduction(record),
        "is_oracle": _is_oracle(record),
        "results": _results(record),
        "comparators": _comparators(record),
        "generalized": _generalized(record),
        "settings": _settings(record),
        "adapter": _adapter(record),
        "average": _average(record),
        "snippet": snippet(record, repo_id or "."),
        "is_local": repo_id is None,
        "names_local": _names_local(record),
        "facts": facts(record, "training and scoring"),
        "data": _data(record),
        "limits": _limits(record),
    }


def is_generated(text: str) -> bool:
    """Say whether a card is as it was rendered: nobody has edited it since."""
    match = _SIGNED.fullmatch(text)
    return match is not None and _digest(match[1]) == match[2]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _introduction(record: RunRecord) -> str:
    """Say in plain words what the model is."""
    base, task = base_model(record), metric_words(record.task["name"]).replace("-", " ")
    start = f"[{base}](https://huggingface.co/{base})" if base else plain_name(record)
    sources, targets = _names(record, "source"), _names(record, "target")
    text = f"{start}, trained for {task} on labelled examples in {listed(sources)}"
    if not targets:
        return f"{text}."
    text += f", for use in {'another language' if len(targets) == 1 else f'{len(targets)} other languages'}"
    text += f": {listed(targets)}."
    if record.few_shot:
        return f"{text} It also saw {_shots(record)}."
    taught = {language["code"] for language in record.languages.get("auxiliary", [])}
    if record.selection.get("oracle") or taught & {language["code"] for language in record.languages["target"]}:
        return text
    return f"{text} This training used no labelled example in any of them."


def _names(record: RunRecord, role: str) -> list[str]:
    return [language["name"] for language in record.languages.get(role, [])]


def _is_oracle(record: RunRecord) -> bool:
    return summary.is_oracle(record.selection, record.phases)


def _shots(record: RunRecord) -> str:
    shots = record.few_shot["shots"]
    return f"{shots:,} labelled example{'s' * (shots > 1)} of each target language"


def _results(record: RunRecord) -> dict[str, Any] | None:
    scores, beside = record.scores, record.scores_beside
    if scores is None:
        return None
    return {
        "table": markdown([[table_cell(cell) for cell in row] for row in scores.table(beside)]),
        "summary": [" ".join(line.split()) for line in scores.summary_lines(beside)],
        "metric": metric_words(scores.metric),
        "beside": [(name, BESIDE[name]) for name in beside],
    }


def _comparators(record: RunRecord) -> dict[str, Any] | None:
    """Return what the average is compared with, as a table."""
    compared = record.comparator_scores
    if compared is None:
        return None
    table = [[table_cell(cell) for cell in row] for row in compared.table()]
    return {"heading": compared.heading(), "table": markdown(table, left=2), "notes": compared.notes()}


def _generalized(record: RunRecord) -> dict[str, str] | None:
    """Return the averages over pairs of languages, and of few languages the matrix, as tables."""
    scores = record.generalized_scores
    if scores is None:
        return None
    small = len(scores.languages) <= _MATRIX_LANGUAGES
    matrix = [[table_cell(cell) for cell in row] for row in scores.matrix_table()]
    return {
        "heading": scores.heading(),
        "averages": markdown(scores.averages_table(), left=1),
        "matrix": markdown(matrix, left=1) if small else "",
    }


def _settings(record: RunRecord) -> list[tuple[str, str]]:
    """Return the transfer settings as rows of name and value."""
    few_shot = "zero-shot"
    if record.few_shot:
        few_shot = f"few-shot: {_shots(record)}, {record.few_shot.get('mode') or 'concat'}"
    rows = [
        ("Strategy", f"{record.strategy['title']} (`{record.strategy['name']}`)"),
        ("Source languages", _coded(record, "source")),
        ("Target languages", _coded(record, "target")),
        ("Auxiliary languages", _coded(record, "auxiliary")),
        ("Transfer", few_shot),
        ("Checkpoint", _selection(record)),
        ("Seeds", ", ".join(f"`{name}` {value}" for name, value in record.seeds.items())),
    ]
    rows += [("Made from", _parent(parent)) for parent in record.parents]
    rows += [
        (f"`{name}`", _value(value)) for name, value in record.settings.items() if name not in ("strategy", "seed")
    ]
    return [(name, table_cell(value)) for name, value in rows if value]


def _adapter(record: RunRecord) -> str:
    """Say which weights were trained, where these are not all."""
    adapter = record.model.get("adapter")
    if not adapter:
        return ""
    count = adapter["trainable_parameters"]
    share = f", {count / record.model['parameters']:.2%} of the model's size" if record.model.get("parameters") else ""
    return (
        f"Only adapters and the head were trained: [LoRA](https://arxiv.org/abs/2106.09685) of rank {adapter['rank']} "
        f"(alpha {adapter['alpha']}, dropout {adapter['dropout']:g}) on {_modules(adapter['target_modules'])}, and "
        f"{_modules(adapter['modules_to_save'])} in full: {count:,} parameters{share}. The weights here are those of "
        "the model with the adapters merged in."
    )


def _average(record: RunRecord) -> str:
    """Say what the weights are the mean of, where they are one."""
    facts = summary.averaged(record.phases)
    if facts is None:
        return ""
    text = summary.describe(facts)
    if facts["snapshots"] and record.model.get("adapter"):
        text += (
            " Each factor of the adapters was averaged by itself and merged then, which is not quite the mean of "
            "merged models."
        )
    return text


def _modules(names: list[str]) -> str:
    return listed([f"`{name}`" for name in names])


def _coded(record: RunRecord, role: str) -> str:
    return ", ".join(f"{language['name']} ({language['code']})" for language in record.languages.get(role, []))


def _selection(record: RunRecord) -> str:
    protocol, average = record.selection.get("protocol"), summary.averaged(record.phases)
    if not protocol:
        return ""
    if average is not None and average["snapshots"]:
        chosen = "" if protocol == LAST_CHECKPOINT else f"; the one chosen on {protocol} is another model"
        return f"none; an average of {average['snapshots']} snapshots of the run{chosen}"
    if protocol == LAST_CHECKPOINT:
        return "the last one; nothing was selected"
    text = f"chosen on {protocol}"
    if record.selection.get("metric"):
        text += f" by `{record.selection['metric']}`"
    return text


def _parent(parent: dict[str, Any]) -> str:
    strategy = (parent.get("strategy") or {}).get("name")
    seeds = ", ".join(f"`{name}` {value}" for name, value in (parent.get("seeds") or {}).items())
    return ", ".join(filter(None, [f"a run of `{strategy}`" if strategy else "a run", seeds]))


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    return json.dumps(value, ensure_ascii=False)


def snippet(record: RunRecord, name: str) -> str:
    """Return Python code that loads the model and applies it to a text in a target language.

    Args:
        record: a run.
        name: Hub id, or a folder.
    """
    auto, task = record.task["auto_model"], record.task.get("pipeline_tag")
    text, word, language = example([*record.languages.get("target", []), *record.languages.get("source", [])])
    load = [
        f"name = {json.dumps(name)}",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        f"model = {auto}.from_pretrained(name)",
    ]
    quoted = json.dumps(text, ensure_ascii=False)
    if task in _PIPELINES:
        if record.arguments.get("text_pair_column"):
            quoted = f'{{"text": {quoted}, "text_pair": {quoted}}}'
        use = [
            f"{_PIPELINES[task]} = pipeline({json.dumps(task)}, model=model, tokenizer=tokenizer)",
            f"print({_PIPELINES[task]}({quoted}))  # {language}",
        ]
        return "\n".join([f"from transformers import {auto}, AutoTokenizer, pipeline", "", *load, *use])
    if task == _QUESTION_ANSWERING:
        asked = json.dumps(f"{word}?", ensure_ascii=False)
        use = [f"question, context = {asked}, {quoted}  # {language}", _ANSWER]
        return "\n".join(["import torch", f"from transformers import {auto}, AutoTokenizer", "", *load, *use])
    use = [f'inputs = tokenizer({quoted}, return_tensors="pt")  # {language}', "print(model(**inputs))"]
    return "\n".join([f"from transformers import {auto}, AutoTokenizer", "", *load, *use])


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
    return markdown(rows) if len(rows) > 1 else ""


def _limits(record: RunRecord) -> list[str]:
    """Say what the figures do not show, as far as the record tells."""
    limits = []
    scores = record.scores
    if record.demo:
        limits.append("This is a demonstration on a toy task: its numbers say nothing about any other task.")
    if _is_oracle(record):
        limits.append("Target-language labels chose the checkpoint, so the target scores are oracle figures.")
    if scores is None:
        return [*limits, "The model was not scored: nothing is known about its quality in any language."]
    scored = {score.language for score in scores.scores}
    missing = [
        f"{language['name']} ({language['code']})"
        for role in (SOURCE, TARGET)
        for language in record.languages.get(role, [])
        if language["code"] not in scored
    ]
    if missing:
        limits.append(f"Not evaluated in {listed(missing)}.")
    if scores.worst_language is not None and len(scores.of_role(TARGET)) > 1:
        worst = scores.worst_language
        name = next((x["name"] for x in record.languages.get("target", []) if x["code"] == worst), worst)
        limits.append(f"Weakest in {name}: {percent(scores.value(worst))} {metric_words(scores.metric)}.")
    if not record.parents:
        limits.append("One training run: how much the scores vary with the seed was not measured.")
    limits.append("Scores hold for the test sets named here; other text, dialects and scripts were not tested.")
    return limits
