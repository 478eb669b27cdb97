"""Reading all inputs and writing the output in one pass, block by block.

Positional reads into reused buffers: the memory does not grow with the number of inputs or their size, which mapped
files would let it. Threads take blocks in turn, so that one reads while another computes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from hf_xlt.averaging.blocks import ELEMENTS, BlockWorker, NotEqual, NotFinite
from hf_xlt.averaging.dtypes import FLOATS, SIZES, numpy_type, widen
from hf_xlt.averaging.headers import WeightFile, file_state
from hf_xlt.averaging.plan import OutputFile, Source, Span
from hf_xlt.errors import ConfigError, RunError, setting

# Beyond so many input files each read opens its file anew.
_DESCRIPTORS = 256
_THREADS = 4
_READ_AHEAD_BLOCKS = 16


class Inputs:
    """Input files that are read by position, and watched for changes."""

    def __init__(self, files: Sequence[WeightFile]) -> None:
        """Keep the files; they are opened by `opened`."""
        self.files = list(files)
        self._descriptors: list[int] | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[Inputs]:
        """Keep the files open, as far as there are not too many.

        Raises:
            RunError: a file is not the one whose header was read.
        """
        with contextlib.ExitStack() as stack:
            if len(self.files) <= _DESCRIPTORS:
                self._descriptors = []
                for file in self.files:
                    descriptor = os.open(file.path, os.O_RDONLY)
                    stack.callback(os.close, descriptor)
                    self._descriptors.append(descriptor)
            try:
                self.check_unchanged()
                yield self
                self.check_unchanged()
            finally:
                self._descriptors = None

    def check_unchanged(self) -> None:
        """Check that no file changed since its header was read.

        Raises:
            RunError: one did, or is gone.
        """
        for file in self.files:
            try:
                same = file_state(file.path) == file.state
            except OSError:
                same = False
            if not same:
                raise RunError(
                    f"`{file.path}` changed while it was read; is it still being written? Nothing was kept. Try again "
                    "when it is complete."
                )

    def read(self, source: Source, first: int, out: np.ndarray) -> None:
        """Fill an array of bytes.

        Args:
            source: file, place and format.
            first: element of the source to begin at.
            out: as many bytes as are wanted.

        Raises:
            RunError: the file ends too early.
        """
        view, position = memoryview(out), source.start + first * SIZES[source.dtype]
        with self._descriptor(source.file) as descriptor:
            while len(view):
                count = os.preadv(descriptor, [view], position)
                if not count:
                    raise RunError(f"`{self.files[source.file].path}` was cut short while it was read; try again.")
                view, position = view[count:], position + count

    @contextlib.contextmanager
    def _descriptor(self, index: int) -> Iterator[int]:
        if self._descriptors is not None:
            yield self._descriptors[index]
            return
        descriptor = os.open(self.files[index].path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read_ahead(self, span: Span, first: int) -> None:
        """Ask the system to fetch the blocks to come from the disk."""
        if self._descriptors is None or not hasattr(os, "posix_fadvise"):
            return
        elements = min(_READ_AHEAD_BLOCKS * ELEMENTS, span.count - first)
        for source in span.sources:
            size = SIZES[source.dtype]
            start = source.start + first * size
            os.posix_fadvise(self._descriptors[source.file], start, elements * size, os.POSIX_FADV_WILLNEED)

    def count_not_finite(self, source: Source, first: int, last: int) -> int:
        """Count NaN and infinite numbers among some elements of a source."""
        count = 0
        for begin in range(first, last, ELEMENTS):
            bits = np.empty(min(ELEMENTS, last - begin), numpy_type(source.dtype))
            self.read(source, begin, bits.view(np.uint8))
            wide = np.empty(len(bits), np.float64 if source.dtype == "F64" else np.float32)
            count += int(np.count_nonzero(~np.isfinite(widen(bits, source.dtype, wide))))
        return count

    def equal(self, one: Source, other: Source, count: int) -> bool:
        """Say whether two sources of the same format hold the same bits."""
        for first in range(0, count, ELEMENTS):
            size = min(ELEMENTS, count - first) * SIZES[one.dtype]
            left, right = np.empty(size, np.uint8), np.empty(size, np.uint8)
            self.read(one, first, left)
            self.read(other, first, right)
            if not np.array_equal(left, right):
                return False
        return True


def write_average(
    folder: Path,
    files: Sequence[OutputFile],
    spans: Sequence[Span],
    inputs: Inputs,
    make_worker: Callable[[], BlockWorker],
    progress: Callable[[int], None] | None = None,
    head: frozenset[str] = frozenset(),
) -> None:
    """Write all output files.

    Args:
        folder: where to.
        files: their headers and places.
        spans: what goes into them.
        inputs: opened.
        make_worker: makes the buffers of one thread.
        progress: called with numbers of bytes written, by the calling thread.
        head: names of the head's tensors, for the message when they differ.

    Raises:
        ConfigError: inputs differ where they must not, or hold NaN or infinity.
        OSError: the disk is full.
        RunError: an input changed.
    """
    with contextlib.ExitStack() as stack:
        descriptors = []
        for file in files:
            descriptor = os.open(folder / file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            stack.callback(os.close, descriptor)
            descriptors.append(descriptor)
            _write(descriptor, memoryview(file.header), 0)
            os.ftruncate(descriptor, file.size)
        try:
            _Pass(spans, inputs, descriptors, make_worker).run(progress)
        except NotFinite as fault:
            raise _not_finite(fault, inputs) from None
        except NotEqual as fault:
            raise _not_equal(fault, inputs, head) from None
        for descriptor in descriptors:
            os.fsync(descriptor)


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while len(data):
        count = os.pwrite(descriptor, data, position)
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data, position = data[count:], position + count


class _Pass:
    """Threads that share a list of blocks."""

    def __init__(
        self,
        spans: Sequence[Span],
        inputs: Inputs,
        descriptors: Sequence[int],
        make_worker: Callable[[], BlockWorker],
    ) -> None:
        self.inputs, self.descriptors, self.make_worker = inputs, descriptors, make_worker
        self.blocks = ((span, first) for span in spans for first in range(0, span.count, ELEMENTS))
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.errors: list[BaseException] = []
        self.written = 0

    def run(self, progress: Callable[[int], None] | None) -> None:
        """Work through all blocks.

        Raises:
            Exception: the first one that a thread met.
        """
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(usable_cores())]
        told = 0
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
                    if progress is not None:
                        progress(self.written - told)
                        told = self.written
        finally:
            # Also when the user interrupts: no thread may write into a folder that is being removed.
            self.stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if self.errors:
            raise self.errors[0]

    def _work(self) -> None:
        try:
            with np.errstate(all="ignore"):
                worker = self.make_worker()
                while not self.stop.is_set():
                    with self.lock:
                        block = next(self.blocks, None)
                    if block is None:
                        return
                    self._do(worker, *block)
        except BaseException as error:
            self.errors.append(error)
            self.stop.set()

    def _do(self, worker: BlockWorker, span: Span, first: int) -> None:
        if first % (_READ_AHEAD_BLOCKS * ELEMENTS) == 0:
            self.inputs.read_ahead(span, first)
        data = worker.work(span, first, min(ELEMENTS, span.count - first))
        _write(self.descriptors[span.file], data, span.start + first * SIZES[span.dtype])
        with self.lock:
            self.written += len(data)


def usable_cores() -> int:
    """Return how many threads to use: the cores that this process may use, at most four."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min(cores, _THREADS))


def _not_finite(fault: NotFinite, inputs: Inputs) -> ConfigError:
    span = fault.span
    bounds = [*(first for first, _ in span.names), span.count]
    for (first, name), last in zip(span.names, bounds[1:], strict=True):
        if last <= fault.first:
            continue
        for source in span.sources:
            count = inputs.count_not_finite(source, first, last) if source.dtype in FLOATS else 0
            if count:
                return ConfigError(
                    f"`{inputs.files[source.file].path}` holds {count:,} numbers in `{name}` that are NaN or "
                    f"infinite. Leave that checkpoint out; {setting('allow_non_finite')} averages it all the same."
                )
        if first >= fault.first + ELEMENTS:
            break
    return ConfigError(
        f"the mean of `{span.name_at(fault.first)}` is too large for its format; choose "
        f"{setting('dtype', 'float32')}, or "
        f"{setting('accumulate', 'float64')}."
    )


def _not_equal(fault: NotEqual, inputs: Inputs, head: frozenset[str]) -> ConfigError:
    name = fault.span.name_at(fault.element)
    files = [inputs.files[fault.span.sources[index].file].path for index in (0, fault.index)]
    where = f"`{name}` differs between `{files[0]}` and `{files[1]}`"
    if name in head:
        return ConfigError(
            f"{where}. It belongs to the head, and heads that were trained apart have no mean: train the runs with "
            f"one shared and frozen head, or choose {setting('head', 'take-first')} or {setting('head', 'average')}."
        )
    return ConfigError(f"{where}. It holds whole numbers, which are not averaged: all inputs must agree.")
