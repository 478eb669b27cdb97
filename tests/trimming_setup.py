"""Text of CLDR in many scripts, tokenizers of every kind trained on it, and tiny models with them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
import transformers
from babel import Locale
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, set_seed

# One language for each of fourteen scripts.
LOCALES = ("en", "ru", "el", "ar", "he", "hi", "bn", "ta", "th", "ka", "am", "ko", "ja", "zh")
XLM = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
# Sizes of small models of an encoder and a decoder, as BART has them.
SIDES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
}
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))


@functools.cache
def phrases(locale: str, names: str = "languages") -> tuple[str, ...]:
    """Names of languages or territories; pairs of them in one line, so that words have neighbours."""
    found = sorted(getattr(Locale.parse(locale), names).items())
    words = [name for _, name in found]
    return tuple(f"{one}, {two}" for one, two in zip(words[::2], words[1::2], strict=False))


def corpus(names: str = "languages") -> list[str]:
    """All lines of all locales."""
    return [line for locale in LOCALES for line in phrases(locale, names)]


def text_files(folder: Path, names: str = "territories", each: int = 25, locales: tuple[str, ...] = LOCALES) -> str:
    """Write some lines of every locale; return the pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for locale in locales:
        rows = ({"text": line} for line in phrases(locale, names)[:each])
        (folder / f"{locale}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / "{lang}.jsonl")


def _frame(backend: Tokenizer, special: dict[str, str], bert: bool = False) -> PreTrainedTokenizerFast:
    first, last = ("[CLS]", "[SEP]") if bert else ("<s>", "</s>")
    ids = [(token, backend.token_to_id(token)) for token in (first, last)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special)


@functools.cache
def _trained(kind: str, size: int) -> str:
    lines = corpus() + corpus("territories")
    special = list((BERT if kind == "wordpiece" else XLM).values())
    if kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>")
    elif kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special)
    elif kind == "byte-level":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    else:
        suffix = "</w>" if kind == "word ends" else ""
        backend = Tokenizer(models.BPE(unk_token="<unk>", **({"end_of_word_suffix": suffix} if suffix else {})))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if suffix else pre_tokenizers.Metaspace()
        backend.decoder = decoders.BPEDecoder() if suffix else decoders.Metaspace()
        extra = list(BYTES) if kind == "byte fallback" else []
        more = {"end_of_word_suffix": suffix} if suffix else {}
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[*special, *extra],
            limit_alphabet=len(extra) + 120 if extra else 3000,
            **more,
        )
    backend.train_from_iterator(lines, trainer)
    state = json.loads(backend.to_str())
    if kind == "byte fallback":
        state["model"]["byte_fallback"] = True
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in BYTES]
    return json.dumps(state)


KINDS = ("unigram", "byte fallback", "merges", "byte-level", "word ends", "wordpiece")


def make_tokenizer(kind: str, size: int = 3000) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind, trained on all lines."""
    bert = kind == "wordpiece"
    return _frame(Tokenizer.from_str(_trained(kind, size)), BERT if bert else XLM, bert)


def unigram(pieces: list[tuple[str, float]]) -> PreTrainedTokenizerFast:
    """A tokenizer of these pieces and scores; the first is the unknown one."""
    backend = Tokenizer(models.Unigram(pieces, 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 72,
}


def make_model(name: str, tokenizer: PreTrainedTokenizerFast, extra_rows: int = 5, **settings: object):
    """A model of an architecture with random weights, biases included, and rows that no token has."""
    cls = getattr(transformers, name)
    config = cls.config_class(
        **{
            **SMALL,
            "vocab_size": len(tokenizer) + extra_rows,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id,
            "eos_token_id": tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id,
            **settings,
        }
    )
    set_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def save(folder: Path, model, tokenizer) -> str:
    """Save both."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
