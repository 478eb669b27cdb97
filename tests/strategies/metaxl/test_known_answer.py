"""A task whose answer is known: the source's labels are a permutation of the target's over the same inputs.

With both losses of equal weight the best a model without RTN can do is to spread its probability evenly over a target
example's own class and the permuted one: a target loss of ln 2 at best. A transformation that moves each class to the
next one's place makes source and target agree, and the loss can go to 0.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_xlt.randomness import keyed_generator
from hf_xlt.strategies.metaxl.meta_step import MetaStep, MetaWindow
from hf_xlt.strategies.metaxl.passes import Passes
from hf_xlt.strategies.metaxl.placement import Injection
from hf_xlt.strategies.metaxl.rtn import RepresentationTransformation
from hf_xlt.strategies.metaxl.rtn_optimizer import RTNOptimizer

CLASSES, WIDTH, RATE, UPDATES = 3, 6, 0.5, 200
FLOOR = math.log(2)


class Tagger(nn.Module):
    """Inputs are the hidden states themselves; the head alone is trained."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(num_labels=CLASSES, problem_type=None)
        self.body, self.head = nn.Identity(), nn.Linear(WIDTH, CLASSES)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, states):
        return {"logits": self.head(self.body(states))}


def batch(count, generator, shift=0, shuffled=False):
    """Examples of `count` tokens whose hidden state lies near their class's place; labels shifted or at random."""
    classes = torch.randint(0, CLASSES, (count, 1), generator=generator)
    states = nn.functional.one_hot(classes, WIDTH) + 0.1 * torch.randn(count, 1, WIDTH, generator=generator)
    labels = (classes + shift) % CLASSES
    if shuffled:
        labels = torch.randint(0, CLASSES, (count, 1), generator=generator)
    return {"states": states.float(), "labels": labels}


def train(*, meta, sign=1, shuffled=False, hypergrad="exact"):
    """Train head and RTN; return the loss on target examples not seen before."""
    generator = torch.Generator().manual_seed(0)
    model = Tagger()
    rtn = RepresentationTransformation(WIDTH, 1, bottleneck=16, generator=keyed_generator(0))
    passes = Passes(model, Injection(model, rtn, ["body"]) if meta else None)
    step = MetaStep(passes, hypergrad, fd_scale=1e-3)
    optimizer = RTNOptimizer(rtn, rate=0.02, weight_decay=0.0, warmup_ratio=0.0, max_grad_norm=0.0)
    for update in range(UPDATES):
        source = batch(20, generator, shift=1)
        train_part, meta_part = (batch(10, generator, shuffled=shuffled) for _ in range(2))
        if meta:
            window = MetaWindow([source], [train_part], [meta_part], (20.0, 10.0, 10.0))
            found = step.run(window, RATE)
            optimizer.step([sign * RATE * value for value in found.phi], update, 10 * UPDATES)
        loss = passes.source(source, 20.0) + passes.target(train_part, 10.0)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= RATE * gradient
    fresh = batch(600, torch.Generator().manual_seed(1), shuffled=shuffled)
    with torch.no_grad():
        return passes.target(fresh, 600.0).item()


def test_joint_training_cannot_do_better_than_its_floor():
    assert FLOOR - 0.02 < train(meta=False) < FLOOR + 0.1


@pytest.mark.parametrize("hypergrad", ["exact", "finite_difference"])
def test_meta_training_finds_the_permutation(hypergrad):
    assert train(meta=True, hypergrad=hypergrad) < 0.1


def test_a_gradient_of_the_wrong_sign_does_worse_than_joint_training():
    assert train(meta=True, sign=-1) > FLOOR


def test_random_target_labels_remove_the_gain():
    chance = math.log(CLASSES)
    assert train(meta=True, shuffled=True) > chance - 0.02
    assert train(meta=False, shuffled=True) > chance - 0.02
