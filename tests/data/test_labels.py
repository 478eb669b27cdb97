"""The label inventory and how labels map to it."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_xlt.data.labels import LabelInventory, find_inventory
from hf_xlt.errors import ConfigError


def table(labels, texts=None):
    columns = {"label": labels}
    return Dataset.from_dict(columns | ({"label_text": texts} if texts else {}))


@pytest.mark.parametrize(
    ("tables", "given", "names"),
    [
        ([table([1, 0, 2], ["b", "a", "c"])], None, ("a", "b", "c")),
        ([table([1, 0, 3])], None, ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")),
        ([table(["x", "b"]), table(["a", "x"])], None, ("a", "b", "x")),
        ([table([True, False])], None, ("False", "True")),
        ([table([1, 0])], ["no", "yes"], ("no", "yes")),
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


@pytest.mark.parametrize(
    ("values", "texts", "message"),
    [
        ([2], None, r"set \(sw\), row 0: label 2 is outside the inventory 0..1 \(no, yes\)"),
        ([-1], None, "label -1 is outside"),
        (["yess"], None, "label 'yess' is not in the inventory no, yes. Did you mean `yes`?"),
        ([None], None, "label None is neither"),
        ([0.0], None, "label 0.0 is neither"),
        ([0], ["yes"], "label 0 is called 'yes', but class 0 of the inventory is called 'no'"),
    ],
)
def test_a_label_outside_the_inventory_names_data_row_and_label(values, texts, message):
    with pytest.raises(ConfigError, match=message):
        LabelInventory(("no", "yes")).indices(values, texts, "set (sw)")
