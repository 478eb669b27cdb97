"""The chunked cross-entropy: equal to the plain one, exact gradients, bounded chunks."""

import pytest
import torch
import torch.nn.functional as F

from hf_xlt.pretraining.projection import chunked_cross_entropy, default_chunk_rows


def _layer(rows: int = 23, width: int = 8, vocabulary: int = 31, dtype=torch.float32) -> tuple:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((rows, width), (vocabulary, width), (vocabulary,))
    )
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    return hidden, weight, bias, targets, torch.rand(rows, generator=generator, dtype=dtype)


@pytest.mark.parametrize("chunk_rows", [1, 7, 23, 100, None])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_unchunked_loss(chunk_rows, with_bias):
    hidden, weight, bias, targets, weights = _layer()
    bias = bias if with_bias else None
    sources = [source for source in (hidden, weight, bias) if source is not None]
    expected = (F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none") * weights).sum()
    loss = chunked_cross_entropy(hidden, weight, bias, targets, weights, chunk_rows)
    torch.testing.assert_close(loss, expected)
    # An upstream factor scales every gradient.
    for ours, stock in zip(
        torch.autograd.grad(3 * loss, sources), torch.autograd.grad(3 * expected, sources), strict=True
    ):
        torch.testing.assert_close(ours, stock)


def test_gradients_equal_finite_differences():
    """Every entry, in float64."""
    hidden, weight, bias, targets, weights = _layer(rows=5, width=3, vocabulary=7, dtype=torch.float64)
    sources = (hidden, weight, bias)
    loss = chunked_cross_entropy(*sources, targets, weights, chunk_rows=2)
    assert loss.dtype == torch.float64
    step = 1e-6
    for source, gradient in zip(sources, torch.autograd.grad(loss, sources), strict=True):
        numeric = torch.empty_like(source).flatten()
        flat = source.detach().view(-1)
        for place in range(flat.numel()):
            value, ends = flat[place].item(), []
            for sign in (1, -1):
                flat[place] = value + sign * step
                ends.append(chunked_cross_entropy(*sources, targets, weights, chunk_rows=2).item())
            flat[place] = value
            numeric[place] = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(gradient.flatten(), numeric, rtol=1e-7, atol=1e-8)


def test_only_asked_gradients_are_made():
    hidden, weight, bias, targets, weights = _layer()
    weight.requires_grad_(False)
    loss = chunked_cross_entropy(hidden, weight, bias, targets, weights)
    loss.backward()
    assert weight.grad is None and hidden.grad is not None and bias.grad is not None
    with torch.no_grad():
        again = chunked_cross_entropy(hidden, weight, bias, targets, weights, chunk_rows=4)
    assert not again.requires_grad
    torch.testing.assert_close(again, loss)


def test_a_second_backward_pass_is_refused():
    loss = chunked_cross_entropy(*_layer())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        loss.backward()


def test_half_precision_keeps_small_probabilities():
    """Under float16 autocast a probability of 1e-5 still moves its row of the weight."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(32, 16, requires_grad=True), (0.01 * torch.randn(90_000, 16)).requires_grad_()
    targets, weights = torch.randint(0, 90_000, (32,)), torch.full((32,), 1 / 32)
    chunked_cross_entropy(hidden, weight, None, targets, weights).backward()
    exact, weight.grad = weight.grad, None
    with torch.autocast("cpu", torch.float16):
        chunked_cross_entropy(hidden, weight, None, targets, weights).backward()
    others = torch.ones(90_000, dtype=torch.bool)
    others[targets] = False
    assert (weight.grad - exact)[others].norm() < 0.03 * exact[others].norm()


def test_the_default_chunk_is_bounded():
    weight = torch.empty(250_002, 768, device="meta")
    assert default_chunk_rows(torch.empty(24_000, 256, device="meta"), torch.float32) * 24_000 * 4 <= 64 * 2**20
    assert default_chunk_rows(weight, torch.bfloat16) * 250_002 * 2 <= weight.nbytes / 4
    assert default_chunk_rows(torch.empty(10**8, 1, device="meta"), torch.float32) == 16
