"""What a run leaves and what another run takes: gates.json, its plot, the record; profiles; whole runs by command."""

import json

import pytest
import torch
from soft_setup import config_of, soft
from tiny import make_model, save_encoder, write_data

from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError
from hf_xlt.record import RunRecord
from hf_xlt.registry import get_strategy
from hf_xlt.strategies.soft_layers import profiles
from hf_xlt.strategies.soft_layers.cost import cost
from hf_xlt.strategies.soft_layers.evidence import Evidence
from hf_xlt.strategies.soft_layers.gates import FEATURES, make_gates
from hf_xlt.strategies.soft_layers.gates_file import GatesFile, thin
from hf_xlt.strategies.soft_layers.movement import relative_displacements
from hf_xlt.strategies.soft_layers.report import gates_file

NAMES = ("word_embeddings", "embeddings", "layer_0", "layer_1", "layer_2", "encoder_shared", "pooler")


def learned(folder, **changes):
    trainer = soft(folder, **changes)
    trainer.train()
    return trainer


@pytest.mark.parametrize("gate_type", ["constant", "table", "mlp", "recurrent"])
def test_a_file_gives_back_the_gates_bit_for_bit(gate_type, tmp_path):
    trainer = learned(tmp_path / "run", gate_type=gate_type, gate_normalization="mean_one", gate_temperature=1.5)
    file = gates_file(trainer)
    file.write(tmp_path / "gates.json")
    again = GatesFile.read(tmp_path / "gates.json")
    assert again == file
    gates = again.build(file.groups, file.sizes)
    seen = torch.randn(len(file.groups), len(FEATURES), dtype=torch.float64)
    own = trainer.learning.learner.gates
    if gate_type == "recurrent":
        own.state = torch.zeros_like(own.state)
    for progress in (0.0, 0.5, 1.0):
        assert torch.equal(gates(progress, seen), own(progress, seen))


def test_gates_of_a_file_are_those_of_the_run(tmp_path):
    file = gates_file(learned(tmp_path / "learn", always_open=["head", "pooler"]))
    trainer = soft(tmp_path / "use", gates=None, auxiliary={}, trainer={"gates": file})
    assert trainer.learning is None and trainer.setup.gated == tuple(file.groups)
    trainer.train()
    assert trainer.gated.gates == [*file.gates, 1.0, 1.0]
    facts = trainer.phase_facts()["soft_layers"]
    assert facts["auxiliary_languages"] == ["de", "sw"] and not facts["learned_here"]
    json.dumps(facts)


def test_the_record_says_how_far_every_group_went(tmp_path):
    """Effective learning rate and relative displacement, of gated, frozen and open groups."""
    trainer = soft(tmp_path, auxiliary={}, gate_values='{"layer_0": 0, "layer_1": 0.01}')
    start = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    found = trainer.phase_facts()["soft_layers"]["movement"]
    assert found.keys() == set(trainer.setup.groups.names)
    assert found["layer_0"] == {"learning_rate": 0.0, "displacement": 0.0}
    assert found["layer_1"]["learning_rate"] == 1e-5 and found["head"]["learning_rate"] == 1e-3
    assert 0 < 10 * found["layer_1"]["displacement"] < found["pooler"]["displacement"]
    for group, names in trainer.setup.groups.members.items():
        before = torch.cat([start[name].flatten() for name in names])
        after = torch.cat([trainer.model.get_parameter(name).detach().flatten() for name in names])
        expected = float((after - before).norm() / before.norm())
        assert found[group]["displacement"] == pytest.approx(expected, rel=6e-3), group


@pytest.mark.parametrize(
    ("changes", "tells"),
    [
        ({}, False),
        ({"inner_steps": 2}, False),
        ({"mode": "online"}, True),
        ({"mode": "online", "inner_steps": 2}, False),
    ],
    ids=str,
)
def test_learning_holds_no_second_copy_of_the_weights(changes, tells, tmp_path):
    trainer = soft(tmp_path, max_steps=2, audit_episodes=0, **changes)
    trainer.train()
    assert (trainer.start is not None) == tells == ("movement" in trainer.phase_facts()["soft_layers"])


def test_weights_that_were_all_zero_have_no_relative_displacement():
    before, after = {"a": torch.zeros(2), "b": torch.tensor([3.0, 4.0])}, {"a": torch.ones(2), "b": torch.zeros(2)}
    found = relative_displacements(before, {**after, "c": torch.ones(1)}, {"x": ["a"], "y": ["b"], "z": ["c"]})
    assert found == {"x": None, "y": 1.0, "z": 0.0}


def test_a_model_of_another_depth_is_refused_unless_gates_are_interpolated(tmp_path):
    file = gates_file(learned(tmp_path / "learn"))
    deeper = make_model(num_hidden_layers=3)
    with pytest.raises(ConfigError, match="groups word_embeddings.*this model has .*layer_2.*`interpolate_gates`"):
        soft(tmp_path / "use", model=deeper, trainer={"gates": file})
    trainer = soft(tmp_path / "use", model=deeper, trainer={"gates": file}, interpolate_gates=True)
    values = dict(zip(trainer.setup.gated, trainer.setup.source.choose(0.0, []), strict=True))
    own = dict(zip(file.groups, file.gates, strict=True))
    assert values["layer_0"] == own["layer_0"] and values["layer_2"] == own["layer_1"]
    table = dict(zip(file.groups, file.parameters["table"][0], strict=True))
    middle = torch.sigmoid(torch.tensor((table["layer_0"] + table["layer_1"]) / 2, dtype=torch.float64))
    assert values["layer_1"] == pytest.approx(middle.item()) and values["pooler"] == own["pooler"]


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is missing"):
        GatesFile.read(tmp_path / "gates.json")
    (tmp_path / "gates.json").write_text("{")
    with pytest.raises(ConfigError, match="is no file of gates"):
        GatesFile.read(tmp_path)
    good = gates_file(learned(tmp_path / "run"))
    for change in ({"format_version": 2}, {"gate_type": "x"}, {"gates": [1.0]}, {"parameters": {}}):
        good.write(tmp_path / "gates.json")
        values = json.loads((tmp_path / "gates.json").read_text())
        (tmp_path / "gates.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(ConfigError, match="is no file of gates"):
            GatesFile.read(tmp_path)


def test_shuffled_gates_are_a_permutation_and_thresholds_freeze(tmp_path):
    file = gates_file(learned(tmp_path / "learn", meta_learning_rate=0.5))
    trainer = soft(tmp_path / "use", trainer={"gates": file}, shuffle_gates=True)
    values = trainer.setup.source.choose(0.0, [])
    assert sorted(values) == sorted(file.gates) and values != file.gates
    threshold = sorted(file.gates)[1] + 1e-9
    trainer = soft(tmp_path / "freeze", trainer={"gates": file}, hard_threshold=threshold)
    shut = {name for name, gate in zip(file.groups, file.gates, strict=True) if gate < threshold}
    assert set(trainer.setup.frozen) == shut and len(shut) == 2
    frozen = {name for name, parameter in trainer.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for group in shut for name in trainer.setup.groups.members[group]}
    trainer.train()


def test_long_histories_are_thinned_to_their_ends():
    rows = thin(list(range(1000)), [torch.tensor([float(number)]) for number in range(1000)])
    assert len(rows["updates"]) == 200 and rows["updates"][0] == 0 and rows["updates"][-1] == 999
    assert rows["gates"][-1] == [999.0]


# ---- Evidence, gates, profiles


def test_evidence_pools_languages_and_tells_none_from_some():
    evidence, generator = Evidence(("de", "sw"), 2), torch.Generator().manual_seed(0)
    rows = torch.randn(40, 2, generator=generator, dtype=torch.float64) * 0.1
    rows[:, 0] -= 0.2
    rows[1::2, 0] -= 0.1
    for number, row in enumerate(rows):
        evidence.add(number % 2, row)
    report = evidence.report(0)
    assert report["mean_gradient"] == pytest.approx(rows[:, 0].mean().item())
    assert report["standard_error"] == pytest.approx((rows[:, 0].std() / 40**0.5).item())
    assert report["verdict"] == "open" and evidence.report(1)["verdict"] == "no evidence"
    assert report["by_language"]["sw"] == pytest.approx(rows[1::2, 0].mean().item())
    empty = Evidence(("de",), 1)
    assert empty.report(0)["verdict"] == "no evidence" and empty.report(0)["by_language"] == {}


@pytest.mark.parametrize("kind", ["constant", "table", "mlp", "recurrent"])
def test_gates_start_where_they_are_told_and_stay_in_range(kind):
    gates = make_gates(kind, 3, init=0.4, maximum=2.0, temperature=0.5)
    seen = torch.randn(3, len(FEATURES), dtype=torch.float64)
    expected = 2.0 * torch.sigmoid(torch.tensor(0.8, dtype=torch.float64))
    torch.testing.assert_close(gates(0.3, seen), expected.expand(3))


def test_a_table_tells_parts_of_training_apart():
    gates = make_gates("table", 1, init=0.0, bins=4)
    gates.table.data[:, 0] = torch.arange(4)
    found = [torch.logit(gates(progress)).item() for progress in (0.0, 0.26, 0.5, 0.99, 1.0)]
    assert found == pytest.approx([0, 1, 2, 3, 3])


def test_profiles():
    assert profiles.depths(NAMES) == [4, 4, 3, 2, 1, 1, 0]
    assert profiles.layerwise_decay(NAMES, 0.5) == [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1 / 2, 1.0]
    assert profiles.freeze_bottom(NAMES, 2) == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    opened = [sum(profiles.gradual_unfreezing(NAMES, progress, 0.8)) for progress in (0.0, 0.21, 0.41, 0.61, 1.0)]
    assert opened == [3, 4, 5, 7, 7]
    assert profiles.gradual_unfreezing(NAMES, 0.0, 0.8)[-3:] == [1.0, 1.0, 1.0]
    one, two = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])
    gradients = {id(one): torch.tensor([0.0, 1.0]), id(two): torch.tensor([0.3, 0.4])}
    assert profiles.auto_rgn([[one], [two]], gradients) == pytest.approx([0.4, 1.0])
    assert profiles.auto_rgn([[one], [two]], {id(one): None}) == [1.0, 1.0]


@pytest.mark.parametrize("profile", ["gradual_unfreezing", "layerwise_decay", "auto_rgn", "freeze_bottom"])
def test_profiles_need_no_auxiliary_language(profile, tmp_path):
    own = {"frozen_layers": 1} if profile == "freeze_bottom" else {}
    trainer = soft(tmp_path, auxiliary={}, profile=profile, **own)
    trainer.train()
    values = dict(zip(trainer.setup.groups.names, trainer.gated.gates, strict=True))
    assert values["head"] == 1 and all(0 <= value <= 1 for value in values.values())
    assert trainer.phase_facts()["soft_layers"]["profile"] == profile
    assert get_strategy("soft-layers").waived_roles(trainer.args) == ("auxiliary",)


def test_cost(tmp_path):
    assert cost(config_of(tmp_path)) == 3 and cost(config_of(tmp_path, inner_steps=5)) == pytest.approx(2.2)
    assert cost(config_of(tmp_path, mode="online", inner_steps=2)) == 1.5
    assert cost(config_of(tmp_path, profile="auto_rgn")) == 1
    assert cost(config_of(tmp_path, inner_steps=2, meta_gradient="exact")) == 5.5


# ---- By command


def test_runs_by_command(tmp_path, monkeypatch, capsys):
    """Learn gates, use them again elsewhere, and keep auxiliary languages out of the targets."""
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "encoder")
    write_data(tmp_path / "data")
    shared = (
        "run --strategy soft-layers --model encoder --dataset data/{split}.{lang}.jsonl --threads 1 --disable-tqdm"
    )
    shared += " --max-steps 4 --per-device-train-batch-size 8 --save-strategy no"
    auxiliary = " --auxiliary-dataset data/{split}.{lang}.jsonl --auxiliary-languages sw"
    assert main(f"{shared}{auxiliary} --output-dir learned".split()) == 0
    record = RunRecord.read("learned")
    assert [phase["name"] for phase in record.phases] == ["gates", "train"]
    assert [entry["code"] for entry in record.languages["target"]] == ["de", "zh"]
    languages = record.results["languages"]
    assert [(code, entry["role"]) for code, entry in languages.items()] == [
        ("en", "source"),
        ("de", "target"),
        ("zh", "target"),
        ("sw", "auxiliary"),
    ]
    own = [languages[code]["metrics"][record.results["metric"]] for code in ("de", "zh")]
    assert record.results["target_average"] == sum(own) / 2
    assert record.data["auxiliary test"]["fingerprints"].keys() == {"sw"}
    assert "over sw: not in the target average" in (tmp_path / "learned" / "results.md").read_text()
    again = "evaluate learned --dataset data/{split}.{lang}.jsonl --output-dir again"
    assert main(again.split()) == 0
    scored = json.loads((tmp_path / "again" / "results.json").read_text())
    assert scored["languages"] == languages and scored["target_average"] == record.results["target_average"]
    facts = record.phases[1]["soft_layers"]
    assert facts["verdicts"].keys() == facts["gates"].keys() and not facts["learned_here"]
    assert record.phases[0]["soft_layers"]["gates"] == facts["gates"]
    file = GatesFile.read("learned")
    assert file.learned["updates"] == 4 and file.learned["source_languages"] == ["en"]
    assert str(tmp_path) not in (tmp_path / "learned" / "gates.json").read_text()
    try:
        import matplotlib  # noqa: F401

        assert (tmp_path / "learned" / "gates.png").stat().st_size > 5000
    except ImportError:
        pass
    capsys.readouterr()
    for split, scored in (("train", True), ("test", False)):
        assert main(f"{shared}{auxiliary} --auxiliary-split {split} --dry-run --output-dir none".split()) == 0
        # What gates were learned on is no test of them.
        assert ("auxiliary test" in capsys.readouterr().out) == scored
    assert main(f"{shared} --gates learned/gates.json --source-languages de --output-dir used".split()) == 0
    record = RunRecord.read("used")
    assert [phase["name"] for phase in record.phases] == ["train"]
    assert record.phases[0]["soft_layers"]["gates"] == facts["gates"]
    assert "learned/gates.json" not in json.dumps(record.to_dict()["arguments"])
    capsys.readouterr()
    for more, message in (
        ("", "needs labelled data of auxiliary languages"),
        (f"{auxiliary} --gates learned", "takes no auxiliary data with these settings"),
        (f"{auxiliary} --target-languages sw", "`sw` is both an auxiliary and a target language"),
        (auxiliary.replace("sw", "en"), "`en` is both a source and an auxiliary language"),
        (auxiliary.replace(" --auxiliary-languages sw", ""), "no zero-shot target is left"),
        (f"{auxiliary} --optim schedule_free_adamw", "optimizer `schedule_free_adamw`"),
    ):
        assert main(f"{shared}{more} --output-dir none".split()) == 2, more
        assert message in capsys.readouterr().err
