"""The trainable weights θ of a model, and passes through the model at other values of them.

Of the word embedding only the rows of tokens in the batches at hand take part: no other row has a gradient, and a
multilingual vocabulary is most of an encoder's weights. This is exact.

Shapes: V vocabulary, N rows in the batches, D embedding size, B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hf_xlt.modelling.seen_rows import places_in

Result = TypeVar("Result")
Weights = dict[str, Tensor]


class _Caller(nn.Module):
    """Runs a function while `functional_call` holds the model's weights replaced.

    Gradients are taken inside as well: recomputation under activation checkpointing must meet the same weights.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Result]) -> Result:
        return function()


def _word_embedding(model: nn.Module) -> tuple[str, nn.Embedding] | None:
    """Return name of the weight and module of a word embedding whose rows may be taken apart; None otherwise."""
    try:
        module = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    if type(module) is not nn.Embedding or not module.weight.requires_grad:
        return None
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return None
    every = model.named_parameters(remove_duplicate=False)
    names = [name for name, parameter in every if parameter is module.weight]
    return (names[0], module) if len(names) == 1 else None


class TrainableWeights:
    """θ over the tokens of some batches: `{name: tensor}` with the word embedding cut to N rows."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, Any]],
        over_processes: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        """Look at `model`.

        Args:
            model: bare model; weights that require no gradient are no part of θ.
            batches: every batch of the update, with `input_ids` (B, T); without them the embedding is kept whole.
            over_processes: sums a tensor over processes, so that rows seen by another process take part too.
        """
        self.model, self._caller = model, _Caller(model)
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        embedding = _word_embedding(model)
        if any("input_ids" not in batch for batch in batches):
            embedding = None
        self.embedding_name, self._embedding = embedding or (None, None)
        if embedding is not None:
            weight = self._embedding.weight
            seen = torch.zeros(self._embedding.num_embeddings, dtype=torch.int32, device=weight.device)
            for batch in batches:
                seen[batch["input_ids"].reshape(-1)] = 1
            self.rows = over_processes(seen).nonzero().reshape(-1)
            self.places = places_in(weight, self.rows)

    def leaves(self) -> Weights:
        """Return θ to differentiate by: the parameters themselves, and (N, D) of the word embedding."""
        leaves = dict(self.parameters)
        if self.embedding_name is not None:
            leaves[self.embedding_name] = self._embedding.weight.detach()[self.places].requires_grad_()
        return leaves

    def call(self, weights: Weights, function: Callable[[], Result]) -> Result:
        """Run a function while the model has other weights.

        Args:
            weights: as `leaves` returns them, at the same or other values; parameters themselves stay in place.
            function: runs the bare model, and takes the gradients it needs.
        """
        others = {
            f"model.{name}": value
            for name, value in weights.items()
            if name != self.embedding_name and value is not self.parameters[name]
        }
        with self._rows_from(weights):
            return functional_call(self._caller, others, (function,), strict=False) if others else function()

    @contextmanager
    def _rows_from(self, weights: Weights) -> Iterator[None]:
        if self.embedding_name is None:
            yield
            return
        table, rows, pad = weights[self.embedding_name], self.rows, self._embedding.padding_idx
        places = (rows == pad).nonzero().reshape(-1).tolist() if pad is not None else []

        def look_up(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return F.embedding(torch.searchsorted(rows, args[0]), table, padding_idx=places[0] if places else None)

        handle = self._embedding.register_forward_hook(look_up)
        try:
            yield
        finally:
            handle.remove()

    def set_gradients(self, gradients: Weights) -> None:
        """Write gradients into `.grad` of the parameters, in place of what is there.

        Args:
            gradients: by name, shaped as `leaves`; names that are missing keep no gradient.
        """
        for name, parameter in self.parameters.items():
            gradient = gradients.get(name)
            if gradient is not None and name == self.embedding_name:
                rows = gradient.to(parameter.dtype)
                gradient = torch.zeros_like(parameter).index_copy_(0, self.places, rows)
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype)
