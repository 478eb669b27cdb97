"""SIGKILL at any moment, then `--resume`: the weights are those of the uninterrupted run, bit for bit.

Children are forked from this process, which has imported everything already; torch runs on one thread throughout.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import transformers
from contexts import LORA, make_context
from safetensors.torch import load_file
from tiny import same_weights

import hf_xlt.training.trainer as trainer_module
from hf_xlt.errors import Interrupted
from hf_xlt.registry import STRATEGIES, get_strategy
from hf_xlt.training.interruption import InterruptionFlag
from hf_xlt.training.phases import run_phases

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
VARIANTS = {name: (name, None) for name in STRATEGIES}
# How a checkpoint of adapters is saved does not depend on the strategy.
VARIANTS["finetune-lora"] = ("finetune", LORA)
every_variant = pytest.mark.parametrize("name", list(VARIANTS))
SETTINGS = {"save_total_limit": 1, "save_steps": 1, "max_steps": 5}


def in_child(work) -> int:
    """Run `work` in a forked child; return the child's process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            with open(os.devnull, "w") as sink:
                os.dup2(sink.fileno(), 1)
                os.dup2(sink.fileno(), 2)
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def context_of(name: str, folder: Path):
    strategy, peft = VARIANTS[name]
    return make_context(get_strategy(strategy), folder, peft=peft, **SETTINGS)


def train(name: str, folder: Path) -> None:
    run_phases(context_of(name, folder), folder, resume=True)


def finish(child: int) -> int:
    return os.waitpid(child, 0)[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of each entry, with and without adapters, and how long it takes."""
    runs = {}
    for name in VARIANTS:
        folder = tmp_path_factory.mktemp(f"whole-{name}")
        start = time.monotonic()
        assert finish(in_child(lambda name=name, folder=folder: train(name, folder))) == 0
        runs[name] = (load_file(folder / "model.safetensors"), time.monotonic() - start)
    return runs


@every_variant
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_a_random_moment(name, seed, whole, tmp_path):
    weights, seconds = whole[name]
    moments = random.Random(f"{name}{seed}")
    for _ in range(2):
        child = in_child(lambda: train(name, tmp_path))
        time.sleep(moments.uniform(0.1, 0.9) * seconds)
        os.kill(child, signal.SIGKILL)
        finish(child)
    assert finish(in_child(lambda: train(name, tmp_path))) == 0
    assert same_weights(weights, load_file(tmp_path / "model.safetensors"))


# Each is a point between two steps of saving the third checkpoint, or of clearing away the one before.
POINTS = {
    "before anything is written": ("transformers.Trainer", "save_model"),
    "after the weights": ("transformers.Trainer", "_save_optimizer_and_scheduler"),
    "after the optimizer": ("transformers.Trainer", "_save_rng_state"),
    "before the extra state": ("state.ExtraState", "write"),
    "before the seal": ("trainer", "seal"),
    "before the rotation": ("trainer", "rotate"),
    "in the rotation": ("checkpoints", "delete_files"),
}


@every_variant
@pytest.mark.parametrize("point", POINTS)
def test_killed_during_a_save(name, point, whole, tmp_path):
    from hf_xlt.training import checkpoints
    from hf_xlt.training.state import ExtraState

    owners = {
        "transformers.Trainer": transformers.Trainer,
        "state.ExtraState": ExtraState,
        "trainer": trainer_module,
        "checkpoints": checkpoints,
    }
    owner, attribute = owners[POINTS[point][0]], POINTS[point][1]

    def train_and_die():
        original, calls = getattr(owner, attribute), []

        def deadly(*args, **kwargs):
            calls.append(1)
            if len(calls) == 3:
                if attribute == "delete_files":
                    # Half deleted: the seal is gone already, and so is one file.
                    next(path for path in args[0].written if path.is_file()).unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, attribute, deadly)
        train(name, tmp_path)

    assert os.WTERMSIG(finish(in_child(train_and_die))) == signal.SIGKILL
    assert finish(in_child(lambda: train(name, tmp_path))) == 0
    assert same_weights(whole[name][0], load_file(tmp_path / "model.safetensors"))


@every_variant
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_resumable_checkpoint(name, number, whole, tmp_path):
    def train_and_signal():
        context = context_of(name, tmp_path)
        context.flag = InterruptionFlag()
        original = context.build_trainer

        def build(*args, **kwargs):
            trainer = original(*args, **kwargs)
            step = trainer.training_step

            def signalled(*step_args):
                if trainer.state.global_step == 2:
                    os.kill(os.getpid(), number)
                return step(*step_args)

            trainer.training_step = signalled
            return trainer

        context.build_trainer = build
        with context.flag.listen():
            try:
                run_phases(context, tmp_path, resume=False)
            except Interrupted:
                os._exit(7)

    assert os.WEXITSTATUS(finish(in_child(train_and_signal))) == 7
    assert len(list(tmp_path.rglob("checkpoint-3/complete.json"))) == 1
    assert finish(in_child(lambda: train(name, tmp_path))) == 0
    assert same_weights(whole[name][0], load_file(tmp_path / "model.safetensors"))
