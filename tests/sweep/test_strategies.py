"""Sweeps over strategies: who gets which flag, what is refused, and the comparison at the end."""

import json

import pytest
from tiny import save_encoder, write_data

from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError
from hf_xlt.parsing import parse_arguments
from hf_xlt.record import RunRecord
from hf_xlt.sweep.members import divided_flags, plan_members

BASE = ["--model", "encoder", "--dataset", "{split}.{lang}.jsonl", "--output-dir", "out"]


def planned(*line):
    """Return the arguments of each run by name, and the notes."""
    argv = [*BASE, *line]
    arguments = parse_arguments(argv)
    return {run.name: list(run.tokens) for run in plan_members(arguments, argv)}, divided_flags(arguments, argv)


def test_runs_are_made_seed_by_seed_with_the_strategy_of_each():
    runs, notes = planned("--strategies", "finetune,robust", "--seeds", "2", "--learning-rate", "1e-5")
    assert list(runs) == ["finetune-1", "robust-1", "finetune-2", "robust-2"] and notes == []
    assert runs["robust-2"] == ["--strategy=robust", *BASE[:4], "--learning-rate", "1e-5"]
    assert list(planned("--strategies", "finetune", "robust")[0]) == ["finetune-1", "robust-1"]


def test_a_flag_goes_to_the_strategies_that_have_it_and_that_is_said():
    runs, notes = planned("--strategies", "finetune,robust", "--epsilon=0.2", "--norm", "linf", "--seed", "3")
    assert runs["finetune-1"] == ["--strategy=finetune", *BASE[:4]]
    assert runs["robust-1"][-3:] == ["--epsilon=0.2", "--norm", "linf"]
    assert notes == ["--epsilon, --norm: for robust only."]


def test_a_flag_with_a_strategys_name_goes_to_that_one():
    line = ["--strategies", "metaxl,robust", "--shots", "4", "--robust.method", "none", "--metaxl.method=joint"]
    runs, notes = planned(*line)
    assert runs["robust-1"][-2:] == ["--method", "none"] and runs["metaxl-1"][-1] == "--method=joint"
    # Both take target examples, so both get them.
    assert all("--shots" in tokens for tokens in runs.values()) and notes == []


def test_data_of_a_role_go_to_the_strategies_that_take_the_role():
    line = ["--auxiliary-dataset", "a.{lang}.jsonl", "--auxiliary-languages", "de"]
    runs, notes = planned("--strategies", "finetune,xmaml", *line)
    assert runs["xmaml-1"][-4:] == line and "--auxiliary-dataset" not in runs["finetune-1"]
    assert notes == ["--auxiliary-dataset, --auxiliary-languages: for xmaml only."]


def test_settings_of_the_average_go_to_the_strategies_that_average():
    runs, _ = planned("--strategies", "finetune,averaging", "--average-every", "0.5")
    assert "--average-every" in runs["averaging-1"] and "--average-every" not in runs["finetune-1"]
    runs, notes = planned("--strategies", "finetune,averaging", "--average-every", "0.5", "--average")
    assert all("--average-every" in tokens for tokens in runs.values()) and notes == []


def test_a_settings_file_is_divided_as_well(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("strategies: finetune,robust\nepsilon: 0.2\nrobust.steps: 2\nlearning_rate: 2e-5\nseeds: 2\n")
    runs, notes = planned("--config", str(file))
    assert list(runs) == ["finetune-1", "robust-1", "finetune-2", "robust-2"]
    assert runs["finetune-1"] == ["--strategy=finetune", "--learning_rate=2e-5", *BASE[:4]]
    assert {"--epsilon=0.2", "--steps=2"} <= set(runs["robust-1"]) and notes == ["--epsilon: for robust only."]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--strategies finetune,robst", "unknown strategy 'robst'. Did you mean .robust.?"),
        ("--strategies finetune,finetune", "names .finetune. twice"),
        # Such as `--strategies "$STRATEGIES"` with nothing in it, which asks for no run of the default strategy.
        ("--strategies ,", "names none"),
        ("--strategies finetune,robust --strategy robust", "give one of the flags"),
        ("--strategies finetune,robust --epsiln 1", "none of finetune, robust has it. Did you mean .--epsilon.?"),
        ("--strategies finetune,robust --xmaml.steps 1", "not among .--strategies."),
        ("--strategies finetune,robust --robust.stps 1", "has no setting .stps.. Did you mean .steps.?"),
        ("--strategies finetune,robust --auxiliary-dataset x", "takes no auxiliary data"),
        ("--strategies finetune,xmaml", "strategy .xmaml. needs labelled data of auxiliary languages"),
        ("--strategies finetune,robust --epsilon -1", "strategy .robust.: .*epsilon"),
        ("--strategies finetune,robust --vary learning_rate=1,2", "for runs of one strategy"),
        ("--strategies finetune,robust --share-head", "for runs of one strategy"),
        ("--strategies finetune,robust --push-to-hub --hub-model-id a/b", "hf-xlt push"),
    ],
)
def test_bad_input_is_refused_before_the_first_run(line, message):
    with pytest.raises(ConfigError, match=message):
        planned(*line.split())


def test_data_that_one_strategy_cannot_use_are_told_before_the_first_run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "encoder")
    write_data(tmp_path / "data", languages=("en", "de", "sw"), train=16)
    line = (
        "run --strategies finetune,soft-layers --model encoder --dataset data/{split}.{lang}.jsonl --max-steps 2 "
        "--auxiliary-dataset data/{split}.{lang}.jsonl --output-dir sweep --auxiliary-languages"
    )
    assert main([*line.split(), "de", "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "1.00 plain steps per update, 2 plain steps in all" in out and "gates 2 x 2.00 + train 2 x 1.00 = 6" in out
    assert main([*line.split(), "de", "--dry-run", "--json"]) == 0
    runs = json.loads(capfd.readouterr().out)["runs"]
    assert [(run["name"], run["seed"], run["plain_steps"]) for run in runs] == [
        ("finetune-1", 42, 2),
        ("soft-layers-1", 42, 6),
    ]
    for more in ([], ["--dry-run"]):
        assert main([*line.split(), "xx", *more]) == 2
        out, err = capfd.readouterr()
        assert err.startswith("error: strategy `soft-layers`: ") and "`xx`" in err and "starts" not in out
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_ends_in_a_comparison_and_resumes_to_it(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "encoder")
    write_data(tmp_path / "data", languages=("en", "de"), train=16)
    line = (
        "run --strategies robust,finetune --model encoder --dataset data/{split}.{lang}.jsonl --max-steps 2 "
        "--epsilon 0.1 --threads 1 --save-strategy no --parallel-runs 2 --output-dir sweep --json"
    )
    assert main(line.split()) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    # The first strategy is the baseline, whatever a comparison by itself would take.
    assert document["baseline"] == "robust" and list(document["conditions"]) == ["robust", "finetune"]
    assert document["differences"]["finetune"]["reading"].startswith("one pair of runs")
    assert "Note: --epsilon: for robust only." in err and "run 2 of 2, starts" in err
    assert "`finetune` against `robust`" in err and "not known" in err
    assert {path.suffix for path in (tmp_path / "sweep" / "comparison").iterdir()} >= {".md", ".json", ".csv", ".html"}
    assert RunRecord.read(tmp_path / "sweep" / "robust-1").arguments["epsilon"] == 0.1
    assert "--strategies" not in RunRecord.read(tmp_path / "sweep" / "finetune-1").command
    assert main([*line.split()[:-1], "--resume"]) == 0
    out, _ = capfd.readouterr()
    assert out.count("is finished.") == 2 and "starts" not in out and "`finetune` against `robust`" in out
    assert main([*line.replace("robust,finetune", "finetune,robust").split(), "--resume"]) == 2
    assert "has other runs than this command asks for" in capfd.readouterr().err
