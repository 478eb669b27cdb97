"""The label inventory and how labels map to it."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_xlt.data.labels import LabelInventory, alike, describe_spelling, find_inventory, named
from hf_xlt.errors import ConfigError


def table(labels, texts=None):
    columns = {"label": labels}
    return Dataset.from_dict(columns | ({"label_text": texts} if texts else {}))


def classes(labels, *names):
    return Dataset.from_dict({"label": labels}, Features({"label": ClassLabel(names=list(names))}))


@pytest.mark.parametrize(
    ("tables", "given", "names"),
    [
        ([table([1, 0, 2], ["b", "a", "c"])], None, ("a", "b", "c")),
        ([table([1, 0, 3])], None, ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")),
        ([table(["x", "b"]), table(["a", "x"])], None, ("a", "b", "x")),
        ([table([True, False])], None, ("False", "True")),
        ([table([1, 0])], ["no", "yes"], ("no", "yes")),
        ([table(["1", "0", "0"])], None, ("LABEL_0", "LABEL_1")),
        ([table(["5", "10", "1"])], None, ("1", "5", "10")),
        ([table(["01", "02"])], None, ("01", "02")),
        ([table(["cafe\u0301", "caf\u00e9", "x"])], None, ("caf\u00e9", "x")),
        ([table([1, 0], ["b", "a"]), table([0, 1], ["b", "c"])], None, ("a", "b", "c")),
        ([classes([0, 1], "bad", "good"), classes([0, 1], "good", "fair")], None, ("bad", "good", "fair")),
        ([classes([0, 1], "bad", "good")], ["good", "bad"], ("good", "bad")),
    ],
)
def test_the_inventory_is_that_of_the_source_training_data_or_given(tables, given, names):
    assert find_inventory(tables, "label", given).names == names


def test_class_label_features_name_the_classes():
    features = Features({"label": ClassLabel(names=["no", "yes"]), "text": Value("string")})
    rows = Dataset.from_dict({"label": [1, 1], "text": ["a", "b"]}, features=features)
    assert find_inventory([rows], "label", None).names == ("no", "yes")


def test_names_and_indices_map_to_indices():
    inventory = LabelInventory(("no", "yes"))
    assert inventory.indices([0, 1], None, "x") == inventory.indices(["no", "yes"], None, "x") == [0, 1]
    assert LabelInventory(("False", "True")).indices([True, False], None, "x") == [1, 0]
    assert inventory.indices([0, 1], ["no", None], "x") == [0, 1]
    # Another file counts in another order: the names beside the numbers count.
    assert inventory.indices([0, 1], ["yes", "no"], "x") == [1, 0]
    assert inventory.indices(["0", "1"], None, "a text file") == [0, 1]


@pytest.mark.parametrize(
    ("values", "texts", "message"),
    [
        ([2], None, r"set \(sw\), row 0: label 2 is outside the inventory 0..1 \(no, yes\)"),
        ([-1], None, "label -1 is outside"),
        (["yess"], None, "label 'yess' is not in the inventory no, yes. Did you mean `yes`?"),
        ([None], None, "label None is neither"),
        ([0.0], None, "label 0.0 is neither"),
        ([[0]], None, "label \\[0\\] is no single label. `text-classification` takes one label per row"),
        ([""], None, "label '' is neither"),
    ],
)
def test_a_label_outside_the_inventory_names_data_row_and_label(values, texts, message):
    with pytest.raises(ConfigError, match=message):
        LabelInventory(("no", "yes")).indices(values, texts, "set (sw)")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([table(["a", "b"]), table([0, 1])], r"mixes names \(a, b\) and bare numbers \(0, 1\)"),
        ([table([1_000_000, 5])], "holds the label 1,000,000, and only 2 different ones: these look like ids"),
        ([table([[1], [0]])], r"holds \[1\]. `text-classification` takes one label per row"),
        ([table([{"a": 1}, {"a": 2}])], r"holds \{'a': 1\}"),
        ([table([0.5, 1.0])], "holds 0.5, a number with a fraction"),
        ([table(["0.5", "1.0"])], "holds 0.5, a number with a fraction"),
        ([table(["a", "a"])], "have 1 class"),
        ([table([-1, 1])], "the label -1; classes are 0, 1"),
    ],
)
def test_labels_that_are_no_classes_are_one_line(tables, message):
    with pytest.raises(ConfigError, match=message):
        find_inventory(tables, "label", None)


def test_bare_numbers_do_not_go_with_names_unless_the_user_names_them():
    inventory = find_inventory([table(["bad", "good"])], "label", None)
    with pytest.raises(ConfigError, match=r"label 1 is a bare number, and the classes have names: bad, good"):
        inventory.indices([1], None, "x")
    assert find_inventory([table(["bad", "good"])], "label", ["bad", "good"]).indices([1, "bad"], None, "x") == [1, 0]


def test_rows_are_read_by_name_wherever_there_are_names():
    turned = named(classes([0, 1, None], "good", "bad"), "label")
    assert turned["label"][:] == ["good", "bad", None]
    assert named(table([0, 1], ["good", None]), "label")["label"][:] == ["good", "1"]
    assert named(table([0, 1]), "label")["label"][:] == [0, 1]
    tags = Dataset.from_dict({"tags": [[0, 1], []]}, Features({"tags": List(ClassLabel(names=["O", "B-X"]))}))
    assert named(tags, "tags")["tags"][:] == [["O", "B-X"], []]
    assert named(table([[True, False]]), "label")["label"][:] == [[True, False]]


def test_names_that_differ_in_case_or_blanks_are_told():
    assert alike(["good", "Good", "bad", " bad", "x y", "XY"]) == [("good", "Good"), ("bad", " bad"), ("x y", "XY")]


def test_labels_spelt_otherwise_are_their_class_and_that_is_told():
    inventory = LabelInventory(("café", "non toxic", "Yes", "yes"), numbered=False)
    labels = ["cafe\u0301", " CAFÉ", "Non-Toxic", "non_toxic", "Yes"]
    assert inventory.indices(labels, None, "x") == [0, 0, 1, 1, 2]
    for label in ("YES", "caf", "1"):
        with pytest.raises(ConfigError):
            inventory.indices([label], None, "x")
    (note,) = describe_spelling("x", labels, inventory)
    assert "` CAFÉ` as `café`, `Non-Toxic` as `non toxic`" in note and "`Yes`" not in note and "e\u0301" not in note
    assert describe_spelling("x", ["café", "yes", 3], inventory) == []
