"""How long an input a model takes and how many tokens it knows, found by watching a small copy of it read one.

Position tables differ in name, in size and in the row they begin at: RoBERTa and its kin count from behind the padding
index, BART and OPT leave two rows free. What they have in common is that a run of equal tokens reads one row after the
other. A copy (one layer, no weights) reads two short inputs, and the rows that grow with the length tell the rest.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

# Lengths of the two inputs; some models take none that is shorter than what they pool at once.
_LENGTHS = ((4, 6), (16, 24), (128, 192))
# A copy of more parameters than this is not made: it would take a second or more.
_LARGEST = 2_000_000_000
_ENDLESS = 10**9


@dataclass(frozen=True)
class Limits:
    """What a model can read.

    Attributes:
        positions: longest input in tokens; None where nothing limits it.
        counts_from_padding: whether positions are counted from the padding token's id on.
        tokens: rows of the matrix of token embeddings; None where tokens are not looked up in one.
    """

    positions: int | None
    counts_from_padding: bool = False
    tokens: int | None = None


def find_limits(config: Any) -> Limits:
    """Find the limits of a model.

    Args:
        config: the model's config; it is not changed.
    """
    announced = _announced(config, "max_position_embeddings", "max_seq_len")
    model = _small_copy(config)
    if model is None:
        return Limits(announced, tokens=_announced(config, "vocab_size"))
    first_rows = _position_rows(model, config)
    positions = min((size - first for size, first in first_rows), default=announced)
    padding = getattr(config, "pad_token_id", None)
    counts = isinstance(padding, int) and any(first == padding + 1 for _, first in first_rows)
    return Limits(positions, counts, _token_rows(model))


def _announced(config: Any, *names: str) -> int | None:
    values = [getattr(config.get_text_config(), name, None) for name in names]
    return next((value for value in values if isinstance(value, int) and 0 < value < _ENDLESS), None)


def _token_rows(model: PreTrainedModel) -> int | None:
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except (AttributeError, NotImplementedError):
        return None
    return None if weight is None else len(weight)


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Leave generators and logs as they are."""
    import torch
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def _small_copy(config: Any) -> PreTrainedModel | None:
    """Build the encoder with one layer and without weights; None where that is not possible."""
    import torch
    from transformers import AutoModel
    from transformers.initialization import no_init_weights

    # Code that comes with a model was agreed to when its config was read.
    trusted = {"trust_remote_code": True} if getattr(config, "auto_map", None) else {}
    for small in (_with_one_layer(config), copy.deepcopy(config)):
        try:
            with _aside():
                with torch.device("meta"):
                    size = sum(weight.numel() for weight in AutoModel.from_config(small, **trusted).parameters())
                if size > _LARGEST:
                    continue
                with no_init_weights():
                    model = AutoModel.from_config(small, dtype=torch.float32, attn_implementation="eager", **trusted)
            return model.eval()
        except Exception:
            # Whatever keeps this copy from being made, the model itself may load.
            continue
    return None


def _with_one_layer(config: Any) -> Any:
    small = copy.deepcopy(config)
    for part in {id(part): part for part in (small, small.get_text_config())}.values():
        for name in ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"):
            # Some configs derive the number of layers and let nobody set it.
            with contextlib.suppress(NotImplementedError, AttributeError):
                if isinstance(getattr(part, name, None), int):
                    setattr(part, name, 1)
        with contextlib.suppress(NotImplementedError, AttributeError):
            if isinstance(getattr(part, "layer_types", None), list):
                part.layer_types = part.layer_types[:1]
    return small


def _position_rows(model: PreTrainedModel, config: Any) -> set[tuple[int, int]]:
    """Return, for each table that is read by position, its number of rows and the row of the first token."""
    for lengths in _LENGTHS:
        try:
            found = [_rows_read(model, config, length) for length in lengths]
        except Exception:  # noqa: S112
            # Every architecture has errors of its own for an input that is too short for it.
            continue
        return found[0] & found[1]
    return set()


def _rows_read(model: PreTrainedModel, config: Any, length: int) -> set[tuple[int, int]]:
    """Return the rows of tables that one input of equal tokens reads in order."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten, found = torch.ops.aten, set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is aten.embedding.default:
                note(args[0], args[1])
            elif function is aten.index_select.default and args[1] == 0:
                note(args[0], args[2])
            elif function is aten.index.Tensor and args[1] and args[1][0] is not None:
                note(args[0], args[1][0])
            return function(*args, **(kwargs or {}))

    def note(table: Any, rows: Any) -> None:
        if table.dim() != 2 or rows.dtype not in (torch.int64, torch.int32) or not rows.dim():
            return
        # One row per token; a table that is read for every pair of tokens holds distances.
        if rows.numel() != rows.shape[-1] or rows.numel() < length:
            return
        rows = rows.reshape(-1)[:length].tolist()
        if rows == list(range(rows[0], rows[0] + length)):
            found.add((table.shape[0], rows[0]))

    inputs = torch.full((1, length), _plain_token(config))
    with _aside(), Watch():
        try:
            model(input_ids=inputs)
        except ValueError:
            # T5 and its kin do not make the decoder's input themselves.
            model(input_ids=inputs, decoder_input_ids=inputs)
    return found


def _plain_token(config: Any) -> int:
    """Return a token that means nothing to the model, and that none takes for padding whatever its config says."""
    text = config.get_text_config()
    special = {value for name, value in text.to_dict().items() if name.endswith("_token_id")}
    special = {value for value in special if isinstance(value, int)}
    middle = (_announced(config, "vocab_size") or 256) // 2
    return next(token for token in range(middle, middle + len(special) + 1) if token not in special)
