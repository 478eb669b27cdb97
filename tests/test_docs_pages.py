"""The pages of the documentation: one shape for all strategies, commands that parse, links and figures that hold."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import typer

from hf_xlt.averaging.arguments import AverageArguments
from hf_xlt.cli.main import build_app
from hf_xlt.parsing import parse_arguments
from hf_xlt.registry import STRATEGIES, get_strategy
from hf_xlt.training.config import XLTConfig

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), ROOT / "examples" / "README.md"]
HEADINGS = [
    "What it does",
    "When to use it",
    "Data it needs",
    "Cost",
    "Example",
    "Knobs",
    "Caveats",
    "Measured here",
    "Source",
]
LARGEST_IMAGE_BYTES = 60_000


def by_name(path):
    return path.relative_to(ROOT).as_posix()


def read(path):
    return path.read_text(encoding="utf-8")


def page_of(strategy):
    return DOCS / f"{strategy.replace('-', '_')}.md"


def section(text, heading):
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def headings(text):
    """Return (level, title) of every heading outside code."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [(len(marks), title.strip()) for marks, title in re.findall(r"^(#+) (.*)$", prose, re.M)]


every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
every_page = pytest.mark.parametrize("page", PAGES, ids=by_name)


@every_strategy
def test_every_strategy_has_a_page_of_the_same_shape(strategy):
    found = [title for level, title in headings(read(page_of(strategy))) if level == 2]
    assert found in (HEADINGS, [*HEADINGS, "In detail"])


@every_strategy
def test_every_page_shows_an_example_that_needs_nothing_and_its_result(strategy):
    example = section(read(page_of(strategy)), "Example")
    runs = [parse_arguments(words[1:]) for words in command_lines(example)]
    assert all(run.strategy.name == strategy or run.average.average for run in runs)
    assert runs[0].strategy.name == strategy and runs[0].embedded and not runs[-1].embedded
    assert "  language" in example


@every_strategy
def test_every_page_links_its_paper_and_its_measurements(strategy):
    text, paper = read(page_of(strategy)), get_strategy(strategy).paper
    assert paper is None or paper.url in section(text, "Source")
    assert "results.md" in section(text, "Measured here")


def knobs(strategy):
    """Return (flag, documented default) of the rows of a page's table of settings."""
    return re.findall(r"^\| `--([\w-]+)` \| ([^|]+) \|", section(read(page_of(strategy)), "Knobs"), re.M)


def default_of(field):
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(getattr(value, "value", value))


@every_strategy
def test_documented_defaults_are_those_of_the_code(strategy):
    classes = (AverageArguments, get_strategy(strategy).config_cls)
    fields = {entry.name: entry for cls in classes for entry in dataclasses.fields(cls)}
    rows = knobs(strategy)
    assert len(rows) >= 5
    assert rows == [(flag, default_of(fields[flag.replace("-", "_")])) for flag, _ in rows]


@every_strategy
def test_a_page_says_where_all_settings_are_listed(strategy):
    shared = {entry.name for entry in dataclasses.fields(XLTConfig)}
    own = {entry.name for entry in dataclasses.fields(get_strategy(strategy).config_cls)} - shared
    assert bool(own) == (f"`hf-xlt strategies {strategy}`" in section(read(page_of(strategy)), "Knobs"))


def command_lines(text):
    """Return the words of every complete `hf-xlt` line of code; what shows errors is run by `test_docs_screens.py`."""
    text = re.sub(r"\\\n\s*", " ", text)
    fenced = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).splitlines()
    indented = re.findall(r"^(?: {4}| {7})(\S.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    found = []
    for line in [*indented, *fenced]:
        match = re.search(r"^(?:hf-xlt |.*-m hf_xlt\.(?:cli\.main |(?=run )))(.*)$", line)
        words = shlex.split(match[1], comments=True) if match else []
        if words and "..." not in words:
            found.append(words)
    return found


def cases():
    for page in PAGES:
        for words in command_lines(read(page)):
            yield pytest.param(words, id=f"{by_name(page)}: {shlex.join(words)[:70]}")


@pytest.mark.parametrize("words", list(cases()))
def test_every_command_line_is_one_that_the_parser_takes(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *rest = words
    if name == "run":
        parse_arguments(rest)
        return
    command = typer.main.get_command(build_app()).commands[name]
    with command.make_context(name, rest) as context:
        assert context.params


def test_command_lines_are_found_in_code_and_nowhere_else():
    text = (
        "hf-xlt run --in-prose\n\n    hf-xlt run --seed 3 \\\n        --model M  # why\n\n"
        "    accelerate launch --x -m hf_xlt.run --model N\n    accelerate launch -m hf_xlt.run ...\n\n"
        "```bash\nhf-xlt card R\n```\n\n```console\n$ hf-xlt run --wrong\n```\n"
    )
    expected = [["run", "--seed", "3", "--model", "M"], ["run", "--model", "N"], ["card", "R"]]
    assert command_lines(text) == expected
    assert len(list(cases())) >= 50


def anchor(title):
    """Return the anchor that the Hub and GitHub give a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@every_page
def test_links_to_headings_lead_to_one(page):
    for target, name in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", read(page)):
        there = (page.parent / target).resolve() if target else page
        assert name in {anchor(title) for _, title in headings(read(there))}, f"{target}#{name}"


def test_the_index_lists_every_page():
    index = read(DOCS / "README.md")
    assert [
        page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index
    ] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "README.md", DOCS / "choosing.md"], ids=by_name)
@every_strategy
def test_overviews_link_every_strategy(page, strategy):
    assert f"`{strategy}`]({'docs/' if page.parent == ROOT else ''}{page_of(strategy).name})" in read(page)


@pytest.mark.parametrize("page", [*map(page_of, STRATEGIES), DOCS / "choosing.md"], ids=by_name)
def test_measured_figures_are_those_of_the_results(page):
    measured = re.findall(r"[+-]?\d+\.\d ± \d+\.\d", read(page))
    results = read(DOCS / "results.md")
    assert [figure for figure in measured if figure not in results] == []


def test_images_are_small_and_shown():
    shown = {name for page in PAGES for name in re.findall(r"!\[[^\]]+\]\(images/([^)]+)\)", read(page))}
    there = {path.name: path.stat().st_size for path in (DOCS / "images").iterdir()}
    assert set(there) == shown
    assert all(size < LARGEST_IMAGE_BYTES for size in there.values())
