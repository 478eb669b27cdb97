"""`hf-xlt doctor`: what it finds, without a network and with a Hub, and that it never tells a token."""

import importlib.metadata
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from hf_xlt import doctor
from hf_xlt.cli.main import main
from hf_xlt.launch import WORKING_COMMAND

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = {"endpoint": "https://huggingface.co", "offline": True, "reachable": None, "token": False, "user": None}


@pytest.fixture
def offline(monkeypatch):
    """A Hub that is not asked."""
    monkeypatch.setattr(doctor, "_hub", lambda problems: dict(OFFLINE))


def test_all_is_told_and_nothing_is_broken(offline, capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in ("torch ", "CPU ", "bf16 ", "Hub ", "not asked", "Cache ", "free", "Launch ", "Everything needed"):
        assert part in text, part
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["broken"] is False and found["versions"]["torch"] and found["devices"]["cpu"]["cores"] >= 1
    assert {cache["name"] for cache in found["caches"]} == {"models and files of the Hub", "data sets"}


def test_a_missing_and_an_old_package_are_named_and_the_code_is_1(offline, monkeypatch, capsys):
    needs = ["no-such-package>=1", "numpy>=99", "typer>=0.1", 'nothing>=1; extra == "plot"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "Broken     `no-such-package` is not installed: pip install 'no-such-package>=1'" in text
    assert "`numpy` is" in text and "too old" in text and "`typer`" not in text and "nothing" not in text
    assert "Something needed is broken." in text


def test_an_optional_package_is_a_note(offline, monkeypatch, capsys):
    def version(name, known=importlib.metadata.version):
        if name == "matplotlib":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["doctor"]) == 0
    assert "Note       `matplotlib` is not installed, so plots are left out" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["cpu", "one", "many"])
def test_launch_advice_follows_the_devices(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    gpus = [{"name": "GPU", "memory": 2**34}] * {"cpu": 0, "one": 1, "many": 4}[kind]
    devices = {"kind": "cuda" if gpus else "cpu", "gpus": gpus, "cpu": {"cores": 2}}
    found = doctor._launch(devices)
    expected = {"cpu": WORKING_COMMAND.format(processes=2), "one": None}
    many = "accelerate launch --multi_gpu --num_processes 4 -m hf_xlt.run ..."
    assert found["several"] == expected.get(kind, many) and found["processes"] == max(len(gpus), 1)
    # The command that looks right and is not is named as such.
    assert any("--cpu --num_processes 2` starts one process" in note for note in found["notes"]) == (kind == "cpu")
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("use_cpu: true\n")
    assert any("default configuration" in note for note in doctor._launch(devices)["notes"])


@pytest.mark.parametrize(
    ("status", "token", "words", "problem"),
    [
        (200, "hf_secretsecret", "logged in as me", None),
        (401, "hf_secretsecret", "access token is not accepted", "refuses the access token"),
        (401, None, "not logged in", None),
        (503, None, "cannot be reached", None),
        (None, None, "cannot be reached", "does not answer (OSError)"),
    ],
)
def test_the_login_is_told_and_the_token_never(status, token, words, problem, monkeypatch):
    import huggingface_hub
    from huggingface_hub import utils

    asked = []

    def get(address, headers, timeout):
        asked.append((address, timeout))
        if status is None:
            raise OSError("no route")
        return types.SimpleNamespace(status_code=status, json=lambda: {"name": "me"})

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    monkeypatch.setattr(utils, "get_session", lambda: types.SimpleNamespace(get=get))
    problems = []
    hub = doctor._hub(problems)
    assert words in doctor._hub_words(hub) and len(asked) == 1 and asked[0][1] <= 5
    assert [problem.needed for problem in problems] == ([False] if problem else [])
    assert problem is None or problem in problems[0].what
    assert "secret" not in json.dumps(hub) + str(problems)


def test_an_endpoint_that_is_no_web_address_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "nonsense")
    problems = []
    assert doctor._hub(problems)["reachable"] is False
    assert "HF_ENDPOINT is `nonsense`, which is no web address" in problems[0].what and not problems[0].needed


def test_sizes_count_blobs_once(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(b"x" * 1000)
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "a").symlink_to(tmp_path / "blobs" / "a")
    assert doctor._size(str(tmp_path)) == (1000, True)
    assert doctor._size(str(tmp_path / "nowhere")) == (0, True)


def test_the_loopback_hub_knows_who_asks(hub, hub_env):
    """The real client, in a process of its own, since it reads its settings when it is imported."""
    line = [sys.executable, "-m", "hf_xlt.cli.main", "doctor", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env={**hub_env, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["hub"]
    assert found["endpoint"] == hub.url and found["reachable"] and found["user"] == "user"
    assert "hf_good" not in done.stdout + done.stderr and os.path.basename(hub.url) in done.stdout


def test_the_advised_launch_starts_processes_that_meet():
    """The command that is printed, with a probe in place of the run."""
    problems = []
    assert doctor._try(WORKING_COMMAND.format(processes=2), 2, problems) and problems == []


@pytest.mark.parametrize(("printed", "code"), [("1", 0), ("1\n1", 0), ("", 1)])
def test_a_launch_whose_processes_do_not_meet_is_told(printed, code, monkeypatch):
    def run(line, env, **options):
        assert line[-2:] == ["-m", "hf_xlt.launch_probe"] and env["ACCELERATE_USE_CPU"] == "true"
        return types.SimpleNamespace(stdout=printed, stderr="a\nlast words", returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    problems = []
    assert not doctor._try(WORKING_COMMAND.format(processes=2), 2, problems)
    assert "the launch did not work" in problems[0].what and "last words" in problems[0].what
    assert not problems[0].needed
