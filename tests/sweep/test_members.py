"""Which runs a sweep consists of, and what is refused."""

import pytest

from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError
from hf_xlt.parsing import parse_arguments
from hf_xlt.sweep.arguments import check_sweep
from hf_xlt.sweep.members import plan_members

BASE = ["--model", "encoder", "--dataset", "{split}.{lang}.jsonl", "--output-dir", "out"]


def members(*line):
    argv = [*BASE, *line]
    return plan_members(parse_arguments(argv), argv)


def test_runs_have_consecutive_seeds_and_the_command_without_what_a_sweep_decides():
    runs = members("--seeds", "3", "--seed=7", "--target-languages", "de", "sw", "--resume", "--parallel_runs", "2")
    assert [(run.name, run.seed) for run in runs] == [("run-1", 7), ("run-2", 8), ("run-3", 9)]
    assert all(list(run.tokens) == [*BASE[:4], "--target-languages", "de", "sw"] for run in runs)


def test_a_bare_shared_head_gets_a_donor_with_the_first_seed():
    runs = members("--share-head", "--seeds", "2", "--learning-rate", "1e-5", "--vary", "learning_rate=1e-4,2e-4")
    assert [(run.name, run.seed) for run in runs] == [("donor", 42), ("run-1", 42), ("run-2", 43)]
    donor, *rest = runs
    assert donor.settings == {} and donor.tokens[-2:] == ("--learning-rate", "1e-5")
    assert {run.settings["learning_rate"] for run in rest} == {"1e-4", "2e-4"}
    for run in rest:
        # The varied value takes the place of the one that was typed.
        assert run.tokens == (*BASE[:4], f"--learning_rate={run.settings['learning_rate']}")
    assert "donor" not in [run.name for run in members("--share-head", "old-run", "--seeds", "2")]


def test_settings_are_distinct_combinations_that_the_seed_draws():
    vary = ["--vary", "learning_rate=1e-5,2e-5,3e-5", "per-device-train-batch-size=8,16"]

    def drawn(seed):
        return [tuple(run.settings.values()) for run in members("--seeds", "6", *vary, f"--seed={seed}")]

    assert len(set(drawn(1))) == 6 and drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1


def test_a_settings_file_is_written_out_for_each_run(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("learning_rate: 2e-5\nseeds: 2\nseed: 5\nnum_train_epochs: 2\noutput_dir: elsewhere\n")
    runs = members("--config", str(file), "--num-train-epochs", "1")
    assert [run.seed for run in runs] == [5, 6]
    assert runs[0].tokens == ("--learning_rate=2e-5", *BASE[:4], "--num-train-epochs", "1")
    parse_arguments([*runs[0].tokens, "--output-dir", "x"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--seeds", "3", "--vary", "learning_rate=1e-5,2e-5"], "2 different settings for 3 runs"),
        (["--seeds", "2", "--vary", "learning_rat=1,2"], "Did you mean `learning_rate`"),
        (["--seeds", "2", "--vary", "learning_rate"], "is not `NAME=VALUE,VALUE`"),
        (["--seeds", "2", "--vary", "seed=1,2"], "cannot differ in `seed`"),
        (["--seeds", "2", "--vary", "share_head=a,b"], "cannot differ in `share_head`"),
        (["--seeds", "2", "--vary", "seed=1,2", "learning_rate=1,2"], "cannot differ"),
        (["--seeds", "2", "--vary", "learning_rate=1,2", "learning-rate=3,4"], "given twice"),
        (["--seeds", "-1"], "give 1 or more"),
        (["--seeds", "2", "--parallel-runs", "0"], "give 1 or more"),
        (["--seeds", "2", "--push-to-hub", "--hub-model-id", "a/b"], "hf-xlt push"),
        (["--vary", "learning_rate=1,2"], "does nothing without `--seeds`"),
        (["--parallel-runs", "2"], "does nothing without `--seeds`"),
        (["--share-head"], "needs a donor"),
    ],
)
def test_bad_input(line, message):
    with pytest.raises(ConfigError, match=message.replace("`", ".")):
        members(*line)


def test_a_launcher_is_refused(monkeypatch):
    arguments = parse_arguments([*BASE, "--seeds", "2"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without a launcher"):
        check_sweep(arguments)


def test_a_dry_run_shows_the_runs_and_writes_nothing(tmp_path, capsys):
    argv = ["run", "--output-dir", str(tmp_path / "out"), "--seeds", "2", "--share-head", "--dry-run"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "Runs       3, 1 at a time" in out and "run-2    seed 43" in out and "averaged/" in out
    assert "1.00 plain steps per update, 180 plain steps in all" in out
    assert not (tmp_path / "out").exists()
