"""Comparing answers as texts: exact match and F1 over shared words, by SQuAD's rules and by each language's own.

`squad_f1` and `squad_exact_match` are those of the official evaluation script of SQuAD v1.1 (Rajpurkar et al. 2016) in
every language, as published figures on XQuAD are: only ASCII punctuation and English articles are ignored, and words
are what white space separates. `f1` and `exact_match` follow the official evaluation script of MLQA (Lewis et al.
2020): the punctuation of Unicode, the articles of the language, and one character as a word in scripts that put no
space between words. Departures from it:
- English keeps SQuAD's rules, so that both pairs of figures are equal there.
- Languages that MLQA lacks have articles too (Dutch, French, Hungarian, Italian, Portuguese, Scandinavian ones and
  others; partly after MKQA, Longpre et al. 2021), or none, and Japanese, Thai, Lao, Khmer and Burmese are split into
  characters as Chinese is.
- Chinese characters outside U+4E00 to U+9FA5 are single words as well.
"""

from __future__ import annotations

import functools
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence

from hf_xlt.languages import iso_code

# After punctuation is gone.
_ARTICLES = {
    "ar": r"\sال^|ال",
    "da": r"\b(?:en|et)\b",
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "el": r"\b(?:ο|η|το|οι|τα|του|της|των|τον|την|τη|τους|τις|ένας|μία|μια|ένα|έναν|ενός|μιας)\b",
    "en": r"\b(?:a|an|the)\b",
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "fr": r"\b(?:un|une|des|le|la|les)\b",
    "hu": r"\b(?:a|az|egy)\b",
    "it": r"\b(?:il|lo|la|i|gli|le|un|uno|una)\b",
    "nb": r"\b(?:en|et|ei)\b",
    "nl": r"\b(?:de|het|een)\b",
    "nn": r"\b(?:ein|eit|ei)\b",
    "no": r"\b(?:en|et|ei)\b",
    "pt": r"\b(?:o|a|os|as|um|uma|uns|umas)\b",
    "ro": r"\b(?:un|o|unui|unei|unor|niște)\b",
    "sv": r"\b(?:en|ett)\b",
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
}
# Before it: what is left of an article in front of a vowel would become part of the word.
_ELISIONS = {"fr": r"\bl['’]", "it": r"\b(?:l|un)['’]"}

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = {
    "ja": _HAN + "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "km": "\u1780-\u17ff",
    "lo": "\u0e80-\u0eff",
    "my": "\u1000-\u109f\uaa60-\uaa7f",
    "th": "\u0e00-\u0e7f",
    "yue": _HAN,
    "zh": _HAN,
}


@functools.cache
def _punctuation() -> dict[int, None]:
    codes = (code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P"))
    return dict.fromkeys([*codes, *map(ord, string.punctuation)])


_ASCII_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))


def squad_words(text: str) -> list[str]:
    """Return the words of an answer as SQuAD v1.1 compares them, whatever its language."""
    return re.sub(_ARTICLES["en"], " ", text.lower().translate(_ASCII_PUNCTUATION)).split()


def language_words(text: str, language: str) -> list[str]:
    """Return the words of an answer as they are compared in its language.

    Args:
        text: the answer.
        language: code as in the data; one without rules of its own has no articles.
    """
    code = iso_code(language)
    if code == "en":
        return squad_words(text)
    text = text.lower()
    if code in _ELISIONS:
        text = re.sub(_ELISIONS[code], " ", text)
    text = text.translate(_punctuation())
    if code in _ARTICLES:
        text = re.sub(_ARTICLES[code], " ", text)
    if code in _UNSPACED:
        text = re.sub(f"([{_UNSPACED[code]}])", r" \1 ", text)
    return text.split()


def shared_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Return the F1 of two bags of words, in [0, 1]; 0 when they share none, also when both are empty."""
    shared = (Counter(predicted) & Counter(gold)).total()
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0


def score_answers(
    predicted: Sequence[str], gold: Sequence[Sequence[str]], languages: Sequence[str]
) -> dict[str, float]:
    """Score answers: the mean over questions of the best score over a question's gold answers.

    Args:
        predicted: one answer per question; the empty text says that there is none.
        gold: the right answers of each, one or more; the empty text stands for no answer. Whoever predicts it there
            scores 1, as in SQuAD 2.
        languages: code of each question's language.

    Returns:
        `f1`, `exact_match`, `squad_f1` and `squad_exact_match`, in [0, 1].

    Raises:
        ValueError: the numbers of answers differ, or a question has no gold answer.
    """
    totals = dict.fromkeys(("f1", "exact_match", "squad_f1", "squad_exact_match"), 0.0)
    for answer, right, language in zip(predicted, gold, languages, strict=True):
        if not right:
            raise ValueError("A question has no gold answer; an unanswerable one has the empty text.")
        for prefix, words in (("", functools.partial(language_words, language=language)), ("squad_", squad_words)):
            chosen = words(answer)
            pairs = [(text, words(text)) for text in right]
            exact = max(float(chosen == other) for _, other in pairs)
            totals[f"{prefix}exact_match"] += exact
            totals[f"{prefix}f1"] += max(
                shared_f1(chosen, other) if text else float(not chosen) for text, other in pairs
            )
    return {name: total / max(len(predicted), 1) for name, total in totals.items()}
