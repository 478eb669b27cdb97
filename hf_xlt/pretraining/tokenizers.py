"""A multilingual tokenizer trained on a temperature mixture of languages, with the layout of XLM-R's.

The mixture is q_l = p_l^alpha / sum p^alpha over sizes in bytes (Chi et al. 2021).
The ids are XLM-R's: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>` last. Unlike XLM-R's, characters outside the
vocabulary become their bytes, `<0x00>` ... `<0xFF>` (ids 4 to 259), so that no text is unknown.

The trained Unigram and BPE models know nothing of byte pieces; they are added to the model afterwards.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, setting
from hf_xlt.pretraining.mixture import temperature_distribution
from hf_xlt.pretraining.statistics import measure, warnings
from hf_xlt.pretraining.texts import LanguageText, utf8_size
from hf_xlt.pretraining.trainers import train_bpe, train_unigram
from hf_xlt.randomness import derive_seed
from hf_xlt.written import TOKENIZER_NAME

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

MODELS = ("bpe", "unigram")
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
MASK_TOKEN = "<mask>"
BYTE_TOKENS = tuple(f"<0x{value:02X}>" for value in range(256))
MAXIMUM_REPEATS = 3
_FIT_DOCUMENTS = 1000
FILES = (TOKENIZER_NAME, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_SPACE = "\u2581"
# With every ASCII character in the vocabulary, text that spells `<0x41>` is read as its six characters.
_ASCII = string.ascii_letters + string.digits + string.punctuation


@dataclass(frozen=True)
class TokenizerSettings:
    """What the tokenizer is like.

    Attributes:
        model: `bpe`, or `unigram`, which is not the same in every process.
        vocab_size: number of pieces, special tokens and byte pieces included.
        lowercase: whether text is lower-cased.
        split_digits: whether every digit is a piece of its own.
        byte_fallback: whether characters outside the vocabulary become bytes instead of `<unk>`.
        character_coverage: share of each language's characters, counted with repetition, that the vocabulary holds;
            the rarest are left out.
        max_length: longest input in tokens that the tokenizer announces.
    """

    model: str = "bpe"
    vocab_size: int = 32_000
    lowercase: bool = False
    split_digits: bool = True
    byte_fallback: bool = True
    character_coverage: float = 0.9995
    max_length: int = 512

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is out of range.
        """
        if self.model not in MODELS:
            raise ConfigError(f"{setting('model')} is {self.model!r}; it must be one of {', '.join(MODELS)}.")
        if self.piece_count < 1:
            raise ConfigError(
                f"{setting('vocab_size')} is {self.vocab_size}; {self.vocab_size - self.piece_count} are special "
                f"tokens"
                f"{' and byte pieces' if self.byte_fallback else ''}, so give more."
            )
        if not 0 < self.character_coverage <= 1:
            raise ConfigError(f"{setting('character_coverage')} is {self.character_coverage}; it must lie in (0, 1].")
        if self.max_length < 3:
            raise ConfigError(
                f"{setting('max_length')} is {self.max_length}; it must be 3 or more: two tokens frame the text."
            )

    @property
    def piece_count(self) -> int:
        """Number of pieces that are learnt from text."""
        return self.vocab_size - len(SPECIAL_TOKENS) - 1 - (len(BYTE_TOKENS) if self.byte_fallback else 0)


@dataclass(frozen=True)
class Mixture:
    """The text that a tokenizer is trained on.

    Attributes:
        shares: q_l, the shares asked for by temperature.
        sizes: bytes of text there are of each language.
        drawn: bytes drawn of each language.
        documents: what was drawn; documents of a language drawn more than once occur as often.
    """

    shares: dict[str, float]
    sizes: dict[str, int]
    drawn: dict[str, int]
    documents: dict[str, list[str]]

    @property
    def capped(self) -> list[str]:
        """Languages of which all text was drawn as often as is allowed."""
        return [code for code, size in self.sizes.items() if self.drawn[code] >= MAXIMUM_REPEATS * size]


def sample_mixture(texts: Mapping[str, LanguageText], alpha: float, sample_bytes: int, seed: int) -> Mixture:
    """Draw documents by temperature.

    No language is repeated more than `MAXIMUM_REPEATS` times; what it cannot fill goes to the others in proportion.
    Documents of a language come in a random order and are drawn anew only when all have been.

    Args:
        texts: text by language.
        alpha: 1 follows the data, 0 is uniform.
        sample_bytes: bytes of text in all.
        seed: chooses the documents.

    Raises:
        ConfigError: no language, a negative alpha, or no bytes asked for.
    """
    if sample_bytes < 1:
        raise ConfigError(f"{setting('sample_bytes')} is {sample_bytes}; it must be 1 or more.")
    sizes = {code: text.size for code, text in texts.items()}
    shares = temperature_distribution(sizes, alpha)
    budgets = _capped_budgets(shares, {code: MAXIMUM_REPEATS * size for code, size in sizes.items()}, sample_bytes)
    documents = {code: list(_draw(texts[code], budgets[code], seed)) for code in texts}
    drawn = {code: sum(map(utf8_size, lines)) for code, lines in documents.items()}
    return Mixture(shares, sizes, drawn, documents)


def _capped_budgets(shares: Mapping[str, float], caps: Mapping[str, int], total: float) -> dict[str, float]:
    full: dict[str, float] = {}
    while True:
        free = {code: share for code, share in shares.items() if code not in full}
        rest = total - sum(full.values())
        scale = rest / sum(free.values()) if free else 0.0
        over = {code: float(caps[code]) for code, share in free.items() if share * scale >= caps[code]}
        if not over:
            return {code: full.get(code, shares[code] * scale) for code in shares}
        full |= over


def _draw(text: LanguageText, budget: float, seed: int) -> Iterator[str]:
    rng = random.Random(derive_seed(seed, "tokenizer", text.language))
    taken = 0
    for _ in range(MAXIMUM_REPEATS):
        for index in rng.sample(range(len(text.documents)), len(text.documents)):
            if taken >= budget:
                return
            taken += utf8_size(text.documents[index])
            yield text.documents[index]


def train_tokenizer(
    documents: Mapping[str, Sequence[str]], settings: TokenizerSettings | None = None
) -> PreTrainedTokenizerFast:
    """Train a tokenizer; with `bpe`, equal documents give equal tokenizers.

    Args:
        documents: training text by language, each repeated as often as it is to count.
        settings: what the tokenizer is like.

    Returns:
        A fast tokenizer that writes `<s> A </s>` and `<s> A </s></s> B </s>`. It holds fewer pieces than asked for
        where the text has no more to offer.

    Raises:
        ConfigError: no text, or more characters than the vocabulary has room for.
    """
    settings = settings or TokenizerSettings()
    frame = _frame(settings)
    lines = {code: [frame.normalizer.normalize_str(line) for line in texts] for code, texts in documents.items()}
    alphabet, dropped = _alphabet(lines, settings.character_coverage)
    if not any(any(texts) for texts in lines.values()):
        raise ConfigError(
            f"there is no text to train a tokenizer on; check {setting('text')} and {setting('text_column')}."
        )
    if len(alphabet) >= settings.piece_count:
        raise ConfigError(
            f"the text has {len(alphabet)} different characters and {setting('vocab_size', settings.vocab_size)} "
            f"has room for "
            f"{settings.piece_count} pieces. Give a larger one, or lower {setting('character_coverage')} "
            f"({settings.character_coverage})."
        )
    words = _word_counts(lines, dropped, frame)
    model = train_unigram if settings.model == "unigram" else train_bpe
    frame.model = model(words, sorted(alphabet), settings.piece_count)
    return _wrap(_complete(json.loads(frame.to_str()), settings), settings)


def _word_counts(lines: Mapping[str, Sequence[str]], dropped: set[str], frame: Tokenizer) -> Counter[str]:
    """Count the words that the pre-tokenizer makes."""
    rare = re.compile("[" + re.escape("".join(sorted(dropped))) + "]+") if dropped else None
    spaced: Counter[str] = Counter()
    for texts in lines.values():
        for line in texts:
            # A gap in place of a rare character: the letters around it were never neighbours.
            spaced.update((rare.sub(" ", line) if rare else line).split(" "))
    del spaced[""]
    words: Counter[str] = Counter()
    for text, count in spaced.items():
        for word, _ in frame.pre_tokenizer.pre_tokenize_str(text):
            words[word] += count
    return words


def _frame(settings: TokenizerSettings) -> Tokenizer:
    """Return an untrained tokenizer: normaliser, pre-tokenizer, decoder."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram() if settings.model == "unigram" else models.BPE())
    steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if settings.lowercase else [])]
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence(steps + spaces)
    splits = [pre_tokenizers.Digits(individual_digits=True)] if settings.split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), *splits])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def _alphabet(lines: Mapping[str, Sequence[str]], coverage: float) -> tuple[set[str], set[str]]:
    """Return the characters that cover each language's text, and the others."""
    kept, seen = {_SPACE, *_ASCII}, set()
    for texts in lines.values():
        counts = Counter("".join(texts))
        del counts[" "]
        seen |= set(counts)
        left = (1 - coverage) * counts.total()
        for character, count in sorted(counts.items(), key=lambda item: (item[1], item[0])):
            left -= count
            if left < 0:
                kept.add(character)
    return kept, seen - kept


def _complete(trained: dict[str, Any], settings: TokenizerSettings) -> dict[str, Any]:
    """Put special tokens and byte pieces around the learnt pieces of a tokenizer's JSON."""
    model = trained["model"]
    first = [*SPECIAL_TOKENS, *(BYTE_TOKENS if settings.byte_fallback else ())]
    model["byte_fallback"] = settings.byte_fallback
    if settings.model == "bpe":
        pieces = sorted(model["vocab"], key=model["vocab"].get)
        ordered = [*first, *pieces, MASK_TOKEN]
        model["vocab"] = {piece: index for index, piece in enumerate(ordered)}
        model["unk_token"] = "<unk>"
        model["fuse_unk"] = True
    else:
        # Lower than any spelling of the same six characters, so that text never spells one of these.
        lowest = 8 * min(score for _, score in model["vocab"])
        model["vocab"] = [*((token, lowest) for token in first), *model["vocab"], (MASK_TOKEN, lowest)]
        model["unk_id"] = SPECIAL_TOKENS.index("<unk>")
    ids = {token: index for index, token in enumerate(SPECIAL_TOKENS)} | {MASK_TOKEN: len(model["vocab"]) - 1}
    trained["added_tokens"] = [_added_token(token, index) for token, index in ids.items()]
    return trained


def _added_token(token: str, index: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": token == MASK_TOKEN, "rstrip": False, "normalized": False}
    return {"id": index, "content": token, **flags, "special": True}


def _wrap(complete: dict[str, Any], settings: TokenizerSettings) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, processors
    from transformers import AddedToken, PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(json.dumps(complete, ensure_ascii=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken(MASK_TOKEN, lstrip=True, normalized=False, special=True),
        model_max_length=settings.max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def fit_report(
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, LanguageText],
    mixture: Mixture,
    settings: TokenizerSettings,
    seed: int = 0,
) -> list[str]:
    """Say line by line how well a tokenizer fits each language.

    Args:
        tokenizer: the trained tokenizer.
        texts: all text by language, of which a sample is tokenised.
        mixture: what the tokenizer was trained on.
        settings: what was asked for.
        seed: chooses the sample.

    Returns:
        A table of language, share asked for, bytes drawn, tokens per byte, unknown and byte tokens; then notes.
    """
    fits = {code: measure(text, tokenizer, _FIT_DOCUMENTS, seed) for code, text in texts.items()}
    lines = [f"{'language':<10}{'share':>8}{'bytes drawn':>14}{'tok/byte':>10}{'unknown':>9}{'bytes':>8}"]
    lines += [
        f"{code:<10}{mixture.shares[code]:>8.2%}{mixture.drawn[code]:>14,}{fit.tokens_per_byte:>10.3f}"
        f"{fit.unknown_share:>9.1%}{fit.byte_share:>8.1%}"
        for code, fit in fits.items()
    ]
    if mixture.capped:
        lines.append(
            f"Note: all text of {', '.join(mixture.capped)} was taken {MAXIMUM_REPEATS} times, the most that is "
            "allowed; the other languages fill the rest."
        )
    if len(tokenizer) < settings.vocab_size:
        lines.append(f"Note: the text gave {len(tokenizer):,} pieces of the {settings.vocab_size:,} asked for.")
    return lines + [f"Warning: {line}" for line in warnings(fits)]
