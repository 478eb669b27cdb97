"""Cross-entropy behind a large linear layer, with its gradients, in chunks of rows.

The logits of a 250k vocabulary outweigh everything else in a training step. Here a chunk of them is computed, turned
into losses and at once into gradients, and its buffers serve the next chunk. So the gradients are there before the
backward pass, which only scales them.

Shapes: M rows, m rows of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Just below 32 MiB: above it the C library hands memory back at once, and fresh pages cost more than the arithmetic.
CHUNK_BYTES = 31 * 2**20
# Where softmax runs in float32: a processor's cache should hold it, other devices want few launches.
BLOCK_BYTES = {"cpu": 4 * 2**20}
LEAST_CHUNK_ROWS = 16


def default_chunk_rows(weight: Tensor, dtype: torch.dtype) -> int:
    """Return how many rows of logits to hold at a time, at least 16.

    They fill 31 MiB, or a quarter of the weight's float32 gradient where that is more: it exists anyway, and it is
    read and written once per chunk.
    """
    size = max(CHUNK_BYTES, weight.numel())
    return max(LEAST_CHUNK_ROWS, size // (dtype.itemsize * weight.shape[0]))


class _Projection:
    """A linear layer's chunk-wise forward and backward pass in one; all buffers are reused over chunks.

    Args:
        rows: (M, D) in the dtype of the products.
        matrix: (V, D) in the dtype of the products.
        bias: (V,) or None.
        exact: dtype of softmax, loss and sums.
        chunk_rows: rows per chunk.
        differentiable: whether gradients are wanted.
    """

    def __init__(
        self,
        rows: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        exact: torch.dtype,
        chunk_rows: int,
        differentiable: bool,
    ) -> None:
        self.rows, self.matrix = rows, matrix
        self.bias = None if bias is None else bias.to(exact)
        self.differentiable = differentiable
        vocabulary, chunk = matrix.shape[0], min(chunk_rows, len(rows))
        self.logits = rows.new_empty(chunk, vocabulary)
        block = max(1, BLOCK_BYTES.get(rows.device.type, CHUNK_BYTES) // (exact.itemsize * max(vocabulary, 1)))
        self.block_rows = min(block, chunk)
        self.block = None if rows.dtype == exact else rows.new_empty(self.block_rows, vocabulary, dtype=exact)
        # Probabilities of 1 / V are subnormal in half precision.
        self.boost = 2.0**10 if rows.dtype == torch.float16 else 1.0

    def slopes(self, part: slice, targets: Tensor, losses: Tensor, scale: Tensor, bias_grad: Tensor | None) -> Tensor:
        """Fill `losses` (m,) of one chunk and return its gradient to the logits (m, V), without weights."""
        rows, targets, scale = self.rows[part], targets[part], scale[part]
        logits = torch.mm(rows, self.matrix.T, out=self.logits[: len(rows)])
        for start in range(0, len(rows), self.block_rows):
            inner = slice(start, start + self.block_rows)
            low, target = logits[inner], targets[inner, None]
            block = low if self.block is None else self.block[: len(low)].copy_(low)
            if self.bias is not None:
                block.add_(self.bias)
            torch.log_softmax(block, dim=-1, out=block)
            picked = block.gather(1, target)
            losses[part][inner] = -picked[:, 0]
            if not self.differentiable:
                continue
            # The slope is the probability, less 1 at the target.
            block.exp_().scatter_(1, target, torch.expm1(picked))
            if bias_grad is not None:
                bias_grad.addmv_(block.T, scale[inner])
            if self.boost != 1:
                block.mul_(self.boost)
            if block is not low:
                low.copy_(block)
        return logits

    def add_products(self, total: Tensor, slopes: Tensor, rows: Tensor) -> None:
        """Add slopes^T rows, the gradient of the weight from one chunk, to `total` (V, D)."""
        if self.block is None:
            total.addmm_(slopes.T, rows)
            return
        # No kernel adds products of a lower dtype to a float32 matrix; in pieces the products stay in the cache.
        size = max(1, self.block.nbytes // (total.itemsize * total.shape[1]))
        for piece, part in zip(slopes.split(size, dim=1), total.split(size), strict=True):
            part += piece.T @ rows


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Weighted cross-entropy whose gradients are computed with it, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        chunk_rows: int,
        dtype: torch.dtype,
        needed: tuple[bool, bool, bool],
    ) -> Tensor:
        exact = torch.promote_types(torch.float32, dtype)
        rows, matrix, scale = hidden.to(dtype), weight.to(dtype), weights.to(exact)
        layer = _Projection(rows, matrix, bias, exact, chunk_rows, any(needed))
        losses = torch.empty_like(scale)
        grads: list[Tensor | None] = [
            torch.zeros_like(source, dtype=exact) if need else None
            for source, need in zip((hidden, weight, bias), needed, strict=True)
        ]
        scaled = rows * (scale / layer.boost)[:, None].to(dtype)
        for start in range(0, len(rows), chunk_rows):
            part = slice(start, start + chunk_rows)
            slopes = layer.slopes(part, targets, losses, scale, grads[2])
            if needed[0]:
                grads[0][part] = slopes @ matrix
            if needed[1]:
                layer.add_products(grads[1], slopes, scaled[part])
        if needed[0]:
            grads[0] *= (scale / layer.boost)[:, None]
        ctx.grads = grads
        ctx.dtypes = [None if source is None else source.dtype for source in (hidden, weight, bias)]
        return losses @ scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the chunked cross-entropy was differentiated twice; its gradients are freed by then.")
        # Autograd takes over a gradient that nobody else holds; otherwise it copies it.
        grads, ctx.grads = ctx.grads, None
        # Asking for the value costs a synchronisation where the device is not the CPU.
        unit = upstream.device.type == "cpu" and upstream.item() == 1
        for place, dtype in enumerate(ctx.dtypes):
            if grads[place] is not None:
                grads[place] = (grads[place] if unit else grads[place].mul_(upstream)).to(dtype)
        return (*grads, None, None, None, None, None)


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    chunk_rows: int | None = None,
) -> Tensor:
    """Sum weighted cross-entropies of a linear layer without ever holding all its logits.

    Under autocast the products are in its dtype; softmax, loss and sums are in float32 always (float64 for float64).

    Args:
        hidden: (M, D).
        weight: (V, D).
        bias: (V,) or None.
        targets: (M,) int64 in [0, V).
        weights: (M,) weight of each row's loss; no gradient reaches them.
        chunk_rows: rows of logits at a time; see `default_chunk_rows`.

    Returns:
        Scalar; backward may run once.
    """
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if autocast else weight.dtype
    track = torch.is_grad_enabled()
    needed = tuple(track and source is not None and source.requires_grad for source in (hidden, weight, bias))
    chunk_rows = chunk_rows or default_chunk_rows(weight, dtype)
    with torch.autocast(kind, enabled=False):
        return _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, weights, chunk_rows, dtype, needed)
