"""A tiny multilingual model, its tokenizer and data files, built in code; offline and quick."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast, set_seed

LANGUAGES = ("en", "de", "sw", "zh")
CLASSES = ("bad", "good", "plain")
WORDS = [f"w{index}" for index in range(60)]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `w0` ... `w59`."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )


def make_config(**changes: object) -> BertConfig:
    """Two layers of width 32."""
    settings = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "num_labels": len(CLASSES),
    }
    return BertConfig(**{**settings, **changes})


def make_model(seed: int = 0, **changes: object) -> BertForSequenceClassification:
    """A classifier with random weights."""
    set_seed(seed)
    return BertForSequenceClassification(make_config(**changes))


def save_encoder(folder: Path, **changes: object) -> Path:
    """Save a bare encoder with random weights and its tokenizer."""
    set_seed(0)
    BertModel(make_config(**changes)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_rows(language: str, count: int, seed: int, pair: bool = False) -> list[dict]:
    """Texts whose class shows in which third of the vocabulary they draw from; ids are parallel over languages."""
    rng = random.Random(f"{seed}")
    rows = []
    for index in range(count):
        label = index % len(CLASSES)
        words = [WORDS[20 * label + rng.randrange(20)] for _ in range(rng.randint(2, 9))]
        row = {"id": str(index), "lang": language, "text": " ".join(words)}
        if pair:
            row["text_pair"] = " ".join(words[::-1])
        rows.append({**row, "label": label, "label_text": CLASSES[label]})
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_data(folder: Path, languages: tuple[str, ...] = LANGUAGES, train: int = 48, pair: bool = False) -> str:
    """Write train, validation and test of every language; test sizes differ by language. Return the pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, language in enumerate(languages):
        sizes = {"train": train, "validation": 15, "test": 12 + 5 * number}
        for seed, (split, count) in enumerate(sizes.items()):
            write_rows(folder / f"{split}.{language}.jsonl", make_rows(language, count, seed, pair))
    return str(folder / "{split}.{lang}.jsonl")


def make_features(count: int = 40, seed: int = 0, language: str = "en") -> list[dict]:
    """Encoded rows of uneven lengths, as a list that serves as a data set."""
    tokenizer = make_tokenizer()
    rows = make_rows(language, count, seed)
    encoded = tokenizer([row["text"] for row in rows])
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": row["label"]}
        for ids, mask, row in zip(encoded["input_ids"], encoded["attention_mask"], rows, strict=True)
    ]


def same_weights(first: torch.nn.Module | dict, second: torch.nn.Module | dict) -> bool:
    """Say whether two models hold bit-equal tensors."""
    one, two = (side if isinstance(side, dict) else side.state_dict() for side in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
