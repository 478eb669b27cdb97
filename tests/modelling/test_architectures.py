"""Every architecture that transformers has a head for is trained and scored, or refused in one line before a start."""

import json

import pytest
from architectures import TASKS, WHOLE_LIBRARY, save_model, write_task

from hf_xlt.cli.main import main

QUICK = {
    "text-classification": ("xmod", "mpnet", "gpt2", "llama", "bart", "perceiver", "zamba2", "gemma3_text"),
    "token-classification": ("roberta-prelayernorm", "qwen3", "bros"),
    "question-answering": ("qwen2", "qwen3", "llama", "mistral", "smollm3", "lxmert"),
}


@pytest.fixture(scope="module")
def patterns(tmp_path_factory):
    """Data of every task."""
    return {task: write_task(task, tmp_path_factory.mktemp(task)) for task in TASKS}


def check(task, kind, pattern, folder, capsys):
    """Run two updates; a failure is a line of ours, and leaves no output directory."""
    save_model(kind, folder / "model")
    line = f"run --task {task} --model {folder / 'model'} --dataset {pattern} --max-steps 2 --use-cpu"
    code = main([*line.split(), "--per-device-train-batch-size", "4", "--output-dir", str(folder / "out")])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    if code == 0:
        assert json.loads((folder / "out" / "results.json").read_text())["languages"]
        return None
    assert code == 2 and len(errors) == 1 and "--traceback" not in errors[0]
    assert not (folder / "out").exists()
    return errors[0]


@pytest.mark.parametrize(("task", "kind"), [(task, kind) for task, kinds in QUICK.items() for kind in kinds])
def test_a_sample_of_architectures(task, kind, patterns, tmp_path, capsys):
    error = check(task, kind, patterns[task], tmp_path, capsys)
    refused = {"perceiver": "its weights do not fit", "bros": "bbox"}
    refused["lxmert"] = "visual_feats"
    assert (error is None) == (kind not in refused) and refused.get(kind, "") in (error or "")


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kind"), [(task, kind) for task, kinds in WHOLE_LIBRARY.items() for kind in kinds])
def test_every_architecture(task, kind, patterns, tmp_path, capsys):
    check(task, kind, patterns[task], tmp_path, capsys)
