"""Completion: what is offered, and that the scripts work in the shells that are installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_xlt.cli.command import RunCommand, chosen_strategy
from hf_xlt.flags import read_catalogue
from hf_xlt.registry import STRATEGIES

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def _needs_the_catalogue():
    if read_catalogue() is None:
        pytest.skip("the catalogue of flags is for another version of transformers")


def offered(words, incomplete):
    """What `run` offers behind some words."""

    class Context:
        args = words.split()

    return [item.value for item in RunCommand(name="run").shell_complete(Context, incomplete)]


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ("--strategy", "r", ["robust"]),
        ("--strategy", "", list(STRATEGIES)),
        ("--strategy =", "rob", ["robust"]),
        ("--strategies", "finetune,r", ["finetune,robust"]),
        ("--strategy robust", "--epsilo", ["--epsilon"]),
        ("--strategies finetune,robust", "--epsilo", []),
        ("", "--epsilo", []),
        ("", "--target-lang", ["--target-languages"]),
        ("--few-shot-mode", "c", ["concat"]),
        ("--peft", "", ["lora"]),
        ("--resume", "x", []),
        ("--dataset", "x", []),
    ],
)
def test_flags_and_values_of_run(words, incomplete, expected):
    assert offered(words, incomplete) == expected


def test_the_strategy_is_read_off_the_line():
    assert chosen_strategy(["--model", "m"]) == chosen_strategy([]) == chosen_strategy(["--strategy"]) == "finetune"
    assert chosen_strategy(["--strategy=metaxl"]) == chosen_strategy(["--strategies", "metaxl,robust"]) == "metaxl"


SHELLS = {
    "bash": (
        'eval "$(_HF_XLT_COMPLETE=source_bash hf-xlt)"\n'
        "complete -p hf-xlt > /dev/null || exit 3\n"
        "COMP_WORDS=(hf-xlt run --strategy met); COMP_CWORD=3\n"
        '_hf_xlt_completion hf-xlt; echo "${COMPREPLY[*]}"\n'
        "COMP_WORDS=(hf-xlt ev); COMP_CWORD=1\n"
        '_hf_xlt_completion hf-xlt; echo "${COMPREPLY[*]}"\n'
    ),
    "zsh": (
        "autoload -Uz compinit; compinit -u -D\n"
        'eval "$(_HF_XLT_COMPLETE=source_zsh hf-xlt)"\n'
        '_arguments() { print -r -- "$@" }\n'
        "words=(hf-xlt run --strategy met); CURRENT=4; _hf_xlt_completion\n"
        "words=(hf-xlt run --auxiliary-); CURRENT=3; _hf_xlt_completion\n"
        "words=(hf-xlt ev); CURRENT=2; _hf_xlt_completion\n"
    ),
    "fish": (
        "env _HF_XLT_COMPLETE=source_fish hf-xlt | source\n"
        "complete -C 'hf-xlt run --strategy met'\n"
        "complete -C 'hf-xlt ev'\n"
    ),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_works_in_the_shell(shell, tmp_path):
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    command = tmp_path / "hf-xlt"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m hf_xlt.cli.main "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    bare = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    line = [found, *bare, "-c", SHELLS[shell]]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    for word in ("meta-pretrain", "metaxl", "evaluate"):
        assert word in done.stdout, done.stdout + done.stderr
    assert "robust" not in done.stdout and "Traceback" not in done.stderr
