"""Which attention kernel a run trains with, where the user chose none."""

from types import SimpleNamespace

import pytest
import torch
from tiny import make_model, save_encoder, write_data

from hf_xlt import evaluation
from hf_xlt.cli.main import main
from hf_xlt.modelling.attention import choose_kernel, kernel_of, score_with_default
from hf_xlt.record import RunRecord


@pytest.mark.parametrize(
    ("changes", "length", "kernel"),
    [
        ({}, 128, "eager"),
        ({}, 129, None),
        ({"bf16": False}, 32, None),
        ({"device": "cuda"}, 32, None),
        ({"torch_compile": True}, 32, None),
        ({"row_length": 256}, 32, None),
        ({"row_length": 64}, 32, "eager"),
    ],
)
def test_the_kernel_follows_device_precision_and_length(changes, length, kernel):
    values = {"device": "cpu", "bf16": True, "torch_compile": False, **changes}
    config = SimpleNamespace(**{**values, "device": torch.device(values["device"])})
    assert choose_kernel(config, length) == kernel


def test_a_trained_model_scores_with_the_kernel_it_is_loaded_with():
    model = make_model(0)
    model.set_attn_implementation("eager")
    score_with_default(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("line", "kernel", "told"),
    [
        ("--bf16", "eager", True),
        ("", "sdpa", False),
        ("--bf16 --attn-implementation sdpa", "sdpa", False),
        ("--attn-implementation eager", "eager", False),
    ],
)
def test_a_run_says_what_it_chose_and_scores_as_evaluate_does(line, kernel, told, tmp_path, capsys, monkeypatch):
    scored, plain = [], evaluation.score
    monkeypatch.setattr(
        evaluation, "score", lambda trainer, *rest: (scored.append(kernel_of(trainer.model)), plain(trainer, *rest))[1]
    )
    save_encoder(tmp_path / "model")
    data = write_data(tmp_path / "data", languages=("en", "de"), train=12)
    out = tmp_path / "out"
    argv = f"run --model {tmp_path}/model --dataset {data} --max-steps 2 --use-cpu --output-dir {out} {line}".split()
    assert main(argv) == 0
    assert ("Attention: eager for training" in capsys.readouterr().out) == told
    assert scored == [kernel if "--attn" in line else "sdpa"]
    record = RunRecord.read(out)
    assert record.hardware["attention"] == kernel and record.arguments.get("attn_implementation") in (None, kernel)
    assert f"| Attention in training | {kernel} |" in (out / "README.md").read_text()
