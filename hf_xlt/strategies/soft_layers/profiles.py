"""Gates that need no auxiliary labels: the rivals that learned gates have to beat.

Sources: gradual unfreezing, Howard and Ruder (2018, ULMFiT); layer-wise decay of the learning rate, as in the same
paper and in ELECTRA's code; auto-RGN, Lee et al. (2023, Surgical Fine-Tuning, section 4); freezing the bottom layers,
Wu and Dredze (2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_xlt.modelling.seen_rows import with_whole_norm
from hf_xlt.strategies.soft_layers.groups import EMBEDDINGS, WORD_EMBEDDINGS, layer_number


def depths(names: Sequence[str]) -> list[int]:
    """Return each group's distance from the top: 0 for head and pooler, 1 for the top layer, most for embeddings."""
    numbers = [layer_number(name) for name in names]
    layers = max((number for number in numbers if number is not None), default=-1) + 1
    found = []
    for name, number in zip(names, numbers, strict=True):
        if number is not None:
            found.append(layers - number)
        elif name in (WORD_EMBEDDINGS, EMBEDDINGS):
            found.append(layers + 1)
        else:
            # What all layers share moves with the top one.
            found.append(1 if name == "encoder_shared" else 0)
    return found


def layerwise_decay(names: Sequence[str], decay: float) -> list[float]:
    """Return `decay` to the power of each group's distance from the top."""
    return [decay**depth for depth in depths(names)]


def freeze_bottom(names: Sequence[str], layers: int) -> list[float]:
    """Return 0 for the embeddings and the lowest `layers` layers, 1 for the rest."""
    closed = [
        name in (WORD_EMBEDDINGS, EMBEDDINGS) or (layer_number(name) is not None and layer_number(name) < layers)
        for name in names
    ]
    return [0.0 if shut else 1.0 for shut in closed]


def gradual_unfreezing(names: Sequence[str], progress: float, share: float) -> list[float]:
    """Open one depth after the other, from the top.

    Args:
        names: the groups.
        progress: share of training that is done, in [0, 1].
        share: share of training after which everything is open, in (0, 1].
    """
    distance = depths(names)
    deepest = max(max(distance), 1)
    return [1.0 if depth == 0 or progress >= share * (depth - 1) / deepest else 0.0 for depth in distance]


def auto_rgn(groups: Sequence[Sequence[Tensor]], gradients: Mapping[int, Tensor | None]) -> list[float]:
    """Return each group's gradient norm over its weight norm, divided by the largest of these.

    Args:
        groups: the tensors of each group.
        gradients: gradient by the identity of each tensor; None counts as 0.
    """
    ratios = []
    for members in groups:
        found = [gradients.get(id(member)) for member in members]
        gradient = sum(float(torch.sum(g * g, dtype=torch.float64)) for g in found if g is not None) ** 0.5
        weight = (
            sum(float(torch.sum(with_whole_norm(p, p).detach() ** 2, dtype=torch.float64)) for p in members) ** 0.5
        )
        ratios.append(gradient / weight if weight > 0 else 0.0)
    largest = max(ratios, default=0.0)
    return [ratio / largest if largest > 0 else 1.0 for ratio in ratios]
