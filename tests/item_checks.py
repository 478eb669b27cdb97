"""The item scores of a run against its results."""

import json

import numpy as np
import pytest

from hf_xlt.items import ITEMS_NAME, read_items


def assert_items(folder):
    """The main metric of every language is the ratio of the sums over its examples."""
    results = json.loads((folder / "results.json").read_text())
    metric, items = read_items(folder)
    assert metric == results["metric"] and set(items) == set(results["languages"])
    for language, entry in results["languages"].items():
        assert items[language].shape == (entry["examples"], 2), (ITEMS_NAME, language)
        numerator, denominator = items[language].sum(0)
        assert numerator / denominator == pytest.approx(entry["metrics"][metric], abs=1e-6)
        assert np.all(items[language][:, 0] <= items[language][:, 1])
