"""Gates act on updates: off switches bit for bit, and refusals by name."""

import pytest
import torch
from soft_setup import DATA, config_of, plain, soft
from tiny import make_model, same_weights

from hf_xlt.errors import ConfigError
from hf_xlt.registry import get_strategy
from hf_xlt.strategies.soft_layers.gating import GatedOptimizer
from hf_xlt.strategies.soft_layers.rates import REFUSED, check_optimizer


def train(trainer):
    trainer.train()
    return trainer.model


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": "adamw_torch", "weight_decay": 0.1},
        {"optim": "adamw_torch_fused", "weight_decay": 0.1, "warmup_steps": 2},
        {"optim": "sgd", "learning_rate": 0.05, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"optim": "adafactor"},
        {"optim": "rmsprop", "bf16": True},
    ],
    ids=lambda changes: changes["optim"],
)
def test_gates_of_one_are_plain_fine_tuning_bit_for_bit(changes, tmp_path):
    reference = train(plain(tmp_path / "plain", still=False, **changes))
    assert same_weights(reference, train(soft(tmp_path / "soft", still=False, gate_values="1", **changes)))


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("changes", [{"meta_gradient": "exact"}, {"audit_episodes": 2}, {"query_dropout": True}])
def test_learning_leaves_the_run_itself_alone(changes, inner_steps, tmp_path):
    """With gates that stay at 1 all query passes, audits and replays leave no trace, dropout on."""
    reference = train(plain(tmp_path / "plain", still=False))
    trainer = soft(
        tmp_path / "soft",
        still=False,
        mode="online",
        inner_steps=inner_steps,
        meta_learning_rate=0.0,
        init_logit=800.0,
        **changes,
    )
    assert same_weights(reference, train(trainer))
    assert len(trainer.learning.learner.history) == 6 // inner_steps
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert rates == pytest.approx([1e-3 * (6 - number) / 6 for number in range(6)])


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_gates_of_zero_leave_every_weight(optim, tmp_path):
    start = make_model()
    ended = train(soft(tmp_path, still=False, gate_values="0", optim=optim, weight_decay=0.1, learning_rate=0.05))
    assert same_weights(start, ended)


def test_closed_groups_stay_and_open_ones_move(tmp_path):
    values = '{"word_embeddings": 0, "layer_0": 0.0, "pooler": 0}'
    trainer = soft(tmp_path, gate_values=values, weight_decay=0.1)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    train(trainer)
    shut = {name for group in ("word_embeddings", "layer_0", "pooler") for name in trainer.setup.groups.members[group]}
    still = {name for name, parameter in trainer.model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == shut


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_a_scheduler_that_reads_the_rate_never_sees_the_gate(as_tensor):
    """Most schedulers write the rate anew before every step; those that multiply it would multiply the gate too."""
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    rate = torch.tensor(0.5) if as_tensor else 0.5
    optimizer = torch.optim.SGD(weights, lr=rate)
    gated = GatedOptimizer(
        optimizer, {id(weight): number for number, weight in enumerate(weights)}, lambda: [0.1, 1.0]
    )
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.ones(2)
        optimizer.step()
        schedule.step(1.0)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.25, 0.25]
    assert gated.rates_of(weights) == [0.5, 0.5]
    torch.testing.assert_close(weights[0].detach(), torch.full((2,), 0.9))
    torch.testing.assert_close(weights[1].detach(), torch.zeros(2))


def test_the_gate_is_on_the_update_and_not_on_the_gradient(tmp_path):
    """Adam undoes a factor on the gradient; a factor on the update it cannot."""

    def displacement(gate):
        trainer = soft(tmp_path / gate, gate_values=f'{{"layer_1": {gate}}}', max_steps=12, weight_decay=0.0)
        names = trainer.setup.groups.members["layer_1"]
        weights = {name: dict(trainer.model.named_parameters())[name] for name in names}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        train(trainer)
        return sum(float((weights[name].detach() - before[name]).norm() ** 2) for name in names) ** 0.5

    assert 50 < displacement("1") / displacement("0.01") < 200


@pytest.mark.parametrize("name", REFUSED)
def test_optimizers_that_set_their_own_step_are_refused_by_name(name, tmp_path):
    with pytest.raises(ConfigError, match=f"optimizer `{name}` .* wrong there"):
        get_strategy("soft-layers").check(config_of(tmp_path, optim=name), "text-classification")


def test_other_optimizers_are_tried_on_four_numbers():
    def of(cls, **options):
        return cls([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, **options)

    for cls in ("Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "Adadelta"):
        check_optimizer(of(getattr(torch.optim, cls)))
    for cls in ("ASGD", "Rprop", "LBFGS", "Adafactor"):
        with pytest.raises(ConfigError, match=f"optimizer `{cls}`"):
            check_optimizer(of(getattr(torch.optim, cls)))

    class Squared(torch.optim.SGD):
        """Moves by the square of its rate."""

        def step(self, closure=None):
            rate = self.param_groups[0]["lr"]
            self.param_groups[0]["lr"] = rate**2
            super().step(closure)
            self.param_groups[0]["lr"] = rate

    class Remembering(torch.optim.SGD):
        """Keeps its step in its state, as heavy-ball momentum does in other frameworks."""

        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    kept = self.state[parameter].get("kept", torch.zeros_like(parameter))
                    self.state[parameter]["kept"] = 0.9 * kept - group["lr"] * parameter.grad
                    parameter.data.add_(self.state[parameter]["kept"])

    for cls in (Squared, Remembering):
        with pytest.raises(ConfigError, match="not proportional to the learning rate"):
            check_optimizer(of(cls))


def test_settings_and_data_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no auxiliary languages"):
        soft(tmp_path, auxiliary={})
    with pytest.raises(ConfigError, match="no group is called 'nothing'; there are word_embeddings"):
        soft(tmp_path, always_open=["nothing"])
    with pytest.raises(ConfigError, match="so there is no gate"):
        soft(tmp_path, always_open=["*"])
    with pytest.raises(ConfigError, match="less than 32 bits"):
        soft(tmp_path, model=make_model().to(torch.bfloat16))
    with pytest.raises(ConfigError, match="`inner_steps` is 0.*`gate_maximum` is 0"):
        config_of(tmp_path, inner_steps=0, gate_maximum=0)
    with pytest.raises(ConfigError, match="give one"):
        config_of(tmp_path, gate_values="1", profile="auto_rgn")
    with pytest.raises(ConfigError, match="needs `inner_steps` 1"):
        config_of(tmp_path, gate_type="mlp", inner_steps=2)
    with pytest.raises(ConfigError, match="`gate_values` is 'x'"):
        config_of(tmp_path, gate_values="x")
    with pytest.raises(ConfigError, match="`Adafactor` cannot be differentiated.*`audit_episodes` to 0"):
        soft(tmp_path, optim="adafactor", inner_steps=2).create_optimizer()
    soft(tmp_path, optim="adafactor", inner_steps=2, audit_episodes=0).create_optimizer()
    trainer = soft(tmp_path)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="cannot be gated"):
        trainer.create_optimizer()
    assert len(DATA) == 44
