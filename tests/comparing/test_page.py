"""The HTML page: it needs nothing else, tables can be read out, and the drawing stands where the figures say."""

import re

import pytest
from planted_runs import Page, plant

from hf_xlt.comparing.comparison import Difference, compare_runs
from hf_xlt.comparing.page import _figure, _step, as_html


@pytest.fixture
def page(tmp_path):
    for seed in range(6):
        plant(tmp_path / f"a{seed}", "averaging", seed, 0.501)
        plant(tmp_path / f"f{seed}", "finetune", seed, 0.50)
        plant(tmp_path / f"r{seed}", "robust", seed, 0.62)
        plant(tmp_path / f"x{seed}", "xmaml", seed, 0.40)
    found = compare_runs([str(tmp_path)])
    return found, as_html(found, "the method")


def test_nothing_is_fetched_and_nothing_runs(page):
    _, text = page
    parsed = Page()
    parsed.feed(text)
    assert parsed.links == [] and not {"script", "link", "iframe", "img"} & {tag for tag, _ in parsed.tags}
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]


def test_findings_stand_in_words_above_the_tables(page):
    found, text = page
    readings = {name: gap.reading() for name, gap in found.differences.items()}
    assert readings == {"averaging": "within noise", "robust": "better", "xmaml": "worse"}
    for name, kind in (("averaging", "noise"), ("robust", "better"), ("xmaml", "worse")):
        line = re.search(rf'<li>{name} against finetune: .*<strong class="{kind}">{readings[name]}</strong>', text)
        assert line and line.start() < text.index("<table>")


def test_tables_have_names_and_headers_for_rows_and_columns(page):
    found, text = page
    parsed = Page()
    parsed.feed(text)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("table") == tags.count("caption") == 2 and tags.count("main") == tags.count("h1") == 1
    rows = [attributes for tag, attributes in parsed.tags if tag == "th" and attributes.get("scope") == "row"]
    assert len(rows) == len(found.conditions) + len(found.roles)
    regions = [attributes for _, attributes in parsed.tags if attributes.get("role") == "region"]
    # What scrolls sideways can be reached by the keyboard, and has a name.
    assert len(regions) == 2 and all(entry["tabindex"] == "0" and entry["aria-label"] for entry in regions)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_the_reading_stands_before_the_tests(page):
    _, text = page
    head = text[text.index("<thead>") : text.index("</thead>")]
    places = [head.index(f">{name}<") for name in ("condition", "against baseline", "reading", "p (runs)", "p (Holm)")]
    assert places == sorted(places)


def test_the_baseline_comes_first_and_is_a(page):
    found, _ = page
    assert list(found.conditions)[0] == found.baseline == "finetune" and found.letters()["finetune"] == "A"


def gap(values, low, high):
    return Difference((0, 1), values, (low, high), True, 0.5, 0.01, 0.01)


def test_points_and_intervals_stand_at_their_values():
    figure = _figure({"a": gap((0.02, 0.04), 0.01, 0.05), "b": gap((-0.02, -0.04), -0.05, -0.01)})
    ticks = {tick["text"]: tick["place"] for tick in figure["ticks"]}
    assert list(ticks)[0] == "-6" and list(ticks)[-1] == "+6" and ticks["0"] == figure["zero"] == 50.0
    first, second = figure["rows"]
    # Three of twelve points to the right of the middle.
    assert first["mean"] == 75.0 and first["text"] == "+3.0" and second["mean"] == 25.0
    assert first["low"] == pytest.approx(58.33, abs=0.01) and first["width"] == pytest.approx(33.33, abs=0.02)


@pytest.mark.parametrize(("span", "step"), [(0.0, 1.0), (0.9, 0.2), (4.0, 1.0), (9.6, 2.0), (10.1, 5.0), (60, 20.0)])
def test_ticks_are_round(span, step):
    assert _step(span) == pytest.approx(step) and (span == 0 or 2 <= span / _step(span) <= 5)


def test_no_difference_at_all_and_a_single_pair_are_drawn():
    figure = _figure({"a": gap((0.0, 0.0), 0.0, 0.0)})
    assert figure["zero"] == figure["rows"][0]["mean"] == 0.0 and len(figure["ticks"]) >= 2
    alone = Difference((0,), (0.01,), (0.01, 0.01), False, 1.0, None, 1.0)
    assert _figure({"a": alone})["rows"][0]["width"] is None and _figure({}) is None
