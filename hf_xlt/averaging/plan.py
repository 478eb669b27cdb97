"""Matching the tensors of all inputs, and deciding what happens to each and where it goes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from hf_xlt.averaging.dtypes import FLOATS, SIZES
from hf_xlt.averaging.headers import Tensor, build_header
from hf_xlt.averaging.inputs import Checkpoint
from hf_xlt.errors import ConfigError, setting

MEAN = "mean"
SAME = "same"
LAST = "last"
FIRST = "first"

# Running statistics belong to one set of weights; of counters the newest is right.
_STATISTICS = ("running_mean", "running_var")
_COUNTERS = ("num_batches_tracked",)
_QUANTISED = re.compile(r"(\.|_)(SCB|absmax|qweight|qzeros|weight_scale|weight_scale_inv|quant_state.*)$")
_OUTPUT_SIDE = re.compile(
    r"(^|\.)(lm_head|decoder|predictions|cls|shared|embed_tokens|embed_out|output_embeddings|word_embeddings|wte)(\.|$)"
)
_SHOWN = 10


@dataclass(frozen=True)
class TensorPlan:
    """What becomes of one tensor: its name, shape, format in the output, and the action."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    action: str


@dataclass
class Matching:
    """The tensors that all inputs share.

    Attributes:
        tensors: in the order of the last input's data.
        notes: what the user should know, in sentences.
        statistics: names of running statistics that were copied and want recalibration.
    """

    tensors: list[TensorPlan]
    notes: list[str] = field(default_factory=list)
    statistics: list[str] = field(default_factory=list)


def match(
    checkpoints: Sequence[Checkpoint],
    *,
    dtype: str | None,
    head: Iterable[str] = (),
    head_action: str = SAME,
    is_tied: bool = True,
    equal_data: Callable[[Checkpoint, str, str], bool],
) -> Matching:
    """Match tensors by name and decide what happens to each.

    Args:
        checkpoints: two or more, or one.
        dtype: floating format of the output; None keeps that of the inputs.
        head: names of the head's tensors, which get `head_action`.
        head_action: `SAME`, `FIRST` or `MEAN`.
        is_tied: whether the config lets two names be one weight.
        equal_data: says of a checkpoint whether two of its tensors hold the same bits.

    Raises:
        ConfigError: names, shapes or formats differ, or weights are quantised.
    """
    matching = Matching([])
    names = _common_names(checkpoints, is_tied, equal_data, matching)
    head = set(head)
    for name in names:
        places = [checkpoint.tensors[name][1] for checkpoint in checkpoints]
        _check_shapes(checkpoints, name, places)
        kind = _kind(checkpoints, name, places, dtype)
        action = _action(name, places[-1], name in head, head_action)
        if action == LAST and name.rpartition(".")[2] in _STATISTICS:
            matching.statistics.append(name)
        matching.tensors.append(TensorPlan(name, places[-1].shape, kind, action))
    if matching.statistics:
        matching.notes.append(
            f"{len(matching.statistics)} running statistics, such as `{matching.statistics[0]}`, are those of the "
            "last input: recalibrate them on training data."
        )
    return matching


def _action(name: str, tensor: Tensor, in_head: bool, head_action: str) -> str:
    last_part = name.rpartition(".")[2]
    if last_part in _COUNTERS or last_part in _STATISTICS:
        return LAST
    if tensor.dtype not in FLOATS:
        return SAME
    return head_action if in_head else MEAN


def _common_names(
    checkpoints: Sequence[Checkpoint],
    is_tied: bool,
    equal_data: Callable[[Checkpoint, str, str], bool],
    matching: Matching,
) -> list[str]:
    mappings = {id(checkpoint.tensors): checkpoint for checkpoint in checkpoints}
    common = set.intersection(*(set(checkpoint.tensors) for checkpoint in mappings.values()))
    quantised = sorted(name for name in common if _QUANTISED.search(name))
    if quantised:
        raise ConfigError(
            f"`{checkpoints[-1].place}` holds quantised weights (`{quantised[0]}`), whose codes have no mean. Average "
            "the models before they are quantised."
        )
    for checkpoint in mappings.values():
        extra = sorted(set(checkpoint.tensors) - common)
        unexplained = [
            name for name in extra if not (is_tied and _is_second_copy(checkpoint, name, common, equal_data))
        ]
        if unexplained:
            _refuse_keys(checkpoints, checkpoint, unexplained)
        if extra:
            # One layout stands for all files that share it; their second copies are checked one by one.
            others = [one for one in checkpoints if one.tensors is checkpoint.tensors and one is not checkpoint]
            for other in others:
                if not all(_is_second_copy(other, name, common, equal_data) for name in extra):
                    _refuse_keys(checkpoints, other, extra)
            matching.notes.append(
                f"`{checkpoint.place.name}` holds tied weights twice ({', '.join(extra[:3])}): the second copy is "
                "left out."
            )
    if is_tied:
        # A pickle shows which names are one weight; one of them is kept, as `save_pretrained` does.
        common -= {name for name in common if all(one.aliases.get(name) in common for one in checkpoints)}
    order = checkpoints[-1].tensors
    return sorted(common, key=lambda name: (order[name][0], order[name][1].start, name))


def _is_second_copy(
    checkpoint: Checkpoint, name: str, common: set[str], equal_data: Callable[[Checkpoint, str, str], bool]
) -> bool:
    """Say whether a tensor is the other name of a tied weight: one of the pair is on the output side, bits equal."""
    place = checkpoint.tensors[name][1]
    for other in sorted(common):
        twin = checkpoint.tensors[other][1]
        likely = _OUTPUT_SIDE.search(name) or _OUTPUT_SIDE.search(other)
        if likely and (twin.dtype, twin.shape) == (place.dtype, place.shape) and equal_data(checkpoint, name, other):
            return True
    return False


def _refuse_keys(checkpoints: Sequence[Checkpoint], holder: Checkpoint, names: Sequence[str]) -> None:
    lacking = next(one for one in checkpoints if any(name not in one.tensors for name in names))
    wanted = [name for name in names if name not in lacking.tensors]
    shown = ", ".join(f"`{name}`" for name in wanted[:_SHOWN])
    more = f" and {len(wanted) - _SHOWN} more" if len(wanted) > _SHOWN else ""
    raise ConfigError(
        f"`{holder.place}` holds {len(wanted)} tensors that `{lacking.place}` lacks: {shown}{more}. Only checkpoints "
        "of one architecture can be averaged."
    )


def _check_shapes(checkpoints: Sequence[Checkpoint], name: str, places: Sequence[Tensor]) -> None:
    for checkpoint, place in zip(checkpoints, places, strict=True):
        if place.shape != places[0].shape:
            hint = (
                " The vocabularies differ in size; nothing is cut to fit."
                if "embed" in name and place.shape[1:] == places[0].shape[1:]
                else ""
            )
            raise ConfigError(
                f"`{name}` has shape {list(places[0].shape)} in `{checkpoints[0].place}` and {list(place.shape)} in "
                f"`{checkpoint.place}`.{hint} Only checkpoints of one architecture can be averaged."
            )


def _kind(checkpoints: Sequence[Checkpoint], name: str, places: Sequence[Tensor], dtype: str | None) -> str:
    """Return a tensor's format in the output."""
    kinds = [place.dtype for place in places]
    if all(kind in FLOATS for kind in kinds):
        if dtype is not None:
            return dtype
        remedy = f"Choose the output's with {setting('dtype')}, such as {setting('dtype', 'float32')}."
    else:
        remedy = "Integers are not converted; save the checkpoints alike."
    for checkpoint, kind in zip(checkpoints, kinds, strict=True):
        if kind != kinds[0]:
            raise ConfigError(
                f"`{name}` is {kinds[0]} in `{checkpoints[0].place}` and {kind} in `{checkpoint.place}`. {remedy}"
            )
    return kinds[-1]


@dataclass(frozen=True)
class OutputFile:
    """A weight file to write: name, header with the length before it, size in bytes, tensors and their places."""

    name: str
    header: bytes
    size: int
    places: dict[str, Tensor]


def plan_files(tensors: Sequence[TensorPlan], max_shard_size: int | None, stem: str = "model") -> list[OutputFile]:
    """Lay tensors out in as few files as the limit allows, wide formats first so that all are aligned.

    Args:
        tensors: in order.
        max_shard_size: most bytes of tensors per file; a larger tensor gets a file of its own. None is one file.
        stem: beginning of the names.
    """
    # Sorting by size of a number is stable, so reading stays sequential within a format.
    ordered = sorted(tensors, key=lambda tensor: -SIZES[tensor.dtype])
    groups: list[list[TensorPlan]] = [[]]
    filled = 0
    for tensor in ordered:
        size = math.prod(tensor.shape) * SIZES[tensor.dtype]
        if max_shard_size is not None and groups[-1] and filled + size > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    files = []
    for number, group in enumerate(groups, 1):
        suffix = f"-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
        header, places = build_header({tensor.name: (tensor.dtype, tensor.shape) for tensor in group})
        size = max((place.start + place.size for place in places.values()), default=len(header))
        files.append(OutputFile(f"{stem}{suffix}.safetensors", header, size, places))
    return files


@dataclass(frozen=True)
class Source:
    """Where a span lies in an input: index of the file, first byte, format."""

    file: int
    start: int
    dtype: str


@dataclass
class Span:
    """Neighbouring tensors that are treated alike and lie alike in every input, read and written as one.

    Attributes:
        action: one of the four.
        dtype: format in the output.
        count: number of elements.
        file: index of the output file.
        start: first byte there.
        sources: one per input.
        names: first element and name of each tensor.
    """

    action: str
    dtype: str
    count: int
    file: int
    start: int
    sources: list[Source]
    names: list[tuple[int, str]]

    def name_at(self, element: int) -> str:
        """Return the tensor that an element belongs to."""
        return next(name for first, name in reversed(self.names) if first <= element)

    def extend(self, other: Span) -> bool:
        """Take in the span that follows, if it follows here and in every input."""
        alike = (self.action, self.dtype, self.file) == (other.action, other.dtype, other.file)
        if not alike or other.start != self.start + self.count * SIZES[self.dtype]:
            return False
        for mine, its in zip(self.sources, other.sources, strict=True):
            end = mine.start + self.count * SIZES[mine.dtype]
            if (mine.file, mine.dtype, end) != (its.file, its.dtype, its.start):
                return False
        self.names += [(first + self.count, name) for first, name in other.names]
        self.count += other.count
        return True


def plan_spans(
    tensors: Sequence[TensorPlan], files: Sequence[OutputFile], checkpoints: Sequence[Checkpoint]
) -> list[Span]:
    """Join tensors into spans, in the order in which they are written.

    Args:
        tensors: what happens to each.
        files: where each goes.
        checkpoints: the inputs that count; their files are numbered through, in order.
    """
    first_file, offsets = 0, []
    for checkpoint in checkpoints:
        offsets.append(first_file)
        first_file += len(checkpoint.files)
    actions = {tensor.name: tensor for tensor in tensors}
    spans: list[Span] = []
    for number, file in enumerate(files):
        for name, place in file.places.items():
            tensor, sources = actions[name], []
            for checkpoint, offset in zip(checkpoints, offsets, strict=True):
                index, origin = checkpoint.tensors[name]
                sources.append(Source(offset + index, origin.start, origin.dtype))
            count = math.prod(tensor.shape)
            span = Span(tensor.action, tensor.dtype, count, number, place.start, sources, [(0, name)])
            if count and not (spans and spans[-1].extend(span)):
                spans.append(span)
    return spans
