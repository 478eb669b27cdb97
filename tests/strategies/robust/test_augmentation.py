"""Synonyms (RS-DA) and character noise: laws of the draws, what stays, tables that cannot be used."""

import json
from collections import Counter
from random import Random

import pytest

from hf_xlt.errors import ConfigError
from hf_xlt.strategies.robust.augmentation_characters import CharacterAugmenter
from hf_xlt.strategies.robust.augmentation_synonyms import SynonymAugmenter, load_filter

TABLE = {"one": ["uno"], "two": ["dos", "deux"], "four": ["a4", "b4", "c4", "d4"], "none": []}
PAIR = {"text": "text", "text_pair": "text_pair", "label": "label"}
# Upper quantiles of the chi-square law at 0.001, by degrees of freedom.
CRITICAL = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}


def chi_square(counts, expected):
    return sum((counts[key] - value) ** 2 / value for key, value in expected.items())


@pytest.mark.parametrize("word", ["one", "two", "four"])
def test_a_word_is_a_uniform_draw_from_itself_and_its_neighbours(word):
    augmenter, random, draws = SynonymAugmenter(TABLE), Random(1), 6000
    counts = Counter(augmenter.rewrite_text(word, random) for _ in range(draws))
    k = len(TABLE[word])
    assert set(counts) == {word, *TABLE[word]}
    assert chi_square(counts, dict.fromkeys(counts, draws / (k + 1))) < CRITICAL[k]
    replaced = {True: draws * k / (k + 1), False: draws / (k + 1)}
    assert chi_square({True: draws - counts[word], False: counts[word]}, replaced) < CRITICAL[1]


def test_words_of_a_sentence_and_sentences_of_a_pair_are_drawn_independently():
    augmenter, random, draws = SynonymAugmenter(TABLE), Random(2), 4000
    rows = [augmenter.augment({"text": "one one", "text_pair": "one"}, PAIR, random) for _ in range(draws)]
    within = Counter(row["text"] for row in rows)
    assert chi_square(within, dict.fromkeys(("one one", "one uno", "uno one", "uno uno"), draws / 4)) < CRITICAL[3]
    across = Counter((row["text"].split()[0], row["text_pair"]) for row in rows)
    expected = {(first, second): draws / 4 for first in ("one", "uno") for second in ("one", "uno")}
    assert chi_square(across, expected) < CRITICAL[3]


def test_equal_seeds_give_equal_text_and_rows_keep_the_rest():
    augmenter = SynonymAugmenter(TABLE)
    row = {"id": "7", "text": "one two four none other", "text_pair": "four one", "label": 2}
    drawn = [augmenter.augment(row, PAIR, Random(seed)) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all((new["id"], new["label"]) == ("7", 2) for new in drawn)
    assert row == {"id": "7", "text": "one two four none other", "text_pair": "four one", "label": 2}


def test_words_without_neighbours_stay_and_an_empty_table_changes_nothing():
    text = "none other words, one?"
    assert {SynonymAugmenter(TABLE).rewrite_text(text, Random(seed)) for seed in range(30)} == {text}
    row = {"text": "one two", "text_pair": "four", "label": 0}
    assert SynonymAugmenter({}).augment(row, PAIR, Random(0)) == row


@pytest.mark.parametrize("lookup", ["exact", "casefold"])
def test_white_space_is_kept(lookup):
    text = "  one   two\tone\n\n four \u00a0 one "
    augmenter = SynonymAugmenter({word: ["x"] for word in ("one", "two", "four")}, lookup)
    drawn = {augmenter.rewrite_text(text, Random(seed)) for seed in range(50)}
    blanks = ["".join(character if character.isspace() else "" for character in new) for new in drawn]
    assert len(drawn) > 3 and set(blanks) == {"".join(character for character in text if character.isspace())}
    # The authors' code splits at single blanks, so a word beside a tab has no entry there.
    assert any("x\t" in new or "\tx" in new for new in drawn) == (lookup == "casefold")


def always(augmenter, text):
    """What a text becomes where every word is replaced."""
    return max((augmenter.rewrite_text(text, Random(seed)) for seed in range(200)), key=lambda new: new.count("x"))


def test_exact_lookup_counts_case_and_punctuation():
    augmenter = SynonymAugmenter({"good": ["xx"], "Paris": ["xy"]})
    assert always(augmenter, "good Good GOOD good, (good) Paris paris") == "xx Good GOOD good, (good) xy paris"


def test_casefold_lookup_gives_case_and_punctuation_back():
    augmenter = SynonymAugmenter({"good": ["xx"], "Paris": ["xy"], "i": ["xz"]}, "casefold")
    assert always(augmenter, "good Good GOOD “good”, (Good)! paris I ...") == "xx Xx XX “xx”, (Xx)! xy Xz ..."


def test_own_words_and_repetitions_do_not_count_as_neighbours():
    assert SynonymAugmenter({"a": ["a", "b", "b", "A"]}).neighbours == {"a": ("b", "A")}
    assert SynonymAugmenter({"a": ["a", "b", "b"], "A": ["c", "B"]}, "casefold").neighbours == {"a": ("b", "c", "B")}


def test_tagged_words_are_replaced_one_for_one():
    columns = {"tokens": "words", "tags": "tags"}
    augmenter = SynonymAugmenter({"one": ["uno", "one of all"], "two": ["a pair"]})
    row = {"words": ["one", "two", "", "three"], "tags": ["B-X", "I-X", "O", "O"]}
    drawn = [augmenter.augment(row, columns, Random(seed)) for seed in range(60)]
    assert {tuple(new["words"]) for new in drawn} == {("one", "two", "", "three"), ("uno", "two", "", "three")}
    assert all(new["tags"] == row["tags"] for new in drawn)
    # In running text a neighbour of several words is one like any other.
    assert {augmenter.rewrite_text("two", Random(seed)) for seed in range(30)} == {"two", "a pair"}


QUESTION = {"question": "question", "context": "context", "answers": "answers"}


def question_row():
    context = "one king, one (two four) one two (one) four."
    answers = ["two four", "one two"]
    return {
        "question": "is one two or four ?",
        "context": context,
        "answers": {"text": answers, "answer_start": [context.index(answer) for answer in answers]},
        "id": "q",
    }


AUGMENTERS = {
    "synonyms": SynonymAugmenter({"one": ["a longer one", "1"], "two": ["x"], "four": ["quattuor"]}, "casefold"),
    "characters": CharacterAugmenter(0.7, {"ä": 3, "b": 2, "字": 1}),
}


@pytest.mark.parametrize("augmenter", AUGMENTERS.values(), ids=AUGMENTERS)
def test_answers_are_kept_and_found_where_they_moved(augmenter):
    row = question_row()
    drawn = [augmenter.augment(row, QUESTION, Random(seed)) for seed in range(100)]
    for new in drawn:
        starts, texts = new["answers"]["answer_start"], new["answers"]["text"]
        assert texts == row["answers"]["text"] and new["id"] == "q"
        assert [new["context"][start : start + len(text)] for start, text in zip(starts, texts, strict=True)] == texts
    assert len({tuple(new["answers"]["answer_start"]) for new in drawn}) > 3
    assert len({new["question"] for new in drawn}) > 3 and len({new["context"] for new in drawn}) > 10
    # Words that touch an answer stay whole: its brackets are part of no other word.
    assert all("(two four)" in new["context"] for new in drawn)


def test_every_form_of_answers_moves_alike_and_other_forms_are_left():
    row, augmenter = question_row(), AUGMENTERS["synonyms"]
    texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
    structs = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    for seed in range(20):
        new = augmenter.augment(row, QUESTION, Random(seed))
        listed = augmenter.augment({**row, "answers": structs}, QUESTION, Random(seed))
        assert listed["context"] == new["context"]
        assert [entry["answer_start"] for entry in listed["answers"]] == new["answers"]["answer_start"]
        single = augmenter.augment({**row, "answers": structs[0]}, QUESTION, Random(seed))
        start = single["answers"]["answer_start"]
        assert single["context"][start : start + len(texts[0])] == texts[0]
    for answers in ("two four", {"text": ["two"], "answer_start": ["4"]}, [3], {"text": [None], "answer_start": [1]}):
        new = augmenter.augment({**row, "answers": answers}, QUESTION, Random(0))
        assert (new["context"], new["answers"]) == (row["context"], answers)


def test_a_question_without_answer_is_augmented_as_text():
    for answers in ({"text": [], "answer_start": []}, None, []):
        row = {**question_row(), "answers": answers}
        drawn = [AUGMENTERS["synonyms"].augment(row, QUESTION, Random(seed)) for seed in range(50)]
        assert any("(x quattuor)" in new["context"] for new in drawn)
        assert all(new["answers"] == answers for new in drawn)


def test_values_that_no_task_takes_are_left_for_the_task_to_refuse():
    row = {"text": None, "text_pair": 3, "label": 0}
    assert SynonymAugmenter(TABLE).augment(row, PAIR, Random(0)) == row
    tagged = {"tokens": None, "tags": None}
    assert SynonymAugmenter(TABLE).augment(tagged, {"tokens": "tokens", "tags": "tags"}, Random(0)) == tagged


def test_a_filter_keeps_what_it_says(tmp_path):
    table = {"good": ["buena", "fine", "Great"], "king": ["rey"]}
    kept = {"good": ("fine", "Great")}
    words = tmp_path / "english.txt"
    words.write_text("Fine\n\ngreat \nking\n")
    assert SynonymAugmenter(table, neighbour_filter=lambda other: other in ("fine", "Great")).neighbours == kept
    assert SynonymAugmenter(table, neighbour_filter=str(words)).neighbours == kept
    assert load_filter("builtins:len") is len


BAD_TABLES = {
    "no JSON": ("{", "is no JSON"),
    "no UTF-8": (b'{"a": ["\xff"]}', "is no JSON in UTF-8"),
    "a list": ("[1]", "is a list. It must be of the form"),
    "a word of words": ('{"good": "fine"}', "gives 'good' the neighbours 'fine'. It must be"),
    "a number": ('{"good": ["fine", 3]}', "gives 'good' the neighbours ['fine', 3]. It must be"),
    "an empty word": ('{"good": [""]}', "gives 'good' the neighbours ['']. It must be"),
}


@pytest.mark.parametrize(("content", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_table_of_another_form_is_refused(tmp_path, content, message):
    path = tmp_path / "table.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as error:
        SynonymAugmenter(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_missing_tables_filters_and_lookups_are_refused(tmp_path):
    for arguments, message in (
        ((tmp_path / "no.json",), "no.json` is missing; `examples/wordnet_neighbours.py` makes one"),
        ((tmp_path,), "cannot be read"),
        (({}, "fuzzy"), "choose one of exact, casefold"),
        (({}, "exact", "nowhere.txt"), "neither a readable list of words"),
        (({}, "exact", "no.such.module:name"), "cannot be imported"),
        (({}, "exact", "json:no_name"), "cannot be imported"),
        (({}, "exact", "string:digits"), "is no function"),
    ):
        with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
            SynonymAugmenter(*arguments)


def test_the_table_is_read_from_json(tmp_path):
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    augmenter = SynonymAugmenter(str(tmp_path / "table.json"))
    assert augmenter.neighbours == SynonymAugmenter(TABLE).neighbours
    assert augmenter.describe() == "3 words with 7 neighbours"


# ---- Characters

NOISE = CharacterAugmenter(0.25).fit(
    [{"text": "hello wide world of text", "tokens": ["ignored"]}], {"text": "text", "label": "label"}
)


def edit_of(old, new):
    """Return which single change makes one word of another, or None where several do."""
    if old == new:
        return "none"
    if len(new) == len(old):
        return "replace" if sum(one != two for one, two in zip(old, new, strict=True)) == 1 else None
    longer, shorter = (new, old) if len(new) > len(old) else (old, new)
    fits = any(longer[:place] + longer[place + 1 :] == shorter for place in range(len(longer)))
    return {1: "insert", -1: "delete"}.get(len(new) - len(old)) if fits else None


def test_the_share_of_changed_words_is_the_rate_and_each_change_is_one_letter():
    words, random = ["hello", "world", "text"] * 2000, Random(5)
    changes = Counter(
        edit_of(old, new) for old, new in zip(words, NOISE.rewrite_text(" ".join(words), random).split(), strict=True)
    )
    assert set(changes) == {"none", "insert", "delete", "replace"}
    kinds = {kind: len(words) * 0.25 / 3 for kind in ("insert", "delete", "replace")}
    assert chi_square(changes, {**kinds, "none": len(words) * 0.75}) < CRITICAL[3]


def test_letters_come_from_the_training_text_as_often_as_there():
    augmenter = CharacterAugmenter(1.0).fit([{"text": "aaab 1,2!"}], {"text": "text"})
    random = Random(6)
    drawn = Counter(augmenter._draw(random) for _ in range(4000))
    assert chi_square(drawn, {"a": 3000, "b": 1000}) < CRITICAL[1] and set(drawn) == {"a", "b"}
    assert {augmenter._draw(random, "a") for _ in range(20)} == {"b"}
    rows = [{"question": "ab", "context": "cd", "words": ["ef", None]}, {"question": None}]
    columns = {"question": "question", "context": "context", "tokens": "words"}
    assert CharacterAugmenter(1.0).fit(rows, columns).letters == list("abcdef")


def test_no_word_vanishes_and_words_without_letters_stay():
    augmenter = CharacterAugmenter(1.0, {"x": 1})
    for seed in range(200):
        new = augmenter.augment(
            {"tokens": ["a", "12", "é!", "word", ","], "tags": list("ABCDE")}, {"tokens": "tokens"}, Random(seed)
        )
        assert len(new["tokens"]) == 5 and all(new["tokens"]) and new["tags"] == list("ABCDE")
        assert (new["tokens"][1], new["tokens"][4]) == ("12", ",")
        assert all(any(character.isalpha() for character in new["tokens"][place]) for place in (0, 2, 3))
        assert edit_of("word", new["tokens"][3]) not in ("none", None)


def test_an_alphabet_of_one_letter_or_none_is_no_error():
    single = {CharacterAugmenter(1.0, {"a": 1}).rewrite_text("aa", Random(seed)) for seed in range(40)}
    assert single == {"a", "aaa"}
    assert {CharacterAugmenter(1.0).rewrite_text("ab 1", Random(seed)) for seed in range(40)} >= {"ab 1", "a 1"}


@pytest.mark.parametrize("rate", [0, -0.1, 1.1, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        CharacterAugmenter(rate)
