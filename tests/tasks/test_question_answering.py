"""Questions about a text: windows, labels, the search for answers, scores."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from tiny import make_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import EvalPrediction, PreTrainedTokenizerFast

from hf_xlt.errors import ConfigError
from hf_xlt.tasks import Encoding, get_task
from hf_xlt.tasks.answer_search import best_spans, find_answers

TASK = get_task("question-answering")
COLUMNS = {"question": "question", "context": "context", "answers": "answers"}
SHARED = Path(os.environ.get("HF_XLT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
XQUAD = SHARED / "data" / "qa_xquad"


def characters():
    """A tokenizer that makes a token of each character, blanks too."""
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def encoding(max_length=32, overlap=8, tokenizer=None, language="en"):
    return Encoding(tokenizer or make_tokenizer(), COLUMNS, None, max_length, "qa (en, test)", language, overlap)


def row(question, context, *answers, **more):
    """One row; each answer stands where it first occurs."""
    places = [context.index(answer) for answer in answers]
    answers = {"text": list(answers), "answer_start": places}
    return {"question": question, "context": context, "answers": answers, **more}


def words(count, seed=0):
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 60, count))


def perfect(features):
    """Logits that are highest at the labels, and padded as the Trainer pads them."""
    width = max(features["length"])
    logits = np.full((2, len(features), width), -100.0, dtype=np.float32)
    for window, entry in enumerate(features):
        logits[:, window, : entry["length"]] = 0
        ends = (entry["start_positions"], entry["end_positions"])
        if ends != (0, 0):
            logits[[0, 1], window, ends] = 5
    return EvalPrediction(tuple(logits), None, inputs=features)


def recovered(features):
    """The text between the labelled tokens, by question; the windows that hold it must agree."""
    found, context = {}, None
    for entry in features:
        context = entry["answer_context"] or context
        first, last = entry["start_positions"], entry["end_positions"]
        if first:
            text = context[entry["token_starts"][first] : entry["token_ends"][last]]
            assert found.setdefault(entry["example_number"], text) == text
    return found


def assert_covered(features):
    """Every character of a text but white space is inside some window, and each window adds to the one before."""
    windows = {}
    for entry in features:
        spans = [s for s in zip(entry["token_starts"], entry["token_ends"], strict=True) if s[0] >= 0]
        windows.setdefault(entry["example_number"], (entry["answer_context"], []))[1].append(spans)
    for context, parts in windows.values():
        covered = {place for spans in parts for start, end in spans for place in range(start, end)}
        assert {place for place, char in enumerate(context) if not char.isspace()} <= covered
        assert all(one[0] < other[0] and one[-1] < other[-1] for one, other in itertools.pairwise(parts))
    return {example: len(parts) for example, (_, parts) in windows.items()}


def test_a_window_holds_question_text_labels_and_what_scoring_reads():
    table = Dataset.from_list([row("w1 w2", " w3  w4.w5 w6", "w4.w5", "w5", id=7)])
    (entry,) = TASK.encode(table, encoding(language="de"))
    assert entry["input_ids"] == [2, 6, 7, 3, 8, 9, 1, 10, 11, 3]
    assert (entry["start_positions"], entry["end_positions"], entry["length"]) == (5, 7, 10)
    assert entry["token_starts"] == [-1, -1, -1, -1, 1, 5, 7, 8, 11, -1]
    assert entry["token_ends"] == [-1, -1, -1, -1, 3, 7, 8, 10, 13, -1]
    assert (entry["example_number"], entry["question_id"], entry["answer_language"]) == (0, "7", "de")
    assert entry["answer_context"] == " w3  w4.w5 w6" and entry["gold_answers"] == ["w4.w5", "w5"]


@pytest.mark.parametrize(("max_length", "overlap"), [(32, 8), (32, 0), (12, 100), (7, 3), (5, 128)])
def test_every_part_of_a_text_is_in_some_window(max_length, overlap):
    table = Dataset.from_list([row(words(size % 5 + 1), words(size, size)) for size in (1, 9, 26, 27, 80)])
    features = TASK.encode(table, encoding(max_length, overlap))
    assert max(features["length"]) <= max_length
    counts = assert_covered(features)
    assert TASK.count_examples(features) == len(counts) == 5 and counts[4] > counts[0] == 1
    first = [entry["answer_context"] is not None for entry in features]
    assert sum(first) == 5 and all(
        (entry["gold_answers"] is not None) == one for entry, one in zip(features, first, strict=True)
    )


def test_windows_overlap_by_what_was_asked_for_where_there_is_room():
    table = Dataset.from_list([row("w1", words(100))])
    for max_length, overlap, shared in ((32, 8, 8), (32, 14, 14), (32, 15, 7), (32, 100, 12)):
        windows = list(TASK.encode(table, encoding(max_length, overlap)))
        starts = [{start for start in entry["token_starts"] if start >= 0} for entry in windows]
        assert {len(one & other) for one, other in itertools.pairwise(starts[:-1])} == {shared}


def test_a_long_question_is_cut_to_half_of_the_input():
    table = Dataset.from_list([row(words(50), "w7 w8 w9", "w8"), row("w1", words(40, 1))])
    features = TASK.encode(table, encoding(15, 4))
    assert features[0]["input_ids"].index(3) == 7 and features[0]["length"] == 1 + 6 + 1 + 3 + 1
    assert recovered(features) == {0: "w8"}
    assert_covered(features)


def test_answers_outside_a_window_are_its_first_token():
    context = words(60)
    table = Dataset.from_list([row("w1", context, " ".join(context.split()[30:33])), row("w2", context)])
    features = TASK.encode(table, encoding(16, 4))
    labelled = [bool(entry["start_positions"]) for entry in features]
    assert 1 <= sum(labelled) < len(features) / 2
    assert recovered(features) == {0: " ".join(context.split()[30:33])}
    # The answer to the second question is that there is none.
    assert [entry["gold_answers"] for entry in features if entry["example_number"] == 1 and entry["gold_answers"]] == [
        [""]
    ]


def test_blanks_begin_and_end_no_answer():
    table = Dataset.from_list([row("q", " ab \n c", "b \n c")])
    features = TASK.encode(table, encoding(tokenizer=characters()))
    assert features[0]["token_starts"] == [-1, -1, -1, -1, 1, 2, -1, -1, -1, 6, -1] and recovered(features) == {
        0: "b \n c"
    }
    answers = find_answers(*np.zeros((2, 1, 11)), features)
    assert sorted(answer.text for answer in answers[0]) == ["a", "ab", "ab \n c", "b", "b \n c", "c"]


def test_an_answer_cut_by_the_end_of_a_window_is_not_in_it():
    context = "w1 w2 w3 w4 w5 w6"
    # Six tokens for the text in the first window's place of four.
    features = TASK.encode(Dataset.from_list([row("w9", context, "w4 w5")]), encoding(8, 2))
    assert [(entry["start_positions"], entry["end_positions"]) for entry in features] == [(0, 0), (4, 5)]


def test_answers_may_be_a_struct_of_lists_a_list_of_structs_or_one():
    plain = row("w1", "w2 w3 w4", "w3", "w2 w3")
    texts, places = plain["answers"]["text"], plain["answers"]["answer_start"]
    listed = [{"text": text, "answer_start": place} for text, place in zip(texts, places, strict=True)]
    single = {"text": "w3", "answer_start": 3}
    expected = list(TASK.encode(Dataset.from_list([plain]), encoding()))
    assert list(TASK.encode(Dataset.from_list([{**plain, "answers": listed}]), encoding())) == expected
    (entry,) = TASK.encode(Dataset.from_list([{**plain, "answers": single}]), encoding())
    assert entry == {**expected[0], "gold_answers": ["w3"]}
    for nothing in (None, []):
        (entry,) = TASK.encode(Dataset.from_list([{**plain, "answers": nothing}]), encoding())
        assert entry["gold_answers"] == [""] and entry["start_positions"] == entry["end_positions"] == 0


def test_white_space_around_an_answer_is_no_part_of_it():
    answers = {"text": [" w3 \n"], "answer_start": [2]}
    (entry,) = TASK.encode(Dataset.from_list([{"question": "w1", "context": "w2 w3", "answers": answers}]), encoding())
    assert recovered([entry]) == {0: "w3"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answers": {"text": ["w3"], "answer_start": [4]}},
            "row 1: the answer 'w3' is not at character 4 of the text",
        ),
        ({"answers": {"text": ["w3"], "answer_start": [-5]}}, "row 1: the answer 'w3' is not at character -5"),
        (
            {"answers": {"text": ["w3", "w4"], "answer_start": [3]}},
            "`answers` must hold answers as {text: [...], answer",
        ),
        ({"answers": {"text": ["w3"], "answer_start": [None]}}, "texts and integers; got {'text': ['w3']"),
        ({"answers": {"text": [" "], "answer_start": [2]}}, "row 1: column `answers` holds an empty answer"),
        ({"question": None}, "row 1: column `question` holds None, not a text"),
        ({"context": None}, "row 1: column `context` holds None, not a text"),
    ],
)
def test_rows_that_cannot_be_used_are_named(change, message):
    plain = row("w1", "w2 w3 w4", "w3")
    with pytest.raises(ConfigError) as error:
        TASK.encode(Dataset.from_list([plain, {**plain, **change}]), encoding())
    assert (
        message in str(error.value) and str(error.value).startswith("qa (en, test)") and "\n" not in str(error.value)
    )


def test_answers_that_are_plain_texts_are_refused():
    with pytest.raises(ConfigError, match=r"row 0: .* must hold answers as .*; got 'w3'"):
        TASK.encode(Dataset.from_list([{"question": "w1", "context": "w3", "answers": "w3"}]), encoding())


def test_an_input_without_room_is_refused():
    table = Dataset.from_list([row("w1", "w2")])
    with pytest.raises(ConfigError, match="4 tokens has no room.*`max_length` 5 or more"):
        TASK.encode(table, encoding(4))
    with pytest.raises(ConfigError, match="`window_overlap` is -1"):
        TASK.encode(table, encoding(16, -1))
    assert len(TASK.encode(table, encoding(5))) == 1


def test_the_collator_pads_on_the_right_and_leaves_out_what_scoring_reads():
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    features = TASK.encode(Dataset.from_list([row("w1", words(9), id="a"), row("w1", "w2", "w2", id="b")]), encoding())
    batch = TASK.collator(tokenizer)(list(features))
    assert set(batch) == {"input_ids", "attention_mask", "start_positions", "end_positions"}
    assert batch["attention_mask"].tolist()[1] == [1] * 5 + [0] * 8
    assert batch["start_positions"].tolist() == [0, 3]


def test_features_of_a_large_set_are_those_of_a_small_one(tmp_path, monkeypatch):
    table = Dataset.from_list([row("w1", words(5 + number), id=number) for number in range(40)])
    small = TASK.encode(table, encoding(12))
    monkeypatch.setattr("hf_xlt.tasks.base.CACHED_ROWS", 3)
    monkeypatch.setattr("hf_xlt.tasks.question_answering._PART", 7)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    large = TASK.encode(table, encoding(12))
    assert large[:] == small[:] and large.features == small.features and len(list(tmp_path.rglob("*.arrow"))) == 1


def brute_force(first, last, features, longest):
    """Every span of every question with its best score over windows: {question: {(start, end): score}}."""
    found = {}
    for window, entry in enumerate(features):
        spans = found.setdefault(entry["example_number"], {})
        for begin in range(entry["length"]):
            for end in range(begin, min(begin + longest, entry["length"])):
                if entry["token_starts"][begin] >= 0 and entry["token_starts"][end] >= 0:
                    place = (entry["token_starts"][begin], entry["token_ends"][end])
                    score = first[window, begin] + last[window, end]
                    spans[place] = max(spans.get(place, -np.inf), score)
    return found


@pytest.mark.parametrize(("n_best", "longest"), [(1, 30), (20, 30), (20, 3), (5, 1), (1000, 4)])
def test_the_answers_are_the_best_of_all_spans(n_best, longest):
    table = Dataset.from_list([row("w1 w2", words(size, size).replace("w5", "w5 .")) for size in (1, 2, 30, 45)])
    features = TASK.encode(table, encoding(18, 6))
    rng = np.random.default_rng(3)
    # Wider than any window, with the highest values where no answer may be.
    first, last = rng.normal(size=(2, len(features), 25)).astype(np.float32)
    first[:, :3], last[:, :3] = 50, 50
    first[:, 17:], last[:, 17:] = 50, 50
    answers = find_answers(first, last, features, n_best=n_best, longest=longest)
    for number, spans in brute_force(first, last, features, longest).items():
        expected = sorted(spans.items(), key=lambda item: -item[1])[:n_best]
        assert [(answer.start, answer.end) for answer in answers[number]] == [place for place, _ in expected]
        scores = np.array([score for _, score in expected], dtype=np.float64)
        np.testing.assert_allclose([answer.score for answer in answers[number]], scores, rtol=1e-6)
        shares = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose([answer.probability for answer in answers[number]], shares, rtol=1e-5)
        context = table[number]["context"]
        assert all(answer.text == context[answer.start : answer.end] for answer in answers[number])


def test_best_spans_of_one_window_by_hand():
    nowhere = -np.inf
    first = np.array([[nowhere, 1.0, 3.0, 2.0, nowhere]])
    last = np.array([[nowhere, 9.0, 0.0, 1.0, 5.0]])
    columns = best_spans(first, last, 2, 2)
    # The end of token 1 lies before the start of token 2; three tokens are too many.
    assert sorted(zip(*(column.tolist() for column in columns), strict=True)) == [(0, 1, 1, 10.0), (0, 3, 4, 7.0)]


def test_no_answer_competes_only_where_it_may():
    features = TASK.encode(Dataset.from_list([row("w1", words(20)), row("w1", "w2 w3")]), encoding(16, 4))
    first, last = np.zeros((2, len(features), 16), dtype=np.float32)
    first[0, 4], last[0, 5] = 3, 3
    # One window alone is sure that there is no answer, and the lowest counts.
    first[0, 0] = last[0, 0] = 9
    first[-1, 0] = 1
    long, short = find_answers(first, last, features, with_no_answer=True)
    assert (long[0].text, long[0].score) == (" ".join(words(20).split()[1:3]), 6.0)
    assert (short[0].text, short[0].start, short[0].end, short[0].score) == ("", -1, -1, 1.0)
    assert short[0].probability == pytest.approx(np.e / (np.e + 3))
    assert all(answer.text for answers in find_answers(first, last, features) for answer in answers)
    empty = TASK.encode(Dataset.from_list([row("w1", " ")]), encoding())
    assert [answer.text for answer in find_answers(*np.zeros((2, 1, 4)), empty)[0]] == [""]


def test_perfect_logits_score_one_and_unanswerable_questions_count():
    rows = [row(words(2, size), words(size, size), words(size, size).split()[size // 2]) for size in (4, 20, 50)]
    features = TASK.encode(Dataset.from_list(rows), encoding(16, 4))
    one = dict.fromkeys(TASK.metrics, 1.0)
    assert TASK.compute_metrics(None)(perfect(features)) == one
    features = TASK.encode(Dataset.from_list([*rows, row("w1", words(30))]), encoding(16, 4))
    prediction = perfect(features)
    assert TASK.compute_metrics(None)(prediction) == pytest.approx(dict.fromkeys(TASK.metrics, 0.75))
    for logits in prediction.predictions:
        logits[np.array(features["example_number"]) == 3, 0] = 1
    assert TASK.compute_metrics(None)(prediction) == one


@pytest.mark.skipif(not XQUAD.is_dir(), reason="XQuAD is not in shared/data beside the checkout")
@pytest.mark.parametrize(
    ("split", "languages"),
    [("validation", "ar th")]
    + [pytest.param(split, None, marks=pytest.mark.slow) for split in ("train", "validation", "test")],
)
def test_every_answer_of_xquad_comes_back_from_its_labels(split, languages):
    import pyarrow.parquet as pq

    from hf_xlt.embedded import encoder_directory
    from hf_xlt.models import load_tokenizer

    tokenizer, by_character = load_tokenizer(str(encoder_directory())), characters()
    for language in (languages or "ar de el en es hi ro ru th tr vi zh").split():
        rows = Dataset(pq.read_table(XQUAD / f"{split}.{language}.parquet"))
        gold = [answers["text"][0] for answers in rows["answers"]]
        # Of a token per character nothing is left over.
        features = TASK.encode(rows, encoding(700, 320, by_character, language))
        assert recovered(features) == dict(enumerate(gold)), language
        features = TASK.encode(rows, encoding(384, 128, tokenizer, language))
        assert_covered(features)
        found = recovered(features)
        assert all(text in found[number] for number, text in enumerate(gold)), language
        # Pieces of words go beyond an answer, but none lies wholly outside.
        for entry in filter(lambda entry: entry["start_positions"], features):
            start = rows[entry["example_number"]]["answers"]["answer_start"][0]
            assert entry["token_ends"][entry["start_positions"]] > start
            assert entry["token_starts"][entry["end_positions"]] < start + len(gold[entry["example_number"]])
        answers = find_answers(*perfect(features).predictions, features, n_best=1, longest=384)
        assert [answer.text for (answer,) in answers] == [found[number] for number in range(len(gold))]
