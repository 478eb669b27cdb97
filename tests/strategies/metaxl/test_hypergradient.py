"""The meta gradient against its definition: central differences and differentiation through the step, in float64."""

import pytest
import torch
from metaxl_setup import (
    central_difference,
    make,
    make_batch,
    make_rtn,
    make_step,
    make_window,
    reference_inner_gradient,
    reference_meta_loss,
    relative_error,
)
from torch.func import functional_call

from hf_xlt.strategies.metaxl import hypergradient as maths
from hf_xlt.strategies.metaxl.meta_step import MetaWindow
from hf_xlt.strategies.metaxl.passes import Passes
from hf_xlt.strategies.metaxl.placement import Injection, find_module
from hf_xlt.strategies.metaxl.weights import TrainableWeights

RATE = 0.05
PLACES = {
    "bert": {-1: "bert.encoder.layer.2", 1: "bert.encoder.layer.0", 0: "bert.embeddings"},
    "xlm-roberta": {-1: "roberta.encoder.layer.2", 2: "roberta.encoder.layer.1", 0: "roberta.embeddings"},
    "distilbert": {
        -1: "distilbert.transformer.layer.2",
        1: "distilbert.transformer.layer.0",
        0: "distilbert.embeddings",
    },
    "deberta-v2": {-1: "deberta.encoder.layer.2", 1: "deberta.encoder.layer.0", 0: "deberta.embeddings"},
    "modernbert": {-1: "model.final_norm", 2: "model.layers.1", 0: "model.embeddings"},
}
CASES = [
    ("bert", "token", -1, True, "tied"),
    ("bert", "sentence", -1, False, "tied"),
    ("bert", "sentence", 1, True, "separate"),
    ("bert", "token", 1, False, "none"),
    ("bert", "token", 0, True, "tied"),
    ("bert", "sentence", 0, False, "separate"),
    ("xlm-roberta", "token", 2, True, "tied"),
    ("distilbert", "token", -1, True, "tied"),
    ("distilbert", "sentence", 0, True, "tied"),
    ("deberta-v2", "token", 1, True, "tied"),
    ("deberta-v2", "sentence", -1, False, "tied"),
    ("modernbert", "sentence", -1, True, "tied"),
    ("modernbert", "token", 2, False, "tied"),
]


@pytest.mark.parametrize(("family", "head", "place", "detach", "gate"), CASES)
def test_the_meta_gradient_is_the_slope_of_the_meta_loss(family, head, place, detach, gate, monkeypatch):
    # ModernBERT rotates queries and keys in float32, whose rounding would drown the difference.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model = make(family, head=head)
    rtn = make_rtn(model, gate=gate)
    pad = 1 if family == "xlm-roberta" else 0
    window = make_window(head, pad=pad)
    found = make_step(model, rtn, [place], detach=detach).run(window, RATE)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        direction = [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in rtn.parameters()]
        slope = central_difference(
            rtn,
            lambda: reference_meta_loss(model, rtn, PLACES[family][place], window, RATE, detach=detach),
            direction,
            1e-4,
        )
        ours = RATE * sum((one * two).sum() for one, two in zip(found.phi, direction, strict=True))
        assert float(ours) == pytest.approx(slope, rel=1e-6)


def through_the_step(model, rtn, place, window, rate, detach):
    """∇φ of L_E(θ - η g(φ)) by differentiating the step itself, over every weight of the model."""
    passes = Passes(model, Injection(model, rtn, [place], detach))
    names, values = zip(*model.named_parameters(), strict=True)
    loss = passes.source(window.sources[0], window.units[0]) + passes.target(window.trains[0], window.units[1])
    gradients = torch.autograd.grad(loss, values, create_graph=True, allow_unused=True)
    moved = {
        name: value if gradient is None else value - rate * gradient
        for name, value, gradient in zip(names, values, gradients, strict=True)
    }
    batch = {key: value for key, value in window.metas[0].items() if key != "labels"}
    logits = functional_call(model, moved, kwargs=batch).logits
    meta = torch.nn.functional.cross_entropy(logits.flatten(0, -2), window.metas[0]["labels"].flatten())
    return torch.autograd.grad(meta, list(rtn.parameters())), meta.detach()


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("place", [-1, 1, 0])
def test_the_product_form_equals_differentiating_through_the_step(place, detach):
    model = make("bert", attn_implementation="eager")
    rtn, window = make_rtn(model, activation="relu"), make_window()
    expected, meta = through_the_step(model, rtn, place, window, RATE, detach)
    found = make_step(model, rtn, [place], detach=detach).run(window, RATE)
    assert relative_error([RATE * value for value in found.phi], expected) < 1e-10
    torch.testing.assert_close(found.losses["meta"], meta, rtol=1e-12, atol=0)


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_a_window_of_micro_batches_gives_the_product_of_the_whole_batch(micro_batches):
    model = make("bert", dropout=0.0)
    rtn, split = make_rtn(model), make_window(micro_batches=micro_batches)
    whole = MetaWindow(
        *[
            [{key: torch.cat([batch[key] for batch in group]) for key in group[0]}]
            for group in (split.sources, split.trains, split.metas)
        ],
        split.units,
    )
    for hypergrad in ("exact", "finite_difference"):
        parts, one = (make_step(model, rtn, hypergrad=hypergrad).run(window, RATE) for window in (split, whole))
        assert relative_error(parts.phi, one.phi) < (1e-10 if hypergrad == "exact" else 1e-6)
        for name, value in one.inner.items():
            torch.testing.assert_close(parts.inner[name], value, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("place", [-1, 1, 0])
def test_finite_differences_agree_with_the_exact_product_in_float32(place):
    model = make("bert", dtype=torch.float32, dropout=0.3, spread=0.1)
    rtn, window = make_rtn(model), make_window()
    scale = 1e-2 / maths.norm(TrainableWeights(model, window.batches()).leaves()).item()
    exact, differences = (
        make_step(model, rtn, [place], hypergrad=kind, fd_scale=scale).run(window, RATE, inner_seed=1, meta_seed=2)
        for kind in ("exact", "finite_difference")
    )
    assert relative_error(differences.phi, exact.phi) < 1e-3


@pytest.mark.parametrize("lost", ["pins", "starts"])
def test_finite_differences_need_the_pinned_input_and_the_same_masks(lost):
    """The guard of the guard: without either the tolerance of the test before is missed by far."""
    model = make("bert", dtype=torch.float32, dropout=0.3)
    rtn, window = make_rtn(model), make_window()
    step = make_step(model, rtn, [1], hypergrad="finite_difference")
    exact = make_step(model, rtn, [1]).run(window, RATE, inner_seed=1, meta_seed=2)
    original = step._phi_gradient

    def forgetful(window, weights, moved, inner, device):
        if lost == "pins":
            step.passes.injection.detach = False
        else:
            inner.starts = [(torch.Generator().manual_seed(9).get_state(), None)]
        return original(window, weights, moved, inner, device)

    step._phi_gradient = forgetful
    broken = step.run(window, RATE, inner_seed=1, meta_seed=2)
    assert relative_error(broken.phi, exact.phi) > 1e-2


def test_the_inner_gradient_is_that_of_a_constant_change():
    model = make("bert")
    rtn, window = make_rtn(model), make_window()
    detached, plain = (make_step(model, rtn, [1], detach=detach).run(window, RATE).inner for detach in (True, False))
    module = find_module(model, 1)
    expected = reference_inner_gradient(model, rtn, module, window, detach=True)
    names = [name for name, _ in model.named_parameters()]
    different = 0
    for name, gradient in zip(names, expected, strict=True):
        if gradient is None or name.endswith("word_embeddings.weight"):
            continue
        torch.testing.assert_close(detached[name], gradient, rtol=1e-9, atol=1e-12)
        different += not torch.allclose(plain[name], gradient, rtol=1e-3)
    assert different > 10


def test_embedding_rows_outside_the_batches_take_no_part():
    model = make("bert")
    rtn, window = make_rtn(model), make_window()
    found = make_step(model, rtn).run(window, RATE)
    name = "bert.embeddings.word_embeddings.weight"
    seen = torch.cat([batch["input_ids"].flatten() for batch in window.batches()]).unique()
    assert found.weights.rows.tolist() == seen.tolist() and len(seen) < 65
    assert found.inner[name].shape == (len(seen), 32)
    expected = dict(
        zip(
            [key for key, _ in model.named_parameters()],
            reference_inner_gradient(model, rtn, find_module(model, -1), window, detach=True),
            strict=True,
        )
    )
    found.weights.set_gradients(found.inner)
    torch.testing.assert_close(model.get_parameter(name).grad, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("hypergrad", ["exact", "finite_difference", "evograd"])
def test_weights_gradients_and_generators_are_left_alone(hypergrad):
    from hf_xlt.strategies.metaxl.evograd import EvoGrad

    model = make("bert", dtype=torch.float32, dropout=0.1)
    rtn, window = make_rtn(model), make_window()
    rtn.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    step = make_step(model, rtn, hypergrad=hypergrad, evograd=EvoGrad())
    for seed in range(100 if hypergrad == "exact" else 10):
        step.run(window, RATE, inner_seed=seed, meta_seed=seed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in (*model.parameters(), *rtn.parameters()))
    assert torch.equal(state, torch.get_rng_state())
    assert not any(value.requires_grad for value in rtn.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_target_losses_do_not_see_the_rtn():
    model = make("bert", dtype=torch.float32)
    window = make_window()
    losses = []
    for seed in (0, 1):
        found = make_step(model, make_rtn(model, seed=seed)).run(window, 0.0)
        losses.append({name: value.item() for name, value in found.losses.items()})
    assert losses[0]["train"] == losses[1]["train"] and losses[0]["meta"] == losses[1]["meta"]
    assert losses[0]["source"] != losses[1]["source"]


def test_several_slots_are_mixed_and_the_mixture_learns():
    model = make("bert")
    rtn, window = make_rtn(model, (1, -1), gate="separate"), make_window()
    assert rtn.mixture().sum().item() == pytest.approx(1) and rtn.mixture().shape == (2,)
    assert rtn.slots[0].gate_up.weight is not rtn.slots[1].gate_up.weight
    step = make_step(model, rtn, (1, -1))
    found = step.run(window, RATE)
    gradients = dict(zip([name for name, _ in rtn.named_parameters()], found.phi, strict=True))
    assert gradients["mixture_logits"].abs().sum() > 0
    singles = [make_step(model, make_rtn(model, (0,)), [place]) for place in (1, -1)]
    for single, slot in zip(singles, rtn.slots, strict=True):
        single.passes.injection.rtn.slots[0] = slot
    parts = [single.run(window, RATE).losses["source"] for single in singles]
    torch.testing.assert_close(found.losses["source"], (parts[0] + parts[1]) / 2)
    lone = make_rtn(model)
    assert lone.mixture_logits is None and lone.mixture().tolist() == [1.0]

    def value():
        passes = step.passes
        names, values = zip(*model.named_parameters(), strict=True)
        loss = passes.source(window.sources[0], window.units[0]) + passes.target(window.trains[0], window.units[1])
        gradients = torch.autograd.grad(loss, values, allow_unused=True)
        moved = {
            name: value if gradient is None else value - RATE * gradient
            for name, value, gradient in zip(names, values, gradients, strict=True)
        }
        return functional_call(model, moved, kwargs=window.metas[0]).loss.item()

    direction = [torch.ones_like(p) * (i + 1) * 0.1 for i, p in enumerate(rtn.parameters())]
    slope = central_difference(rtn, value, direction, 1e-4)
    ours = RATE * sum((one * two).sum() for one, two in zip(found.phi, direction, strict=True))
    assert float(ours) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("place", [-1, 1])
def test_activation_checkpointing_gives_the_same_meta_gradient(place):
    model = make("bert", dropout=0.2)
    rtn = make_rtn(model)
    plain = make_step(model, rtn, [place]).run(make_window(), RATE, inner_seed=1, meta_seed=2)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    again = make_step(model, rtn, [place]).run(make_window(), RATE, inner_seed=1, meta_seed=2)
    assert relative_error(again.phi, plain.phi) < 1e-10
    differences = make_step(model, rtn, [place], hypergrad="finite_difference", fd_scale=1e-5).run(
        make_window(), RATE, inner_seed=1, meta_seed=2
    )
    assert relative_error(differences.phi, plain.phi) < 1e-5


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_fused_attention_is_replaced_where_it_is_differentiated_twice(family, monkeypatch):
    from contextlib import nullcontext

    from hf_xlt.strategies.metaxl import meta_step

    results = {}
    for kernel in ("sdpa", "eager"):
        model = make(family, dtype=torch.float32, attn_implementation=kernel)
        results[kernel] = make_step(model, make_rtn(model), [1]).run(make_window(), RATE)
        assert model.config._attn_implementation == kernel
    assert relative_error(results["sdpa"].phi, results["eager"].phi) < 1e-4
    monkeypatch.setattr(meta_step, "second_order_attention", nullcontext)
    model = make(family, dtype=torch.float32, attn_implementation="sdpa")
    with pytest.raises(RuntimeError, match="derivative for aten::_scaled_dot_product.*is not implemented"):
        make_step(model, make_rtn(model), [1]).run(make_window(), RATE)


def test_evograd_is_the_gradient_of_the_mean_head():
    """Against one graph over all candidates, with the softmax and the weighted head differentiated through."""
    from hf_xlt.strategies.metaxl.evograd import EvoGrad

    model = make("bert")
    rtn, window = make_rtn(model), make_window(micro_batches=2)
    evograd = EvoGrad(3, 0.05, 0.5, (7,))
    found = make_step(model, rtn, hypergrad="evograd", evograd=evograd).run(window, RATE)
    head = {name: value.detach() for name, value in model.named_parameters() if name.startswith("classifier")}
    passes, heads, losses = Passes(model, Injection(model, rtn, [-1])), evograd._heads(model, head), []
    for values in heads:
        total = 0.0
        for source, train in zip(window.sources, window.trains, strict=True):
            weights = TrainableWeights(model, [source, train])
            moved = {**{n: v.detach() for n, v in weights.leaves().items()}, **values}
            total = total + weights.call(moved, lambda s=source: passes.source(s, window.units[0]))
            total = total + weights.call(moved, lambda t=train: passes.target(t, window.units[1]))
        losses.append(total)
    shares = torch.softmax(-torch.stack(losses) / 0.5, 0)
    mean = {name: sum(share * values[name] for share, values in zip(shares, heads, strict=True)) for name in head}
    meta = sum(
        functional_call(model, mean, kwargs=batch).loss * (batch["labels"] >= 0).sum() for batch in window.metas
    )
    expected = torch.autograd.grad(meta / window.units[2], list(rtn.parameters()))
    assert relative_error(found.phi, expected) < 1e-10


def test_labels_of_a_batch_do_not_reach_the_models_own_loss():
    model = make("bert", head="sentence")
    batch = make_batch(4, 1, head="sentence")
    passes = Passes(model, None)
    torch.testing.assert_close(passes.target(batch, 4.0), model(**batch).loss)
