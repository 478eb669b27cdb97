"""F1 over exact spans: cases by hand, and seqeval on random tags."""

import random
import warnings

import pytest

from hf_xlt.tasks.spans import span_scores, spans_of

TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O", set()),
        ("B-PER I-PER O", {("PER", 0, 2)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-PER O", set()),
        ("B-PER I-LOC I-PER", {("PER", 0, 1)}),
        ("O B-LOC I-LOC I-LOC", {("LOC", 1, 4)}),
        ("B-LOC O I-LOC", {("LOC", 0, 1)}),
    ],
)
def test_a_span_begins_with_b_and_goes_on_over_i_of_its_type(tags, spans):
    assert spans_of(tags.split()) == spans


def test_a_span_counts_when_type_start_and_end_agree():
    gold = ["B-PER I-PER O B-LOC O B-LOC".split()]
    predicted = ["B-PER O O B-PER O B-LOC".split()]
    scores = span_scores(gold, predicted)
    assert scores == {"precision": 1 / 3, "recall": 1 / 3, "f1": pytest.approx(1 / 3)}


def test_without_spans_every_ratio_is_zero():
    assert span_scores([["O", "O"]], [["O", "O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 gold tags, 1 predicted"):
        span_scores([["O", "O"]], [["O"]])


def test_the_scores_are_those_of_seqeval():
    metrics = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    from seqeval.scheme import IOB2

    rng = random.Random(0)
    compared = 0
    for _ in range(200):
        gold = [[rng.choice(TAGS) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 4))]
        predicted = [[rng.choice(TAGS) if rng.random() < 0.4 else tag for tag in tags] for tags in gold]
        if not all(any(tag.startswith("B-") for tags in side for tag in tags) for side in (gold, predicted)):
            # seqeval raises where there is no entity at all.
            continue
        options = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = {name: getattr(metrics, f"{name}_score")(gold, predicted, **options) for name in NAMES}
        assert span_scores(gold, predicted) == pytest.approx(theirs, abs=1e-12)
        compared += 1
    assert compared > 100


NAMES = ("f1", "precision", "recall")
