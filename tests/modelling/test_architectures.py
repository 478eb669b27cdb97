"""Every architecture that transformers has a head for is trained and scored, or refused in one line before a start."""

import json
from pathlib import Path

import pytest
from architectures import TASKS, save_model
from tiny import make_rows, write_data, write_rows

from hf_xlt.cli.main import main

QUICK = {
    "text-classification": ("xmod", "mpnet", "gpt2", "llama", "bart", "perceiver", "zamba2", "gemma3_text"),
    "token-classification": ("roberta-prelayernorm", "qwen3", "bros"),
    "question-answering": ("qwen2", "qwen3", "llama", "mistral", "smollm3", "lxmert"),
}
# Their configs have no small form that the general rule makes.
UNBUILT = {"t5gemma", "t5gemma2"}


@pytest.fixture(scope="module")
def patterns(tmp_path_factory):
    """Data of every task."""
    return {task: write_task(task, tmp_path_factory.mktemp(task)) for task in TASKS}


def write_task(task: str, folder: Path) -> str:
    if task == "text-classification":
        return write_data(folder, languages=("en", "de"), train=12)
    for language in ("en", "de"):
        for split, count in (("train", 12), ("validation", 6), ("test", 8)):
            words = [row["text"].split() for row in make_rows(language, count, 1)]
            if task == "token-classification":
                rows = [{"tokens": each, "tags": ["A" if int(w[1:]) < 30 else "B" for w in each]} for each in words]
            else:
                answers = [{"text": [each[1]], "answer_start": [len(each[0]) + 1]} for each in words]
                rows = [
                    {"question": "w1 w2", "context": " ".join(each), "answers": answer}
                    for each, answer in zip(words, answers, strict=True)
                ]
            write_rows(folder / f"{split}.{language}.jsonl", rows)
    return str(folder / "{split}.{lang}.jsonl")


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
    refused = {"perceiver": "its weights do not fit", "zamba2": "fails on the first rows", "bros": "bbox"}
    refused["lxmert"] = "visual_feats"
    assert (error is None) == (kind not in refused) and refused.get(kind, "") in (error or "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "kind"), [(task, kind) for task, kinds in TASKS.items() for kind in sorted(set(kinds) - UNBUILT)]
)
def test_every_architecture(task, kind, patterns, tmp_path, capsys):
    try:
        save_model(kind, tmp_path / "trial")
    except Exception as error:
        pytest.skip(f"no tiny model: {type(error).__name__}")
    check(task, kind, patterns[task], tmp_path, capsys)
