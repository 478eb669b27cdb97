"""The command line: help that prints at once, clear exit codes, nothing but what was asked for on stdout."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_xlt import __version__
from hf_xlt.cli.main import COMMANDS, main
from hf_xlt.streams import print_document, silenced, turned

ROOT = Path(__file__).resolve().parent.parent
ESCAPE = re.compile(r"\x1b\[")


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == main([command, "-h"]) == 0
    assert len(capsys.readouterr().out) > 200


def test_help_names_every_field_of_the_strategy(capsys):
    assert main(["run", "--strategy", "robust", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--epsilon", "--target-languages", "--learning-rate", "--few-shot-mode", "--no-floor"):
        assert flag in out


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("evalute x", "unknown command `evalute`. Did you mean `evaluate`?"),
        ("evaluate", "Missing argument 'model'. See `hf-xlt evaluate --help`."),
        ("evaluate x --datset y", "unknown option `--datset`. Did you mean `--dataset`?"),
        ("card x --nothing-like-it", "unknown option `--nothing-like-it`. See `hf-xlt card --help`."),
        ("run --lerning-rate 3", "unknown argument `--lerning-rate`. Did you mean `--learning-rate`?"),
        ("strategies robst", "Did you mean `robust`?"),
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


def test_json_is_alone_on_stdout_and_quiet_leaves_errors(capsys):
    assert main(["strategies", "--json"]) == 0
    assert "finetune" in json.loads(capsys.readouterr().out)["strategies"]
    assert main(["-q", "strategies", "--json"]) == 0
    assert "finetune" in json.loads(capsys.readouterr().out)["strategies"]
    assert main(["strategies", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["strategies", "nothing", "-q"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: unknown strategy 'nothing'")


def test_what_is_printed_beside_a_document_goes_to_stderr(capsys):
    with turned(documents_only=True):
        print("told")
        with turned(documents_only=True):
            print_document({"a": "ä"})
    assert capsys.readouterr() == ('{"a": "ä"}\n', "told\n")
    with turned(documents_only=True, quiet=True):
        print("told")
        print_document([1])
    assert capsys.readouterr() == ("[1]\n", "")


def test_without_a_terminal_libraries_show_no_bars_and_the_environment_is_put_back(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    with silenced(False):
        assert os.environ["TQDM_DISABLE"] == "1" and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    with silenced(True):
        assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    assert "TQDM_DISABLE" not in os.environ and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    monkeypatch.setenv("TQDM_DISABLE", "0")
    with silenced(True):
        assert os.environ["TQDM_DISABLE"] == "0"


def on_a_terminal(code, **environment):
    """Run Python code on a terminal of its own; return what it wrote."""
    outer, inner = pty.openpty()
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment}
    with subprocess.Popen([sys.executable, "-c", code], stdout=inner, stderr=inner, env=settings) as process:
        os.close(inner)
        text = b""
        # Linux ends the reading with an error once the other side is closed.
        while True:
            try:
                piece = os.read(outer, 65536)
            except OSError:
                break
            if not piece:
                break
            text += piece
    os.close(outer)
    assert process.returncode == 0, text.decode()
    return text.decode()


def test_no_colour_is_printed_on_a_terminal():
    code = "from hf_xlt.cli.main import main; main(['--help']); main(['evalute']); main(['strategies'])"
    for environment in ({}, {"NO_COLOR": "1"}):
        text = on_a_terminal(code, **environment)
        assert "Usage:" in text and "unknown command" in text and not ESCAPE.search(text)


def test_a_short_flag_of_the_shared_ones_is_no_argument_of_run(capsys):
    assert main(["run", "-q", "--strategy", "robst"]) == 2
    assert "Did you mean `robust`" in capsys.readouterr().err
