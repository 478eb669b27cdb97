"""Answers that are part of a text (extractive question answering), as in SQuAD, XQuAD and MLQA.

A text that does not fit beside its question is split into windows that overlap. A window that holds the whole answer
is labelled with the answer's first and last token, any other one with its first token, which stands for no answer.
Scoring puts the windows of a question together again (`answer_search.py`) and compares texts (`answers.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_xlt.data.labels import LabelInventory
from hf_xlt.errors import ConfigError, setting
from hf_xlt.tasks.answer_search import CONTEXT, ENDS, EXAMPLE, GOLD, LANGUAGE, QUESTION_ID, STARTS, find_answers
from hf_xlt.tasks.answers import score_answers
from hf_xlt.tasks.base import Column, Encoding, Task, checked_texts, encode_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase

POSITIONS = ("start_positions", "end_positions")
NO_ANSWER = ""
# Rows are tokenised in parts: until they are arrays, tokens and their places take ten times the memory.
_PART = 500


def encode_questions(table: Dataset, encoding: Encoding) -> Dataset:
    """Tokenise questions with their texts, in as many windows as it takes.

    A question is cut to half of the input. Windows overlap by what is asked for, halved until it is no more than half
    of what the question leaves of the input, so that each window adds to the one before.

    Returns:
        Features with `start_positions` and `end_positions` (0 in a window without the whole answer) and, for scoring,
        `example_number` (of the row), `token_starts` and `token_ends` (where in the text each token begins and ends;
        -1 for tokens of the question, special ones and blanks), and in a question's first window `answer_context`,
        `gold_answers` (one empty text if there is none), `answer_language` and, where the data have `id`,
        `question_id`.

    Raises:
        ConfigError: the input has no room for question and text, or a row cannot be used: a question or text is none,
            answers have another form than `{text: [...], answer_start: [...]}`, or one is not where it is said to be.
    """
    special = encoding.tokenizer.num_special_tokens_to_add(pair=True)
    if encoding.max_length < special + 2:
        raise ConfigError(
            f"an input of {encoding.max_length} tokens has no room for a question and a text; give "
            f"{setting('max_length')} "
            f"{special + 2} or more."
        )
    if encoding.overlap < 0:
        raise ConfigError(f"{setting('window_overlap')} is {encoding.overlap}; give 0 or more.")

    def features(rows: dict[str, list], start: int) -> dict[str, list]:
        columns: dict[str, list] = {}
        for first in range(0, len(rows[encoding.columns["question"]]), _PART):
            part = {name: values[first : first + _PART] for name, values in rows.items()}
            for name, values in _encode_part(part, start + first, encoding.max_length - special, encoding).items():
                columns.setdefault(name, []).extend(values)
        return columns

    return encode_rows(table, encoding, QUESTION_ANSWERING.name, features)


def _encode_part(rows: Mapping[str, list], start: int, room: int, encoding: Encoding) -> dict[str, list]:
    names, where = encoding.columns, encoding.where
    questions = checked_texts(rows[names["question"]], names["question"], start, where)
    contexts = checked_texts(rows[names["context"]], names["context"], start, where)
    answers = [
        _checked_answers(value, context, names["answers"], f"{where}, row {number}")
        for number, (value, context) in enumerate(zip(rows[names["answers"]], contexts, strict=True), start)
    ]
    columns: dict[str, list] = {}
    for row, windows in enumerate(_windows(questions, contexts, room, encoding)):
        texts, span = answers[row]
        about = {CONTEXT: contexts[row], GOLD: texts, LANGUAGE: encoding.language}
        if "id" in rows:
            about[QUESTION_ID] = None if rows["id"][row] is None else str(rows["id"][row])
        labels = _positions(windows, span)
        for number, (window, ends) in enumerate(zip(windows, labels, strict=True)):
            window |= {EXAMPLE: start + row, "length": len(window["input_ids"])}
            window |= dict(zip(POSITIONS, ends, strict=True))
            window |= dict.fromkeys(about) if number else about
            for name, value in window.items():
                columns.setdefault(name, []).append(value)
    return columns


def _checked_answers(value: Any, context: str, column: str, place: str) -> tuple[list[str], tuple[int, int] | None]:
    """Return the gold texts, and where the first of them lies in the text."""
    pairs = _answer_pairs(value)
    if pairs is None or any(not isinstance(text, str) or type(start) is not int for text, start in pairs):
        shown = repr(value)
        raise ConfigError(
            f"{place}: column `{column}` must hold answers as {{text: [...], answer_start: [...]}}, texts and "
            f"integers; got {shown if len(shown) <= 80 else f'{shown[:77]}...'}."
        )
    if not pairs:
        return [NO_ANSWER], None
    if not all(text.strip() for text, _ in pairs):
        raise ConfigError(
            f"{place}: column `{column}` holds an empty answer. A question without an answer has an empty list."
        )
    text, start = pairs[0]
    text, start = text.strip(), start + len(text) - len(text.lstrip())
    found = context[start : start + len(text)] if start >= 0 else ""
    if found != text:
        raise ConfigError(
            f"{place}: the answer {text!r} is not at character {start} of the text, where {found!r} stands. Correct "
            f"`answer_start` in column `{column}`: it counts Unicode characters from 0."
        )
    return [text for text, _ in pairs], (start, start + len(text))


def _answer_pairs(value: Any) -> list[tuple[Any, Any]] | None:
    """Return answers as pairs of text and start, from a struct of lists or a list of structs; None for neither."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, str):
            return [(texts, starts)]
        texts, starts = ([] if side is None else side for side in (texts, starts))
        fits = isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)
        return list(zip(texts, starts, strict=True)) if fits else None
    if isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        return [(entry.get("text"), entry.get("answer_start")) for entry in value]
    return None


def _windows(questions: list[str], contexts: list[str], room: int, encoding: Encoding) -> list[list[dict[str, Any]]]:
    """Tokenise pairs in windows; `room` is the number of tokens for question and text together."""
    tokenizer = encoding.tokenizer
    made = tokenizer(
        questions, add_special_tokens=False, truncation=True, max_length=room // 2, return_offsets_mapping=True
    )
    ends = [offsets[-1][1] if offsets else 0 for offsets in made["offset_mapping"]]
    questions = [question[:end] for question, end in zip(questions, ends, strict=True)]
    # The tokenizer takes one overlap for all rows of a call.
    groups: dict[int, list[int]] = {}
    for row, ids in enumerate(tokenizer(questions, add_special_tokens=False)["input_ids"]):
        groups.setdefault(_fitting_overlap(encoding.overlap, room - len(ids)), []).append(row)
    windows: list[list[dict[str, Any]]] = [[] for _ in questions]
    for overlap, rows in groups.items():
        made = tokenizer(
            [questions[row] for row in rows],
            [contexts[row] for row in rows],
            truncation="only_second",
            max_length=encoding.max_length,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners, offsets = made.pop("overflow_to_sample_mapping"), made.pop("offset_mapping")
        solid = [_solid_places(contexts[row]) for row in rows]
        for number, owner in enumerate(owners):
            window = {name: np.asarray(values[number], dtype=np.int32) for name, values in made.items()}
            inside = np.asarray([part == 1 for part in made.sequence_ids(number)])
            starts, ends = _token_places(offsets[number], inside, solid[owner])
            windows[rows[owner]].append({**window, STARTS: starts, ENDS: ends})
    return windows


def _fitting_overlap(asked: int, room: int) -> int:
    while asked > room // 2:
        asked //= 2
    return asked


def _solid_places(text: str) -> np.ndarray:
    """Return where a text has characters other than white space."""
    return np.flatnonzero(~np.fromiter(map(str.isspace, text), bool, len(text)))


def _token_places(
    offsets: Sequence[tuple[int, int]], inside: np.ndarray, solid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first character of each token of the text, and the one after its last, without white space around."""
    first, last = np.searchsorted(solid, np.asarray(offsets)).T
    filled = inside & (first < last)
    starts, ends = np.full((2, len(inside)), -1, dtype=np.int32)
    starts[filled] = solid[first[filled]]
    ends[filled] = solid[last[filled] - 1] + 1
    return starts, ends


def _positions(windows: Sequence[Mapping[str, Any]], span: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Return the first and last token of the answer in each window; 0 and 0 where it is not wholly inside."""
    edges = [(window[STARTS][window[STARTS] >= 0], window[ENDS].max(initial=-1)) for window in windows]
    edges = [(starts.min(initial=np.iinfo(np.int32).max), end) for starts, end in edges]
    # What the tokenizer leaves out at either end of the text is no part of any window.
    text_start, text_end = min(start for start, _ in edges), max(end for _, end in edges)
    labels = []
    for window, (start, end) in zip(windows, edges, strict=True):
        tokens = np.empty(0)
        if span is not None and start <= max(span[0], text_start) and end >= min(span[1], text_end):
            tokens = np.flatnonzero((window[STARTS] < span[1]) & (window[ENDS] > span[0]))
        labels.append((int(tokens[0]), int(tokens[-1])) if len(tokens) else (0, 0))
    return labels


def _collator(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Mapping[str, Any]]], Any]:
    """Build the collator; it leaves out what only scoring reads.

    The tokenizer is set to pad on the right: positions count from the first token.
    """
    tokenizer.padding_side = "right"
    return functools.partial(_collate, tokenizer)


def _collate(tokenizer: PreTrainedTokenizerBase, features: list[Mapping[str, Any]]) -> Any:
    from transformers import DataCollatorWithPadding

    names = [name for name in (*tokenizer.model_input_names, *POSITIONS) if name in features[0]]
    return DataCollatorWithPadding(tokenizer)([{name: entry[name] for name in names} for entry in features])


def _best_answers(prediction: EvalPrediction) -> tuple[list[str], list[list[str]], list[str]]:
    """Return per question the best answer, the gold answers, and the language."""
    features = prediction.inputs
    gold = [texts for texts in features[GOLD][:] if texts is not None]
    languages = [language for language in features[LANGUAGE][:] if language is not None]
    # Only data that have questions without an answer ask for that answer.
    found = find_answers(
        *prediction.predictions[:2], features, n_best=1, with_no_answer=any(NO_ANSWER in texts for texts in gold)
    )
    return [answers[0].text for answers in found], gold, languages


def _answer_metrics(inventory: LabelInventory | None) -> Callable[[EvalPrediction], dict[str, float]]:
    """Build the scores of the best answers."""
    return lambda prediction: score_answers(*_best_answers(prediction))


def _item_scores(inventory: LabelInventory | None) -> Callable[[EvalPrediction], np.ndarray]:
    """Build the F1 of each question's best answer."""

    def items(prediction: EvalPrediction) -> np.ndarray:
        scores = [score_answers([a], [g], [code])["f1"] for a, g, code in zip(*_best_answers(prediction), strict=True)]
        return np.stack([scores, np.ones(len(scores))], axis=-1).astype(np.float32)

    return items


QUESTION_ANSWERING = Task(
    name="question-answering",
    pipeline_tag="question-answering",
    auto_model="AutoModelForQuestionAnswering",
    columns={
        "question": Column(("question",), required=True),
        "context": Column(("context", "passage"), required=True),
        "answers": Column(("answers", "answer"), required=True),
    },
    metrics=("f1", "exact_match", "squad_f1", "squad_exact_match"),
    find_labels=None,
    encode=encode_questions,
    collator=_collator,
    compute_metrics=_answer_metrics,
    item_scores=_item_scores,
    max_length=384,
    count_examples=lambda features: len(set(features[EXAMPLE][:])),
    splits_rows=True,
    unsmoothed="its candidates are the positions of a batch, padding included",
    needs_fast_tokenizer=True,
)
