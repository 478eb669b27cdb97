"""One tag per word: accuracy and macro F1, or F1 over exact spans where the tags are those of spans.

The first piece of a word carries its tag. Sentences longer than the model are split into windows, so that every word
is scored; a word of which the tokenizer leaves nothing counts as wrong (as `O` under IOB2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_xlt.data.labels import LabelInventory, find_inventory
from hf_xlt.errors import ConfigError, shortened
from hf_xlt.tasks.base import Column, Encoding, Task, encode_rows
from hf_xlt.tasks.spans import OUTSIDE, span_scores, spans_of
from hf_xlt.tasks.tag_schemes import as_iob2, describe_readings, find_reading, is_spans
from hf_xlt.tasks.words import fit_tokenizer, spaced

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase

IGNORED = -100
# Columns of the features that scoring reads and the model does not.
SENTENCE, TAGS, WORDS = "sentence", "tags", "words"


def _find_tags(tables: Sequence[Dataset], columns: Mapping[str, str], given: Sequence[str] | None) -> LabelInventory:
    """Read the tags off the source training rows, as `find_inventory` reads classes; names of all tables, in order."""
    from datasets import ClassLabel, Dataset, Features

    column = columns["tags"]
    declared = [_declared(table, column) for table in tables]
    values = [
        names[tag] if names and isinstance(tag, int) and 0 <= tag < len(names) else tag
        for names, table in zip(declared, tables, strict=True)
        for tags in table[column]
        for tag in tags or ()
    ]
    if declared[0]:
        others = sorted({value for value in values if isinstance(value, str)})
        names = list(dict.fromkeys([*(name for names in declared for name in names), *others]))
        flat = Dataset.from_dict({column: []}, Features({column: ClassLabel(names=names)}))
    else:
        flat = Dataset.from_dict({column: values})
    return find_inventory([flat], column, given)


def _declared(table: Dataset, column: str) -> tuple[str, ...]:
    """Return the names of tags that a data set gives as numbers; none where it names none."""
    feature = table.features[column]
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


def encode_words(table: Dataset, encoding: Encoding) -> Dataset:
    """Tokenise sentences given as words; the first piece of a word carries its tag, other positions -100.

    Returns:
        Features with, for scoring, `sentence` (number of the row), `words` (places in the sentence of the tagged
        positions) and, in a sentence's first window, `tags` (class indices of all its words).

    Raises:
        ConfigError: words and tags of a row do not fit together, a tag is not in the inventory, or the tokenizer
            cannot split words as it splits running text.
    """
    way, column = fit_tokenizer(encoding.tokenizer), encoding.columns["tags"]
    declared = _declared(table, column)
    # The data's own names say what their numbers mean, in whatever order.
    names = dict(enumerate(declared)) if declared != encoding.inventory.names else {}

    def features(rows: dict[str, list], start: int) -> dict[str, list]:
        sentences = _checked_sentences(rows, encoding, start)
        tags = [
            encoding.inventory.indices(
                [names.get(tag, tag) for tag in row_tags] if names else row_tags,
                None,
                f"{encoding.where}, row {number}",
                unit="word",
            )
            for number, row_tags in enumerate(rows[column], start)
        ]
        made = encoding.tokenizer(
            [spaced(words, way) for words in sentences],
            is_split_into_words=True,
            truncation=True,
            max_length=encoding.max_length,
            return_overflowing_tokens=True,
        )
        return _windows(made, tags, start)

    return encode_rows(table, encoding, f"{TOKEN_CLASSIFICATION.name}, words {way}", features)


def _checked_sentences(rows: dict[str, list], encoding: Encoding, start: int) -> list[list[str]]:
    tokens, tags = encoding.columns["tokens"], encoding.columns["tags"]
    for number, (words, row_tags) in enumerate(zip(rows[tokens], rows[tags], strict=True), start):
        place = f"{encoding.where}, row {number}"
        if not isinstance(words, list) or not words or any(not isinstance(word, str) for word in words):
            raise ConfigError(f"{place}: column `{tokens}` must hold a list of words; got {shortened(words)}.")
        if not isinstance(row_tags, list) or len(row_tags) != len(words):
            count = len(row_tags) if isinstance(row_tags, list) else shortened(row_tags)
            raise ConfigError(f"{place}: {len(words)} words in `{tokens}`, but `{tags}` holds {count} tags.")
    return rows[tokens]


def _windows(made: Any, tags: Sequence[Sequence[int]], start: int) -> dict[str, list]:
    owners = made.pop("overflow_to_sample_mapping")
    columns: dict[str, list] = {name: list(values) for name, values in made.items()}
    columns |= {name: [] for name in ("labels", SENTENCE, WORDS, TAGS, "length")}
    before = last = None
    for window, owner in enumerate(owners):
        if owner != before:
            last = None
        labels, places = [], []
        for word in made.word_ids(window):
            # A word cut by the end of a window is tagged where it begins.
            begins = word is not None and word != last
            labels.append(tags[owner][word] if begins else IGNORED)
            if begins:
                places.append(word)
                last = word
        columns["labels"].append(labels)
        columns[SENTENCE].append(start + owner)
        columns[WORDS].append(places)
        columns[TAGS].append(list(tags[owner]) if owner != before else [])
        columns["length"].append(len(labels))
        before = owner
    return columns


def _collator(tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformers import DataCollatorForTokenClassification

    return DataCollatorForTokenClassification(tokenizer)


def tags_per_sentence(prediction: EvalPrediction) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Put the tags of windows together again.

    Args:
        prediction: logits (N, T, C) and labels (N, T) of N windows padded to T, and their features as `inputs`.

    Returns:
        Gold and predicted class indices of every word, by sentence; -1 where a word has no prediction.
    """
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    chosen = np.argmax(logits, axis=-1)
    gold: dict[int, np.ndarray] = {}
    predicted: dict[int, np.ndarray] = {}
    columns = (prediction.inputs[name][:] for name in (SENTENCE, TAGS, WORDS))
    for window, (sentence, tags, places) in enumerate(zip(*columns, strict=True)):
        if tags:
            gold[sentence] = np.asarray(tags)
            predicted[sentence] = np.full(len(tags), -1)
        predicted[sentence][places] = chosen[window][prediction.label_ids[window] != IGNORED]
    return list(gold.values()), list(predicted.values())


def _tag_metrics(inventory: LabelInventory | None) -> Callable[[EvalPrediction], dict[str, float]]:
    """Build accuracy and macro F1 over tags, or F1 over exact spans for IOB2 tags."""

    def tags(prediction: EvalPrediction) -> dict[str, float]:
        from sklearn.metrics import f1_score

        gold, predicted = (np.concatenate(side) for side in tags_per_sentence(prediction))
        # A word without prediction is no class of its own in the average.
        classes = sorted({*gold.tolist(), *predicted.tolist()} - {-1})
        return {
            "accuracy": float(np.mean(gold == predicted)),
            "macro_f1": float(f1_score(gold, predicted, labels=classes, average="macro", zero_division=0)),
        }

    def spans(prediction: EvalPrediction) -> dict[str, float]:
        gold, predicted = tags_per_sentence(prediction)
        names = np.array([*map(as_iob2, inventory.names), OUTSIDE], dtype=object)
        accuracy = np.mean(names[np.concatenate(gold)] == names[np.concatenate(predicted)])
        scores = span_scores([names[tags] for tags in gold], [names[tags] for tags in predicted])
        return {**scores, "accuracy": float(accuracy)}

    return spans if is_spans(inventory.names) else tags


def _item_scores(inventory: LabelInventory | None) -> Callable[[EvalPrediction], np.ndarray]:
    """Count per sentence: right tags of all tags, or twice the matching spans of all gold and predicted ones."""

    def tags(prediction: EvalPrediction) -> np.ndarray:
        sides = zip(*tags_per_sentence(prediction), strict=True)
        return np.array([(np.sum(gold == chosen), len(gold)) for gold, chosen in sides], dtype=np.float32)

    def spans(prediction: EvalPrediction) -> np.ndarray:
        names = np.array([*map(as_iob2, inventory.names), OUTSIDE], dtype=object)
        counts = []
        for gold, chosen in zip(*tags_per_sentence(prediction), strict=True):
            right, found = spans_of(names[gold]), spans_of(names[chosen])
            counts.append((2 * len(right & found), len(right) + len(found)))
        return np.array(counts, dtype=np.float32)

    return spans if is_spans(inventory.names) else tags


def _with_labels(task: Task, inventory: LabelInventory) -> Task:
    if is_spans(inventory.names):
        return dataclasses.replace(task, metrics=("f1", "precision", "recall", "accuracy"))
    return task


TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    pipeline_tag="token-classification",
    auto_model="AutoModelForTokenClassification",
    columns={
        "tokens": Column(("tokens", "words"), required=True),
        "tags": Column(("tags", "ner_tags", "pos_tags", "upos", "labels"), required=True),
    },
    metrics=("accuracy", "macro_f1"),
    find_labels=_find_tags,
    encode=encode_words,
    collator=_collator,
    compute_metrics=_tag_metrics,
    item_scores=_item_scores,
    count_examples=lambda features: len(set(features[SENTENCE][:])),
    with_labels=_with_labels,
    find_reading=find_reading,
    describe_readings=describe_readings,
    splits_rows=True,
    needs_fast_tokenizer=True,
)
