"""Text as tokens, and rows packed from it: nothing lost, nothing doubled, nothing mixed."""

import numpy as np
import pytest
from datasets import Dataset
from tiny import make_tokenizer

from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.batches import isolate
from hf_xlt.pretraining.corpus import Corpus, PackedRows, build_corpus, hold_out, read_corpus
from hf_xlt.pretraining.parallel import JoinedDocuments, PairSampler, ParallelText

SEPARATOR = 3


def make_corpus(lengths, first=100, ids=None):
    tokens = np.arange(first, first + sum(lengths)).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Corpus(tokens, starts, None if ids is None else np.array(ids), 0, 0)


def whole(corpus):
    return hold_out(corpus, 0.0)[0]


def stream(packer, count):
    return np.concatenate([packer.row(position) for position in range(count)])


@pytest.mark.parametrize("body", [1, 7, 16, 300])
def test_every_pass_reads_every_token_once_and_in_order_within_documents(body):
    corpus = make_corpus([5, 1, 12, 3, 30])
    packer = PackedRows(whole(corpus), body, SEPARATOR, 0, "en")
    length = packer.tokens_per_pass
    assert length == 51 + 5
    tokens = stream(packer, -(-3 * length // body))
    orders = []
    for number in range(3):
        documents = []
        current = []
        for token in tokens[number * length : (number + 1) * length]:
            if token == SEPARATOR:
                documents.append(tuple(current))
                current = []
            else:
                current.append(int(token))
        assert not current
        assert sorted(documents) == sorted(tuple(corpus.document(index).tolist()) for index in range(5))
        orders.append(documents)
    assert orders[0] != orders[1] or orders[1] != orders[2]


def test_a_row_is_a_function_of_its_number():
    corpus = whole(make_corpus([4, 9, 2, 40, 11]))
    rows = [PackedRows(corpus, 8, SEPARATOR, 0, "en").row(position) for position in range(60)]
    other = PackedRows(corpus, 8, SEPARATOR, 0, "en")
    for position in (59, 3, 30, 0, 31):
        assert (other.row(position) == rows[position]).all()
    assert any((PackedRows(corpus, 8, SEPARATOR, 1, "en").row(p) != rows[p]).any() for p in range(5))


def test_building_drops_empty_documents_and_keeps_ids(tmp_path):
    rows = Dataset.from_dict({"text": ["w1 w2", "", None, "  ", "w3"], "id": ["1", "2", "3", "4", "5"]})
    corpus = build_corpus([rows, rows], make_tokenizer(), "the text", folder=tmp_path / "cache")
    assert len(corpus) == 4 and corpus.ids.tolist() == ["1", "5", "1", "5"]
    assert corpus.document(1).tolist() == make_tokenizer().convert_tokens_to_ids(["w3"])
    assert corpus.bytes == 14 and corpus.unknown == 0
    again = build_corpus([], make_tokenizer(), "the text", folder=tmp_path / "cache")
    assert (again.tokens == corpus.tokens).all() and again.ids.tolist() == corpus.ids.tolist()


def test_unknown_tokens_are_counted():
    assert build_corpus([[{"text": "w1 what is this"}]], make_tokenizer(), "x").unknown == 3


def test_text_without_ids_has_none():
    assert build_corpus([[{"text": "w1"}, {"text": "w2"}]], make_tokenizer(), "x").ids is None


def test_a_missing_column_and_missing_text_are_named():
    with pytest.raises(ConfigError, match="must contain a `text` column; its columns are body"):
        build_corpus([Dataset.from_dict({"body": ["w1"]})], make_tokenizer(), "the text of `sw`")
    with pytest.raises(ConfigError, match="the text of `sw` holds no text"):
        build_corpus([Dataset.from_dict({"text": ["", None]})], make_tokenizer(), "the text of `sw`")


def test_a_damaged_cache_is_named(tmp_path):
    build_corpus([[{"text": "w1"}]], make_tokenizer(), "x", folder=tmp_path / "cache")
    (tmp_path / "cache" / "starts.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ConfigError, match="is damaged; delete that folder"):
        read_corpus(tmp_path / "cache")


def test_held_out_documents_are_held_out_in_every_language():
    ids = [str(number) for number in range(400)]
    first = make_corpus([2] * 400, ids=ids)
    second = make_corpus([3] * 300, ids=ids[100:])
    sides = [hold_out(corpus, 0.1, 7) for corpus in (first, second)]
    held = [set(side[1].corpus.ids[side[1].chosen]) for side in sides]
    trained = [set(side[0].corpus.ids[side[0].chosen]) for side in sides]
    assert 20 <= len(held[0]) <= 60
    assert not held[0] & trained[0] and not held[0] & trained[1] and not held[1] & trained[0]


def test_something_is_always_left_to_train_on():
    assert len(hold_out(make_corpus([2, 2]), 0.5, 0)[0].chosen) >= 1
    assert len(hold_out(make_corpus([2]), 0.5, 0)[0].chosen) == 1


def parallel_corpora():
    ids = {"en": list("abcdef"), "de": list("bcdx"), "sw": list("cdy"), "fr": ["q"]}
    return {
        code: whole(make_corpus(range(1, len(names) + 1), first=1000 * number, ids=names))
        for number, (code, names) in enumerate(ids.items(), start=1)
    }


def test_shared_ids_make_pairs():
    text = ParallelText(parallel_corpora())
    assert text.shared == {("de", "en"): 3, ("en", "sw"): 2, ("de", "sw"): 2}
    common = text.common("de en")
    for index in range(3):
        left, right = common.sides(index)
        assert left[0] // 1000 == 2 and right[0] // 1000 == 1
        ids = [
            side.corpus.ids[side.chosen[place[index]]]
            for side, place in ((common.first, common.left), (common.second, common.right))
        ]
        assert ids[0] == ids[1]


def test_no_shared_id_is_an_error():
    corpora = parallel_corpora()
    with pytest.raises(ConfigError, match="there is no parallel text"):
        ParallelText({"en": corpora["en"], "fr": corpora["fr"]})


def test_the_pivot_has_its_share():
    text = ParallelText(parallel_corpora())
    shares = text.distribution(dict.fromkeys(("en", "de", "sw"), 1 / 3), "en", 0.8)
    assert shares["de en"] + shares["en sw"] == pytest.approx(0.8) and shares["de sw"] == pytest.approx(0.2)
    assert set(text.distribution(dict.fromkeys(("en", "de", "sw"), 1 / 3), "en", 1.0)) == {"de en", "en sw"}
    assert text.distribution(dict.fromkeys(("en", "de", "sw"), 1 / 3), "eng_Latn", 0.8) == shares
    uniform = text.distribution(dict.fromkeys(("en", "de", "sw"), 1 / 3), None, 0.0)
    assert list(uniform.values()) == pytest.approx([1 / 3] * 3)
    for pivot in (None, "fr"):
        with pytest.raises(ConfigError, match="no translation pair has its `pivot`"):
            text.distribution(dict.fromkeys(("en", "de", "sw"), 1 / 3), pivot, 0.5)


def test_joined_documents_hold_both_sides_and_are_cut():
    common = ParallelText(parallel_corpora()).common("de en")
    joined = JoinedDocuments(common, SEPARATOR, longest=3)
    for index in range(3):
        document = joined.document(index)
        assert len(document) == joined.lengths[index] and (document == SEPARATOR).sum() == 1
        place = int(np.flatnonzero(document == SEPARATOR)[0])
        sides = {tuple(document[:place]), tuple(document[place + 1 :])}
        assert sides == {tuple(side[:3]) for side in common.sides(index)}


def test_pairs_are_functions_of_their_number_and_come_once_a_pass():
    text = ParallelText(parallel_corpora())
    shares = {"de en": 1.0}
    pairs = PairSampler(text, shares, 0).draw(0, 12)
    other = PairSampler(text, shares, 0)
    for start in (9, 0, 5):
        for one, two in zip(other.draw(start, 3), pairs[start : start + 3], strict=True):
            assert (one[0] == two[0]).all() and (one[1] == two[1]).all() and one[2] == two[2]
    for start in range(0, 12, 3):
        assert len({pair[2] for pair in pairs[start : start + 3]}) == 3


def test_isolated_documents_see_themselves_only():
    parts = isolate(np.array([[0, 5, 6, 3, 7, 3, 8]]), SEPARATOR)
    assert parts["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0]]
    seen = parts["attention_mask"][0, 0] == 0
    segments = [0, 0, 0, 0, 1, 1, 2]
    assert seen.tolist() == [[one == two for two in segments] for one in segments]


def test_without_a_pivot_share_the_mixture_alone_decides():
    text = ParallelText(parallel_corpora())
    shares = text.distribution({"en": 0.5, "de": 0.25, "sw": 0.25}, "en", 0.0)
    assert shares == pytest.approx({"de en": 0.4, "de sw": 0.2, "en sw": 0.4})
