"""Every encoder family: where the hook goes, that it goes away, and what is exported; and the FLOPs of a step."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from metaxl_setup import make, make_batch, make_rtn, make_step, make_window, relative_error
from torch import nn
from transformers import AutoModelForQuestionAnswering

from hf_xlt.errors import ConfigError
from hf_xlt.strategies.metaxl.meta_step import MetaWindow
from hf_xlt.strategies.metaxl.placement import Injection, find_module

FAMILIES = ("bert", "xlm-roberta", "distilbert", "deberta-v2", "modernbert")
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("place", [-1, 0, 1, -2])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_hook_changes_the_logits_and_leaves_nothing(family, place):
    model = make(family, dtype=torch.float32).eval()
    batch = make_batch(3, 0, pad=1 if family == "xlm-roberta" else 0)
    injection = Injection(model, make_rtn(model), [place])
    with torch.no_grad():
        plain = model(**batch).logits
        with injection.active(0) as trace:
            changed = model(**batch).logits
        again = model(**batch).logits
    assert torch.equal(plain, again) and not torch.allclose(plain, changed)
    assert trace.input.shape == (3, 7, 32) and trace.ratio > 0 and 0 < trace.gate < 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_placement_is_what_the_head_reads(family):
    model = make(family, dtype=torch.float32).eval()
    batch = make_batch(3, 0, pad=1 if family == "xlm-roberta" else 0)
    injection = Injection(model, make_rtn(model), [-1])
    with torch.no_grad(), injection.active(0) as trace:
        model(**batch)
    with torch.no_grad():
        states = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    assert torch.equal(trace.input, states)
    assert find_module(model, 3) is find_module(model, -1) and find_module(model, -4) is find_module(model, 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hypergrad", ["exact", "finite_difference"])
def test_a_meta_step_runs_on_every_family(family, hypergrad):
    model = make(family, dtype=torch.float32)
    window = make_window(pad=1 if family == "xlm-roberta" else 0)
    found = make_step(model, make_rtn(model), [1], hypergrad=hypergrad).run(window, 0.05)
    assert all(torch.isfinite(value).all() and value.abs().sum() > 0 for value in found.phi)


@pytest.mark.parametrize("hypergrad", ["exact", "finite_difference"])
def test_a_meta_step_runs_on_questions_and_answers(hypergrad):
    config = make("bert", num_labels=2).config
    model = AutoModelForQuestionAnswering.from_config(config).train()
    batches = []
    for seed in range(3):
        batch = make_batch(4, seed, head="sentence")
        del batch["labels"]
        batches.append(
            [{**batch, "start_positions": torch.tensor([0, 1, 2, 1]), "end_positions": torch.full((4,), 2)}]
        )
    rtn = make_rtn(model)
    found = make_step(model, rtn, [-1], hypergrad=hypergrad).run(MetaWindow(*batches, (4.0, 4.0, 4.0)), 0.05)
    torch.testing.assert_close(found.losses["train"], model(**batches[1][0]).loss.detach())
    exact = make_step(model, rtn, [-1]).run(MetaWindow(*batches, (4.0, 4.0, 4.0)), 0.05)
    assert relative_error(found.phi, exact.phi) < 1e-2


def test_a_module_by_its_path_is_the_layer():
    model = make("bert")
    rtn, window = make_rtn(model), make_window()
    found = [make_step(model, rtn, [place]).run(window, 0.05).phi for place in (2, "bert.encoder.layer.1")]
    assert relative_error(found[0], found[1]) == 0


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (4, "`rtn_layers` names layer 4, and the encoder has 3"),
        (-5, "names layer -5"),
        (
            "bert.encoder.block.1",
            "`rtn_modules` names 'bert.encoder.block.1', which the model has not. Its top modules",
        ),
    ],
)
def test_a_place_that_is_not_there_is_said(place, message):
    with pytest.raises(ConfigError, match=message):
        find_module(make("bert"), place)


def test_an_unknown_layout_says_what_to_do():
    model = make("bert")
    model.bert.encoder.twin = nn.ModuleList(nn.Identity() for _ in range(3))
    with pytest.raises(ConfigError, match="has 2 module lists of length 3 .*Name the modules .*`rtn_modules`"):
        find_module(model, 1)


def test_a_module_that_does_not_run_once_is_said():
    model = make("bert")
    injection = Injection(model, make_rtn(model), ["dropout"])
    with pytest.raises(ConfigError, match="did not run as a module, so nothing was transformed"), injection.active(0):
        pass
    shared = Injection(model, make_rtn(model), ["bert.encoder.layer.0"])
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    with pytest.raises(ConfigError, match="ran more than once"), shared.active(0):
        model(**make_batch(2, 0))
    assert not any(module._forward_hooks for module in model.modules())


def test_pinned_input_is_what_the_network_sees():
    model = make("bert")
    injection, batch = Injection(model, make_rtn(model), [1]), make_batch(2, 0)
    with injection.active(0, pinned=torch.zeros(2, 7, 32, dtype=torch.float64)) as trace:
        model(**batch)
    assert not trace.input.any()


def test_the_flops_of_a_step_are_those_of_the_arithmetic(tmp_path, monkeypatch):
    """Against joint training on the same batches, at the benchmark's shape with fewer layers."""
    path = ROOT / "benchmarks" / "metaxl_step.py"
    spec = importlib.util.spec_from_file_location("metaxl_step", path)
    benchmark = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    monkeypatch.setitem(sys.modules, "metaxl_step", benchmark)
    spec.loader.exec_module(benchmark)
    line = "--layers 2 --length 32 --vocabulary 500 --variants exact".split()
    options = benchmark.parse([*line, "exact, reuse", benchmark.PUBLIC])
    flops = benchmark.count_flops(options, str(tmp_path))
    ratios = {name: count / flops["joint"] for name, count in flops.items()}
    assert ratios["exact"] <= 2.87 and ratios["exact, reuse"] <= 1.84
    assert ratios[benchmark.PUBLIC] > 4.1
