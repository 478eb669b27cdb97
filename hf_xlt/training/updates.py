"""How many updates a training makes: counted before it starts, and held against those it made.

The count is that of `transformers.Trainer` and Accelerate, from the number of examples alone, so that a dry run, the
baseline of equal updates, the cost and the training itself cannot disagree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import has_length

from hf_xlt.errors import ConfigError, RunError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import TrainerControl, TrainerState


def count_batches(config: Any, examples: int) -> int:
    """Return the number of micro-batches of one epoch on this process.

    Args:
        config: `per_device_train_batch_size`, `dataloader_drop_last`, `world_size`, `process_index` and
            `accelerator_config` are read.
        examples: number of features to train on, over all processes.
    """
    size, processes, drop_last = config.per_device_train_batch_size, config.world_size, config.dataloader_drop_last
    batches = examples // size if drop_last else -(-examples // size)
    division = getattr(config, "accelerator_config", None)
    if processes == 1 or getattr(division, "split_batches", False):
        return batches
    whole, left = divmod(batches, processes)
    if not left or drop_last:
        return whole
    evened = getattr(division, "even_batches", True)
    return whole + (1 if evened else int(config.process_index < left))


def count_updates(config: Any, examples: int, max_steps: int | None = None) -> int:
    """Return the number of updates that training on so many features takes, as the Trainer counts them.

    Args:
        config: as for `count_batches`, and `max_steps`, `num_train_epochs`, `gradient_accumulation_steps`.
        examples: as for `count_batches`.
        max_steps: in place of the config's.

    Returns:
        0 where an epoch has no batch, whatever number was asked for.
    """
    batches, steps = count_batches(config, examples), config.max_steps if max_steps is None else max_steps
    if batches == 0:
        return 0
    if steps > 0:
        return steps
    per_epoch = -(-batches // config.gradient_accumulation_steps)
    return -int(-(config.num_train_epochs * per_epoch) // 1)


def no_batch(config: Any, examples: int | None, what: str = "training") -> ConfigError:
    """Return the error of a training whose epochs have no batch.

    Args:
        config: of the training.
        examples: what there is to train on; None where that is not known.
        what: the training, for the message.
    """
    size, processes = config.per_device_train_batch_size, config.world_size
    there = "its data have no length" if examples is None else f"there are {examples:,} examples"
    if not config.dataloader_drop_last or examples == 0:
        return ConfigError(f"{what} would make no update: {there}. Give it examples to train on.")
    of_all = f" on each of {processes} processes" if processes > 1 else ""
    return ConfigError(
        f"{what} would make no update: {there}, and `dataloader_drop_last` leaves out the batch of "
        f"{size}{of_all} that they do not fill. Lower `per_device_train_batch_size`, or leave `dataloader_drop_last` "
        "off."
    )


def check_data(config: Any, dataset: Any) -> None:
    """Refuse data without an example, of which no loader can be made.

    Raises:
        ConfigError: they are known to have none.
    """
    if dataset is not None and has_length(dataset) and len(dataset) == 0:
        raise no_batch(config, 0)


def check_loader(config: Any, loader: DataLoader, dataset: Any) -> None:
    """Refuse a loader without a batch, before anything is trained.

    Raises:
        ConfigError: it is known to have none.
    """
    if has_length(loader) and len(loader) == 0:
        raise no_batch(config, len(dataset) if dataset is not None and has_length(dataset) else None)


def check_made(state: TrainerState, control: TrainerControl, ran_dry: bool) -> str | None:
    """Hold the updates made against those asked for.

    Args:
        state: after training.
        control: after training.
        ran_dry: whether an epoch passed without an update.

    Returns:
        A sentence about a training that a callback ended before all were made, else None.

    Raises:
        RunError: fewer were made, and nothing asked for that.
    """
    made, asked = state.global_step, state.max_steps
    if made >= asked:
        return None
    if control.should_training_stop and not ran_dry:
        return f"Training was stopped after update {made} of {asked} by a callback (early stopping, for example)."
    raise RunError(
        f"only {made} of {asked} updates were made: the training data gave fewer batches than their length, or "
        "`max_steps`, promised. The weights are those of an unfinished training; look at what the data set yields."
    )
