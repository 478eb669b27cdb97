"""Averaging one block of numbers: what happens between reading N pieces and writing one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hf_xlt.averaging.dtypes import FLOATS, LIMITS, SIZES, accumulation_type, narrow, numpy_type, widen
from hf_xlt.averaging.plan import FIRST, LAST, MEAN, Source, Span

# Numbers per block: its buffers fit a core's cache, and Python's share of the time is small.
ELEMENTS = 1 << 17


class NotFinite(Exception):
    """A block's result holds NaN or infinity; attributes are the span and its first element in the block."""

    def __init__(self, span: Span, first: int) -> None:
        """Keep the place."""
        super().__init__()
        self.span, self.first = span, first


class NotEqual(Exception):
    """Two inputs differ where they must not; attributes are the span, the element and the index of the input."""

    def __init__(self, span: Span, element: int, index: int) -> None:
        """Keep the place."""
        super().__init__()
        self.span, self.element, self.index = span, element, index


Read = Callable[[Source, int, np.ndarray], None]


class BlockWorker:
    """One thread's buffers, and what it does with a block; memory is fixed whatever the number of inputs."""

    def __init__(
        self, read: Read, factors: Sequence[float], divisor: float, accumulate: str, allow_non_finite: bool
    ) -> None:
        """Allocate the buffers.

        Args:
            read: fills an array of bytes from a source, beginning at an element.
            factors: what each input is multiplied by.
            divisor: what the sum is divided by.
            accumulate: `auto`, `float32` or `float64`.
            allow_non_finite: whether NaN and infinity may pass.
        """
        self.read, self.factors, self.divisor = read, list(factors), divisor
        self.accumulate, self.allow_non_finite = accumulate, allow_non_finite
        self._raw = np.empty(8 * ELEMENTS, np.uint8)
        self._first = np.empty(8 * ELEMENTS, np.uint8)
        self._sum = np.empty(8 * ELEMENTS, np.uint8)
        self._wide = np.empty(8 * ELEMENTS, np.uint8)
        self._out = np.empty(8 * ELEMENTS, np.uint8)

    def work(self, span: Span, first: int, count: int) -> memoryview:
        """Read a block from the inputs and return the bytes of its result, good until the next call.

        Args:
            span: what the block is part of.
            first: its first element in the span.
            count: number of elements, at most `ELEMENTS`.

        Raises:
            NotFinite: the result is not finite, and that is not allowed.
            NotEqual: the action demands equal inputs, and they differ.
        """
        if span.action == MEAN:
            return self._mean(span, first, count)
        kept = span.sources[-1 if span.action == LAST else 0]
        bits = self._read(kept, first, count, self._first)
        if span.action not in (LAST, FIRST):
            self._check_equal(span, first, count, bits)
        if kept.dtype in FLOATS:
            numbers = widen(bits, kept.dtype, self._sum[: 8 * count].view(np.float64))
            self._check_finite(span, first, numbers)
            if kept.dtype != span.dtype:
                return self._rounded(span, first, numbers)
        return memoryview(bits.view(np.uint8))

    def _read(self, source: Source, first: int, count: int, buffer: np.ndarray) -> np.ndarray:
        part = buffer[: count * SIZES[source.dtype]]
        self.read(source, first, part)
        return part.view(numpy_type(source.dtype))

    def _check_equal(self, span: Span, first: int, count: int, bits: np.ndarray) -> None:
        expected = bits.view(np.uint8)
        for index, source in enumerate(span.sources[1:], 1):
            found = self._read(source, first, count, self._raw).view(np.uint8)
            if len(found) != len(expected) or not np.array_equal(found, expected):
                size = SIZES[span.sources[0].dtype]
                unequal = np.argmax(found != expected) // size if len(found) == len(expected) else 0
                raise NotEqual(span, first + int(unequal), index)

    def _mean(self, span: Span, first: int, count: int) -> memoryview:
        kinds = {source.dtype for source in span.sources}
        wide = accumulation_type(kinds, self.accumulate)
        size = np.dtype(wide).itemsize
        total, number = self._sum[: size * count].view(wide), self._wide[: size * count].view(wide)
        if any(SIZES[kind] == size for kind in kinds):
            self._sum_differences(span, first, count, total, number)
        else:
            self._sum_values(span, first, count, total, number)
            total /= wide(self.divisor)
        return self._rounded(span, first, total)

    def _sum_values(self, span: Span, first: int, count: int, total: np.ndarray, number: np.ndarray) -> None:
        """Sum inputs of fewer bits than the sum has: equal inputs give themselves back."""
        for index, (source, factor) in enumerate(zip(span.sources, self.factors, strict=True)):
            bits = self._read(source, first, count, self._raw)
            target = total if index == 0 else number
            widen(bits, source.dtype, target)
            if factor != 1.0:
                target *= target.dtype.type(factor)
            if index:
                total += number

    def _sum_differences(self, span: Span, first: int, count: int, total: np.ndarray, number: np.ndarray) -> None:
        """Average inputs of as many bits as the sum has, by their differences from the first one.

        The differences of snapshots are small and so are the errors of their sum; equal inputs give themselves back,
        which a sum of rounded terms would not.
        """
        wide = total.dtype
        base = self._numbers(span.sources[0], first, count, self._first, self._first, wide)
        if len(span.sources) == 1:
            np.copyto(total, base)
            return
        for index, (source, factor) in enumerate(zip(span.sources[1:], self.factors[1:], strict=True)):
            value = self._numbers(source, first, count, self._raw, self._wide, wide)
            target = number if index else total
            np.subtract(value, base, out=target)
            if factor != 1.0:
                target *= wide.type(factor)
            if index:
                total += number
        total /= wide.type(self.divisor)
        total += base

    def _numbers(
        self, source: Source, first: int, count: int, buffer: np.ndarray, target: np.ndarray, wide: np.dtype
    ) -> np.ndarray:
        """Read numbers and return them in the precision of the sum, without a copy where they are in it."""
        if numpy_type(source.dtype) == wide.type:
            return self._read(source, first, count, buffer)
        out = target[: wide.itemsize * count].view(wide)
        return widen(self._read(source, first, count, self._out), source.dtype, out)

    def _check_finite(self, span: Span, first: int, numbers: np.ndarray) -> None:
        limit = LIMITS[span.dtype]
        # A comparison with NaN is false.
        if not self.allow_non_finite and not (numbers.max() < limit and numbers.min() > -limit):
            raise NotFinite(span, first)

    def _rounded(self, span: Span, first: int, numbers: np.ndarray) -> memoryview:
        self._check_finite(span, first, numbers)
        if numpy_type(span.dtype) == numbers.dtype.type:
            return memoryview(numbers.view(np.uint8))
        out = self._out[: SIZES[span.dtype] * len(numbers)]
        narrow(numbers, span.dtype, out.view(numpy_type(span.dtype)))
        return memoryview(out)
