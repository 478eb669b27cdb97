"""Test sets joined by id: whatever does not fit is said, with the language, the number and an id."""

import pytest
from tiny import CLASSES, make_rows, write_rows

from hf_xlt.arguments import DataArguments
from hf_xlt.data.generalized import choose_pair_sets, join_pairs
from hf_xlt.data.labels import LabelInventory
from hf_xlt.data.roles import resolve_data
from hf_xlt.errors import ConfigError
from hf_xlt.tasks import get_task

INVENTORY = LabelInventory(CLASSES)
LANGUAGES = ("en", "de", "sw")


def rows_of(language, count=9):
    return make_rows(language, count, LANGUAGES.index(language), pair=True)


def make_plan(folder, changed=None, **settings):
    """Write test sets, some of them changed, and resolve them."""
    for language in LANGUAGES:
        write_rows(folder / f"test.{language}.jsonl", (changed or {}).get(language, rows_of(language)))
    arguments = DataArguments(dataset=str(folder / "{split}.{lang}.jsonl"), generalized=True, **settings)
    plan = resolve_data(arguments, get_task("text-classification"), needs_validation=False, trains=False)
    return plan, arguments


def test_rows_of_one_id_stand_together_whatever_their_order(tmp_path):
    plan, arguments = make_plan(tmp_path, {"sw": rows_of("sw")[::-1], "de": rows_of("de")[4:] + rows_of("de")[:4]})
    pairs = join_pairs(plan, arguments, INVENTORY)
    assert pairs.languages == LANGUAGES and pairs.source_languages == ("en",)
    assert pairs.ids == tuple(sorted(row["id"] for row in rows_of("en")))
    for language in LANGUAGES:
        by_id = {row["id"]: row for row in rows_of(language)}
        assert pairs.first[language] == tuple(by_id[code]["text"] for code in pairs.ids)
        assert pairs.second[language] == tuple(by_id[code]["text_pair"] for code in pairs.ids)
        assert pairs.labels == tuple(by_id[code]["label"] for code in pairs.ids)
    table = pairs.table("sw", "de")
    assert list(table["text"]) == list(pairs.first["sw"]) and list(table["text_pair"]) == list(pairs.second["de"])


def test_every_ordered_pair_of_two_languages_comes_once(tmp_path):
    ordered = join_pairs(*make_plan(tmp_path), INVENTORY).ordered_pairs()
    assert len(ordered) == len(set(ordered)) == 6 and all(one != two for one, two in ordered)


def test_ids_may_be_numbers_and_labels_names(tmp_path):
    changed = {
        "de": [
            {**row, "id": int(row["id"]), "label": CLASSES[row["label"]], "label_text": None} for row in rows_of("de")
        ]
    }
    assert join_pairs(*make_plan(tmp_path, changed), INVENTORY).labels == tuple(r["label"] for r in rows_of("en"))


def test_another_id_column_joins(tmp_path):
    changed = {code: [{**row, "key": row["id"], "id": "same"} for row in rows_of(code)] for code in LANGUAGES}
    assert len(join_pairs(*make_plan(tmp_path, changed, id_column="key"), INVENTORY).ids) == 9


def renamed(language, number, new):
    return [{**row, "id": new} if row["id"] == str(number) else row for row in rows_of(language)]


def relabelled(language, *numbers):
    return [
        {**row, "label": (row["label"] + 1) % 3, "label_text": CLASSES[(row["label"] + 1) % 3]}
        if int(row["id"]) in numbers
        else row
        for row in rows_of(language)
    ]


AT_ONCE = {
    "no id column": (
        {"sw": [{k: v for k, v in r.items() if k != "id"} for r in rows_of("sw")]},
        r"\(sw, test\) must .*`id`",
    ),
    "fewer rows": ({"de": rows_of("de")[:-2]}, r"\(de, test\) has 7 rows and .*\(en, test\) has 9"),
    "single texts": (
        {code: [{k: v for k, v in row.items() if k != "text_pair"} for row in rows_of(code)] for code in LANGUAGES},
        "has single texts.*make-pairs",
    ),
}
WHEN_READ = {
    "id twice": ({"sw": renamed("sw", 4, "5")}, r"\(sw, test\): column `id` holds 1 id more than once, such as `5`"),
    "id missing": ({"de": renamed("de", 4, "x")}, r"\(de, test\) lacks 1 of the 9 ids of .*\(en, test\), such as `4`"),
    "no id": ({"de": renamed("de", 4, None)}, r"\(de, test\), row 4: column `id` holds None"),
    "labels differ": (
        {"sw": relabelled("sw", 3, 7)},
        r"\(sw, test\): the label of 2 ids is not that in .*\(en, test\), such as `3`: 'good' here, 'bad' there",
    ),
}


@pytest.mark.parametrize("name", AT_ONCE)
def test_what_cannot_be_joined_is_refused_before_rows_are_read(name, tmp_path):
    changed, expected = AT_ONCE[name]
    with pytest.raises(ConfigError, match=expected):
        choose_pair_sets(*make_plan(tmp_path, changed))


@pytest.mark.parametrize("name", WHEN_READ)
def test_what_does_not_fit_is_refused_with_language_number_and_id(name, tmp_path):
    changed, expected = WHEN_READ[name]
    plan, arguments = make_plan(tmp_path, changed)
    choose_pair_sets(plan, arguments)
    with pytest.raises(ConfigError, match=expected):
        join_pairs(plan, arguments, INVENTORY)


def test_a_language_left_out_is_not_looked_at(tmp_path):
    plan, arguments = make_plan(tmp_path, {"de": rows_of("de")[:-2]}, generalized_languages=["sw,en"])
    assert join_pairs(plan, arguments, INVENTORY).languages == ("en", "sw")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("en,dr", "`dr` is not scored. .*en, de, sw"), ("sw", "needs two languages or more")],
)
def test_languages_that_cannot_be_chosen_are_refused(asked, expected, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        choose_pair_sets(*make_plan(tmp_path, generalized_languages=[asked]))


def test_languages_without_the_setting_are_refused():
    with pytest.raises(ConfigError, match="add `--generalized`"):
        DataArguments(generalized_languages=["en,de"])
