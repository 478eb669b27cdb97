"""Two CPU processes over gloo against one process on the union of their batches."""

import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from two_processes import in_two_processes

from hf_xlt.strategies.robust import trainer as trainer_module

SETTINGS = {
    "plain": {"method": "none"},
    "adv": {"method": "adv", "epsilon": 0.1, "steps": 2},
    "adv, random start, clean loss": {
        "epsilon": 0.1,
        "init": "uniform",
        "norm_scope": "sentence",
        "clean_weight": 0.3,
    },
    "adv, clean pass reused": {"epsilon": 0.1, "steps": 2, "clean_weight": 0.3},
    "freelb": {"method": "freelb", "epsilon": 0.2, "steps": 3, "init": "uniform"},
    "r3f": {"method": "rs_rp", "epsilon": 0.3, "consistency": "symkl"},
    "r3f, embeddings attached": {"method": "rs_rp", "epsilon": 0.3, "consistency": "symkl", "detach_noised": False},
    "smart": {"epsilon": 0.2, "steps": 2, "init": "gaussian", "inner_loss": "kl", "consistency": "symkl"},
    "rs_rp, three draws": {"method": "rs_rp", "epsilon": 0.3, "num_samples": 3, "clean_weight": 0.2},
}


def spy_on_perturbations():
    seen, original = [], trainer_module.perturbed_embeddings

    def spy(model, inputs, perturbation, *, detach=False):
        seen.append(perturbation.detach().clone())
        return original(model, inputs, perturbation, detach=detach)

    trainer_module.perturbed_embeddings = spy
    return seen


def step_of_a_rank(rank, kit, find_unused):
    results, seen = {}, spy_on_perturbations()
    for name, settings in SETTINGS.items():
        model, examples = kit.model(), kit.examples(8)
        options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        trainer = kit.trainer(model, ddp_find_unused_parameters=find_unused, **options, **settings)
        assert trainer.args.world_size == 2
        trainer.create_optimizer()
        wrapped, trainer.optimizer = trainer.accelerator.prepare(model, trainer.optimizer)
        trainer.model_wrapped = wrapped
        reductions = []

        def count(state, bucket, reductions=reductions):
            reductions.append(bucket.index())
            return allreduce_hook(state, bucket)

        wrapped.register_comm_hook(None, count)
        # Micro-batch i of rank r is part 2 * i + r of the global batch.
        parts = [kit.collate(examples[start : start + 2]) for start in (2 * rank, 4 + 2 * rank)]
        for _ in range(2):
            seen.clear()
            model.zero_grad()
            micro_batches, units = kit.open_window(trainer, *parts)
            with wrapped.no_sync():
                trainer.training_step(wrapped, micro_batches[0], units)
            trainer.training_step(wrapped, micro_batches[1], units)
        results[name] = {
            "gradients": kit.gradients(model),
            "reductions": len(reductions) / 2,
            "perturbations": list(seen),
        }
    torch.save(results, kit.folder / f"rank-{rank}.pt")


@pytest.mark.parametrize("find_unused", [False, True])
def test_gradients_are_equal_over_ranks_and_to_one_process(kit, perturbations, find_unused):
    in_two_processes(step_of_a_rank, kit, find_unused)
    ranks = [torch.load(kit.folder / f"rank-{rank}.pt") for rank in range(2)]
    for name, settings in SETTINGS.items():
        perturbations.clear()
        single = kit.update_gradients(kit.trainer(**settings), kit.collate(kit.examples(8)))
        for key, gradient in single.items():
            first, second = (rank[name]["gradients"][key] for rank in ranks)
            assert torch.equal(first, second), (name, key)
            torch.testing.assert_close(first, gradient, rtol=1e-4, atol=2e-6, msg=f"{name}: {key}")
        # One all-reduce per bucket and update, however many passes the update has.
        assert [rank[name]["reductions"] for rank in ranks] == [ranks[0]["plain"]["reductions"]] * 2
        for number, whole in enumerate(perturbations):
            for rank, part in enumerate(ranks):
                for micro_batch in range(2):
                    start = 4 * micro_batch + 2 * rank
                    own = part[name]["perturbations"][micro_batch * len(perturbations) + number]
                    expected = whole[start : start + 2, : own.shape[1]]
                    torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-5, msg=f"{name}: {rank}")


def draws_of_a_rank(rank, kit):
    seen = spy_on_perturbations()
    for settings in ({"method": "rs_rp"}, {"method": "adv", "init": "uniform", "inner_dropout": "eval"}):
        trainer = kit.trainer(**settings)
        kit.open_window(trainer, kit.collate(kit.examples(4)))
        trainer.compute_loss(trainer.model, kit.collate(kit.examples(4)))
    torch.save(seen, kit.folder / f"draws-{rank}.pt")


def train_on_a_rank(rank, kit):
    options = {"optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": 4}
    trainer = kit.trainer(examples=kit.examples(32), epsilon=0.1, init="uniform", logging_steps=3, **options)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "robust_norm_ratio" in entry]
    torch.save((trainer.model.state_dict(), logs), kit.folder / f"trained-{rank}.pt")


def both_of_a_rank(rank, kit):
    draws_of_a_rank(rank, kit)
    train_on_a_rank(rank, kit)


def test_ranks_draw_differently_and_train_to_the_weights_of_one_process(kit):
    in_two_processes(both_of_a_rank, kit)
    first, second = (torch.load(kit.folder / f"draws-{rank}.pt") for rank in range(2))
    assert len(first) == 2
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    (weights, logs), (other, other_logs) = (torch.load(kit.folder / f"trained-{rank}.pt") for rank in range(2))
    options = {"optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": 8}
    single = kit.trainer(examples=kit.examples(32), epsilon=0.1, init="uniform", logging_steps=3, **options)
    single.train()
    for name, value in single.model.state_dict().items():
        assert torch.equal(weights[name], other[name]), name
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5, msg=name)
    (expected,) = [entry for entry in single.state.log_history if "robust_norm_ratio" in entry]
    assert len(logs) == 1 and logs == other_logs
    for name in ("robust_perturbed_loss", "robust_norm_ratio", "robust_skipped_rows", "loss"):
        assert logs[0][name] == pytest.approx(expected[name], rel=2e-2), name


SMOOTHED = {"method": "none", "smooth_predict": "vote", "smooth_samples": 7, "smooth_epsilon": 0.5}


def predict_on_a_rank(rank, kit):
    trainer = kit.trainer(**SMOOTHED, per_device_eval_batch_size=2)
    predictions = trainer.predict_languages({"xx": kit.examples(7), "yy": kit.examples(4, seed=1)})
    torch.save(
        {name: torch.from_numpy(part.predictions) for name, part in predictions.items()}, kit.folder / f"{rank}"
    )


def test_smoothed_predictions_are_those_of_one_process(kit):
    in_two_processes(predict_on_a_rank, kit)
    single = kit.trainer(**SMOOTHED).predict_languages({"xx": kit.examples(7), "yy": kit.examples(4, seed=1)})
    for rank in range(2):
        for name, predictions in torch.load(kit.folder / f"{rank}").items():
            torch.testing.assert_close(
                predictions, torch.from_numpy(single[name].predictions), rtol=1e-4, atol=1e-5, msg=name
            )
