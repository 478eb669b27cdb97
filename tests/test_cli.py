"""The command line: help that prints at once, clear exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from hf_xlt import __version__
from hf_xlt.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("run", "evaluate", "make-pairs", "card", "push", "strategies")


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    try:
        code = main([command, "--help"])
    except SystemExit as stop:
        code = stop.code
    assert code == 0 and len(capsys.readouterr().out) > 100


def test_help_names_every_field_of_the_strategy(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--strategy", "robust", "--help"])
    out = capsys.readouterr().out
    for flag in ("--epsilon", "--target-languages", "--learning_rate", "--few-shot-mode", "--no-floor"):
        assert flag in out


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("evalute x", "No such command 'evalute'"),
        ("evaluate", "Missing argument 'model'"),
        ("card x --no", "No such option"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(line, expected, capsys):
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert expected in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err


def test_help_and_importing_the_package_load_no_heavy_library():
    code = (
        "import sys, hf_xlt, hf_xlt.cli.main as m\n"
        "m.main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'numpy', 'pyarrow', 'babel'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_strategies_are_listed_with_their_settings(capsys):
    assert main(["strategies"]) == 0
    assert "finetune" in capsys.readouterr().out
    assert main(["strategies", "robust"]) == 0
    out = capsys.readouterr().out
    assert "--epsilon" in out and "Huang" in out
    assert main(["strategies", "robst"]) == 2


def test_every_public_name_can_be_imported():
    import hf_xlt

    for name in hf_xlt.__all__:
        assert getattr(hf_xlt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hf_xlt.__getattr__("nothing")
