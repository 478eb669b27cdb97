"""X-MAML's meta-gradients against autograd through hand-written loops and against differences, in float64."""

import pytest
import torch
from torch import nn

from hf_xlt.strategies.xmaml.episodes import adapt, cosine, meta_gradient


def problem():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = [draw(4, 5) * 0.6, draw(5) * 0.3, draw(2, 5) * 0.6]
    data = [(draw(7, 4), torch.randint(2, (7,), generator=generator)) for _ in range(2)]

    def loss_on(inputs, targets):
        return lambda w: nn.functional.cross_entropy(torch.tanh(inputs @ w[0] + w[1]) @ w[2].T, targets)

    return weights, loss_on(*data[0]), loss_on(*data[1])


def unrolled(weights, support, query, rate, steps, scope=(True, True, True)):
    """Autograd through everything."""
    leaves = [weight.clone().requires_grad_() for weight in weights]
    current = leaves
    for _ in range(steps):
        gradients = torch.autograd.grad(support(current), current, create_graph=True)
        current = [w - rate * g if c else w for w, g, c in zip(current, gradients, scope, strict=True)]
    return torch.autograd.grad(query(current), leaves), current


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("scope", [(True, True, True), (False, False, True), (True, False, False)])
def test_second_order_is_autograd_through_the_unrolled_loop(steps, scope):
    weights, support, query = problem()
    expected, ended = unrolled(weights, support, query, 0.4, steps, scope)
    options = {"rate": 0.4, "steps": steps, "scope": scope}
    found, loss = meta_gradient(weights, support, query, order="second", **options)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)
    assert loss.item() == pytest.approx(query(ended).item())
    # ANIL: only the scope moves in the inner loop, and everything has a meta-gradient.
    adapted, _ = adapt(weights, support, mean=lambda x: x, keep_graphs=False, **options)
    for start, end, reference, chosen in zip(weights, adapted, ended, scope, strict=True):
        torch.testing.assert_close(end, reference.detach())
        assert torch.equal(start, end) != chosen
    assert all(part.abs().max() > 0 for part in found)


@pytest.mark.parametrize("steps", [1, 3])
def test_second_order_is_the_central_difference(steps):
    weights, support, query = problem()
    found, _ = meta_gradient(weights, support, query, order="second", rate=0.4, steps=steps)

    def end(shift):
        moved = [weights[0].clone(), *weights[1:]]
        moved[0][1, 2] += shift
        _, ended = unrolled(moved, support, query, 0.4, steps)
        return query(ended).item()

    assert found[0][1, 2].item() == pytest.approx((end(1e-5) - end(-1e-5)) / 2e-5, rel=1e-6)


def test_first_order_is_the_query_gradient_at_the_adapted_weights_and_is_wrong_by_order_alpha():
    weights, support, query = problem()
    for steps in (1, 3):
        _, ended = unrolled(weights, support, query, 0.4, steps)
        leaves = [weight.detach().requires_grad_() for weight in ended]
        expected = torch.autograd.grad(query(leaves), leaves)
        found, _ = meta_gradient(weights, support, query, order="first", rate=0.4, steps=steps)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two)
    gaps = []
    for rate in (1e-2, 1e-3):
        first, _ = meta_gradient(weights, support, query, order="first", rate=rate)
        second, _ = meta_gradient(weights, support, query, order="second", rate=rate)
        gaps.append(sum(float((a - b).norm()) for a, b in zip(first, second, strict=True)))
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)


def test_reptile_is_the_mean_gradient_along_the_path():
    weights, support, _ = problem()
    current, gradients = weights, []
    for _ in range(3):
        leaves = [weight.clone().requires_grad_() for weight in current]
        gradients.append(torch.autograd.grad(support(leaves), leaves))
        current = [w.detach() - 0.4 * g for w, g in zip(leaves, gradients[-1], strict=True)]
    found, loss = meta_gradient(weights, support, support, order="reptile", rate=0.4, steps=3)
    for place, part in enumerate(found):
        torch.testing.assert_close(part, sum(step[place] for step in gradients) / 3)
    assert loss.item() == pytest.approx(support(weights).item())


def test_without_a_rate_it_is_the_plain_query_gradient_and_at_the_codes_rate_nearly_so():
    weights, support, query = problem()
    plain, _ = meta_gradient(weights, query, query, order="plain", rate=0.0)
    still, _ = meta_gradient(weights, support, query, order="second", rate=0.0)
    for one, two in zip(plain, still, strict=True):
        assert torch.equal(one, two)
    nearly, _ = meta_gradient(weights, support, query, order="second", rate=1e-4)
    assert 0.999 < cosine(plain, nearly) < 1 - 1e-12
    far, _ = meta_gradient(weights, support, query, order="second", rate=1.0)
    assert cosine(plain, far) < 0.99


def test_shares_of_two_processes_give_the_gradient_of_the_whole():
    """Each process sees half of the examples; means over processes stand in every place."""
    weights, _, _ = problem()
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(2, (8,), generator=generator)

    def loss_on(rows):
        return lambda w: nn.functional.cross_entropy(torch.tanh(inputs[rows] @ w[0] + w[1]) @ w[2].T, targets[rows])

    whole, _ = meta_gradient(weights, loss_on(slice(0, 4)), loss_on(slice(4, 8)), order="second", rate=0.4, steps=2)
    import threading

    barrier, board = threading.Barrier(2), {}

    def process(rank, out):
        def mean(tensors):
            board[rank] = tensors
            barrier.wait()
            both = [(a + b) / 2 for a, b in zip(board[0], board[1], strict=True)]
            barrier.wait()
            return both

        support, query = loss_on(slice(2 * rank, 2 * rank + 2)), loss_on(slice(4 + 2 * rank, 6 + 2 * rank))
        out[rank], _ = meta_gradient(weights, support, query, order="second", rate=0.4, steps=2, mean=mean)

    out = {}
    threads = [threading.Thread(target=process, args=(rank, out)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for one, two, reference in zip(out[0], out[1], whole, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, reference, rtol=1e-10, atol=1e-13)
