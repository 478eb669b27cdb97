"""Resuming bit for bit, two processes against one, the whole command, and what is saved."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_features, same_weights, save_encoder, write_data
from transformers import AutoModelForSequenceClassification, TrainerCallback

from hf_xlt.cli.main import main
from hf_xlt.strategies.metaxl.diagnostics import centroid_distance, hausdorff_distance


def full_state(trainer):
    tensors, values = trainer.strategy_state()
    return {name: value.clone() for name, value in tensors.items()}, copy.deepcopy(values)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hypergrad": "finite_difference", "update_order": "reuse"},
        {"hypergrad": "evograd"},
        {"hypergrad": "none"},
        {"source_sampling": "exp3", "gradient_accumulation_steps": 2},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "exact",
)
def test_resuming_restores_the_network_its_moments_the_bandit_and_the_target_stream(kit, settings):
    rows = make_features(40)
    more = {"source": rows, "sources": {"en": rows[:20], "de": rows[20:]}} if "source_sampling" in settings else {}
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "rtn_lr": 1e-2, "warmup_steps": 0.25}
    whole = kit.trainer(kit.model(dropout=0.1), **options, **more, **settings)
    whole.train()
    resumed = kit.trainer(kit.model(dropout=0.1), **options, **more, **settings)
    drawn = []
    original = resumed.targets.batch
    resumed.targets.batch = lambda slot: drawn.append(slot) or original(slot)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    assert same_weights(whole.model, resumed.model)
    (one, counts), (two, others) = full_state(whole), full_state(resumed)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert counts == others and any(name.startswith("exp_avg_sq/") for name in one)
    per_update = settings.get("gradient_accumulation_steps", 1)
    assert drawn[0] == 3 * per_update
    checkpoint = f"{whole.args.output_dir}/checkpoint-3"
    assert not any("rtn" in name or "slots" in name for name in load_file(f"{checkpoint}/model.safetensors"))
    assert any("strategy/rtn/slots" in name for name in load_file(f"{checkpoint}/xlt_state.safetensors"))


class Sums(TrainerCallback):
    """Collects a checksum of the network after every update."""

    def __init__(self):
        self.trainer, self.values = None, []

    def on_step_end(self, *args, **kwargs):
        self.values.append(sum(float(value.double().sum()) for value in self.trainer.rtn.parameters()))


VARIANTS = {
    "exact": {},
    "reuse": {"update_order": "reuse"},
    "differences": {"hypergrad": "finite_difference"},
    "evograd": {"hypergrad": "evograd"},
    "none": {"hypergrad": "none"},
    "several": {"source_sampling": "exp3"},
    "accumulated": {"gradient_accumulation_steps": 2},
    "checkpointed": {"activation_checkpointing": True},
}


def run_variants(kit, size):
    """Train every variant in float64; return weights, network and checksums."""
    results = {}
    rows = make_features(33)
    for name, settings in VARIANTS.items():
        sums = Sums()
        more = {"sources": {"en": rows[:16], "de": rows[16:]}} if name == "several" else {}
        trainer = kit.trainer(
            kit.model().double(),
            source=rows,
            callbacks=[sums],
            per_device_train_batch_size=size,
            max_steps=4,
            optim="sgd",
            learning_rate=0.05,
            rtn_lr=1e-2,
            rtn_activation="gelu",
            **more,
            **settings,
        )
        sums.trainer = trainer
        trainer.train()
        results[name] = {
            "model": {key: value.clone() for key, value in trainer.model.state_dict().items()},
            "rtn": {key: value.clone() for key, value in trainer.rtn.state_dict().items()},
            "sums": sums.values,
        }
    return results


def run_rank(rank, kit, folder):
    torch.save(run_variants(kit, 4), folder / f"rank-{rank}.pt")


def test_two_processes_train_model_and_network_as_one_does(kit, tmp_path):
    """33 examples: the last batch of an epoch is filled by repetition, which must not count."""
    from two_processes import in_two_processes

    in_two_processes(run_rank, kit, tmp_path)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)]
    one = run_variants(kit, 8)
    for name in VARIANTS:
        assert ranks[0][name]["sums"] == ranks[1][name]["sums"], name
        for part in ("model", "rtn"):
            for key, value in one[name][part].items():
                assert torch.equal(ranks[0][name][part][key], ranks[1][name][part][key]), (name, key)
                # A sum over processes rounds otherwise, and Adam divides small gradients by their size.
                torch.testing.assert_close(ranks[0][name][part][key], value, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("metaxl")
    save_encoder(root / "encoder")
    write_data(root / "data")
    return root


def test_the_whole_command_with_several_sources(world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    line = (
        "run --strategy metaxl --model encoder --dataset data/{split}.{lang}.jsonl --source-languages en,de "
        "--target-languages sw --shots 9 --per-device-train-batch-size 8 --max-steps 4 --threads 1 --disable-tqdm "
        "--save-strategy no --source-sampling exp3 --rtn-layers 1 -1 --rtn-bottleneck 8 --diagnostics --save-rtn "
        "--output-dir out"
    )
    assert main([*line.split(), "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "Cost" in planned and "target languages" not in planned.split("Updates")[1].split("\n")[0]
    assert main(line.split()) == 0
    record = json.loads((world / "out/xlt_run.json").read_text())
    assert record["few_shot"] == {"shots": 9, "shot_seed": 0, "mode": "metaxl"} | {
        "shot_seed": record["few_shot"]["shot_seed"]
    }
    facts = record["phases"][0]["metaxl"]
    assert facts["method"] == "metaxl" and facts["target_examples"] == {"sw": 9}
    assert sum(facts["updates_by_source"].values()) == 4 and sum(facts["slot_weights"]) == pytest.approx(1, abs=1e-3)
    assert facts["diagnostics"]["centroid_plain"] > 0 and "hausdorff_transformed" in facts["diagnostics"]
    model, report = AutoModelForSequenceClassification.from_pretrained(world / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert "metaxl" not in (world / "out/config.json").read_text() and "rtn" not in model.config.to_dict()
    assert "eager" not in (world / "out/config.json").read_text()
    saved = load_file(world / "out/rtn/rtn.safetensors")
    assert saved["slots.0.down.weight"].shape == (8, 32) and saved["mixture_logits"].shape == (2,)
    settings = json.loads((world / "out/rtn/rtn_config.json").read_text())
    assert settings["rtn_layers"] == [1, -1] and settings["hidden_size"] == 32
    if facts["diagnostics"]["figure"]:
        assert (world / "out" / facts["diagnostics"]["figure"]).stat().st_size > 1000
    assert "@inproceedings{xia-etal-2021-metaxl" in (world / "out/README.md").read_text()


def test_shots_are_needed(world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    assert main("run --strategy metaxl --model encoder --dataset data/{split}.{lang}.jsonl".split()) == 2
    assert "needs labelled target-language examples: add `--shots 100`" in capsys.readouterr().err


@pytest.mark.parametrize("baseline", ["joint", "target_only"])
def test_baselines_run_by_the_same_command(world, monkeypatch, baseline, tmp_path):
    monkeypatch.chdir(world)
    line = (
        "run --strategy metaxl --model encoder --dataset data/{split}.{lang}.jsonl --target-languages sw --shots 9 "
        f"--per-device-train-batch-size 8 --max-steps 2 --threads 1 --disable-tqdm --method {baseline} --baseline "
        f"published --save-strategy no --output-dir {tmp_path / 'out'}"
    )
    assert main(line.split()) == 0
    facts = json.loads((tmp_path / "out/xlt_run.json").read_text())["phases"][0]["metaxl"]
    assert facts == {"method": baseline, "target_examples": {"sw": 9}}


def test_distances_are_those_of_the_definition():
    first = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    second = torch.tensor([[0.0, 1.0], [9.0, 0.0]])
    assert hausdorff_distance(first, second) == pytest.approx(7.0)
    assert centroid_distance(first, second) == pytest.approx((3.5**2 + 0.5**2) ** 0.5)
