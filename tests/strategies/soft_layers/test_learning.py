"""Gate gradients of the real trainer against differences of real runs, in float64; signs, audit, resume."""

import json
import logging

import pytest
import torch
from contexts import STILL
from soft_setup import AUXILIARY, soft
from tiny import make_features, make_model, same_weights

from hf_xlt.strategies.soft_layers.audit import audited, compare, warn
from hf_xlt.strategies.soft_layers.learner import GateLearner
from hf_xlt.strategies.soft_layers.query import language_of, own_rows

GATE = 0.5
# Group sizes differ; the names are those of the tiny BERT.
GROUPS = ("word_embeddings", "embeddings", "layer_0", "layer_1", "pooler")


def watched(trainer):
    """Keep what the learner is told."""
    told = []
    learn = trainer.learning.learner.learn

    def listen(values, gradient, language, update):
        told.append(gradient.clone())
        return learn(values, gradient, language, update)

    trainer.learning.learner.learn = listen
    return told


def query_loss(trainer, language, start):
    batch = trainer._prepare_inputs(trainer.endless_loader("auxiliary", language).draw(start, 8))
    model = trainer.bare_model().eval()
    with torch.no_grad():
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
    return torch.nn.functional.cross_entropy(outputs.logits, batch["labels"]).item()


def ended(folder, gates, first, last, **changes):
    """The model of a real run with gates that are others from update `first` on."""
    trainer = soft(folder, model=make_model(**STILL).double(), gate_values="1", **changes)

    def choose(progress, members):
        now = trainer.state.global_step
        if now == last:
            # The end of the episode; later updates do not matter.
            trainer.control.should_training_stop = True
        head = [1.0]
        return [*(gates if now >= first else [GATE] * len(gates)), *head]

    trainer.setup.source.choose = choose
    trainer.args.max_steps = changes["max_steps"]
    trainer.train()
    return trainer


CASES = {
    "one step, sgd": ({"optim": "sgd", "learning_rate": 0.1}, 1, 0),
    "one step, cold adamw, clipped": ({"optim": "adamw_torch", "max_grad_norm": 0.05, "weight_decay": 0.1}, 1, 0),
    "one step, warm adamw, warm-up": ({"optim": "adamw_torch", "warmup_steps": 5, "weight_decay": 0.1}, 1, 4),
    "one step, rmsprop": ({"optim": "rmsprop"}, 1, 2),
    "one step, accumulated": (
        {"optim": "adamw_torch", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        1,
        1,
    ),
    "three steps, sgd, clipped": ({"optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 0.3}, 3, 3),
    "three steps, warm adamw": ({"optim": "adamw_torch_fused", "weight_decay": 0.1, "warmup_steps": 4}, 3, 3),
    "three steps, accumulated": (
        {"optim": "adamw_torch", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        3,
        0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_trainers_gate_gradient_is_that_of_differences_over_real_runs(case, tmp_path):
    changes, steps, first = CASES[case]
    total = first + steps
    # The schedule is one over ten updates; runs stop where the episode ends.
    changes = {**changes, "max_steps": 10, "logging_steps": 50}
    trainer = soft(
        tmp_path / "learn",
        model=make_model(**STILL).double(),
        mode="online",
        init_logit=0.0,
        meta_learning_rate=0.0,
        meta_gradient="exact",
        inner_steps=steps,
        auxiliary_batch_size=8,
        **changes,
    )
    told = watched(trainer)
    trainer.train()
    episode = total // steps - 1
    language = ("de", "sw")[episode % 2]
    start = episode // 2 * 8
    width, found = 1e-4, []
    for place in (0, 2, 4):
        losses = {}
        for sign in (1, -1, 2, -2):
            gates = [GATE + sign * width * (place == number) for number in range(len(GROUPS))]
            losses[sign] = query_loss(ended(tmp_path / "fixed", gates, first, total - 1, **changes), language, start)
        found.append((8 * (losses[1] - losses[-1]) - (losses[2] - losses[-2])) / (12 * width))
    expected = torch.tensor(found, dtype=torch.float64)
    torch.testing.assert_close(told[episode][[0, 2, 4]], expected, rtol=1e-5, atol=1e-10)


def test_the_meta_update_is_the_chain_rule_through_the_sigmoid(tmp_path):
    trainer = soft(tmp_path, inner_steps=2, audit_episodes=0, init_logit=0.4, gate_temperature=2.0, gate_maximum=1.5)
    seen = []
    step = trainer.learning.learner.optimizer.step

    def keep():
        seen.append(trainer.learning.learner.gates.table.grad[0].clone())
        return step()

    trainer.learning.learner.optimizer.step = keep
    told = watched(trainer)
    trainer.train()
    z = trainer.learning.learner.history[0]
    # Equation (star) of the documentation: dz/dphi = z (1 - z / z_max) / T.
    torch.testing.assert_close(seen[0], told[0] * z * (1 - z / 1.5) / 2.0)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_signs(optim, tmp_path):
    """The source batch as its own query opens every gate; with labels flipped every sign turns."""
    rows = make_features(8)
    for row in rows:
        row["labels"] %= 2
    turned = [{**row, "labels": 1 - row["labels"]} for row in rows]
    found = {}
    for name, query in (("same", rows), ("flipped", turned)):
        trainer = soft(
            tmp_path / name,
            model=make_model(num_labels=2, **STILL),
            data=rows,
            auxiliary={"de": query},
            optim=optim,
            learning_rate=1e-5,
            max_steps=1,
            weight_decay=0.0,
        )
        told = watched(trainer)
        trainer.train()
        found[name] = told[0]
    assert (found["same"] < 0).all() and (found["flipped"] > 0).all()


def test_words_that_no_source_text_holds_are_no_evidence(tmp_path):
    """First-order gradients cannot see disjoint vocabularies; exact ones over several steps can."""
    # Source and query share no word but the two special ones, whose rows, with the padding's, are held still.
    source = [{**row, "labels": row["labels"] % 2} for row in make_features(16)]
    query = [{**row, "input_ids": [i + 5 if i > 4 else i for i in row["input_ids"]]} for row in source]

    def shifted(rows, low):
        return [
            {"input_ids": [low + i % 20 for i in row["input_ids"]], "attention_mask": row["attention_mask"]}
            | {"labels": row["labels"]}
            for row in rows
        ]

    gradients = {}
    for kind in ("first_order", "exact"):
        trainer = soft(
            tmp_path / kind,
            model=make_model(**STILL).double(),
            data=shifted(source, 5),
            auxiliary={"de": shifted(query, 35)},
            inner_steps=3,
            meta_gradient=kind,
            audit_episodes=0,
            weight_decay=0.0,
            max_steps=9,
        )
        told = watched(trainer)
        trainer.train()
        gradients[kind] = torch.stack(told)
        if kind == "first_order":
            report = trainer.phase_facts()["soft_layers"]
            assert report["verdicts"]["word_embeddings"] == "no evidence"
            assert report["gates"]["word_embeddings"] == 0.5
    # Words that the padding of a batch adds have no effect: attention masks them.
    assert (gradients["first_order"][:, 0] == 0).all()
    assert (gradients["exact"][:, 0] != 0).all()


def test_gates_learn_from_the_surrogate_whatever_computes_them(tmp_path):
    for gate_type in ("table", "mlp", "recurrent"):
        own = {"table_bins": 3} if gate_type == "table" else {}
        trainer = soft(tmp_path / gate_type, gate_type=gate_type, max_steps=8, **own)
        before = {name: value.clone() for name, value in trainer.learning.learner.gates.named_parameters()}
        trainer.train()
        after = dict(trainer.learning.learner.gates.named_parameters())
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        # At first the outer layer says the same whatever the inner one does; it moves from the second update on.
        assert set(moved) == set(before)
        history = torch.stack(trainer.learning.learner.history)
        assert ((history > 0) & (history < 1)).all() and history.std(dim=0).max() > 0


def test_mean_one_keeps_the_weighted_mean_of_gates_at_one(tmp_path):
    trainer = soft(tmp_path, gate_normalization="mean_one")
    trainer.train()
    sizes = torch.tensor([trainer.setup.groups.sizes[name] for name in trainer.setup.gated], dtype=torch.float64)
    for row in trainer.learning.learner.history:
        assert float((row * sizes).sum() / sizes.sum()) == pytest.approx(1.0)


def test_cosines_are_at_most_one_and_keep_their_signs(tmp_path):
    told = {}
    for kind in ("raw", "cosine"):
        trainer = soft(tmp_path / kind, gradient_normalization=kind, meta_learning_rate=0.0)
        told[kind] = watched(trainer)
        trainer.train()
    raw, cosine = torch.stack(told["raw"]), torch.stack(told["cosine"])
    assert (cosine.abs() <= 1).all() and (torch.sign(raw) == torch.sign(cosine)).all() and cosine.abs().max() > 1e-3


def test_checkpointed_activations_have_the_same_exact_gradients(tmp_path):
    told = {}
    for checkpointing in (False, True):
        trainer = soft(
            tmp_path / str(checkpointing),
            model=make_model(hidden_dropout_prob=0.3).double(),
            inner_steps=3,
            meta_gradient="exact",
            optim="sgd",
            learning_rate=0.3,
            activation_checkpointing=checkpointing,
        )
        told[checkpointing] = watched(trainer)
        trainer.train()
    torch.testing.assert_close(torch.stack(told[True]), torch.stack(told[False]), rtol=1e-8, atol=1e-12)


# ---- Audit


def test_the_audit_compares_and_warns(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = soft(tmp_path, inner_steps=3, optim="sgd", learning_rate=3.0, max_steps=12, audit_episodes=2)
        trainer.train()
    assert [result["update"] for result in trainer.learning.audits] == [3, 9]
    worst = min(trainer.learning.audits, key=lambda result: result["cosine"])
    assert worst["relative_error"] > 0.1
    assert any("Audit after update" in message for message in caplog.messages) == (
        worst["cosine"] < 0.9 or min(result["agreement"] for result in trainer.learning.audits) < 0.8
    )


def test_the_audit_is_silent_where_first_order_is_good(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = soft(tmp_path, model=make_model(**STILL).double(), inner_steps=3, learning_rate=2e-5)
        trainer.train()
    assert all(result["cosine"] > 0.99 and result["agreement"] == 1 for result in trainer.learning.audits)
    assert trainer.learning.audits and not [message for message in caplog.messages if "Audit" in message]


def test_audit_figures():
    one, two = torch.tensor([1.0, -1.0, 2.0]).double(), torch.tensor([1.0, 1.0, 2.0]).double()
    result = compare(one, two, ("a", "b", "c"), 7)
    assert result["cosine"] == pytest.approx(4 / 6) and result["relative_error"] == pytest.approx(2 / 6**0.5)
    assert result["agreement"] == pytest.approx(2 / 3) and result["disagreeing"] == ["b"]
    assert warn(result, 3) and not warn(compare(two, two, ("a", "b", "c"), 1), 3)
    assert [episode for episode in range(10) if audited(episode, 10, 2)] == [0, 5]
    assert [episode for episode in range(3) if audited(episode, 3, 9)] == [0, 1, 2]
    assert not any(audited(episode, 10, 0) for episode in range(10))


# ---- Which examples


def test_languages_take_turns_and_processes_share_a_batch():
    assert [language_of(number, 3, "round_robin", 0) for number in range(5)] == [0, 1, 2, 0, 1]
    drawn = [language_of(number, 3, "sampled", 0) for number in range(60)]
    assert set(drawn) == {0, 1, 2} and drawn == [language_of(number, 3, "sampled", 0) for number in range(60)]
    assert [own_rows(10, 7, rank, 3) for rank in range(3)] == [(10, 2), (12, 2), (14, 3)]


def test_gradients_that_are_not_finite_or_say_nothing_are_left_out():
    from hf_xlt.strategies.soft_layers.gates import ConstantGates

    learner = GateLearner(ConstantGates(2), ("de",), 0.1)
    values = learner.gates(0.0)
    assert not learner.learn(values, torch.tensor([1.0, float("nan")]).double(), 0, 1)
    assert not learner.learn(values, torch.zeros(2).double(), 0, 1)
    assert learner.count == 2 and (learner.gates.table == 0).all() and int(learner.evidence.updates.sum()) == 0
    assert learner.learn(values, torch.tensor([1.0, -1.0]).double(), 0, 2)
    assert learner.gates.table[0, 0] < 0 < learner.gates.table[0, 1]


# ---- Resume

RESUMED = {
    "one step": {},
    "first order": {"inner_steps": 4, "audit_episodes": 1},
    "exact": {"inner_steps": 4, "meta_gradient": "exact"},
    "exact, accumulated": {
        "inner_steps": 4,
        "meta_gradient": "exact",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    },
    "episodic": {"inner_steps": 4, "mode": "episodic"},
    "table": {"gate_type": "table", "table_bins": 3},
    "recurrent": {"gate_type": "recurrent"},
    "another optimizer": {"optim": "adagrad", "inner_steps": 3, "mode": "episodic"},
}


@pytest.mark.parametrize("name", RESUMED)
def test_resuming_inside_an_episode_is_exact(name, tmp_path):
    changes = {"max_steps": 11, "save_strategy": "steps", "save_steps": 3, "still": False, **RESUMED[name]}
    whole = soft(tmp_path, **changes)
    whole.train()
    expected, values = whole.strategy_state()
    for step in (3, 6):
        resumed = soft(tmp_path, **changes)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert same_weights(whole.model, resumed.model)
        tensors, others = resumed.strategy_state()
        assert same_weights(expected, tensors) and json.dumps(values) == json.dumps(others)


@pytest.mark.parametrize("optim", ["adamw_torch", "adagrad"])
def test_every_episode_of_episodic_starts_where_the_run_did(optim, tmp_path):
    """Weights and optimizer state both go back: Adagrad's state is not empty at the start, Adam's is."""
    trainer = soft(tmp_path, mode="episodic", inner_steps=2, optim=optim, max_steps=4)
    start = [weight.detach().clone() for weight in trainer.model.parameters()]
    seen = []
    end = trainer.learning.after_update

    def watched():
        within = len(trainer.optimizer.state) > 0
        end()
        same = all(torch.equal(a, b) for a, b in zip(start, trainer.model.parameters(), strict=True))
        state = [value for values in trainer.gated.optimizer.state.values() for value in values.values()]
        initial = [value for values in trainer.gated.initial_state.values() for value in values.values()]
        back = len(state) == len(initial) and all(torch.equal(a, b) for a, b in zip(state, initial, strict=True))
        seen.append((within, same, back))

    trainer.learning.after_update = watched
    trainer.train()
    assert seen == [(True, False, False), (True, True, True)] * 2
    assert (optim == "adagrad") == bool(trainer.gated.initial_state)


def test_the_examples_of_a_language_do_not_depend_on_the_others_schedule(tmp_path):
    trainer = soft(tmp_path)
    drawn = []
    loader = trainer.endless_loader

    def listen(role, language):
        found = loader(role, language)
        draw = found.draw
        found.draw = lambda start, count: drawn.append((language, start, count)) or draw(start, count)
        return found

    trainer.endless_loader = listen
    trainer.train()
    starts = sorted({(language, start) for language, start, _ in drawn})
    assert starts == [("de", 0), ("de", 8), ("de", 16), ("sw", 0), ("sw", 8), ("sw", 16)]
    assert set(AUXILIARY) == {"de", "sw"}
