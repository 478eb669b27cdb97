"""The tokenizer of the phrase encoder: 6,000 byte-pair pieces over lower-cased NFKC text, every digit its own piece.

BPE rather than unigram: it trains five times faster on this text and classifies as well.
"""

import random
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hf_xlt.embedded.phrases import PhraseGenerator

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
VOCABULARY_SIZE = 6000
TRAINING_LINES = 20_000
MAXIMUM_LENGTH = 128


def train_tokenizer(lines: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> PreTrainedTokenizerFast:
    """Train the tokenizer.

    Args:
        lines: the training text.
        vocabulary_size: number of pieces at most, special tokens included.

    Returns:
        A fast tokenizer that writes `[CLS] phrase [SEP]`, or `[CLS] phrase [SEP] phrase [SEP]`, and no token types,
        which ModernBERT does not take.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex("[\u200e\u200f\u061c\u00ad]"), ""),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = list(SPECIAL_TOKENS.values())
    tokenizer.train_from_iterator(
        lines,
        trainers.BpeTrainer(vocab_size=vocabulary_size, special_tokens=special, min_frequency=2, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAXIMUM_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )


def tokenizer_lines(generator: PhraseGenerator, count: int = TRAINING_LINES, seed: int = 1) -> list[str]:
    """Return training-split phrases in random languages of the generator."""
    rng = random.Random(seed)
    return [
        generator.render(rng.choice(generator.languages), spec)
        for spec in generator.balanced("train", count, seed=seed)
    ]
