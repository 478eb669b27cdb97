"""Streamed text: exact resumption, nothing lost, and clear failures."""

import json
import random
import zlib

import pyarrow
import pytest
from broken_shards import BROKEN, make_shards
from datasets import Dataset
from huggingface_hub.errors import HTTPError
from tiny import make_tokenizer

from hf_xlt.errors import ConfigError, RunError
from hf_xlt.pretraining.batches import FAILURE, READER_STATE, PhaseText
from hf_xlt.pretraining.stream_states import StreamStates
from hf_xlt.pretraining.streaming import StreamedRows, too_many_failed

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


@pytest.fixture(autouse=True)
def nothing_broken():
    BROKEN.clear()
    yield
    BROKEN.clear()


def open_shards(shards=20, body=4, block=2, **changes):
    settings = {"where": "the text of `en` (org/text)", "block": block, "wait_seconds": 0.0, **changes}
    return StreamedRows(make_shards(shards), TOKENIZER, body, 0, "en", **settings)


def documents_of_pass(stream, number):
    """Read until a pass is over; return its documents' words."""
    tokens = []
    while stream.number <= number:
        tokens += stream.next_row().tolist()
    return [document.split() for document in TOKENIZER.decode(tokens).split("[SEP]")]


def test_a_shard_that_keeps_failing_is_skipped_for_the_pass(capsys):
    BROKEN[7] = 4
    stream = open_shards()
    words = {word for document in documents_of_pass(stream, 0) for word in document}
    # Shard s holds the words w(3 s), three documents of each; of shard 7 the first four documents are read.
    assert words == {f"w{word}" for word in range(60)} - {"w23"} and "w22" in words
    assert (stream.skipped, stream.failures) == (1, 3)
    where = "Warning: the text of `en` (org/text): shard 7 of 20 (counted from 0) cannot be read: "
    rest = "reset by peer. 3 attempts failed; the rest of it is left out in this pass."
    assert capsys.readouterr().out.splitlines() == [where + rest]
    BROKEN.clear()
    assert "w23" in {word for document in documents_of_pass(stream, 1) for word in document}
    assert stream.skipped == 1


@pytest.mark.parametrize("stops", [(1,), (30, 31, 32, 33, 34, 35), range(1, 140, 3)])
def test_resuming_around_a_skipped_shard_is_exact(stops):
    BROKEN.update({7: 4, 11: 0})
    whole = open_shards(body=16)
    expected = [whole.next_row().tolist() for _ in range(150)]
    assert whole.skipped >= 4 and whole.number == 2
    stream, rows = open_shards(body=16), []
    for stop in (*stops, 150):
        while len(rows) < stop:
            rows.append(stream.next_row().tolist())
        state = json.loads(json.dumps(stream.state()))
        stream = open_shards(body=16)
        stream.load_state(state)
    assert rows == expected and stream.state() == whole.state() and stream.skipped == whole.skipped


def test_a_document_that_can_be_read_no_further_is_closed():
    stream = open_shards(body=2)
    first = stream.next_row().tolist()
    assert stream.used == 2
    state = stream.state()
    for shard in range(20):
        if TOKENIZER.convert_tokens_to_ids(f"w{3 * shard}") <= first[0] < 3 * shard + 8:
            BROKEN[shard] = 0
    stream = open_shards(body=2)
    stream.load_state(state)
    row = stream.next_row().tolist()
    assert stream.skipped == 1 and row[0] == TOKENIZER.sep_token_id and row[1] not in (first[0], row[0])


@pytest.mark.parametrize(("allowed", "broken"), [(0.1, 2), (0.0, 0), (0.29, 5)])
def test_more_failing_shards_than_allowed_end_the_run(allowed, broken):
    BROKEN.update(dict.fromkeys(range(broken), 1))
    stream = open_shards(max_failed_shards=allowed)
    documents_of_pass(stream, 1)
    assert stream.skipped == 2 * broken and stream.failed == broken
    BROKEN[19] = 0
    with pytest.raises(
        RunError, match=f"{broken + 1} of 20 shards cannot be read.* `max_failed_shards` is {allowed:g}"
    ):
        documents_of_pass(open_shards(max_failed_shards=allowed), 0)


def test_the_allowed_share_itself_is_not_too_many():
    assert 0.29 * 100 < 29
    assert not too_many_failed(29, 100, 0.29) and too_many_failed(30, 100, 0.29)


def test_a_reader_whose_shards_all_fail_ends_the_run():
    BROKEN.update({3: 0, 13: 0})
    with pytest.raises(RunError, match="cannot be read: reset by peer. 3 attempts failed; check the network"):
        documents_of_pass(open_shards(reader=3, readers=10, max_failed_shards=0.9), 0)


@pytest.mark.parametrize(
    "error",
    [EOFError("cut"), zlib.error("cut"), pyarrow.ArrowInvalid("cut"), HTTPError("cut"), FileNotFoundError("cut")],
)
def test_damaged_and_missing_shards_count_as_failing(error, monkeypatch):
    def broken(self, dataset):
        raise error
        yield

    monkeypatch.setattr(StreamedRows, "_rows", broken)
    with pytest.raises(RunError, match="cannot be read: cut. 3 attempts failed"):
        open_stream().next_row()


def follow(streams, states):
    for reader, state in enumerate(states):
        assert streams.take([{READER_STATE: {str(reader): {"en": state}}}]) == [{}]
    return streams


def test_losses_are_summed_over_readers():
    text = PhaseText({}, streams={"en": (make_shards(20), "text")})
    states = [{"pass": 4, "skipped": 3, "failed": 1, "failed_pass": number} for number in (4, 3, 2)]
    streams = follow(StreamStates(text, 0, 1, 3), states)
    assert streams.count().tolist() == [[9], [2]]
    streams.check(streams.count())
    assert streams.log_entries() == {"skipped_shards_en": 9}
    follow(streams, [{**states[0], "failed": 2}])
    with pytest.raises(RunError, match="`en`: 3 of 20 shards cannot be read"):
        streams.check(streams.count())


def test_states_of_earlier_versions_count_nothing():
    stream = open_shards()
    state = {name: value for name, value in stream.state().items() if name not in ("skipped", "failed", "failed_pass")}
    stream.load_state(state)
    assert stream.skipped == 0
    streams = follow(StreamStates(PhaseText({}, streams={"en": (make_shards(20), "text")})), [state])
    assert streams.count().tolist() == [[0], [0]]


def test_what_stops_a_reader_is_raised_where_batches_are_taken():
    streams = StreamStates(PhaseText({}, streams={"en": (make_shards(20), "text")}))
    with pytest.raises(RunError, match="^gone$"):
        streams.take([{FAILURE: RunError("gone")}])
