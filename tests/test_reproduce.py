"""The command in a record, and so on a card, is that of the run: parsed again it asks for the same."""

import json
import shlex
from pathlib import Path

import pytest

from hf_xlt.bookkeeping import resolved
from hf_xlt.environment import shareable_arguments, shareable_command
from hf_xlt.parsing import parse_arguments

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.yaml"))
# Files of the user's are told by name, so they have to lie where the command is run.
JSON = '{"early_stop": true, "determinism_check": "a//b//c=d", "context_fn": "/home/me/x/y.json"}'


def again(arguments):
    """Parse what the record would hold."""
    command = shlex.split(shareable_command(arguments.asked, arguments.config.LOCAL_FILES))
    assert command[:2] == ["hf-xlt", "run"] and "--config" not in command
    return parse_arguments(command[2:])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_a_file_of_settings_is_in_the_command(example, monkeypatch):
    monkeypatch.chdir(example.parent)
    if "phases" in example.read_text():
        pytest.skip("a plan of pre-training, which `hf-xlt pretrain` takes")
    arguments = parse_arguments(["--config", str(example), "--seed", "7"])
    repeated = again(arguments)
    assert repeated.strategy.name == arguments.strategy.name
    assert resolved(repeated) == resolved(arguments) and repeated.config.seed == 7
    assert (repeated.model.model, repeated.data.dataset) == (arguments.model.model, arguments.data.dataset)


def test_flags_win_over_the_file_and_lists_stay_lists(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "strategy: robust\nepsilon: 0.03\nmodel: m/n\ndataset: 'd/{split}.{lang}.csv'\ntarget_languages: [sw, yo]\n"
        "learning_rate: 0.001\n"
    )
    line = ["--config", str(tmp_path / "a.yaml"), "--epsilon", "0.5", "--output-dir", "out", "--threads", "1"]
    repeated = again(parse_arguments(line))
    assert (repeated.config.epsilon, repeated.config.learning_rate) == (0.5, 0.001)
    assert repeated.data.target_languages == ["sw", "yo"] and repeated.strategy.name == "robust"


def test_json_values_keep_their_slashes_and_lose_only_paths():
    flag = "--gradient-checkpointing-kwargs"
    for token in ([flag, JSON], [f"{flag}={JSON}"]):
        repeated = again(parse_arguments(["--gradient-checkpointing", *token]))
        kept = {"early_stop": True, "determinism_check": "a//b//c=d", "context_fn": "x/y.json"}
        assert repeated.config.gradient_checkpointing_kwargs == kept
    assert json.loads(shareable_arguments({"gate_values": '{"a//b": 0.5}'}, ())["gate_values"]) == {"a//b": 0.5}
    assert shareable_command(["--x", "https://host/a/b"]).endswith("https://host/a/b")
    for private in ("file:///home/me/a.csv", "https://me:secret@host/a/b"):
        told = shareable_command(["--x", private])
        assert "home/me" not in told and "secret" not in told
