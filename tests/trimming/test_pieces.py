"""Which tokens are kept: text is cut as before by every kind of tokenizer, in fourteen scripts."""

import json
import random
from collections import Counter

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from trimming_setup import BYTES, KINDS, LOCALES, XLM, make_tokenizer, phrases, unigram

from hf_xlt.errors import ConfigError
from hf_xlt.trimming.pieces import Merger, Vocabulary, select
from hf_xlt.trimming.tokenizer import trimmed_tokenizer

# Added tokens inside text, characters that no tokenizer here knows, none at all, and words that were never seen.
ODD = ("xyz <mask> ﷽ zzzz <s>foo</s> 中文a", "unseenwordß 中", "[MASK] [SEP] ab", "  two   spaces ", "🙂👩‍👩‍👧 ok")
TEXT = [line for locale in LOCALES for line in phrases(locale, "territories")[:30]] + list(ODD)


def trim(tokenizer, text=TEXT, **options):
    vocabulary = Vocabulary(tokenizer)
    counts = Counter(index for ids in tokenizer(text)["input_ids"] for index in ids)
    selection = select(vocabulary, counts, text, **options)
    return trimmed_tokenizer(vocabulary, selection), selection


def pieces(tokenizer, text):
    return [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(text)["input_ids"]]


@pytest.mark.parametrize("characters", ["text", "none", "all", "äbc中"])
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_cut_into_the_same_pieces(kind, characters):
    old = make_tokenizer(kind)
    new, selection = trim(old, characters=characters)
    assert pieces(new, TEXT) == pieces(old, TEXT)
    assert [[selection.new_ids[index] for index in ids] for ids in old(TEXT)["input_ids"]] == new(TEXT)["input_ids"]
    assert len(new) == len(selection.ids) < len(old)
    assert new(TEXT[0], TEXT[1])["input_ids"][-1] == new.convert_tokens_to_ids(pieces(old, TEXT)[0][-1])


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_kept_has_a_reason_and_nothing_needless_is(kind):
    old = make_tokenizer(kind)
    new, selection = trim(old, characters="none")
    used = {index for ids in old(TEXT)["input_ids"] for index in ids}
    assert used <= set(selection.ids) and sum(selection.reasons.values()) == len(selection.ids)
    special = len(Vocabulary(old).always())
    assert selection.reasons["special"] == special == (261 if kind in ("byte fallback", "byte-level") else 5)
    # What is neither used nor special is on the way to something that is.
    assert selection.reasons["pieces"] <= {"unigram": 1, "wordpiece": 6}.get(kind, 300)
    assert selection.reasons["characters"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_keeps_the_most_frequent_tokens_and_characters_keep_text_known(kind):
    old = make_tokenizer(kind)
    new, selection = trim(old, limit=40)
    special = Vocabulary(old).always()
    counts = Counter(index for ids in old(TEXT)["input_ids"] for index in ids if index not in special)
    frequent = sorted(counts, key=lambda index: (-counts[index], index))[:40]
    assert set(frequent) <= set(selection.ids) and selection.reasons["text"] == 40
    plain = TEXT[: -len(ODD)]
    unknown = [sum(ids.count(t.unk_token_id) for ids in t(plain)["input_ids"]) for t in (old, new)]
    assert unknown[1] == unknown[0] == 0
    if kind not in ("byte fallback", "byte-level"):
        lost, _ = trim(old, limit=40, characters="none")
        assert sum(ids.count(lost.unk_token_id) for ids in lost(plain)["input_ids"]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_characters_that_are_asked_for_can_be_written(kind):
    old = make_tokenizer(kind)
    text = ["Kenya, Peru"]
    for characters, wanted in (("жкყ", "жкყ"), ("all", "жкყ한中")):
        new, _ = trim(old, text, characters=characters)
        none, _ = trim(old, text, characters="none")
        for character in wanted:
            line = f"{character} {character}{character}"
            unknown = [each(line)["input_ids"].count(each.unk_token_id) for each in (old, new)]
            assert unknown[0] == unknown[1], character
            if kind not in ("byte fallback", "byte-level"):
                assert none.unk_token_id in none(character)["input_ids"]
    if kind == "byte-level":
        few, many = (trim(old, text, characters=value)[0] for value in ("none", "ж"))
        assert len(few.tokenize("ж")) == 2 and len(many.tokenize("ж")) == 1


def test_the_score_of_an_unknown_character_stays():
    # `uvbwz` is cut u-vbw-z for -21. Without `b` and `zz` an unknown character would cost 17, uv-<unk>-wz 19.
    scores = {"uv": -1, "wz": -1, "u": -7, "vbw": -7, "z": -7, "b": -20, "zz": -40, "▁": -1}
    old, text = unigram([("<unk>", 0.0), *((piece, float(score)) for piece, score in scores.items())]), ["uvbwz uv wz"]
    assert pieces(old, text) == [["u", "vbw", "z", "▁", "uv", "▁", "wz"]]
    vocabulary = Vocabulary(old)
    counts = Counter(old(text)["input_ids"][0])
    selection = select(vocabulary, counts, text, characters="none")
    assert [vocabulary.model["vocab"][index][0] for index in selection.ids if index not in counts] == [
        "<unk>",
        "zz",
    ]
    assert pieces(trimmed_tokenizer(vocabulary, selection), text) == pieces(old, text)
    without = [entry for entry in vocabulary.model["vocab"] if entry[0] in {*old.convert_ids_to_tokens(list(counts))}]
    assert pieces(unigram([tuple(entry) for entry in without]), text) != pieces(old, text)


def word_piece(tokens, **settings):
    vocab = {token: index for index, token in enumerate(["[UNK]", *tokens])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", **settings))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_an_unknown_word_stays_unknown():
    # The longest start of `abc` is `ab`, after which nothing fits; without it `a` and `##bc` would.
    old, text = word_piece(["a", "ab", "q", "##bc", "##x"], max_input_chars_per_word=6), ["abc a qbc abcabcabc"]
    assert pieces(old, text) == [["[UNK]", "a", "q", "##bc", "[UNK]"]]
    new, selection = trim(old, text, characters="none")
    assert pieces(new, text) == pieces(old, text)
    assert sorted(new.get_vocab()) == ["##bc", "[UNK]", "a", "ab", "q"] and selection.reasons["pieces"] == 1
    assert pieces(word_piece(["a", "q", "##bc"]), ["abc"]) == [["a", "##bc"]]


def byte_pair(vocab, merges, **settings):
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(vocab)}, merges, **settings))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize(
    ("start", "settings"),
    [
        ("", {}),
        ("", {"ignore_merges": True}),
        ("", {"fuse_unk": True}),
        ("", {"byte_fallback": True}),
        ("##", {}),
        ("", {"end_of_word_suffix": "</w>"}),
    ],
)
def test_merges_are_done_as_the_tokenizer_does_them(start, settings):
    draw = random.Random(0)
    if start:
        settings = {"continuing_subword_prefix": start}
    ending = settings.get("end_of_word_suffix", "")
    letters = "abcde"
    symbols = [
        *letters,
        *(start + letter for letter in letters if start),
        *(letter + ending for letter in letters if ending),
    ]
    vocab, merges = ["<unk>", *(BYTES if "byte_fallback" in settings else ()), *symbols], []
    while len(merges) < 40:
        left, right = draw.choice(symbols), draw.choice(symbols)
        product = left + right[len(start) :]
        if (start and not right.startswith(start)) or (ending and left.endswith(ending)) or product in vocab:
            continue
        merges.append((left, right))
        symbols.append(product)
        vocab.append(product)
    tokenizer = byte_pair(vocab, merges, unk_token="<unk>", **settings)
    merger = Merger(json.loads(tokenizer.backend_tokenizer.to_str())["model"])
    for _ in range(400):
        word = "".join(draw.choice("abcde" + "xß" * (draw.random() < 0.2)) for _ in range(draw.randint(1, 12)))
        last = merger.merge(word)[1]
        if settings.get("fuse_unk"):
            last = [one for number, one in enumerate(last) if one != "<unk>" or last[number - 1 : number] != ["<unk>"]]
        assert last == tokenizer.tokenize(word), word


def test_a_word_that_is_a_token_needs_no_merges_where_they_are_ignored():
    vocab = ["<unk>", "a", "b", "c", "ab", "abc"]
    tokenizer = byte_pair(vocab, [("a", "b")], unk_token="<unk>", ignore_merges=True)
    new, selection = trim(tokenizer, ["abc"], characters="none")
    assert pieces(new, ["abc"]) == [["abc"]] and selection.merges == frozenset()
    assert sorted(new.get_vocab()) == ["<unk>", "abc"]


@pytest.mark.parametrize(
    "processor",
    [
        lambda ids: processors.BertProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"])),
        lambda ids: processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"])),
        lambda ids: processors.Sequence(
            [
                processors.ByteLevel(),
                processors.TemplateProcessing(
                    single="<s> $A </s>", special_tokens=[(t, ids[t]) for t in ("<s>", "</s>")]
                ),
            ]
        ),
    ],
)
def test_special_tokens_around_text_get_their_new_ids(processor):
    tokens = [*(f"▁fill{number}" for number in range(9)), *XLM.values(), *"abc▁"]
    backend = Tokenizer(
        models.Unigram([(token, -float(rank)) for rank, token in enumerate(tokens)], tokens.index("<unk>"))
    )
    backend.post_processor = processor({token: rank for rank, token in enumerate(tokens)})
    backend.enable_padding(pad_id=tokens.index("<pad>"), pad_token="<pad>")
    old = PreTrainedTokenizerFast(tokenizer_object=backend, **XLM)
    new, _ = trim(old, ["ab", "cab"])
    assert pieces(new, ["ab"]) == [["<s>", "a", "b", "</s>"]] == pieces(old, ["ab"])
    assert new("ab")["input_ids"][0] == new.bos_token_id < old.bos_token_id
    state = json.loads(new.backend_tokenizer.to_str())
    assert state["padding"] is None or state["padding"]["pad_id"] == new.pad_token_id


def test_tokens_beyond_the_model_keep_their_place_behind_it():
    old = make_tokenizer("unigram")
    old.add_tokens(["<new>", "zürich"])
    new, _ = trim(old, ["zürich <new> Kenya"])
    assert pieces(new, ["zürich <new> Kenya"]) == pieces(old, ["zürich <new> Kenya"])
    assert new.convert_tokens_to_ids("<new>") == len(new) - 2


def test_a_tokenizer_that_merges_by_chance_is_refused():
    tokenizer = byte_pair(["<unk>", "a", "b", "ab"], [("a", "b")], unk_token="<unk>", dropout=0.1)
    with pytest.raises(ConfigError, match=r"dropout 0\.1"):
        Vocabulary(tokenizer)
