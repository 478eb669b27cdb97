"""Code that loads a model, or an adapter, and applies it to a text in a target language."""

from __future__ import annotations

import json

from hf_xlt.model_cards.text import example
from hf_xlt.record import RunRecord

# Tasks for which transformers has a pipeline, with the name that the snippet gives it.
_PIPELINES = {"text-classification": "classify", "token-classification": "tag"}

_SEVERAL_LABELS = "multi-label-classification"

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


def snippet(record: RunRecord, name: str, adapter: bool = False) -> str:
    """Return Python code that loads the model and applies it to a text in a target language.

    Args:
        record: a run.
        name: Hub id, or a folder.
        adapter: whether it is an adapter that lies there, beside no model.
    """
    auto, task = record.task["auto_model"], record.task.get("pipeline_tag")
    text, word, language = example([*record.languages.get("target", []), *record.languages.get("source", [])])
    load = [f"name = {json.dumps(name)}", "tokenizer = AutoTokenizer.from_pretrained(name)", *_load(record, adapter)]
    quoted = json.dumps(text, ensure_ascii=False)
    if task in _PIPELINES:
        if _takes_pairs(record):
            quoted = f'{{"text": {quoted}, "text_pair": {quoted}}}'
        if record.task["name"] == _SEVERAL_LABELS:
            use = _several_labels(record.task.get("threshold", 0.5), task, quoted, language)
            return "\n".join([f"from transformers import {auto}, AutoTokenizer, pipeline", "", *load, *use])
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


def _several_labels(threshold: float, task: str, quoted: str, language: str) -> list[str]:
    return [
        f"classify = pipeline({json.dumps(task)}, model=model, tokenizer=tokenizer, top_k=None)",
        "# Every label with its probability; the model was scored with those from this one on.",
        f"found = classify([{quoted}])[0]  # {language}",
        f'print([entry["label"] for entry in found if entry["score"] >= {threshold}])',
    ]


def peft_class(record: RunRecord) -> str:
    """Return the call that loads an adapter by `peft` alone."""
    auto, count = record.task["auto_model"], len(record.labels)
    return f"AutoPeft{auto.removeprefix('Auto')}.from_pretrained(name{f', num_labels={count}' if count else ''})"


def _takes_pairs(record: RunRecord) -> bool:
    columns = (record.data.get("source") or {}).get("columns") or {}
    return "text_pair" in columns or bool(record.arguments.get("text_pair_column"))


def _load(record: RunRecord, adapter: bool) -> list[str]:
    auto = record.task["auto_model"]
    if not adapter:
        return [f"model = {auto}.from_pretrained(name)"]
    start = "# Loads the base model, then the adapter into it; needs `pip install peft`."
    if not record.labels:
        return [start, f"model = {auto}.from_pretrained(name)"]
    # The base model's config knows neither the number of labels nor their names.
    kind = ', problem_type="multi_label_classification"' if record.task["name"] == _SEVERAL_LABELS else ""
    return [
        f"labels = {json.dumps(record.labels, ensure_ascii=False)}",
        start,
        f"model = {auto}.from_pretrained(",
        f"    name, id2label=dict(enumerate(labels)), label2id={{label: i for i, label in enumerate(labels)}}{kind}",
        ")",
    ]
