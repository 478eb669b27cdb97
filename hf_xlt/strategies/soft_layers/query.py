"""The query pass: the gradient of the task loss on a batch of an auxiliary language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_xlt.randomness import derive_seed, generators, keyed_generator
from hf_xlt.training.losses import count_units, labels_of

if TYPE_CHECKING:
    from hf_xlt.training.trainer import XLTTrainer

AUXILIARY = "auxiliary"


def language_of(number: int, count: int, schedule: str, seed: int) -> int:
    """Return which of `count` auxiliary languages the `number`-th query batch is drawn from."""
    if schedule == "round_robin":
        return number % count
    generator = keyed_generator(seed, "auxiliary language", number)
    return int(torch.randint(count, (1,), generator=generator))


def own_rows(start: int, size: int, rank: int, processes: int) -> tuple[int, int]:
    """Return start and number of a process's share of a batch of the endless stream."""
    low, high = size * rank // processes, size * (rank + 1) // processes
    return start + low, high - low


def query_gradient(
    trainer: XLTTrainer,
    parameters: Sequence[Tensor],
    *,
    language: str,
    number: int,
    size: int,
    dropout: bool,
) -> list[Tensor]:
    """Return this process's share of the query gradient; the mean over processes is the gradient of the batch's loss.

    The weights, their `.grad`, the mode of the model and the global random number generators are left as they are.

    Args:
        trainer: the run's.
        parameters: to differentiate by; n weights in all.
        language: auxiliary language.
        number: how many query batches came before; the examples are a function of it.
        size: examples of the batch, over all processes.
        dropout: leave dropout on.
    """
    args, bare = trainer.args, trainer.bare_model()
    loader = trainer.endless_loader(AUXILIARY, language)
    start, count = own_rows(number * size, size, args.process_index, args.world_size)
    chunk = args.per_device_train_batch_size
    batches = [
        trainer._prepare_inputs(loader.draw(start + done, min(chunk, count - done))) for done in range(0, count, chunk)
    ]
    units = torch.zeros(1, device=args.device)
    for batch in batches:
        units += count_units(labels_of(batch)).to(args.device)
    if args.world_size > 1:
        units = trainer.accelerator.reduce(units, reduction="sum")
    units = units.clamp(min=1.0)
    total: list[Tensor | None] = [None] * len(parameters)
    training = bare.training
    bare.train(dropout)
    try:
        with generators(args.device, derive_seed(args.seed, "query", number, args.process_index)):
            for batch in batches:
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(bare, batch, num_items_in_batch=units)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                total = [_add(one, two) for one, two in zip(total, found, strict=True)]
    finally:
        bare.train(training)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(total, parameters, strict=True)]


def _add(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    if one is None or two is None:
        return two if one is None else one
    return one.add_(two)
