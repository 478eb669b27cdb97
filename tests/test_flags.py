"""The catalogue of flags: it says what the code says, and help, listing and completion need nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_xlt import flags
from hf_xlt.cli.main import COMMANDS
from hf_xlt.registry import STRATEGIES, get_strategy
from hf_xlt.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "datasets", "accelerate", "numpy", "pyarrow"}


@pytest.fixture(scope="module")
def built():
    """What the code says."""
    if flags._version() != json.loads(flags.CATALOGUE.read_text())["transformers"]:
        pytest.skip("the catalogue was made with another version of transformers, and is not used with this one")
    return json.loads(json.dumps(flags.build_catalogue()))


def test_the_catalogue_says_what_the_code_says(built):
    kept = json.loads(flags.CATALOGUE.read_text(encoding="utf-8"))
    assert kept == built, "the flags have changed: run `python -m hf_xlt.flags`"
    assert kept["tasks"] == list(TASKS)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_flag_of_a_strategy_is_listed_once_in_its_help(name, built):
    from hf_xlt.parsing import build_parser

    listed = [entry["flag"] for entry in flags.flags_of(name)]
    parser = build_parser(get_strategy(name))
    for action in parser._actions:
        if action.dest != "help":
            assert sum(flag in listed for flag in action.option_strings) == 1
    text = flags.render_help(name, flags.flags_of(name))
    assert text == parser.format_help()
    assert all(f" {flag} " in text.replace("\n", " \n").replace(",", " ") for flag in listed)


def test_own_settings_stand_before_those_of_training(built):
    text = flags.render_help("robust", flags.flags_of("robust"))
    places = [text.index(f"\n{title}") for title in ("data:", "settings of `robust`:", "training (transformers")]
    assert places == sorted(places) and places[1] < text.index("--epsilon ") < places[2]
    assert "--epsilon " not in flags.render_help("finetune", flags.flags_of("finetune"))


def test_with_another_version_of_transformers_the_catalogue_is_not_used(monkeypatch):
    monkeypatch.setattr(flags, "_version", lambda: "4.0.0")
    assert flags.read_catalogue() is None and flags.flags_of("robust") is None


def test_the_facts_are_those_of_the_registry(built):
    facts = flags.strategy_facts()
    assert list(facts) == list(STRATEGIES)
    for name, entry in facts.items():
        strategy = get_strategy(name)
        assert entry["summary"] == strategy.summary and tuple(entry["roles"]) == strategy.roles
        assert entry["cost"] >= 1 and (entry["paper"] is None) == (strategy.paper is None)
    # One adversarial step costs the part of a pass that the embeddings do not spare.
    assert facts["robust"]["cost"] > facts["finetune"]["cost"] == 1.0


@pytest.fixture(scope="module")
def light(built):
    """Everything that must not need torch, done in one process: what was printed, and what was imported."""
    lines = [[], ["--version"], *([name, "--help"] for name in COMMANDS), ["strategies"], ["strategies", "robust"]]
    lines += [["strategies", "--json"], ["run", "--strategy", "robust", "--help"]]
    code = (
        "import contextlib, io, json, sys\n"
        "from hf_xlt.cli.main import main\n"
        f"lines, printed = json.loads({json.dumps(json.dumps(lines))}), {{}}\n"
        "for line in lines:\n"
        "    text = io.StringIO()\n"
        "    with contextlib.redirect_stdout(text):\n"
        "        assert main(list(line)) == 0, line\n"
        "    printed[' '.join(line)] = [text.getvalue(), sorted(sys.modules)]\n"
        "print(json.dumps(printed))\n"
    )
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_and_listing_import_no_heavy_library(light):
    for line, (text, modules) in light.items():
        assert not HEAVY & set(modules), line
        assert len(text) > 3 and "\x1b" not in text and "%%" not in text, line


def test_every_help_names_the_shared_flags_and_the_exit_codes_are_told(light):
    for name in COMMANDS:
        text = light[f"{name} --help"][0]
        assert "--quiet" in text and "--traceback" in text and "--help" in text, name
    assert "Exit codes: 0 done, 1 failure, 2 usage, 130 interrupted." in light[""][0]
    commands = light[""][0].split("Commands:")[1]
    # Of none the short help is cut off.
    assert all(f"  {name} " in commands for name in COMMANDS) and "..." not in commands


def test_strategies_are_listed_with_needs_cost_and_paper(light):
    text = light["strategies"][0]
    for name, entry in flags.strategy_facts().items():
        part = text[text.index(f"{name} ") :].split("\n\n")[0]
        assert f"{entry['cost']:.2f} plain steps" in part and "needs  labels in the source language" in part
        assert entry["paper"] is None or entry["paper"]["url"] in part
    document = json.loads(light["strategies --json"][0])
    assert document["strategies"] == flags.strategy_facts()
    assert "--epsilon" in light["strategies robust"][0] and "Huang" in light["strategies robust"][0]
