"""The planted task: one of two branches reads a cue that holds in the source language and is reversed elsewhere.

Learned gates have to close that branch, without having seen a target language; closing everything does not help.
"""

import statistics

import pytest
import torch
from soft_setup import config_of
from torch import nn
from transformers import PreTrainedConfig

from hf_xlt.strategies.soft_layers import SoftLayerSelectionTrainer
from hf_xlt.strategies.soft_layers.report import gates_file

FEATURES, VALID, NARROW, WIDTH = 64, 8, 2, 16
SEEDS = (0, 1)


class Branches(nn.Module):
    """Two parallel branches named like encoder layers; the second one reads the cue and puts out zero at first."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.config = PreTrainedConfig(num_hidden_layers=2, num_labels=2)
        self.layer = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(FEATURES, NARROW), nn.Tanh(), nn.Linear(NARROW, WIDTH)),
                nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)),
            ]
        )
        nn.init.zeros_(self.layer[1][2].weight)
        nn.init.zeros_(self.layer[1][2].bias)
        self.classifier = nn.Linear(WIDTH, 2)

    def forward(self, features, cue, labels=None):
        hidden = self.layer[0](features) + self.layer[1](cue)
        return {"logits": self.classifier(torch.tanh(hidden))}


def rows(count, cue, seed):
    """`count` examples; the first features lean towards the label, and the cue is `cue` times the label."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(2, (count,), generator=generator) * 2 - 1
    features = torch.randn(count, FEATURES, generator=generator)
    features[:, :VALID] += 0.6 * sign[:, None]
    noise = 0.2 * torch.randn(count, 1, generator=generator)
    return [
        {"features": features[i], "cue": sign[i, None] * cue + noise[i], "labels": int(sign[i] > 0)}
        for i in range(count)
    ]


TEST = rows(1000, -1.0, 99)


def collate(batch):
    return {
        "features": torch.stack([row["features"] for row in batch]),
        "cue": torch.stack([row["cue"] for row in batch]),
        "labels": torch.tensor([row["labels"] for row in batch]),
    }


def run(folder, seed, *, auxiliary=-0.7, gates=None, updates=300, **changes):
    """Train; return the share of test examples that are right, and the trainer."""
    settings = {
        "per_device_train_batch_size": 32,
        "max_steps": updates,
        "learning_rate": 4e-3,
        "logging_steps": 300,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "seed": seed,
        "remove_unused_columns": False,
        "report_to": [],
    }
    trainer = SoftLayerSelectionTrainer(
        model=Branches(seed),
        args=config_of(folder, **{**settings, **changes}),
        train_dataset=rows(9600, 1.0, seed),
        data_collator=collate,
        role_datasets={"auxiliary": {"hi": rows(4000, auxiliary, seed + 50)}},
        in_phases=True,
        gates=gates,
    )
    trainer.train()
    batch = collate(TEST)
    with torch.no_grad():
        right = trainer.model.eval()(**batch)["logits"].argmax(-1) == batch["labels"]
    return float(right.float().mean()), trainer


def learned_and_restarted(folder, seed, **changes):
    online, learning = run(folder, seed, **changes)
    file = gates_file(learning)
    restarted, _ = run(folder, seed, gates=file)
    return online, restarted, dict(zip(file.groups, file.gates, strict=True)), file


def check_order(folder, seeds):
    """Plain fine-tuning fails, learning online helps, a restart with the learned gates is near the oracle."""
    plain = [run(folder, seed, gate_values="1")[0] for seed in seeds]
    oracle = [run(folder, seed, gate_values='{"layer_1": 0}')[0] for seed in seeds]
    found = [learned_and_restarted(folder, seed) for seed in seeds]
    online, restarted = [one[0] for one in found], [one[1] for one in found]
    means = [round(statistics.mean(scores), 3) for scores in (plain, online, restarted, oracle)]
    print(f"plain, online, restart, oracle over {len(seeds)} seeds: {means}")
    assert max(plain) < 0.2 and min(oracle) > 0.9
    assert min(restarted) > 0.85
    assert statistics.mean(plain) + 0.3 < statistics.mean(online) < statistics.mean(restarted) - 0.05
    for _, _, gates, file in found:
        assert gates["layer_0"] > 0.8 and gates["layer_1"] < 0.1
        assert file.evidence["layer_1"]["verdict"] == "close"


def test_restart_with_learned_gates_solves_what_plain_fine_tuning_fails_at(tmp_path):
    check_order(tmp_path, SEEDS)


@pytest.mark.slow
def test_it_does_so_over_five_seeds(tmp_path):
    check_order(tmp_path, range(5))


def test_a_cue_that_holds_in_the_auxiliary_language_keeps_its_branch_open(tmp_path):
    _, _, gates, _ = learned_and_restarted(tmp_path, 0, auxiliary=0.7)
    assert gates["layer_1"] > 0.6


def test_one_gate_for_all_layers_cannot_solve_it(tmp_path):
    """It closes: no training at all is what hurts the target languages least."""
    _, restarted, gates, file = learned_and_restarted(tmp_path, 0, granularity="uniform")
    assert file.groups == ["all"] and gates["all"] < 0.1 and restarted < 0.7


@pytest.mark.slow
def test_exchanged_gates_are_the_wrong_ones(tmp_path):
    _, _, _, file = learned_and_restarted(tmp_path, 0)
    table = file.parameters["table"]
    file.parameters["table"] = [row[::-1] for row in table]
    assert run(tmp_path, 0, gates=file)[0] < 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"inner_steps": 5, "audit_episodes": 1},
        {"inner_steps": 5, "meta_gradient": "exact"},
        {"mode": "episodic", "inner_steps": 5, "audit_episodes": 0},
    ],
    ids=["first order", "exact", "episodic"],
)
def test_sixty_updates_of_longer_episodes_find_the_branch_too(changes, tmp_path):
    _, trainer = run(tmp_path, 0, **changes)
    file = gates_file(trainer)
    gates = dict(zip(file.groups, file.gates, strict=True))
    assert file.learned["updates"] == 60 and gates["layer_0"] > 0.7 and gates["layer_1"] < 0.3


@pytest.mark.slow
def test_gates_that_change_over_training_solve_it_too(tmp_path):
    _, restarted, _, file = learned_and_restarted(tmp_path, 0, gate_type="table", table_bins=3, meta_learning_rate=0.2)
    assert restarted > 0.85
    early = file.history["gates"][66]
    assert early[0] > early[1] + 0.3
