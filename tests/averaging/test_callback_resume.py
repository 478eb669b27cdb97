"""`CheckpointAveragingCallback` in a stock Trainer: evaluating the average, and resuming."""

import shutil

import pytest
import torch
from averaging_training import Recorder, WatchingTrainer, assert_close, load_averaged, make_trainer
from tiny import make_features, same_weights

from hf_xlt import CheckpointAveragingCallback
from hf_xlt.averaging.state_file import STATE_NAME
from hf_xlt.errors import ConfigError, RunError

pytestmark = pytest.mark.filterwarnings("ignore:.*snapshot of step.*:UserWarning")


# ---- Evaluation of the average


EVALUATE = {"eval_strategy": "steps", "eval_steps": 2, "eval_count": 8, "save_strategy": "no"}


def test_evaluations_see_the_average_and_training_does_not(tmp_path):
    recorder, plain = Recorder(), Recorder()
    callback = CheckpointAveragingCallback(every=3, evaluate_average=True)
    trainer = make_trainer(tmp_path, recorder, trainer_cls=WatchingTrainer, **EVALUATE)
    assert callback.attach(trainer) is callback
    trainer.train()
    make_trainer(tmp_path, plain, **EVALUATE).train()
    assert all(same_weights(recorder.weights[step], plain.weights[step]) for step in recorder.weights)
    assert_close(trainer.seen[2], recorder.weights[2])
    assert_close(trainer.seen[8], recorder.mean((3, 6)))
    assert_close(trainer.seen[10], recorder.mean((3, 6, 9, 10)))
    # After training an evaluation sees what is in memory.
    trainer.model.classifier.bias.data.fill_(7)
    trainer.evaluate()
    assert (trainer.seen[10]["classifier.bias"] == 7).all()


def test_several_data_sets_are_evaluated_under_one_swap(tmp_path):
    callback = CheckpointAveragingCallback(every=1, evaluate_average=True)
    trainer = make_trainer(tmp_path, trainer_cls=WatchingTrainer, **{**EVALUATE, "eval_count": 8})
    trainer.eval_dataset = {"a": make_features(5), "b": make_features(6)}
    callback.attach(trainer)
    swaps, swap_in = [], callback.swap_in
    callback.swap_in = lambda *args: swaps.append(1) or swap_in(*args)
    trainer.train()
    # Five evaluations, and the end of training.
    assert len(swaps) == 6
    assert {"eval_a_loss", "eval_b_loss"} <= set().union(*trainer.state.log_history)


def test_an_evaluation_that_fails_leaves_the_weights_in_training(tmp_path):
    recorder = Recorder()
    trainer = make_trainer(tmp_path, recorder, trainer_cls=WatchingTrainer, **EVALUATE)
    trainer.fail_at = 4
    CheckpointAveragingCallback(every=1, evaluate_average=True).attach(trainer)
    with pytest.raises(RuntimeError, match="evaluation failed"):
        trainer.train()
    live = {name: value.detach().double() for name, value in trainer.model.named_parameters()}
    assert same_weights(live, recorder.weights[4])
    assert not same_weights({name: value.double() for name, value in trainer.seen[4].items()}, live)


def test_evaluating_the_average_without_the_trainer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"call `callback.attach\(trainer\)`"):
        make_trainer(tmp_path, CheckpointAveragingCallback(evaluate_average=True), **EVALUATE).train()


# ---- Resuming


SETTINGS = {"every": 2}


def cut(source, target, step):
    """What a run that was killed after a save leaves."""
    target.mkdir()
    return shutil.copytree(source / f"checkpoint-{step}", target / f"checkpoint-{step}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of ten updates, saved after every third."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, CheckpointAveragingCallback(**SETTINGS), save_steps=3).train()
    return folder


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("step", [3, 6, 9])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, whole, step, restore):
    place = cut(whole, tmp_path / "cut", step)
    callback = CheckpointAveragingCallback(**SETTINGS)
    trainer = make_trainer(tmp_path / "cut", callback, save_steps=3, restore_callback_states_from_checkpoint=restore)
    trainer.train(resume_from_checkpoint=str(place))
    assert callback.steps == (2, 4, 6, 8, 10)
    assert same_weights(load_averaged(whole), load_averaged(tmp_path / "cut"))


@pytest.mark.parametrize("how", ["argument", "training arguments"])
def test_the_checkpoint_may_lie_elsewhere(tmp_path, whole, how):
    place = str(cut(whole, tmp_path / "elsewhere", 6))
    given = {"resume_from": place} if how == "argument" else {}
    settings = {"resume_from_checkpoint": place} if how != "argument" else {}
    callback = CheckpointAveragingCallback(**SETTINGS, **given)
    make_trainer(tmp_path / "out", callback, save_steps=3, **settings).train(resume_from_checkpoint=place)
    assert same_weights(load_averaged(whole), load_averaged(tmp_path / "out"))


def resume(folder, place, max_steps=10, **settings):
    callback = CheckpointAveragingCallback(**{**SETTINGS, **settings})
    trainer = make_trainer(folder, callback, save_steps=3, max_steps=max_steps)
    trainer.train(resume_from_checkpoint=str(place))
    return callback


def test_a_checkpoint_without_its_state_is_refused(tmp_path, whole):
    place = cut(whole, tmp_path / "cut", 6)
    (place / STATE_NAME).unlink()
    with pytest.raises(RunError, match=f"after update 6, and there is no `{STATE_NAME}` of it"):
        resume(tmp_path / "cut", place)
    with pytest.warns(UserWarning, match="holds snapshots after update 6 only"):
        assert resume(tmp_path / "cut", place, strict_resume=False).steps == (8, 10)


def test_a_state_of_another_update_or_cut_off_is_refused(tmp_path, whole):
    place = cut(whole, tmp_path / "cut", 6)
    shutil.copy(whole / "checkpoint-3" / STATE_NAME, place / STATE_NAME)
    with pytest.raises(RunError, match="resumes after update 6, and `checkpoint-6/.*` is of update 3"):
        resume(tmp_path / "cut", place)
    state = whole / "checkpoint-6" / STATE_NAME
    (place / STATE_NAME).write_bytes(state.read_bytes()[:-100])
    with pytest.raises(RunError, match=f"`{place / STATE_NAME}` is damaged"):
        resume(tmp_path / "cut", place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 0.5}, "averages with `start` 0.0, not 0.5"),
        ({"every": 5}, "averages with `every` 2, not 5"),
        ({"mode": "ema", "ema_decay": 0.5}, "averages with `mode` 'uniform', not 'ema'"),
        ({"dtype": torch.float64}, "averages with `dtype` 'float32', not 'float64'"),
        ({"max_steps": 12}, "takes its snapshots after other updates"),
    ],
)
def test_another_average_is_not_resumed(tmp_path, whole, changes, message):
    place = cut(whole, tmp_path / "cut", 6)
    with pytest.raises(RunError, match=message):
        resume(tmp_path / "cut", place, **changes)


def test_one_object_for_two_trainings_starts_anew(tmp_path, whole):
    callback = CheckpointAveragingCallback(**SETTINGS)
    make_trainer(tmp_path / "first", callback, learning_rate=0.1, save_strategy="no").train()
    make_trainer(tmp_path / "second", callback, save_strategy="no").train()
    assert same_weights(load_averaged(whole), load_averaged(tmp_path / "second"))


def test_the_state_names_update_weight_and_number(whole):
    from safetensors import safe_open

    with safe_open(whole / "checkpoint-6" / STATE_NAME, "pt") as file:
        metadata = file.metadata()
    assert [metadata[name] for name in ("schema", "step", "total", "count")] == ["1", "6", "3.0", "3"]
    assert not list((whole / "checkpoint-6").glob("*.part"))
