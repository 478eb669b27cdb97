"""Gate gradients against central differences of real optimizer steps, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_

from hf_xlt.strategies.soft_layers.meta_gradient import (
    InnerStep,
    carried_products,
    clip_adjoint,
    clipped,
    group_products,
    reverse_episode,
)
from hf_xlt.strategies.soft_layers.rates import update_of

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "sgd dampened": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    "sgd nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
    "adamw amsgrad": (torch.optim.AdamW, {"lr": 0.02, "amsgrad": True}),
    "adam": (torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 0.02}),
    "radam": (torch.optim.RAdam, {"lr": 0.02}),
    "adamax": (torch.optim.Adamax, {"lr": 0.02}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0, "eps": 1e-3}),
}
GATES = (0.3, 0.8, 0.05)


class Net(nn.Module):
    """Four tensors in three groups; smooth, so that differences converge."""

    index = (0, 1, 1, 2)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        shapes = ((4, 3), (3, 5), (3,), (2, 3))
        self.weights = nn.ParameterList(
            torch.randn(shape, generator=generator, dtype=torch.float64) * 0.7 for shape in shapes
        )

    def forward(self, inputs, targets):
        table, matrix, bias, out = self.weights
        hidden = torch.tanh(inputs @ table) @ matrix[:, :3] + bias
        return nn.functional.cross_entropy(torch.tanh(hidden) @ out.T, targets)


def batches(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(6, 4, generator=generator, dtype=torch.float64),
            torch.randint(2, (6,), generator=generator),
        )
        for _ in range(count)
    ]


class Replayed:
    """Source gradient and Hessian products of one batch by plain autograd."""

    def __init__(self, net, step):
        self.weights = [tensor.clone().requires_grad_() for tensor in step.before]
        names = [name for name, _ in net.named_parameters()]
        loss = functional_call(net, dict(zip(names, self.weights, strict=True)), step.replay)
        self.raw = torch.autograd.grad(loss, self.weights, create_graph=True)

    def gradients(self, curved):
        return [gradient.detach() for gradient in self.raw]

    def hessian_product(self, direction):
        return torch.autograd.grad(self.raw, self.weights, direction)


def episode(kind, gates, steps, warm, max_norm, record=None):
    """Run gated steps with the real optimizer; return the net, the optimizer, and the last rates."""
    cls, settings = OPTIMIZERS[kind]
    net = Net()
    parameters = list(net.parameters())
    rate = settings["lr"]
    optimizer = cls([{"params": [parameter]} for parameter in parameters], **settings)
    for number, batch in enumerate(batches(warm + steps, 7)):
        # The rate changes from step to step, as under a schedule.
        base = rate * (1 + 0.1 * number)
        net.zero_grad()
        net(*batch).backward()
        raw = [parameter.grad.clone() for parameter in parameters]
        if max_norm:
            clip_grad_norm_(parameters, max_norm)
        live = number >= warm
        if live and record is not None:
            record.append(
                InnerStep(
                    before=[parameter.detach().clone() for parameter in parameters],
                    states=[
                        {
                            name: value.clone() if torch.is_tensor(value) else value
                            for name, value in optimizer.state.get(parameter, {}).items()
                        }
                        for parameter in parameters
                    ],
                    settings=[{**group, "lr": base} for group in optimizer.param_groups],
                    moved=[True] * len(parameters),
                    replay=batch,
                )
            )
        for group, place in zip(optimizer.param_groups, Net.index, strict=True):
            group["lr"] = base * (gates[place] if live else 1.0)
        optimizer.step()
    return net, optimizer, base, raw


def query_of(net):
    loss = net(*batches(1, 99)[0])
    return loss, torch.autograd.grad(loss, list(net.parameters()))


def by_differences(kind, steps, warm, max_norm, width=1e-5):
    """Central differences of fourth order: the second step of a cold Adam bends sharply."""
    found = []
    for group in range(len(GATES)):
        ends = {}
        for sign in (1, -1, 2, -2):
            gates = [gate + sign * width * (place == group) for place, gate in enumerate(GATES)]
            ends[sign] = query_of(episode(kind, gates, steps, warm, max_norm)[0])[0].item()
        found.append((8 * (ends[1] - ends[-1]) - (ends[2] - ends[-2])) / (12 * width))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("max_norm", [0.0, 0.1])
@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_exact_gradients_are_those_of_differences_over_real_steps(kind, warm, max_norm):
    for steps in (1, 4):
        record = []
        net, optimizer, _, _ = episode(kind, GATES, steps, warm, max_norm, record)
        _, query = query_of(net)
        exact = reverse_episode(
            query,
            record,
            torch.tensor(GATES, dtype=torch.float64),
            Net.index,
            type(optimizer),
            lambda step, net=net: Replayed(net, step),
            max_norm,
        )
        expected = by_differences(kind, steps, warm, max_norm)
        torch.testing.assert_close(exact, expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("max_norm", [0.0, 0.1])
@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_step_is_exact_off_the_weights_alone(kind, warm, max_norm):
    record = []
    net, _, _, _ = episode(kind, GATES, 1, warm, max_norm, record)
    _, query = query_of(net)
    gates = torch.tensor(GATES, dtype=torch.float64)
    found = carried_products(query, record[0].before, [p.detach() for p in net.parameters()], gates, Net.index)
    torch.testing.assert_close(found, by_differences(kind, 1, warm, max_norm), rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_the_update_rebuilt_from_the_state_is_the_one_made(kind, warm):
    record = []
    net, optimizer, rate, _ = episode(kind, GATES, 1, warm, 0.1, record)
    for parameter, group, before, place in zip(
        net.parameters(), optimizer.param_groups, record[0].before, Net.index, strict=True
    ):
        rebuilt = update_of(optimizer, parameter, group, rate, GATES[place])
        torch.testing.assert_close(rebuilt * GATES[place], parameter.detach() - before, rtol=1e-9, atol=1e-14)


def test_a_closed_gate_still_has_its_rebuilt_update_and_its_exact_gradient():
    shut, record = (0.0, 0.8, 0.05), []
    net, optimizer, rate, _ = episode("adamw", shut, 1, 2, 0.0, record)
    _, query = query_of(net)
    updates = [
        update_of(optimizer, parameter, group, rate, shut[place])
        for parameter, group, place in zip(net.parameters(), optimizer.param_groups, Net.index, strict=True)
    ]
    ahead = query_of(episode("adamw", (1e-6, 0.8, 0.05), 1, 2, 0.0)[0])[0]
    slope = (ahead - query_of(net)[0]).item() / 1e-6
    assert group_products(query, updates, Net.index, 3)[0].item() == pytest.approx(slope, rel=1e-4)


def test_first_order_is_the_recursion_without_curvature():
    class Flat(Replayed):
        def hessian_product(self, direction):
            return [torch.zeros_like(part) for part in direction]

    record = []
    net, optimizer, _, _ = episode("sgd", GATES, 5, 0, 0.0, record)
    _, query = query_of(net)
    gates = torch.tensor(GATES, dtype=torch.float64)
    flat = reverse_episode(query, record, gates, Net.index, torch.optim.SGD, lambda step: Flat(net, step))
    carried = carried_products(query, record[0].before, [p.detach() for p in net.parameters()], gates, Net.index)
    torch.testing.assert_close(carried, flat, rtol=1e-10, atol=0)
    exact = reverse_episode(query, record, gates, Net.index, torch.optim.SGD, lambda step: Replayed(net, step))
    # The curvature is not small here: an implementation that drops it is found out.
    assert (exact - carried).norm() > 0.02 * exact.norm()


def test_first_order_is_close_at_the_rates_of_fine_tuning():
    OPTIMIZERS["slow"] = (torch.optim.AdamW, {"lr": 2e-5})
    record = []
    net, optimizer, _, _ = episode("slow", GATES, 5, 0, 1.0, record)
    _, query = query_of(net)
    gates = torch.tensor(GATES, dtype=torch.float64)
    exact = reverse_episode(query, record, gates, Net.index, torch.optim.AdamW, lambda s: Replayed(net, s), 1.0)
    carried = carried_products(query, record[0].before, [p.detach() for p in net.parameters()], gates, Net.index)
    assert torch.cosine_similarity(exact, carried, dim=0) > 0.99
    del OPTIMIZERS["slow"]


def test_the_products_are_linear_in_the_query_gradient():
    generator = torch.Generator().manual_seed(0)
    tensors = [[torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(3)] for _ in range(3)]
    one, two, update = tensors
    mean = [(a + b) / 2 for a, b in zip(one, two, strict=True)]
    halves = (group_products(one, update, (0, 1, 0), 2) + group_products(two, update, (0, 1, 0), 2)) / 2
    torch.testing.assert_close(group_products(mean, update, (0, 1, 0), 2), halves)


def test_clipping_and_its_adjoint_are_torchs():
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    adjoint = [torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2)]
    for max_norm in (0.5, 1e3):
        holders = [nn.Parameter(torch.zeros(4, dtype=torch.float64)) for _ in raw]
        for holder, gradient in zip(holders, raw, strict=True):
            holder.grad = gradient.detach().clone()
        clip_grad_norm_(holders, max_norm)
        for holder, ours in zip(holders, clipped([g.detach() for g in raw], max_norm), strict=True):
            torch.testing.assert_close(ours, holder.grad, rtol=1e-12, atol=0)
        norm = torch.sqrt(sum((g**2).sum() for g in raw))
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        expected = torch.autograd.grad([g * factor for g in raw], raw, adjoint)
        for ours, theirs in zip(clip_adjoint(adjoint, [g.detach() for g in raw], max_norm), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_weight_without_any_gradient_gives_no_nan():
    class Sparse(Net):
        def forward(self, inputs, targets):
            # Row 0 of the first tensor, like the embedding of a word that no source text holds, gets no gradient.
            inputs = inputs * torch.tensor([0.0, 1, 1, 1], dtype=torch.float64)
            return super().forward(inputs, targets)

    net = Sparse()
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW([{"params": [p]} for p in parameters], lr=1e-2, weight_decay=0.0)
    record = []
    for batch in batches(3, 1):
        net.zero_grad()
        net(*batch).backward()
        record.append(
            InnerStep(
                [p.detach().clone() for p in parameters],
                [{k: v.clone() for k, v in optimizer.state.get(p, {}).items()} for p in parameters],
                [dict(group) for group in optimizer.param_groups],
                [True] * len(parameters),
                batch,
            )
        )
        optimizer.step()
    query = torch.autograd.grad(Net.forward(net, *batches(1, 99)[0]), parameters)
    exact = reverse_episode(
        query, record, torch.ones(3, dtype=torch.float64), Net.index, torch.optim.AdamW, lambda s: Replayed(net, s)
    )
    assert all(math.isfinite(value) for value in exact.tolist())
