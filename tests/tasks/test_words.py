"""Words of a sentence get the pieces that they have in running text, whatever the kind of the tokenizer."""

import copy
import json

import pytest
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from hf_xlt.data.labels import LabelInventory
from hf_xlt.errors import ConfigError
from hf_xlt.tasks import Encoding, get_task
from hf_xlt.tasks import words as words_module
from hf_xlt.tasks.words import AS_THEY_ARE, WITH_BLANKS, fit_tokenizer

TEXTS = ["Anna sings today and Peter works in Paris", "the dog sleeps here", "don't 12 Tal Berg , ja"] * 30
SENTENCES = [["Anna", "sings", "today"], ["Peter", ",", "don't", "works", "in", "Berg"], ["dog"]]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
SPECIAL = ["<unk>", "<pad>", "<s>", "</s>"]


def train(model, before, trainer=None, normalizer=None):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = before
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(TEXTS, trainer or bpe())
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


def bpe(alphabet=()):
    return trainers.BpeTrainer(
        vocab_size=350, special_tokens=SPECIAL, initial_alphabet=list(alphabet), show_progress=False
    )


def byte_level(blank, cls=None):
    letters = pre_tokenizers.ByteLevel.alphabet()
    made = train(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=blank), bpe(letters))
    if cls is None:
        return made
    model = json.loads(made.backend_tokenizer.to_str())["model"]
    return cls(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], add_prefix_space=blank)


def llama_3():
    parts = [
        pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return train(models.BPE(), pre_tokenizers.Sequence(parts), bpe(pre_tokenizers.ByteLevel.alphabet()))


def sentence_piece_bpe(*steps):
    """As Gemma and Llama 2: blanks become marks before anything is split."""
    before = pre_tokenizers.Split("▁", "merged_with_next")
    return train(models.BPE(unk_token="<unk>", fuse_unk=True), before, normalizer=normalizers.Sequence(list(steps)))


def metaspace(scheme):
    return train(models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(prepend_scheme=scheme))


def unigram():
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return train(models.Unigram(), pre_tokenizers.Metaspace(), trainer)


def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    return train(models.WordPiece(unk_token="<unk>"), pre_tokenizers.BertPreTokenizer(), trainer)


MARK = normalizers.Replace(" ", "▁")
KINDS = {
    "byte-level": (lambda: byte_level(False), AS_THEY_ARE),
    "byte-level with blank": (lambda: byte_level(True), AS_THEY_ARE),
    "RoBERTa": (lambda: byte_level(False, RobertaTokenizer), AS_THEY_ARE),
    "GPT-2": (lambda: byte_level(False, GPT2Tokenizer), AS_THEY_ARE),
    "Llama 3": (llama_3, WITH_BLANKS),
    "Gemma": (lambda: sentence_piece_bpe(MARK), WITH_BLANKS),
    "Llama 2": (lambda: sentence_piece_bpe(normalizers.Prepend("▁"), MARK), AS_THEY_ARE),
    "metaspace first": (lambda: metaspace("first"), AS_THEY_ARE),
    "metaspace always": (lambda: metaspace("always"), AS_THEY_ARE),
    "metaspace never": (lambda: metaspace("never"), WITH_BLANKS),
    "unigram": (unigram, AS_THEY_ARE),
    "word pieces": (word_piece, AS_THEY_ARE),
}


def encode(tokenizer, max_length=64):
    rows = Dataset.from_dict({"tokens": SENTENCES, "tags": [["X"] * len(words) for words in SENTENCES]})
    columns = {"tokens": "tokens", "tags": "tags"}
    encoding = Encoding(tokenizer, columns, LabelInventory(("X", "Y")), max_length, "x")
    return get_task("token-classification").encode(rows, encoding)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_those_of_running_text(kind, tmp_path):
    make, way = KINDS[kind]
    tokenizer = make()
    untouched = copy.deepcopy(tokenizer)
    features = encode(tokenizer)
    assert fit_tokenizer(tokenizer) == way
    tokenizer.save_pretrained(tmp_path)
    for used in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        # Also of the first word: the model is saved with the tokenizer that it was trained with.
        assert features["input_ids"] == used([" ".join(words) for words in SENTENCES])["input_ids"]
    assert [sum(label >= 0 for label in row) for row in features["labels"]] == [len(words) for words in SENTENCES]
    # Of another tokenizer read from the run's folder comes the same, and in windows too.
    assert encode(AutoTokenizer.from_pretrained(tmp_path))["input_ids"] == features["input_ids"]
    windows = encode(untouched, max_length=10)
    inner = [[piece for piece in row if piece not in (0, 2, 3)] for row in windows["input_ids"]]
    whole = [[piece for piece in row if piece not in (0, 2, 3)] for row in features["input_ids"]]
    joined = {number: [] for number in range(len(SENTENCES))}
    for sentence, pieces in zip(windows["sentence"], inner, strict=True):
        joined[sentence] += pieces
    assert list(joined.values()) == whole


def test_without_it_later_words_would_go_on_from_the_word_before():
    for kind in ("byte-level", "RoBERTa", "Llama 3", "Gemma", "metaspace never"):
        tokenizer = KINDS[kind][0]()
        plain = tokenizer(SENTENCES, is_split_into_words=True)["input_ids"]
        assert plain != tokenizer([" ".join(words) for words in SENTENCES])["input_ids"]


def test_prefix_space_is_set_as_by_from_pretrained(tmp_path):
    tokenizer = byte_level(False, RobertaTokenizer)
    tokenizer.save_pretrained(tmp_path)
    right = AutoTokenizer.from_pretrained(tmp_path, add_prefix_space=True)
    fit_tokenizer(tokenizer)
    texts = [*TEXTS[:3], " Anna"]
    assert tokenizer(texts, return_offsets_mapping=True).data == right(texts, return_offsets_mapping=True).data
    # Where words in a list are given to the saved tokenizer, they get the same pieces.
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved(SENTENCES, is_split_into_words=True)["input_ids"] == encode(tokenizer)["input_ids"]


@pytest.mark.parametrize("task", ["text-classification", "question-answering"])
def test_other_tasks_leave_the_tokenizer_alone(task):
    tokenizer = byte_level(False, RobertaTokenizer)
    before = tokenizer.backend_tokenizer.pre_tokenizer.__getstate__()
    if task == "text-classification":
        rows = Dataset.from_dict({"text": ["Anna sings"], "label": ["X"]})
        columns = {"text": "text", "label": "label"}
    else:
        answers = [{"text": ["sings"], "answer_start": [5]}]
        rows = Dataset.from_dict({"question": ["Anna"], "context": ["Anna sings"], "answers": answers})
        columns = {"question": "question", "context": "context", "answers": "answers"}
    get_task(task).encode(rows, Encoding(tokenizer, columns, LabelInventory(("X", "Y")), 32, "x"))
    assert tokenizer.backend_tokenizer.pre_tokenizer.__getstate__() == before


def test_a_tokenizer_that_no_way_fits_is_refused(monkeypatch):
    monkeypatch.setattr(words_module, "_agreement", lambda tokenizer, words, way: 0.2)
    with pytest.raises(ConfigError, match="splits single words otherwise than running text"):
        fit_tokenizer(llama_3())
