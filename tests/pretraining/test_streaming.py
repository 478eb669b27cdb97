"""Streamed text: exact resumption, nothing lost, and clear failures."""

import json
import random

import pytest
from datasets import Dataset
from tiny import make_tokenizer

from hf_xlt.errors import ConfigError, RunError
from hf_xlt.pretraining.streaming import StreamedRows

ROWS = [
    {"text": " ".join(f"w{random.Random(number).randrange(60)}" for _ in range(1 + number % 9)), "id": str(number)}
    for number in range(101)
]
TOKENIZER = make_tokenizer()


def open_stream(shards=1, reader=0, readers=1, rows=ROWS, **changes):
    dataset = Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)
    settings = {"where": "the text", "block": 10, "wait_seconds": 0.0, **changes}
    return StreamedRows(dataset, TOKENIZER, 16, 0, "en", reader=reader, readers=readers, **settings)


@pytest.mark.parametrize(("shards", "reader", "readers"), [(1, 0, 1), (1, 2, 3), (4, 1, 2), (4, 0, 1)])
@pytest.mark.parametrize("stops", [(1,), (7,), (7, 50), (1, 2, 3, 60)])
def test_resuming_any_number_of_times_gives_the_same_rows(shards, reader, readers, stops):
    whole = open_stream(shards, reader, readers)
    expected = [whole.next_row().tolist() for _ in range(80)]
    stream, rows = open_stream(shards, reader, readers), []
    for stop in (*stops, 80):
        while len(rows) < stop:
            rows.append(stream.next_row().tolist())
        state = json.loads(json.dumps(stream.state()))
        stream = open_stream(shards, reader, readers)
        stream.load_state(state)
    assert rows == expected
    assert len(json.dumps(state)) < 4000


@pytest.mark.parametrize(("shards", "readers"), [(1, 1), (1, 3), (4, 2), (5, 3), (2, 4)])
def test_readers_share_a_pass_without_loss_or_doubling(shards, readers):
    expected = sorted(tuple(TOKENIZER(row["text"], add_special_tokens=False)["input_ids"]) for row in ROWS)
    found = []
    for reader in range(readers):
        stream, tokens = open_stream(shards, reader, readers), []
        while stream.number < 1:
            tokens += stream.next_row().tolist()
        documents = (" ".join(map(str, tokens)) + " ").split(f" {TOKENIZER.sep_token_id} ")
        own = [tuple(map(int, document.split())) for document in documents]
        found.append(own)
    # A row may reach into the second pass, so each reader has read at least its part of the first.
    first = [document for own in found for document in own]
    remaining = list(first)
    for document in expected:
        assert document in remaining
        remaining.remove(document)
    assert len(remaining) <= 16 * readers


def test_passes_differ_in_order():
    stream = open_stream()
    passes = [[], []]
    while stream.number < 2:
        passes[stream.number] += stream.next_row().tolist()
    assert passes[0] != passes[1]


def test_empty_documents_are_passed_over():
    rows = [{"text": ""}] * 25 + [{"text": "w1 w2"}] + [{"text": None}] * 12
    tokens = open_stream(rows=rows).next_row().tolist()
    one, two = TOKENIZER.convert_tokens_to_ids(["w1", "w2"])
    assert tokens == ([one, two, TOKENIZER.sep_token_id] * 6)[:16]


def test_text_without_any_document_is_an_error():
    with pytest.raises(ConfigError, match="holds no text for reader 1 of 1"):
        open_stream(rows=[{"text": ""}] * 25).next_row()


def test_a_missing_column_is_named():
    with pytest.raises(ConfigError, match="must contain a `body` column; its columns are text, id"):
        open_stream(text_column="body").next_row()


def test_a_failing_read_is_repeated_and_then_reported(monkeypatch):
    whole = open_stream()
    expected = [whole.next_row().tolist() for _ in range(20)]
    stream, calls = open_stream(), []
    original = StreamedRows._rows

    def failing(self, dataset):
        calls.append(1)
        if len(calls) in (1, 4):
            raise ConnectionError("reset by peer")
        yield from original(self, dataset)

    monkeypatch.setattr(StreamedRows, "_rows", failing)
    assert [stream.next_row().tolist() for _ in range(20)] == expected
    assert stream.failures == 2

    def dead(self, dataset):
        raise ConnectionError("reset by peer")
        yield

    monkeypatch.setattr(StreamedRows, "_rows", dead)
    with pytest.raises(RunError, match="reset by peer. 3 attempts failed"):
        open_stream().next_row()
