"""`--embedding-rows seen`: training holds only the rows of word embeddings whose tokens occur in its data.

What may be combined with it, which tokens occur, and what it saves. The cut itself is `hf_xlt.modelling.seen_rows`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.trainer_utils import has_length

from hf_xlt.errors import ConfigError, RunError, setting
from hf_xlt.launch import divides_weights
from hf_xlt.modelling.seen_rows import SeenRows, embedding_to_cut

if TYPE_CHECKING:
    from torch import nn

    from hf_xlt.training.trainer import XLTTrainer

ALL, SEEN = "all", "seen"
# Optimizers that treat every number apart from all others, and hold so many numbers beside each.
ELEMENTWISE = {
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "adamw_torch_xla": 2,
    "adamw_torch_npu_fused": 2,
    "adamw_apex_fused": 2,
    "sgd": 0,
}
# From this size on most rows of a vocabulary are idle in any one training.
LARGE = 100_000
_BATCH = 4096


# ---- Refusals


def optimizer_problem(name: Any, field: str = "optim") -> str | None:
    """Say why an optimizer is not for rows alone; None where it is.

    Args:
        name: of an optimizer, as `optim` takes it.
        field: the setting that names it.
    """
    name = str(getattr(name, "value", name))
    if name in ELEMENTWISE:
        return None
    return (
        f"`embedding_rows` seen needs an optimizer that is known to treat each number apart from all others, and "
        f"`{field}` is {name}; choose one of {', '.join(ELEMENTWISE)}, or leave it at all"
    )


def settings_problem(config: Any) -> str | None:
    """Say which settings of a config keep it from training on rows alone; None where none does."""
    if config.embedding_rows not in (ALL, SEEN):
        return f"`embedding_rows` is {config.embedding_rows!r}; choose one of {ALL}, {SEEN}"
    if config.embedding_rows == ALL:
        return None
    if divides_weights(config):
        return "`embedding_rows` seen does not go with FSDP or DeepSpeed, which divide the weights; leave it at all"
    if config.torch_compile:
        return "`embedding_rows` seen does not go with `torch_compile`, which it was never tried with; leave it at all"
    return optimizer_problem(config.optim)


def check_trainer(trainer: XLTTrainer) -> None:
    """Refuse what is known of a trainer and keeps it from training on rows alone.

    Raises:
        ConfigError: its model, its optimizer or its data do.
    """
    if trainer.args.embedding_rows != SEEN:
        return
    if trainer.optimizer is not None or trainer.optimizer_cls_and_kwargs is not None:
        raise ConfigError(
            "`embedding_rows` seen does not go with an optimizer that is given: it may not treat each number apart "
            "from all others. Name one by `optim`, or leave it at all."
        )
    if trainer.model_init is not None:
        raise ConfigError(
            "`embedding_rows` seen does not go with `model_init`, which makes another model once training has begun. "
            "Give the model itself, or leave it at all."
        )
    embedding_to_cut(trainer.model)
    for dataset in datasets_of(trainer):
        check_dataset(dataset)


def check_dataset(dataset: Any) -> None:
    """Refuse data whose tokens are not known before training.

    Raises:
        ConfigError: they are read once, or change from epoch to epoch.
    """
    if not (has_length(dataset) and hasattr(dataset, "__getitem__")):
        raise ConfigError(
            "`embedding_rows` seen does not go with iterable data sets, whose tokens are not known before. Give data "
            "sets with a length, or leave it at all."
        )
    if hasattr(dataset, "set_epoch"):
        raise ConfigError(
            "`embedding_rows` seen does not go with data that change from epoch to epoch (`augmentation` online): "
            "their tokens are not known before. Choose offline augmentation, or leave it at all."
        )


# ---- Which tokens occur


def datasets_of(trainer: XLTTrainer) -> list[Any]:
    """Return all data that a trainer draws from before its training ends."""
    return flat(trainer.train_dataset, trainer.eval_dataset, trainer.joint_datasets, trainer.role_datasets)


def flat(*datasets: Any) -> list[Any]:
    """Return data sets, and those in nested mappings of such; None is none."""
    found = []
    for dataset in datasets:
        if isinstance(dataset, Mapping):
            found += flat(*dataset.values())
        elif dataset is not None:
            found.append(dataset)
    return found


def seen_ids(datasets: Iterable[Any], rows: int, specials: Iterable[int] = ()) -> torch.Tensor:
    """Return the token ids that occur.

    Args:
        datasets: each with a length; examples have `input_ids`.
        rows: V, rows of the embedding matrix.
        specials: ids that count as well; those outside the matrix do not.

    Returns:
        int64 (R,), in increasing order.

    Raises:
        ConfigError: an example has no `input_ids`, or one outside the matrix.
    """
    seen = np.zeros(rows, dtype=bool)
    for dataset in datasets:
        check_dataset(dataset)
        for ids in _batches_of_ids(dataset):
            if len(ids) and not (0 <= ids.min() and ids.max() < rows):
                raise ConfigError(
                    f"the data hold token id {ids.max()}, and the model has {rows:,} rows of embeddings."
                )
            seen[ids] = True
    seen[[token for token in specials if 0 <= token < rows]] = True
    return torch.from_numpy(np.flatnonzero(seen))


def _batches_of_ids(dataset: Any) -> Iterator[np.ndarray]:
    """Yield the token ids of some examples after the other, flat."""
    from datasets import Dataset

    if isinstance(dataset, Dataset) and dataset.format["type"] != "custom":
        if "input_ids" not in dataset.column_names:
            raise _without_ids()
        for batch in dataset.select_columns(["input_ids"]).with_format("arrow").iter(_BATCH):
            column = batch["input_ids"].combine_chunks()
            yield column.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        return
    for start in range(0, len(dataset), _BATCH):
        found = []
        for number in range(start, min(start + _BATCH, len(dataset))):
            example = dataset[number]
            if not isinstance(example, Mapping) or "input_ids" not in example:
                raise _without_ids()
            found.append(np.asarray(example["input_ids"], dtype=np.int64).reshape(-1))
        yield np.concatenate(found)


def _without_ids() -> ConfigError:
    return ConfigError(
        "`embedding_rows` seen goes by `input_ids`, and an example of the data has none. Encode the data before, or "
        "leave it at all."
    )


def special_ids(tokenizer: Any, config: Any) -> set[int]:
    """Return the ids that tokenizer and model may put in by themselves: special tokens, padding, starts and ends."""
    found = set(getattr(tokenizer, "all_special_ids", None) or ())
    # Batches are padded by it where nothing says what padding is.
    found |= {0} if getattr(tokenizer, "pad_token_id", None) is None else set()
    configs = [config, *(vars(config).get(name) for name in ("text_config", "encoder", "decoder"))] if config else []
    for part in configs:
        values = part if isinstance(part, Mapping) else vars(part) if part is not None else {}
        for name, value in values.items():
            if name.endswith(("_token_id", "_token_ids")):
                found |= {each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)}
    return found


# ---- The cut


@contextlib.contextmanager
def cut_for_training(trainer: XLTTrainer) -> Iterator[SeenRows | None]:
    """Hold only the rows that a training needs inside the block, if it is asked to.

    Args:
        trainer: before its optimizer has a state, or with one of the same rows.

    Yields:
        What holds the rows; None where all are held.

    Raises:
        ConfigError: the data have no token ids, or others than a training before.
    """
    if trainer.args.embedding_rows != SEEN:
        yield None
        return
    model = trainer.bare_model()
    module = embedding_to_cut(model)
    specials = special_ids(trainer.processing_class, getattr(model, "config", None))
    specials |= {module.padding_idx} if module.padding_idx is not None else set()
    ids = seen_ids(datasets_of(trainer), len(module.weight), specials)
    _check_same_state(trainer, module.weight, ids)
    rows = SeenRows(model, ids, Path(trainer.args.output_dir))
    try:
        yield rows
    finally:
        for callback in trainer.callback_handler.callbacks:
            if hasattr(callback, "widen"):
                callback.widen(rows)
        rows.put_back()


def _check_same_state(trainer: XLTTrainer, weight: torch.Tensor, ids: torch.Tensor) -> None:
    state = trainer.optimizer.state.get(weight, {}) if trainer.optimizer is not None else {}
    if any(
        isinstance(value, torch.Tensor) and value.dim() == 2 and len(value) != len(ids) + 1 for value in state.values()
    ):
        raise ConfigError(
            "the optimizer has a state of the training before, whose data had other tokens. Make a new trainer, or "
            "set its `optimizer` to None."
        )


def check_same_setting(held: bool, rows: SeenRows | None) -> None:
    """Refuse to go on from a checkpoint of the other setting, whose optimizer has other rows.

    Args:
        held: whether the checkpoint is of a training on rows alone.
        rows: what holds the rows now.

    Raises:
        RunError: it is of the other.
    """
    if held != (rows is not None):
        raise RunError(
            f"the checkpoint was trained with `embedding_rows` {SEEN if held else ALL}, and its optimizer fits no "
            "other. Resume with that, or start anew."
        )


# ---- What it saves


@dataclass(frozen=True)
class Saving:
    """What training on rows alone saves.

    Attributes:
        seen: R, rows whose tokens occur.
        rows: V, rows of the matrix.
        width: D.
        copies: numbers held per weight: itself, its gradient, and what the optimizer and an average keep.
    """

    seen: int
    rows: int
    width: int
    copies: int

    @property
    def bytes(self) -> int:
        """Memory, in bytes, of weights in float32."""
        return max(self.rows - self.seen - 1, 0) * self.width * self.copies * 4

    def describe(self, trained: str) -> str:
        """Say it in a sentence.

        Args:
            trained: `all` or `seen`, which the training has.
        """
        found = f"{self.seen:,} of {self.rows:,} rows of word embeddings occur in the data"
        size = f"{self.bytes / 1e9:.2f} GB"
        if trained == SEEN:
            return f"{found}; training on these alone saves about {size} of memory."
        way = setting("embedding_rows", SEEN)
        return f"{found}; {way} trains these alone, to the same result, and saves about {size}."


def saving_for(model: nn.Module, config: Any, tokenizer: Any, datasets: Sequence[Any], averages: bool) -> Saving:
    """Count what training on rows alone would save.

    Args:
        model: to train; its weights are not read.
        config: of the training.
        tokenizer: its tokenizer.
        datasets: all that is trained and selected on.
        averages: whether a mean of the weights is kept as well.

    Raises:
        ConfigError: the model or the data do not go with it.
    """
    module = embedding_to_cut(model)
    rows, width = module.weight.shape
    seen = len(seen_ids(datasets, rows, special_ids(tokenizer, model.config)))
    copies = 2 + ELEMENTWISE[str(getattr(config.optim, "value", config.optim))] + int(averages)
    return Saving(seen, rows, width, copies)


def saving_of_run(model: nn.Module, context: Any, averages: bool) -> Saving | None:
    """Return what training on rows alone saves in a run; None where it is not asked for, and refused or of no use.

    Args:
        model: to train; its weights are not read.
        context: of the run (`RunContext`).
        averages: as for `saving_for`.

    Raises:
        ConfigError: it is asked for, and the model or the data do not go with it.
    """
    config = copy.copy(context.config)
    asked, config.embedding_rows = config.embedding_rows == SEEN, SEEN
    datasets = flat(context.training, context.validation, context.joint, context.roles)
    try:
        problem = settings_problem(config)
        if problem:
            raise ConfigError(f"{problem}.")
        context.strategy.check(config, context.task.name)
        if not asked and len(embedding_to_cut(model).weight) < LARGE:
            return None
        return saving_for(model, config, context.tokenizer, datasets, averages)
    except ConfigError:
        if asked:
            raise
        return None
