"""The registry: one line per strategy, unknown names, unmet roles, refusals."""

import re
import sys
import types
from pathlib import Path

import pytest

from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError
from hf_xlt.registry import STRATEGIES, Refusal, Strategy, get_strategy
from hf_xlt.strategies.finetune import FinetuneConfig, FinetuneTrainer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def register(monkeypatch):
    """Register a strategy for one test: one module and one line."""

    def add(**fields):
        entry = Strategy("sixth", "Sixth", FinetuneConfig, FinetuneTrainer, "For tests.", **fields)
        module = types.ModuleType("sixth_strategy")
        module.STRATEGY = entry
        monkeypatch.setitem(sys.modules, "sixth_strategy", module)
        monkeypatch.setitem(STRATEGIES, "sixth", "sixth_strategy")
        return entry

    return add


def test_an_unknown_name_lists_the_known_ones_with_a_close_match():
    with pytest.raises(ConfigError, match=r"unknown strategy 'finetun'. Did you mean `finetune`\? Known .*`robust`"):
        get_strategy("finetun")


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("target", "needs labelled target-language examples: add `--shots 100`"),
        ("auxiliary", "needs labelled data of auxiliary languages: add `--auxiliary-dataset PATTERN`"),
        ("text", "needs unlabelled text: add `--text-dataset PATTERN`"),
    ],
)
def test_an_unmet_role_is_a_usage_error_before_any_model_or_data_is_looked_at(register, role, message, capsys):
    register(roles=("source", role))
    line = "run --strategy sixth --model nobody/nothing --dataset nowhere/{split}.{lang}.csv"
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err


def test_a_refused_combination_is_a_usage_error(register, capsys):
    register(refusals=(Refusal(lambda config: config.bf16, "bf16 is not for this one. Leave `--bf16` out."),))
    assert main("run --strategy sixth --model m --dataset d.{lang}.csv --bf16".split()) == 2
    assert "strategy `sixth`: bf16 is not for this one" in capsys.readouterr().err


def test_a_task_outside_the_strategys_own_is_a_usage_error(register, capsys):
    register(tasks=("tagging",))
    assert main("run --strategy sixth --model m --dataset d.{lang}.csv".split()) == 2
    assert "supports the tasks tagging" in capsys.readouterr().err


def test_a_new_strategy_needs_no_other_line(register, capsys):
    register()
    assert main(["strategies"]) == 0
    assert "sixth            For tests." in capsys.readouterr().out


def test_no_file_but_its_own_knows_a_strategys_name():
    own = {"hf_xlt/registry.py", "hf_xlt/__init__.py"}
    # One strategy is called by the word that also names an average, in records and in checkpoints.
    own |= {"hf_xlt/averaging/report.py", "hf_xlt/averaging/summary.py"}
    files = [*ROOT.glob("hf_xlt/**/*.py"), *ROOT.glob("cli/*.py"), *ROOT.glob("model_cards/*.py")]
    known = re.compile("|".join(rf"\"{name}\"|'{name}'" for name in STRATEGIES))
    found = [
        path.relative_to(ROOT).as_posix()
        for path in files
        if "strategies" not in path.parts and known.search(path.read_text(encoding="utf-8"))
    ]
    # The command line's default strategy is the baseline.
    assert set(found) - own == {"hf_xlt/arguments.py"}


class DrawingTrainer(FinetuneTrainer):
    """Draws a batch of every auxiliary language in each step."""

    drawn: list = []

    def training_step(self, model, inputs, num_items_in_batch=None):
        for language in self.role_datasets["auxiliary"]:
            self.drawn.append((language, len(self.endless_loader("auxiliary", language).draw(0, 3)["labels"])))
        return super().training_step(model, inputs, num_items_in_batch)


def test_auxiliary_data_reach_the_strategy_and_the_record(register, monkeypatch, tmp_path):
    from tiny import save_encoder, write_data

    from hf_xlt.record import RunRecord

    entry = register(roles=("source", "auxiliary"))
    object.__setattr__(entry, "trainer_cls", DrawingTrainer)
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "encoder")
    write_data(tmp_path / "data")
    line = (
        "run --strategy sixth --model encoder --dataset data/{split}.{lang}.jsonl --target-languages de --max-steps 1 "
        "--auxiliary-dataset data/{split}.{lang}.jsonl --auxiliary-languages sw,zh --threads 1 --output-dir out"
    )
    assert main(line.split()) == 0
    assert DrawingTrainer.drawn == [("sw", 3), ("zh", 3)]
    record = RunRecord.read(tmp_path / "out")
    assert [entry["code"] for entry in record.languages["auxiliary"]] == ["sw", "zh"]
    assert record.data["auxiliary"]["examples"] == {"sw": 48, "zh": 48}
