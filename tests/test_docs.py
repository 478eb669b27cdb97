"""What the documentation names exists: commands, flags, keys, plans, Python names."""

import ast
import contextlib
import dataclasses
import importlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

from hf_xlt.cli.main import main
from hf_xlt.pretrain import make_config
from hf_xlt.pretraining.plan import Phase, Source
from hf_xlt.pretraining.plan_file import Plan, read_plan

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("**/*.yaml"))
PLANS = sorted((ROOT / "examples" / "pretraining").glob("*.yaml"))
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md"), *EXAMPLES])
PRETRAINING = (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")
# A command ends with its line, its code span, a comment or an ellipsis.
COMMAND = re.compile(
    r"(?:\bhf-xlt|-m hf_xlt\.cli\.main|-m hf_xlt\.(?=run\b))[ ]?(?P<name>[a-z][a-z-]*)(?P<rest>[^\n`#]*)"
)
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
SHORT = re.compile(r"(?<=\s)-[a-zA-Z](?=\s)")


def by_name(path):
    return path.relative_to(ROOT).as_posix()


def commands(text):
    """Return (command, its other words) for every command line in a text."""
    lines = re.sub(r"\\\n(#|\s)*", " ", text)
    return [(match["name"], match["rest"]) for match in COMMAND.finditer(lines)]


@cache
def help_of(*arguments):
    """Return the flags that a command's help names, spelt with hyphens."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        assert main([*arguments, "--help"]) == 0
    text = printed.getvalue()
    return {flag.replace("_", "-") for flag in FLAG.findall(text)} | set(re.findall(r"(?<=\s)-[a-zA-Z]\b", text))


def known_flags(name, rest):
    strategy = re.search(r"--strategy[ =]([a-z-]+)", rest)
    return help_of(name, *(["--strategy", strategy[1]] if strategy and name == "run" else []))


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_every_command_and_flag_named_exists(path):
    # Console blocks show mistakes too; `test_docs_screens.py` runs them.
    text = re.sub(r"^```console\n.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for name, rest in commands(text):
        known = known_flags(name, rest)
        flags = {flag.replace("_", "-") for flag in FLAG.findall(rest)} | set(SHORT.findall(rest))
        assert flags <= known, f"`{name}` has no {sorted(flags - known)}"


def test_commands_are_found_in_text():
    text = "run `hf-xlt retrieve M --layer 3` and\n    hf-xlt run --model M \\\n        --seed 3  # --not-this\n"
    assert commands(text) == [("retrieve", " M --layer 3"), ("run", " --model M  --seed 3  ")]
    assert commands("accelerate launch -m hf_xlt.run --strategy robust ...") == [("run", " --strategy robust ...")]
    assert "--overwrite" in help_of("retrieve") and "-o" in help_of("lang-stats")
    assert "--total-steps" in known_flags("run", " --strategy meta-pretrain")
    assert "--total-steps" not in known_flags("run", " --strategy robust")


def test_flags_named_alone_belong_to_a_command():
    known = help_of("pretrain") | help_of("run", "--strategy", "meta-pretrain")
    alone = set(re.findall(r"`(--[a-z][\w-]*)[^`]*`", PRETRAINING))
    assert alone and alone <= known, sorted(alone - known)


def test_every_key_of_a_plan_is_explained():
    keys = {entry.name for cls in (Plan, Source, Phase) for entry in dataclasses.fields(cls)}
    keys |= {"replay_floor", "row_length", "pooling", "chunk_rows", "epoch_limit", "held_out_share", "strict_resume"}
    rows = "\n".join(line for line in PRETRAINING.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`(\w+)`", rows))
    assert keys <= named, sorted(keys - named)


def default_rows():
    """Return (key, documented default) of the table of a phase."""
    table = PRETRAINING.split("\nA phase:\n\n")[1].split("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", table, flags=re.M)


@pytest.mark.parametrize(("key", "written"), default_rows())
def test_documented_defaults_are_those_of_the_code(key, written):
    default = {entry.name: entry.default for entry in dataclasses.fields(Phase)}[key]
    assert written == str(default).lower()


@pytest.mark.parametrize("path", PLANS, ids=by_name)
def test_example_plans_are_read(path):
    plan = read_plan(str(path))
    assert plan.phases and make_config(plan).row_length >= 8
    places = [plan.tokenizer, plan.output_dir, *(source.text for phase in plan.phases for source in phase.sources)]
    assert not any(Path(place).is_absolute() for place in places)


def test_examples_of_runs_and_plans_lie_apart():
    # `make examples` runs every file of the folder itself.
    assert PLANS and not set(PLANS) & set((ROOT / "examples").glob("*.yaml"))


def python_blocks():
    pages = [path for path in PAGES if path.suffix == ".md"]
    return [
        pytest.param(block, id=f"{by_name(path)}-{number}")
        for path in pages
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S))
    ]


@pytest.mark.parametrize("block", python_blocks())
def test_python_blocks_import_what_exists(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("path", [path for path in PAGES if path.suffix == ".md"], ids=by_name)
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
