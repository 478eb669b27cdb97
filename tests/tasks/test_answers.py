"""Scores of answers against the rules of the official SQuAD v1.1 and MLQA scripts, written down here once more."""

import random
import re
import string
import unicodedata
from collections import Counter

import pytest

from hf_xlt.tasks.answers import language_words, score_answers, shared_f1, squad_words

ARTICLES = {
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "vi": "của là cái chiếc những",
    "hi": "",
    "zh": "",
    "ar": "",
}
PIECES = (
    *("the", "a", "an", "An", "THE", "theory", "cat", "Notre-Dame", "6½", "$5,000", "it's", "it’s", "—", "«", "»"),
    *("der", "Das", "einem", "Ärger", "die,", "los", "una", "¿qué?", "años", "là", "của", "chiếc", "Việt"),
    *("ال", "الكتاب", "كتاب", "٤٢", "،", "؟", "भारत", "है।", "और", "北京", "大学", ",", "。", "《", "1999年", "x"),
)


def texts(count, seed):
    draw = random.Random(seed)
    return [
        "".join(draw.choice(PIECES) + draw.choice(["", " ", "  "]) for _ in range(draw.randint(1, 6)))
        for _ in range(count)
    ]


def squad_normalised(text):
    """Lower case, no ASCII punctuation, no English articles, single blanks: in the official order."""
    kept = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def mlqa_normalised(text, language):
    """The same with Unicode punctuation, the language's articles, and Chinese characters apart."""
    ignored = {char for char in text.lower() if unicodedata.category(char).startswith("P")} | set(string.punctuation)
    kept = "".join(char for char in text.lower() if char not in ignored)
    if language == "ar":
        kept = re.sub("\\sال^|ال", " ", kept)
    elif ARTICLES[language]:
        kept = re.sub(r"\b(" + ARTICLES[language].replace(" ", "|") + r")\b", " ", kept)
    if language == "zh":
        kept = "".join(f" {char} " if "\u4e00" <= char <= "\u9fa5" else char for char in kept)
    return " ".join(kept.split())


def official_f1(predicted, gold):
    """F1 of two normalised texts: harmonic mean of precision and recall over words, 0 where none is shared."""
    predicted, gold = predicted.split(), gold.split()
    same = sum((Counter(predicted) & Counter(gold)).values())
    if same == 0:
        return 0
    precision, recall = same / len(predicted), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def test_words_are_those_of_the_official_squad_script():
    for text in texts(2000, 0):
        assert " ".join(squad_words(text)) == squad_normalised(text), text
        assert language_words(text, "en") == squad_words(text)


@pytest.mark.parametrize("language", [language for language in ARTICLES if language != "en"])
def test_words_are_those_of_the_official_mlqa_script(language):
    differing = 0
    for text in texts(2000, 1):
        assert " ".join(language_words(text, language)) == mlqa_normalised(text, language), text
        differing += language_words(text, language) != squad_words(text)
    assert differing > 200


@pytest.mark.parametrize("language", list(ARTICLES))
def test_scores_are_those_of_the_official_scripts(language):
    predicted = texts(300, 2)
    gold = [list(others) for others in zip(texts(300, 3), texts(300, 4), strict=True)]
    for number in range(0, 300, 5):
        gold[number].append(predicted[number].upper() + "!")
    scores = score_answers(predicted, gold, [language] * 300)
    own = squad_normalised if language == "en" else lambda text: mlqa_normalised(text, language)
    for prefix, normalised in (("", own), ("squad_", squad_normalised)):
        pairs = [
            [(normalised(answer), normalised(text)) for text in right]
            for answer, right in zip(predicted, gold, strict=True)
        ]
        exact = [max(one == other for one, other in question) for question in pairs]
        f1 = [max(official_f1(one, other) for one, other in question) for question in pairs]
        assert scores[f"{prefix}exact_match"] == pytest.approx(sum(exact) / 300)
        assert scores[f"{prefix}f1"] == pytest.approx(sum(f1) / 300)
        assert 0.15 < sum(exact) / 300 < sum(f1) / 300 < 0.9


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("fr", "L’Europe, des pays", ["europe", "pays"]),
        ("fr", "l'eau de la mer", ["eau", "de", "mer"]),
        ("it", "un'isola e l’altra", ["isola", "e", "altra"]),
        ("pt", "os Lusíadas", ["lusíadas"]),
        ("nl", "het Oude Huis", ["oude", "huis"]),
        ("el", "της Αθήνας", ["αθήνας"]),
        ("ro", "o casă", ["casă"]),
        ("hu", "az Alföld", ["alföld"]),
        ("ru", "а «Мир»", ["а", "мир"]),
        ("tr", "bir gün", ["bir", "gün"]),
        ("ja", "東京タワー333m", ["東", "京", "タ", "ワ", "ー", "333m"]),
        ("th", "ปี 1999", ["ป", "ี", "1999"]),
        ("zh-Hant", "北京,1 北", ["北", "京", "1", "北"]),
        ("deu", "der Fluss", ["fluss"]),
        ("qqq", "the „End“", ["the", "end"]),
    ],
)
def test_words_of_a_language(language, text, words):
    assert language_words(text, language) == words


def test_f1_by_hand():
    assert shared_f1(["a", "b", "b"], ["b", "b", "c", "d"]) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert shared_f1(["a"], ["b"]) == shared_f1([], []) == 0


def test_the_best_gold_answer_counts_and_figures_by_hand():
    scores = score_answers(["the Old Town", "der Fluss Rhein"], [["Town", "Old town."], ["Rhein"]], ["en", "de"])
    # SQuAD keeps the German article: one shared word of three and one.
    assert scores == {
        "f1": pytest.approx((1 + 2 / 3) / 2),
        "exact_match": 0.5,
        "squad_f1": pytest.approx((1 + 2 / 4) / 2),
        "squad_exact_match": 0.5,
    }


def test_no_answer_is_right_only_where_there_is_none():
    right = dict.fromkeys(("f1", "exact_match", "squad_f1", "squad_exact_match"), 1.0)
    assert score_answers([""], [[""]], ["de"]) == right
    assert set(score_answers(["x"], [[""]], ["de"]).values()) == {0.0}
    assert set(score_answers([""], [["x"]], ["de"]).values()) == {0.0}
    with pytest.raises(ValueError, match="no gold answer"):
        score_answers(["x"], [[]], ["de"])
