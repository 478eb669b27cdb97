"""Pairs put together from sentences tokenised once are exactly those of the tokenizer."""

import os
import random
from pathlib import Path

import pytest
from tiny import WORDS, make_tokenizer
from tokenizers import processors
from transformers import AutoTokenizer

from hf_xlt.embedded import encoder_directory
from hf_xlt.pair_tokenizer import PairTokenizer, fastest_tokenizer

SHARED = Path(os.environ.get("HF_XLT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def texts(seed, count=60):
    rng = random.Random(seed)
    return [
        "",
        "w1",
        *(" ".join(rng.choices([*WORDS, "unknown", "[SEP]"], k=rng.randint(1, 25))) for _ in range(count)),
    ]


def tokenizers():
    roberta = make_tokenizer()
    roberta.backend_tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    left, right = make_tokenizer(), make_tokenizer()
    left.truncation_side, right.model_input_names = "left", ["input_ids", "attention_mask"]
    return {"bert": make_tokenizer(), "roberta": roberta, "cut on the left": left, "no segments": right}


@pytest.mark.parametrize("name", tokenizers())
@pytest.mark.parametrize("length", [4, 5, 8, 13, 32])
def test_the_inputs_are_those_of_the_tokenizer(name, length):
    tokenizer = tokenizers()[name]
    first, second = texts(0), texts(1)
    expected = dict(tokenizer(first, second, truncation=True, max_length=length))
    quick = PairTokenizer(tokenizer)
    for _ in range(2):
        assert quick(first, second, truncation=True, max_length=length) == expected
    assert dict(tokenizer(first, second, truncation=True, max_length=length)) == expected


def test_the_encoder_that_comes_with_the_package_is_tokenised_quickly():
    tokenizer = AutoTokenizer.from_pretrained(encoder_directory())
    first, second = ["An island in the sea.", "Ein Haus"], ["Kisiwa baharini, mbali sana.", "家"]
    quick = fastest_tokenizer(tokenizer, first, second, 16)
    assert isinstance(quick, PairTokenizer)
    for length in (5, 8, 16):
        expected = dict(tokenizer(first, second, truncation=True, max_length=length))
        assert quick(first, second, truncation=True, max_length=length) == expected


@pytest.mark.skipif(
    not (SHARED / "models" / "xlt-mini").is_dir() or not (SHARED / "data" / "topic_sib200").is_dir(),
    reason=f"real data and models are not in {SHARED.name}/ beside the checkout (HF_XLT_SHARED names another place)",
)
def test_real_sentences_of_many_scripts_are_tokenised_exactly():
    import pyarrow.parquet as pq

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "xlt-mini")
    folder = SHARED / "data" / "topic_sib200"
    sides = [
        [text for code in codes for text in pq.read_table(folder / f"test.{code}.parquet")["text"].to_pylist()[:40]]
        for codes in (("en", "zh", "am", "th"), ("sw", "ar", "hi", "yo"))
    ]
    quick = fastest_tokenizer(tokenizer, *sides, 128)
    assert isinstance(quick, PairTokenizer)
    for length in (9, 40, 128):
        assert quick(*sides, truncation=True, max_length=length) == dict(
            tokenizer(*sides, truncation=True, max_length=length)
        )


def test_a_tokenizer_that_does_more_is_left_to_do_it():
    class Marking:
        """Adds a token of its own to each pair, which the backend does not know."""

        def __init__(self):
            self.inner = make_tokenizer()

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, *args, **kwargs):
            encoded = self.inner(*args, **kwargs)
            encoded["input_ids"] = [[*ids, 4] for ids in encoded["input_ids"]]
            return encoded

    tokenizer = Marking()
    assert fastest_tokenizer(tokenizer, texts(0), texts(1), 16) is tokenizer


def test_sentences_kept_are_limited(monkeypatch):
    monkeypatch.setattr("hf_xlt.pair_tokenizer.KEPT", 10)
    quick, tokenizer = PairTokenizer(make_tokenizer()), make_tokenizer()
    for seed in range(4):
        first, second = texts(seed, 8), texts(seed + 50, 8)
        assert quick(first, second, truncation=True, max_length=9) == dict(
            tokenizer(first, second, truncation=True, max_length=9)
        )
        assert len(quick._encoded) <= 10 + 20
