"""`SeenRows`: a model whose word embedding holds, for a while, only the rows of the tokens that occur.

A row whose token never occurs gets no gradient. Whatever an optimizer that works element by element then does to it is
a product of decays, the same for all such rows: one more row, the witness, starts at 1 and receives just that. The
whole matrix is at any time the rows held, and the other rows times the witness.

The parameter and the module stay the same objects, so that nothing that refers to them has to know. What leaves the
model, or comes into it, by `state_dict` and `load_state_dict` is the whole matrix.

Shapes: V rows of the vocabulary, R rows held, D width.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_xlt.errors import ConfigError, RunError
from hf_xlt.models import is_adapted

_CHUNK = 16_384
_OUTSIDE = -1
_REASON = "`embedding_rows` seen does not go with"
_OTHERWISE = "Leave it at all."


class MatrixFile:
    """A matrix (V, D) on disk, in a file without a name: it is gone with the process, however that ends."""

    def __init__(self, matrix: Tensor, folder: Path) -> None:
        """Write a matrix.

        Args:
            matrix: (V, D), of any format and on any device.
            folder: on the disk to use; it is made if need be.

        Raises:
            OSError: the disk is full or not writable.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.shape, self.dtype = tuple(matrix.shape), matrix.dtype
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        for part in matrix.detach().split(_CHUNK):
            self._file.write(_bytes_of(part.cpu().contiguous()))
        self._file.flush()

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of the first row, and some rows from there on."""
        for start in range(0, self.shape[0], _CHUNK):
            rows = min(_CHUNK, self.shape[0] - start)
            yield start, self._read(start, torch.empty((rows, self.shape[1]), dtype=self.dtype))

    def read(self) -> Tensor:
        """Return the matrix, on the CPU."""
        return self._read(0, torch.empty(self.shape, dtype=self.dtype))

    def _read(self, start: int, into: Tensor) -> Tensor:
        self._file.seek(start * self.shape[1] * into.element_size())
        self._file.readinto(_bytes_of(into))
        return into

    def close(self) -> None:
        """Give the space on the disk back."""
        self._file.close()


def _own_memory(model: nn.Module) -> None:
    """Copy a model's weights: as loaded they lie in a file that is mapped as a whole, as long as one of them does."""
    weights = [weight for weight in [*model.parameters(), *model.buffers()] if weight.device.type == "cpu"]
    storages = Counter(weight.untyped_storage().data_ptr() for weight in weights)
    for weight in weights:
        # Views of one another have to stay such.
        if storages[weight.untyped_storage().data_ptr()] == 1:
            weight.data = weight.detach().clone()


def _give_back_memory() -> None:
    """Let memory that was freed go back to the system: the C library of Linux keeps it."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).numpy()).cast("B")


class SeenRows:
    """The word embedding of a model, cut to the rows of some tokens until `put_back`.

    Attributes:
        ids: (R,) token ids whose rows are held, in increasing order.
        name: of the parameter in the model.
        weight: the parameter, (R + 1, D) meanwhile; the last row is the witness.
    """

    state_name = "embedding_rows"

    def __init__(self, model: nn.Module, ids: Tensor, folder: Path) -> None:
        """Cut.

        Args:
            model: one that `embedding_to_cut` accepts.
            ids: (R,) token ids to hold, in increasing order.
            folder: where the whole matrix lies meanwhile.

        Raises:
            ConfigError: the model's embedding cannot be cut.
            OSError: the matrix cannot be written.
        """
        self.module = embedding_to_cut(model)
        self.ids, self.weight = ids, self.module.weight
        self.name = next(name for name, weight in model.named_parameters() if weight is self.weight)
        self._start = self._base = MatrixFile(self.weight, folder)
        self._folder, self._squares = folder, None
        self._places = torch.full((len(self.weight),), _OUTSIDE)
        self._places[ids] = torch.arange(len(ids))
        pad = self.module.padding_idx
        # The gradient of this row is left out; the witness has none in any case.
        self._padding = len(ids) if pad is None else int(self._places[pad])
        self._padding = None if pad is None or self._padding < 0 else self._padding
        self._hooks = (
            # torch marks such a hook, which a method does not allow.
            self.module.register_state_dict_post_hook(lambda *args: self._widen_state(*args)),
            self.module.register_load_state_dict_pre_hook(self._narrow_state),
        )
        self.module.forward = self._look_up
        self._hold(self.weight.detach()[ids.to(self.weight.device)])
        self.weight.seen_rows = self
        _own_memory(model)
        _give_back_memory()

    def _hold(self, rows: Tensor) -> None:
        self.weight.data = torch.cat([rows, torch.ones_like(rows[:1])])

    # ---- Look-ups

    def places_of(self, ids: Tensor) -> Tensor:
        """Return at which of the rows held the rows of token ids stand, in the shape of `ids`.

        Raises:
            RunError: one is not held.
        """
        if self._places.device != ids.device:
            self._places = self._places.to(ids.device)
        inside = ids.clamp(0, len(self._places) - 1)
        places = self._places[inside]
        wrong = (places == _OUTSIDE) | (inside != ids)
        if bool(wrong.any()):
            raise RunError(
                f"token id {int(ids[wrong][0])} comes up in training, and is in none of the data that "
                "`embedding_rows` seen went by: `train_dataset`, `eval_dataset` and the few-shot and other data of "
                "the trainer. A data collator that makes tokens up, and evaluation of other data during training, "
                "need `embedding_rows` all."
            )
        return places

    def _look_up(self, ids: Tensor) -> Tensor:
        return F.embedding(self.places_of(ids), self.module.weight, self._padding)

    # ---- The whole matrix

    def whole(self, rows: Tensor | None = None) -> Tensor:
        """Return the whole matrix (V, D) on the CPU, that of other rows (R + 1, D) if such are given."""
        rows = (self.weight if rows is None else rows).detach().cpu()
        # What the last update has freed would lie idle beside the matrix.
        _give_back_memory()
        matrix = self._base.read().to(rows.dtype)
        if not bool((rows[-1] == 1).all()):
            matrix.mul_(rows[-1])
        matrix[self.ids] = rows[:-1]
        return matrix

    def _widen_state(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        # With `keep_vars` the parameters themselves are asked for, to tell which is which.
        if state[f"{prefix}weight"] is not self.weight:
            state[f"{prefix}weight"] = self.whole()

    def _narrow_state(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        matrix = state.get(f"{prefix}weight")
        if matrix is None or tuple(matrix.shape) != self._base.shape:
            # The error about it is that of the model as it was.
            return
        rows = matrix.detach()[self.ids.to(matrix.device)]
        state[f"{prefix}weight"] = torch.cat([rows, torch.ones_like(rows[:1])])
        if not self._is_base(matrix, self._base, torch.ones(1)):
            self._set_base(MatrixFile(matrix.detach().to(self._base.dtype), self._folder))

    def _is_base(self, matrix: Tensor, base: MatrixFile, witness: Tensor) -> bool:
        """Say whether the rows of a matrix (V, D) that are not held are those of a file times the witness."""
        held = torch.zeros(len(matrix), dtype=torch.bool)
        held[self.ids] = True
        for start, rows in base.chunks():
            kept = ~held[start : start + len(rows)]
            other = matrix[start : start + len(rows)].detach().cpu().to(base.dtype)
            if not torch.equal((rows * witness.to(rows.dtype))[kept], other[kept]):
                return False
        return True

    def _set_base(self, base: MatrixFile) -> None:
        if self._base is not self._start:
            self._base.close()
        self._base, self._squares = base, None

    # ---- Norms

    def square_of_others(self) -> Tensor:
        """Return the sum of squares (D,) over the rows that are not held, without the witness, in float64."""
        if self._squares is None:
            held = torch.zeros(self._base.shape[0], dtype=torch.bool)
            held[self.ids] = True
            total = torch.zeros(self._base.shape[1], dtype=torch.float64)
            for start, rows in self._base.chunks():
                total += (rows[~held[start : start + len(rows)]] ** 2).sum(0, dtype=torch.float64)
            self._squares = total
        return self._squares

    # ---- State and end

    def strategy_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the witness, and which rows are held, for a checkpoint."""
        return {"witness": self.weight.detach()[-1].clone()}, {"rows": len(self.ids), "ids": self._fingerprint()}

    def load_strategy_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, whose model is loaded and whole.

        Raises:
            RunError: it was trained on other rows.
        """
        if values["ids"] != self._fingerprint():
            raise RunError(
                f"the checkpoint was trained with the {values['rows']:,} rows of word embeddings that its data "
                f"needed, and the data now need {len(self.ids):,}, not the same: the data have changed. Resume with "
                "the same data, or start anew."
            )
        witness = tensors["witness"]
        if bool((witness == 1).all()):
            return
        loaded = self.whole()
        if self._is_base(loaded, self._start, witness):
            # Multiplied once at the end, as if training had not been cut.
            self._set_base(self._start)
        else:
            self._set_base(MatrixFile(loaded / witness.to(loaded.dtype), self._folder))
        with torch.no_grad():
            self.weight[-1].copy_(witness)

    def _fingerprint(self) -> str:
        return hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()

    def put_back(self) -> None:
        """Give the model its whole matrix again."""
        whole = self.whole()
        for hook in self._hooks:
            hook.remove()
        del self.module.forward, self.weight.seen_rows
        self.weight.grad = None
        self.weight.data = whole.to(self.weight.device)
        self._start.close()
        self._base.close()


def rows_of(weight: Tensor) -> SeenRows | None:
    """Return what holds a parameter's rows, where it is cut at present."""
    return getattr(weight, "seen_rows", None)


def places_in(weight: Tensor, ids: Tensor) -> Tensor:
    """Return at which rows of a word embedding's weight token ids stand, whether it is cut or whole."""
    rows = rows_of(weight)
    return ids if rows is None else rows.places_of(ids)


def whole_weight(weight: Tensor) -> Tensor:
    """Return a parameter, with the whole matrix where it is cut at present."""
    rows = rows_of(weight)
    return weight if rows is None else rows.whole()


def with_whole_norm(values: Tensor, weight: Tensor) -> Tensor:
    """Return values for a parameter such that sums of their squares, by column, are those of the whole matrix.

    Args:
        values: for each weight of the parameter, in its shape; for the rows that it does not hold, they are what
            they are for the witness times the weights.
        weight: the parameter.
    """
    rows = rows_of(weight)
    if rows is None:
        return values
    scaled = values.detach().clone()
    scaled[-1] *= rows.square_of_others().sqrt().to(scaled.device, scaled.dtype)
    return scaled


def embedding_to_cut(model: Any) -> nn.Embedding:
    """Return a model's word embedding, if training on some of its rows equals training on all.

    Raises:
        ConfigError: it may not be, with the reason.
    """
    if is_adapted(model) or getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigError(f"{_REASON} adapters: they leave the word embeddings as they are. {_OTHERWISE}")
    try:
        module = model.get_input_embeddings()
        predicts = model.get_output_embeddings() is not None
    except (AttributeError, NotImplementedError):
        module, predicts = None, False
    kind = f"`{type(model).__name__}`"
    if predicts:
        raise ConfigError(f"{_REASON} {kind}: it predicts tokens, any of which may come up. {_OTHERWISE}")
    if type(module) is not nn.Embedding or "forward" in vars(module):
        found = "no word embedding" if module is None else f"a `{type(module).__name__}`, not a plain look-up"
        raise ConfigError(f"{_REASON} {kind}: it has {found}. {_OTHERWISE}")
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        raise ConfigError(
            f"{_REASON} a word embedding with `max_norm`, `scale_grad_by_freq` or `sparse`, which do more than look "
            f"rows up. {_OTHERWISE}"
        )
    every = model.named_parameters(remove_duplicate=False)
    names = [name for name, parameter in every if parameter is module.weight]
    if len(names) != 1:
        raise ConfigError(
            f"{_REASON} {kind}: its word embeddings are tied to other weights ({', '.join(names)}). {_OTHERWISE}"
        )
    return module
