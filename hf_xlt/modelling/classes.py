"""The head that a base model brings along: which classes it was trained for, and in which order.

A head fits by its size alone, so transformers keeps one that was trained for the same number of classes, whichever
they are. Classes of the same names are brought into the run's order; of other names the user is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_xlt.data.labels import LabelInventory, plain
from hf_xlt.data.model_labels import GENERIC
from hf_xlt.errors import ConfigError, few, setting
from hf_xlt.modelling.reloading import body_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def named_classes(config: Any) -> tuple[str, ...]:
    """Return the classes that a model's head was trained for, in index order; none where they have no names."""
    names = tuple(str(config.id2label[index]) for index in sorted(config.id2label or {}))
    return () if all(map(GENERIC.fullmatch, names)) else names


def class_order(classes: tuple[str, ...], inventory: LabelInventory | None) -> list[int] | None:
    """Return for each class of a run its index in a head; None where there is nothing to put in order.

    Args:
        classes: of the head, as `named_classes` gives them.
        inventory: the run's classes.
    """
    if inventory is None or classes == inventory.names:
        return None
    known = {plain(name): index for index, name in enumerate(classes)}
    wanted = [plain(name) for name in inventory.names]
    if len(known) != len(classes) or len(set(wanted)) != len(wanted) or set(known) != set(wanted):
        return None
    order = [known[name] for name in wanted]
    return order if order != sorted(order) else None


def order_head(model: PreTrainedModel, order: list[int], new: set[str]) -> None:
    """Put the rows of a head's last layer into the order of a run's classes.

    Args:
        model: with the head of its files.
        order: of each class of the run, its index in the head.
        new: names of weights that were not in the files, or of another size.

    Raises:
        ConfigError: the head has no single layer that gives the classes.
    """
    import torch

    inside = {id(module) for module in body_of(model).modules()}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == len(order) and id(module) not in inside
    }
    if any(f"{name}.weight" in new for name in layers):
        return
    if len(layers) != 1:
        raise ConfigError(
            "the model was trained for the same classes in another order, and its head has no single layer in which "
            f"they could be put into this one. Name them in the model's order with {setting('labels')}."
        )
    with torch.no_grad():
        for parameter in next(iter(layers.values())).parameters():
            parameter.copy_(parameter[order])


def describe_head(config: Any, inventory: LabelInventory | None) -> list[str]:
    """Say what becomes of a head that a base model was trained with, where its classes have names.

    Args:
        config: of the base model.
        inventory: the run's classes.

    Returns:
        Notes for the user; none where the head is new or its classes are the run's, in their order.
    """
    classes = named_classes(config)
    heads = any(
        "ForSequenceClassification" in name or "ForTokenClassification" in name for name in config.architectures or ()
    )
    if inventory is None or not classes or not heads or len(classes) != len(inventory):
        return []
    if class_order(classes, inventory):
        return [
            f"the model's head has these classes in another order ({few(classes)}); it is brought into that of the "
            "run."
        ]
    if set(map(plain, classes)) != set(map(plain, inventory.names)):
        return [
            f"the model's head was trained for as many other classes ({few(classes)}); training goes on from its "
            f"weights for {few(inventory.names)}."
        ]
    return []
