"""Few-shot examples: a fixed order of each language's examples, of which a budget takes the first ones.

So larger budgets contain smaller ones, and each budget has about the classes' shares of the whole set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hf_xlt.randomness import keyed_generator, permutation


def shot_order(labels: Sequence[int] | None, count: int, *, seed: int, language: str) -> list[int]:
    """Order a language's examples so that every prefix is stratified.

    Args:
        labels: class of each example; None where examples have no class.
        count: number of examples.
        seed: `shot_seed`.
        language: part of the key, so that languages differ.

    Returns:
        A permutation of `range(count)`, a pure function of the arguments.
    """
    shuffled = permutation(count, "shots", seed, language)
    if labels is None:
        return shuffled
    members = defaultdict(list)
    for index in shuffled:
        members[labels[index]].append(index)
    # The k-th of a class's n members stands at (k + offset) / n of the way; offsets in (0, 1) break ties by chance.
    places = {}
    for label, indices in sorted(members.items()):
        generator = keyed_generator("shots", seed, language, "class", int(label))
        offset = 0.05 + 0.9 * float(_uniform(generator))
        places.update({index: (rank + offset) / len(indices) for rank, index in enumerate(indices)})
    return sorted(shuffled, key=places.__getitem__)


def _uniform(generator: object) -> float:
    import torch

    return torch.rand((), generator=generator).item()
