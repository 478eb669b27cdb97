"""The phrases: repeatable, divided by item, clean, and right in a few languages known by hand."""

import unicodedata

import pytest

from hf_xlt.embedded import DEVELOPMENT_PHRASES, SOURCE_LANGUAGE, TARGET_LANGUAGES, TEST_PHRASES, TRAINING_PHRASES
from hf_xlt.embedded.phrases import (
    DEFAULT_LANGUAGES,
    INVISIBLE,
    LABELS,
    SPLITS,
    STYLES,
    PhraseGenerator,
    PhraseSpec,
    clean,
    default_generator,
    item_split,
    phrase_rows,
    test_set_hash,
)

SIZES = {"train": TRAINING_PHRASES, "validation": DEVELOPMENT_PHRASES, "test": TEST_PHRASES}


@pytest.fixture(scope="module")
def generator():
    return default_generator()


@pytest.fixture(scope="module")
def rows():
    """All rows of all parts: {split: {language: rows}}."""
    return {
        split: {language: phrase_rows(split, language, SIZES[split]) for language in DEFAULT_LANGUAGES}
        for split in SPLITS
    }


def all_texts(rows):
    return [row["text"] for by_language in rows.values() for part in by_language.values() for row in part]


def test_same_seed_gives_same_text_and_another_seed_another(rows):
    fresh = PhraseGenerator()
    assert phrase_rows("test", "ru", TEST_PHRASES, generator=fresh) == rows["test"]["ru"]
    assert phrase_rows("test", "ru", TEST_PHRASES, seed=1) != rows["test"]["ru"]


def test_fewer_rows_are_the_first_rows(rows):
    assert phrase_rows("test", "sw", 100) == rows["test"]["sw"][:100]


def test_rows_have_fixed_keys_and_balanced_classes(rows):
    for split, by_language in rows.items():
        for language, part in by_language.items():
            assert len(part) == SIZES[split]
            assert all(list(row) == ["id", "lang", "text", "label", "label_text"] for row in part)
            assert all(row["lang"] == language and LABELS[row["label"]] == row["label_text"] for row in part)
            counts = [sum(row["label"] == label for row in part) for label in range(len(LABELS))]
            assert counts == [SIZES[split] // len(LABELS)] * len(LABELS)


def test_ids_and_labels_are_parallel_across_languages(rows):
    for by_language in rows.values():
        keys = {language: [(row["id"], row["label"]) for row in part] for language, part in by_language.items()}
        assert all(key == keys[SOURCE_LANGUAGE] for key in keys.values())
        assert len(set(keys[SOURCE_LANGUAGE])) == len(keys[SOURCE_LANGUAGE])


def test_number_of_items_is_known(generator):
    """The intersection over twelve languages; another babel may change it, and the encoder with it."""
    counts = {kind: [len(generator.items(kind, split)) for split in SPLITS] for kind in LABELS}
    assert counts == {
        "place": [150, 21, 56],
        "language": [292, 42, 111],
        "money": [111, 9, 33],
        "zone": [81, 7, 32],
        "date": [18144, 2856, 6216],
        "clock": [934, 131, 375],
        "past": [9, 2, 4],
        "future": [8, 2, 4],
        "duration": [8, 2, 4],
        "measure": [72, 12, 27],
    }


def test_items_are_disjoint_across_splits_whatever_the_languages(generator):
    other = PhraseGenerator(("en", "fi", "he"))
    for kind in LABELS:
        parts = [set(generator.items(kind, split)) | set(other.items(kind, split)) for split in SPLITS]
        assert sum(map(len, parts)) == len(set.union(*parts))


def test_past_and_future_share_one_split():
    for item in ("year", "day", "sun"):
        assert item_split("past", item) == item_split("future", item)


def test_dates_of_one_month_stay_together():
    assert len({item_split("date", f"1999-07-{day:02d}") for day in range(1, 29)}) == 1


def test_no_test_text_is_a_training_text(rows, generator):
    known = {row["text"].casefold() for part in rows["train"].values() for row in part}
    for spec in generator.balanced("train", 6000, seed=7):
        known.update(generator.render(language, spec).casefold() for language in ("en", "ru", "zh"))
    seen = [row for part in rows["test"].values() for row in part if row["text"].casefold() in known]
    assert seen == []


def test_no_text_has_two_classes(rows):
    for split, by_language in rows.items():
        for language, part in by_language.items():
            labels = {}
            for row in part:
                assert labels.setdefault(row["text"].casefold(), row["label"]) == row["label"], (split, language, row)


def test_no_invisible_marks_and_no_unfilled_slots(rows):
    for text in all_texts(rows):
        assert text and text == clean(text)
        assert not any(ord(character) in INVISIBLE for character in text)
        assert "{" not in text and unicodedata.is_normalized("NFKC", text)


def test_every_class_and_split_has_items(generator):
    for kind in LABELS:
        for split in SPLITS:
            assert generator.items(kind, split)


def test_unknown_split_and_language_are_refused():
    with pytest.raises(ValueError, match="'dev'"):
        phrase_rows("dev", "en", 10)
    with pytest.raises(ValueError, match="'xx'"):
        phrase_rows("test", "xx", 10)
    with pytest.raises(ValueError, match="'xx'"):
        PhraseGenerator(("en", "xx"))
    with pytest.raises(ValueError, match="empty"):
        PhraseGenerator(())


@pytest.mark.parametrize(
    ("language", "spec", "text"),
    [
        ("en", ("measure", "length-kilometer", 5, "long"), "5 kilometers"),
        ("en", ("measure", "length-kilometer", 1, "long"), "1 kilometer"),
        ("en", ("measure", "length-kilometer", 5, "short"), "5 km"),
        ("de", ("measure", "length-kilometer", 5, "long"), "5 Kilometer"),
        ("en", ("future", "week", 10, "long"), "in 10 weeks"),
        ("ru", ("future", "week", 10, "long"), "через 10 недель"),
        ("ru", ("future", "week", 2, "long"), "через 2 недели"),
        ("ja", ("future", "week", 10, "long"), "10 週間後"),
        ("fr", ("past", "day", 3, "long"), "il y a 3 jours"),
        ("tr", ("past", "day", 3, "long"), "3 gün önce"),
        ("en", ("money", "JMD", 588, "name"), "588 Jamaican dollars"),
        ("es", ("place", "DE", 0, "name"), "Alemania"),
        ("sw", ("language", "de", 0, "name"), "Kijerumani"),
        ("en", ("zone", "Japan", 0, "standard"), "Japan Standard Time"),
        ("de", ("date", "2002-08-01", 0, "long"), "1. August 2002"),
        ("en", ("date", "2002-08-01", 0, "month"), "August 2002"),
        ("zh", ("date", "2002-08-01", 0, "full"), "2002年8月1日星期四"),
        ("en", ("clock", "14:14", 0, "period"), "2:14 in the afternoon"),
        # Arabic drops the digit in its dual; the source has direction marks around other forms.
        ("ar", ("past", "day", 2, "long"), "قبل يومين"),
        ("ko", ("duration", "duration-hour", 12, "long"), "12시간"),
    ],
)
def test_renderer(generator, language, spec, text):
    assert generator.render(language, PhraseSpec(*spec)) == text


def test_clean_strips_marks_and_keeps_joiners():
    assert clean("\u200f5\u00a0\u202fk\u00adm\u061c ") == "5 km"
    assert clean("क्\u200dष") == "क्\u200dष"


def test_missing_forms_fall_back():
    """Unit names without a long form in a language are taken from its short form, here over many languages."""
    generator = PhraseGenerator(("en", "bn", "he", "sw", "zh"))
    for kind in LABELS:
        for style in STYLES[kind]:
            for item in generator.items(kind, "test")[:50]:
                spec = PhraseSpec(kind, item, 3, style)
                assert all(generator.render(language, spec) for language in generator.languages)


def test_test_set_hash_depends_on_the_text(rows):
    assert test_set_hash(("en", "ru")) != test_set_hash(("en", "sw"))
    assert len(test_set_hash()) == 64


def test_targets_are_not_the_source():
    assert SOURCE_LANGUAGE not in TARGET_LANGUAGES and len(set(TARGET_LANGUAGES)) == 11
