"""Trimmed XLM-R-like, BPE, byte-level BPE and WordPiece models on text of their own in twelve scripts, as it is typed.

Combining marks in both forms, vowel signs, half and full width, digits of many scripts, emoji of several code points,
ligatures, spaces of other kinds, characters that no tokenizer here knows.
"""

import json
import unicodedata

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
from trimming_setup import BERT, BYTES, XLM, _frame, make_model, save

from hf_xlt.cli.main import main
from hf_xlt.files import has_keys
from hf_xlt.model_cards.checks import check

SENTENCES = {
    "en": "The naïve café costs 12.50 — “fine”, she said… office №5 ½ 👍🏽",
    "ru": "Ёжик съел 3 яблока; объём — 20 см². Привет, мир! 🇷🇺",
    "el": "Ἐν ἀρχῇ ἦν ὁ λόγος· Η Αθήνα έχει 15°C σήμερα.",
    "ar": "السَّلامُ عَلَيْكُمْ، عندي ٣٤٥ كتابًا ولا شيء؟ ﷺ ﻻ",
    "he": "שָׁלוֹם עֲלֵיכֶם! יש לי 7 ספרים — תודה רבה.",
    "hi": "क़लम और ज़मीन: मुझे १२३ रुपये चाहिए। क्या हाल है?",
    "bn": "আমি ৪৫ টাকা দিয়েছি। তুমি কেমন আছো? বাড়ি",
    "ta": "வணக்கம், நான் 10 புத்தகங்கள் வாங்கினேன். கொ",
    "th": "วันนี้น้ำเย็นมาก ราคา ๕๐ บาท ไม่ใช่หรือ",
    "ko": "안녕하세요? 저는 사과 3개를 샀어요. ㈜한국 ㅋㅋ",
    "ja": "ｶﾞｷﾞﾄﾞとガギド、１２３円です。〜東京タワー㍿ ぱぴぷ゜",
    "zh": "我有２０本書，价格是￥30。你好吗？𠮷野家 龘",
}
# Text that nothing was trained on, with characters that are in no vocabulary.
OTHER = {"en": "Zürich, façade & Ωmega ①②③ ﬁne ⛄", "zh": "魑魅魍魎 𡃁仔 ｡ﾊﾟ", "am": "ሰላም ለዓለም ፩፪፫"}
NORMALIZERS = {
    "none": None,
    "NFC": normalizers.NFC(),
    "NFKC": normalizers.NFKC(),
    "NFD": normalizers.NFD(),
    "NFKC lower": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
    "stripped": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
}


def lines(language, sentences=SENTENCES):
    """A sentence as it is, composed, decomposed, in parts, in a row, and around a special token."""
    text = sentences[language]
    forms = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC"))]
    return [*forms, *text.split(), text.replace(" ", ""), f"{text}\u00a0\u3000{text}", f"{text} <mask> {text[::-1]}"]


def train(kind, normalizer):
    """A tokenizer trained on all twelve sentences and shuffles of their words."""
    corpus = [line for code in SENTENCES for line in lines(code)] * 3
    special = list((BERT if kind == "wordpiece" else XLM).values())
    extra = {}
    if kind == "unigram":
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=special, unk_token="<unk>")
        splitter, decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    elif kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(vocab_size=1100, special_tokens=special, limit_alphabet=380)
        splitter, decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    elif kind == "byte-level":
        backend = Tokenizer(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet)
        splitter, decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        extra = {"byte_fallback": True} if kind == "byte fallback" else {}
        special += BYTES if extra else ()
        trainer = trainers.BpeTrainer(vocab_size=1100, special_tokens=special, limit_alphabet=250 + len(special))
        digits = pre_tokenizers.Digits(individual_digits=True)
        splitter, decoder = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), digits]), decoders.Metaspace()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer, backend.decoder = splitter, decoder
    backend.train_from_iterator(corpus, trainer)
    state = json.loads(backend.to_str())
    state["model"] |= extra
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in BYTES]
    bert = kind == "wordpiece"
    return _frame(Tokenizer.from_str(json.dumps(state)), BERT if bert else XLM, bert)


def write(folder, sentences, count=None):
    folder.mkdir(parents=True)
    for code in sentences:
        rows = ({"text": line} for line in lines(code, sentences)[:count])
        (folder / f"{code}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / "{lang}.jsonl")


CASES = [
    *(("unigram", name) for name in NORMALIZERS),
    *(("merges", name) for name in ("NFC", "NFKC", "NFD")),
    *(("byte fallback", name) for name in ("none", "NFKC")),
    *(("byte-level", name) for name in ("none", "NFC")),
    *(("wordpiece", name) for name in ("none", "stripped", "NFKC lower")),
]


@pytest.mark.parametrize(("kind", "normalizer"), CASES)
def test_text_in_twelve_scripts_is_read_as_before(kind, normalizer, tmp_path, capsys):
    tokenizer = train(kind, NORMALIZERS[normalizer])
    name = {"unigram": "XLMRobertaForMaskedLM", "wordpiece": "BertForMaskedLM"}.get(kind, "RobertaForMaskedLM")
    save(tmp_path / "model", make_model(name, tokenizer), tokenizer)
    # A part of the text, so that tokens go; the rest is other text.
    given, other = write(tmp_path / "text", SENTENCES, 2), write(tmp_path / "other", OTHER)
    words = ["trim-vocab", str(tmp_path / "model"), "--text", given, "--check-text", other, "--json"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    old, new = (AutoTokenizer.from_pretrained(tmp_path / folder) for folder in ("model", "out"))
    kept = [old.convert_tokens_to_ids(new.convert_ids_to_tokens(index)) for index in range(len(new))]
    models_ = [AutoModelForMaskedLM.from_pretrained(tmp_path / folder).eval() for folder in ("model", "out")]
    assert len(new) == report["after"]["tokens"] < len(old) == report["before"]["tokens"]
    for code in SENTENCES:
        fit, texts = report["text"][code], lines(code)[:2]
        for text in texts:
            first, second = (each(text, return_offsets_mapping=True) for each in (old, new))
            assert old.convert_ids_to_tokens(first["input_ids"]) == new.convert_ids_to_tokens(second["input_ids"])
            assert first["offset_mapping"] == second["offset_mapping"]
            assert old.decode(first["input_ids"]) == new.decode(second["input_ids"])
        with torch.no_grad():
            ids = [torch.tensor([each(texts[0])["input_ids"][:60]]) for each in (old, new)]
            before, after = (model(input_ids=row).logits[0] for model, row in zip(models_, ids, strict=True))
        assert torch.allclose(before[:, kept], after, atol=1e-5)
        assert (fit["changed"], fit["fell"], fit["documents"]) == (0, 0, 2)
        assert fit["tokens_before"] == fit["tokens_after"] == sum(len(old(text)["input_ids"]) for text in texts)
        assert fit["words"] == sum(len(text.split()) for text in texts)
    assert report["outputs"]["same"] == report["outputs"]["documents"] == 2 * len(SENTENCES)
    assert report["outputs"]["largest"] <= 1e-5
    for code in OTHER:
        fit, texts = report["other"][code], lines(code, OTHER)
        assert fit["unknown_after"] == sum(new(text)["input_ids"].count(new.unk_token_id) for text in texts)
        assert fit["unknown_before"] == sum(old(text)["input_ids"].count(old.unk_token_id) for text in texts)
        assert 0 <= fit["fell"] <= fit["changed"]
        if kind in ("byte fallback", "byte-level"):
            assert fit["fell"] == fit["unknown_after"] == 0
    assert sum(fit["changed"] for fit in report["other"].values()) > 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert not check(card) and f"{len(old):,} tokens" in card and "cut into the same pieces as before" in card
    rows = {line.split("|")[1].strip() for line in card.splitlines() if line.startswith("|")}
    assert set(SENTENCES) <= rows and has_keys(tmp_path / "out" / "trimming.json", ("text", "other", "files"))


@pytest.mark.parametrize("kind", ["unigram", "byte-level", "wordpiece"])
def test_what_is_printed_says_all_of_it(kind, tmp_path, capsys):
    tokenizer = train(kind, normalizers.NFKC())
    save(tmp_path / "model", make_model("BertModel", tokenizer), tokenizer)
    given, other = write(tmp_path / "text", SENTENCES, 2), write(tmp_path / "other", OTHER)
    base = ["trim-vocab", str(tmp_path / "model"), "--text", given, "--check-text", other]
    for more in ([], ["--limit", "60", "--keep-characters", "none"]):
        assert main([*base, *more, "-o", str(tmp_path / "out"), "--overwrite"]) == 0
        out = capsys.readouterr().out
        for word in ("Tokens", "Embeddings", "Parameters", "Weights", "tok/word", "fell to unknown", "split further"):
            assert word in out, word
        given_table, other_table = out.split("Other text:")
        assert {line.split()[0] for line in given_table.splitlines() if line[:2] in SENTENCES} == set(SENTENCES)
        assert {line.split()[0] for line in other_table.splitlines() if line[:2] in OTHER} == set(OTHER)
        assert ("cut into the same pieces as before" in out) == (not more)
        assert ("--limit leaves them out" in out) == bool(more)
        assert "largest difference" in out or "cosine" in out
        assert len(AutoModel.from_pretrained(tmp_path / "out").get_input_embeddings().weight) == len(
            AutoTokenizer.from_pretrained(tmp_path / "out")
        )
