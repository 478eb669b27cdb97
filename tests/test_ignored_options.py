"""Options that do nothing without others, and values that only whatever reads them would refuse: one line, at once."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from tiny import save_encoder, write_data

from hf_xlt.arguments import DataArguments
from hf_xlt.cli.main import main
from hf_xlt.data.settings import DEPENDENT
from hf_xlt.errors import ConfigError
from hf_xlt.parsing import parse_arguments
from hf_xlt.registry import unused_problems
from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer

DATA = "--model encoder --dataset data/{split}.{lang}.jsonl"
TEXT = "--text-dataset text/{lang}.jsonl"
EVALUATES = "--eval-strategy epoch"
# Per option: a command line in which nothing reads it, and what to add so that something does.
OF_RUNS = {
    "--few-shot-split dev": "--shots 5",
    "--shot-seed 3": "--shots 5",
    "--few-shot-mode concat": "--shots 5",
    "--auxiliary-languages sw": "--strategy xmaml --auxiliary-dataset data/{split}.{lang}.jsonl",
    "--auxiliary-split dev": "--strategy xmaml --auxiliary-dataset data/{split}.{lang}.jsonl",
    "--text-languages de": f"--strategy meta-pretrain {TEXT}",
    "--text-split dev": f"--strategy meta-pretrain {TEXT}",
    "--divide-seed 3": "--divide-split train=0.8,test=0.2",
    "--id-column key": "--generalized",
    "--language-column code": "--target-dataset data/all.jsonl",
    "--window-overlap 5": "--task question-answering",
    "--validation-split dev": EVALUATES,
    "--lora-rank 4": "--peft lora",
    "--average-every 0.5": "--average",
    "--parallel-runs 2": "--seeds 2",
    "--eval-steps 5": "--eval-strategy steps",
    "--hub-model-id me/it": "--push-to-hub",
}
ALWAYS_READ = (
    "task dataset target_dataset source_languages target_languages source_split target_split divide_split "
    "allow_shared_rows text_column text_pair_column label_column label_columns tokens_column tags_column "
    "question_column context_column answers_column language_map max_length shots auxiliary_dataset text_dataset "
    "select_on_target_validation generalized generalized_languages"
).split()
WRONG_VALUES = {
    """--accelerator-config {"foo":1}""": "`accelerator_config`: unknown key 'foo'",
    """--accelerator-config {"split_batch":true}""": "Did you mean `split_batches`?",
    """--gradient-checkpointing --gradient-checkpointing-kwargs {"foo":1}""": "unknown key 'foo'",
    """--activation-checkpointing --activation-checkpointing-kwargs {"foo":1}""": "unknown key 'foo'",
    """--lr-scheduler-type cosine --lr-scheduler-kwargs {"foo":1}""": "unexpected keyword argument 'foo'",
    """--lr-scheduler-type cosine --lr-scheduler-kwargs {"num_cycles":"x"}""": "`lr_scheduler_kwargs`",
    "--lr-scheduler-kwargs foo": "`lr_scheduler_kwargs` is 'foo'; give a mapping",
    "--lr-scheduler-type cosine_with_min_lr": "One of min_lr or min_lr_rate should be set",
    "--optim sgd --optim-args momentum": "give `name=value`",
    "--optim sgd --optim-args foo=1": "`optim` sgd reads no option `foo`",
    "--optim sgd --optim-args momentum=0.9,foo=1": "reads no option `foo`",
    "--optim adafactor --optim-args momentum=0.9": "reads no option `momentum`",
    "--optim sgd --optim-args momentum=x": "could not convert string to float",
    "--optim galore_adamw": "You need to install `galore_torch`",
    "--adam-beta1 2.0": "Invalid beta parameter",
    "--weight-decay=-1": "`weight_decay` is -1.0",
    "--label-smoothing-factor 3": "it must be between 0 and 1",
    "--dataloader-num-workers=-1": "`dataloader_num_workers` is -1",
    "--dataloader-persistent-workers": "it goes with `dataloader_num_workers`",
    "--eval-strategy steps --eval-steps 0": "`eval_steps` is 0",
    "--report-to nowhere": "nowhere is not supported",
    "--torch-compile-backend nothing": "`torch_compile_backend` is 'nothing'; choose one of",
    "--strategy xmaml --auxiliary-dataset x.{lang}.jsonl --meta-optimizer nothing": "`meta_optimizer` nothing",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("ignored")
    save_encoder(root / "encoder")
    write_data(root / "data", train=24)
    return root


@pytest.mark.parametrize("option", OF_RUNS)
def test_an_option_of_a_run_needs_what_reads_it(option):
    flag = option.split()[0]
    with pytest.raises(ConfigError, match=f"{flag}`|{flag[2:].replace('-', '_')}`"):
        parse_arguments(f"{DATA} {option}".split())
    parse_arguments(f"{DATA} {option} {OF_RUNS[option]} --output-dir out".split())


def test_every_setting_of_data_is_read_always_or_depends():
    dependent = {name for entry in DEPENDENT for name in entry.names} | {
        "labels",
        "window_overlap",
        "validation_split",
    }
    assert dependent | set(ALWAYS_READ) == {entry.name for entry in dataclasses.fields(DataArguments)}
    assert not dependent & set(ALWAYS_READ)


def test_a_default_that_is_spelt_out_may_pass():
    parse_arguments(f"{DATA} --shot-seed 0 --strategy robust --copies 3 --num-samples 1".split())


def test_labels_are_for_tasks_with_classes():
    with pytest.raises(ConfigError, match="`--labels` is .* tasks with classes"):
        parse_arguments(f"{DATA} --task question-answering --labels a,b".split())


def test_the_mode_of_shots_is_not_for_strategies_with_a_use_of_their_own():
    line = f"{DATA} --shots 5 --few-shot-mode concat"
    with pytest.raises(ConfigError, match="`metaxl` has its own use of them"):
        parse_arguments(f"{line} --strategy metaxl".split())
    # A comparison gives it to those that read it.
    parse_arguments(f"{line} --strategies finetune,metaxl".split())


@pytest.mark.parametrize("line", WRONG_VALUES)
def test_a_value_that_nothing_can_use_is_one_line_before_anything_is_written(world, monkeypatch, capsys, line):
    monkeypatch.chdir(world)
    assert main(["run", *DATA.split(), *line.split(), "--output-dir", "out"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and WRONG_VALUES[line] in error
    assert not (world / "out").exists()


def test_a_trainer_in_python_says_the_same(tmp_path):
    for settings, message in (
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"foo": 1}}, "unexpected keyword argument 'foo'"),
        ({"optim": "sgd", "optim_args": "foo=1"}, "reads no option `foo`"),
        ({"optim": "sgd", "adam_beta1": 0.5}, "`adam_beta1` is 0.5 and would be ignored"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 5}, "`warmup_steps` is 5 and would be ignored"),
    ):
        config = FinetuneConfig(str(tmp_path), use_cpu=True, **settings)
        with pytest.raises(ConfigError, match=message):
            FinetuneTrainer(model=None, args=config)


def test_early_stopping_and_evaluation_at_the_start_need_nothing_else(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    short = f"{DATA} --target-languages de --max-steps 3 --threads 1 --quiet --learning-rate 1e-3 --save-strategy no"
    line = "--early-stopping-patience 1 --eval-strategy steps --eval-steps 1 --eval-on-start"
    assert main(["run", *short.split(), *line.split(), "--output-dir", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "xlt_run.json").read_text())
    assert record["selection"]["protocol"] == "last checkpoint"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "average a b -o c --dataset x.jsonl",
            "`--dataset` is 'x.jsonl' and would be ignored: it goes with `--greedy`",
        ),
        ("average a b -o c --batch-size 8", "`--batch-size` is 8"),
        ("card run --check --output x.md", "leave `--check` out"),
        ("retrieve m --dataset x --source-language de", "it goes with `--id-column`"),
        ("retrieve m --dataset x --id-column id --pair-column b", "leave `--id-column` out"),
        ("lang-stats --text x --tokenizer t --json --alpha 0.3", "`--alpha` is 0.3"),
        ("pretrain --config x.yaml --allow-phase-change", "it goes with `--resume`"),
        ("evaluate m --dataset x.{lang}.jsonl --languages de --target-languages sw", "leave `--languages` out"),
        ("evaluate encoder --dataset data/{split}.{lang}.jsonl --divide-seed 3", "`--divide-seed` is 3"),
        ("evaluate encoder --dataset data/{split}.{lang}.jsonl --id-column key", "`--id-column` is 'key'"),
        ("evaluate encoder --dataset data/{split}.{lang}.jsonl --validation-split dev", "multi-label"),
        ("evaluate encoder --dataset data/{split}.{lang}.jsonl --revision v2", "is a version on the Hub"),
        ("run --model encoder --dataset data/{split}.{lang}.jsonl --model-revision v2", "is a version on the Hub"),
    ],
)
def test_options_of_commands(world, monkeypatch, capsys, line, message):
    monkeypatch.chdir(world)
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_tells_of_settings_that_some_runs_would_ignore_before_the_first(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    sweep = f"run {DATA} --strategy robust --seeds 4 --output-dir {tmp_path / 'sweep'}"
    assert main([*sweep.split(), "--vary", "method=adv,rs_rp", "num_samples=1,4"]) == 2
    error = capsys.readouterr().err
    assert "num_samples 4): `num_samples` is 4 and would be ignored" in error and "method adv" in error
    assert not (tmp_path / "sweep").exists()
    # What the varied setting turns on may be set for all runs.
    line = [*sweep.split(), "--copies", "2", "--vary", "augmenter=characters", "character_rate=0.1,0.2,0.3,0.4"]
    assert main([*line, "--dry-run"]) == 0


PHASES = {
    "tlm_share": 0.3,
    "pivot": "de",
    "pivot_share": 0.5,
    "pairs": 4,
    "pair_length": 16,
    "temperature": 0.1,
    "embedding_init": "random",
}


@pytest.mark.parametrize("name", PHASES)
def test_a_phase_of_a_pretraining_needs_what_reads_its_settings(tmp_path, capsys, name):
    phase = {"name": "one", "steps": 2, name: PHASES[name]}
    plan = {"model": "x", "sources": ["text/{lang}.jsonl"], "phases": [phase]}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert main(["pretrain", "--config", str(tmp_path / "plan.yaml")]) == 2
    assert f"phase 'one': `{name}` is {PHASES[name]!r} and would be ignored" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("pooling", "mean"), ("strict_resume", True), ("adam_beta1", 0.5)])
def test_training_arguments_of_a_pretraining_need_what_reads_them(world, tmp_path, monkeypatch, capsys, name, value):
    monkeypatch.chdir(world)
    training = {name: value, **({"optim": "sgd"} if name == "adam_beta1" else {})}
    phase = {"name": "one", "steps": 2}
    plan = {"model": "encoder", "sources": ["text/{lang}.jsonl"], "phases": [phase], "training": training}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert main(["pretrain", "--config", str(tmp_path / "plan.yaml"), "--output-dir", str(tmp_path / "o")]) == 2
    assert f"`{name}` is {value!r} and would be ignored" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_examples_ask_for_nothing_that_is_ignored():
    for path in sorted((Path(__file__).parent.parent / "examples").glob("*.yaml")):
        parse_arguments(["--config", str(path), "--output-dir", "out"])


def test_a_problem_names_value_and_need():
    data = DataArguments(shot_seed=4)
    assert unused_problems(data, DEPENDENT)[:1] == ["`shot_seed` is 4 and would be ignored: it goes with `--shots`"]
