"""Every strategy on every architecture: trained and scored, or refused in one line before anything is written."""

import json

import pytest
from architectures import TASKS, WHOLE_LIBRARY, save_model, write_task

from hf_xlt.cli.main import main
from hf_xlt.training.trainer import XLTTrainer

SHOTS = "--shots 2"
OTHERS = "--auxiliary-dataset {pattern} --auxiliary-languages fr"
STRATEGIES = {
    "robust adv": "--strategy robust --method adv --epsilon 0.1",
    "robust rs_rp": "--strategy robust --method rs_rp --epsilon 0.1",
    "metaxl": f"--strategy metaxl {SHOTS}",
    "soft-layers": f"--strategy soft-layers {OTHERS}",
    "xmaml": f"--strategy xmaml {OTHERS} --meta-steps 2",
    "averaging": "--strategy averaging",
    "lora": "--peft lora",
}
# Layouts that are each like no other: what the suite tries on every change.
QUICK = (
    ("text-classification", "ibert", "robust rs_rp"),
    ("text-classification", "squeezebert", "metaxl"),
    ("text-classification", "t5", "metaxl"),
    ("text-classification", "gemma3", "metaxl"),
    ("text-classification", "gemma3", "soft-layers"),
    ("text-classification", "albert", "soft-layers"),
    ("question-answering", "reformer", "soft-layers"),
    ("text-classification", "qwen3_5", "robust rs_rp"),
    ("text-classification", "zamba2", "lora"),
    ("question-answering", "t5", "lora"),
    ("question-answering", "qwen3", "averaging"),
)


@pytest.fixture(scope="module")
def patterns(tmp_path_factory):
    """Data of every task."""
    return {task: write_task(task, tmp_path_factory.mktemp(task), ("en", "de", "fr")) for task in TASKS}


def check(task, kind, strategy, pattern, folder, capsys):
    """Run two updates; return the line that refuses it, or None."""
    line = f"run --task {task} --model {folder / 'model'} --dataset {pattern} --max-steps 2 --use-cpu"
    line += f" --target-languages de --per-device-train-batch-size 4 {STRATEGIES[strategy].format(pattern=pattern)}"
    code = main([*line.split(), "--output-dir", str(folder / "out")])
    captured = capsys.readouterr().err
    errors = [line for line in captured.splitlines() if line.startswith("error")]
    assert "Traceback" not in captured
    if code == 0:
        assert json.loads((folder / "out" / "results.json").read_text())["languages"]
        return None
    assert code == 2 and len(errors) == 1 and "--traceback" not in errors[0], captured
    assert not (folder / "out").exists()
    return errors[0]


@pytest.mark.parametrize(("task", "kind", "strategy"), QUICK)
def test_layouts_that_are_like_no_other(task, kind, strategy, patterns, tmp_path, capsys):
    save_model(kind, tmp_path / "model")
    error = check(task, kind, strategy, patterns[task], tmp_path, capsys)
    refused = {
        ("squeezebert", "metaxl"): "rtn_modules",
        ("t5", "metaxl"): "rtn_modules",
        ("albert", "soft-layers"): "no layers are found",
        ("reformer", "soft-layers"): "Set `--query-dropout`",
    }
    assert (error is None) == ((kind, strategy) not in refused) and refused.get((kind, strategy), "") in (error or "")


@pytest.mark.parametrize("made", [False, True])
def test_a_model_that_fails_in_its_first_update_is_told_in_a_line_and_leaves_nothing(
    made, patterns, tmp_path, capsys, monkeypatch
):
    def fail(*args, **kwargs):
        raise RuntimeError("element 0 does not require grad\nand so on")

    monkeypatch.setattr(XLTTrainer, "training_step", fail)
    save_model("bert", tmp_path / "model")
    if made:
        (tmp_path / "out").mkdir()
    line = f"run --model {tmp_path / 'model'} --dataset {patterns['text-classification']} --max-steps 2 --use-cpu"
    assert main([*line.split(), "--output-dir", str(tmp_path / "out")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "`bert` cannot be trained" in errors[0] and "does not require grad" in errors[0]
    # A directory of the user's stays, empty as it was.
    assert (tmp_path / "out").exists() == made and not (made and any((tmp_path / "out").iterdir()))


def test_a_failure_after_the_first_update_is_no_matter_of_the_model(patterns, tmp_path, capsys, monkeypatch):
    step = XLTTrainer.training_step

    def fail_later(trainer, *args, **kwargs):
        if trainer.state.global_step:
            raise RuntimeError("a fault of something else")
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(XLTTrainer, "training_step", fail_later)
    save_model("bert", tmp_path / "model")
    line = f"run --model {tmp_path / 'model'} --dataset {patterns['text-classification']} --max-steps 2 --use-cpu"
    assert main([*line.split(), "--output-dir", str(tmp_path / "out")]) == 1
    assert "cannot be trained" not in capsys.readouterr().err and (tmp_path / "out" / "xlt_run.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("task", "kind"), [(task, kind) for task, kinds in WHOLE_LIBRARY.items() for kind in kinds])
def test_every_strategy_on_every_architecture(task, kind, strategy, patterns, tmp_path, capsys):
    save_model(kind, tmp_path / "model")
    error = check(task, kind, strategy, patterns[task], tmp_path, capsys)
    if error is not None:
        pytest.skip(f"{kind}, {strategy}: {error}")
