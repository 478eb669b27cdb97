"""Tiny models of every encoder family, batches, and the meta loss written out from the definition."""

from __future__ import annotations

import copy

import torch
import transformers
from tiny import make_config
from torch import Tensor, nn
from transformers import set_seed

from hf_xlt.randomness import keyed_generator
from hf_xlt.strategies.metaxl.meta_step import MetaStep, MetaWindow
from hf_xlt.strategies.metaxl.passes import Passes
from hf_xlt.strategies.metaxl.placement import Injection
from hf_xlt.strategies.metaxl.rtn import RepresentationTransformation
from hf_xlt.training.losses import count_units, labels_of

VOCABULARY, CLASSES = 65, 3
_SIZE = {"vocab_size": VOCABULARY, "num_labels": CLASSES}
_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
_MODERNBERT = {"global_attn_every_n_layers": 2, "local_attention": 8, "max_position_embeddings": 64, "pad_token_id": 0}


def family_config(family: str, dropout: float = 0.0, **changes):
    """Return a tiny config: three layers of width 32."""
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
    off = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if family == "distilbert":
        shape = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 40, "max_position_embeddings": 40}
        off = {"dropout": dropout, "attention_dropout": dropout, "seq_classif_dropout": dropout}
        return transformers.DistilBertConfig(**{**_SIZE, **shape, **off, **changes})
    if family == "modernbert":
        off = {"embedding_dropout": dropout, "mlp_dropout": dropout, "classifier_dropout": dropout}
        return transformers.ModernBertConfig(**{**_SIZE, **shape, **_MODERNBERT, **off, **changes})
    if family == "deberta-v2":
        return transformers.DebertaV2Config(**{**_SIZE, **shape, **_DEBERTA, **off, **changes})
    if family == "xlm-roberta":
        more = {"max_position_embeddings": 44, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        return transformers.XLMRobertaConfig(**{**_SIZE, **shape, **more, **off, **changes})
    return make_config(**{"num_hidden_layers": 3, **off, **changes})


def make(family="bert", *, head="token", dropout=0.0, dtype=torch.float64, seed=0, spread=0.2, **changes):
    """Return a tiny model with random weights large enough for second derivatives to matter."""
    set_seed(seed)
    kind = {"token": "TokenClassification", "sentence": "SequenceClassification"}[head]
    config = family_config(family, dropout, initializer_range=spread, **changes)
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config).to(dtype)
    return model.train()


def make_batch(rows: int, seed: int, *, head: str = "token", length: int = 7, pad: int = 0, low: int = 5):
    """Return a padded batch; token labels have ignored places."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, length + 1, (rows,), generator=generator)
    lengths[0] = length
    mask = torch.arange(length) < lengths[:, None]
    ids = torch.randint(low, VOCABULARY, (rows, length), generator=generator).where(mask, torch.tensor(pad))
    labels = torch.randint(0, CLASSES, (rows, length) if head == "token" else (rows,), generator=generator)
    if head == "token":
        labels = labels.where(mask & (torch.arange(length) > 0), torch.tensor(-100))
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def make_rtn(model, places=(-1,), *, activation="gelu", seed=0, **settings):
    """Return an RTN for a model, in its dtype, with weights that are not small."""
    rtn = RepresentationTransformation(
        32, len(places), bottleneck=8, activation=activation, generator=keyed_generator("test", seed), **settings
    )
    return rtn.to(next(model.parameters()).dtype)


def make_step(model, rtn, places=(-1,), *, detach=True, hypergrad="exact", **settings):
    """Return a meta step."""
    return MetaStep(Passes(model, Injection(model, rtn, list(places), detach)), hypergrad, **settings)


def make_window(head="token", *, micro_batches=1, seed=1, pad=0, rows=4):
    """Return S, G and E with units counted over all micro-batches."""
    groups = [
        [make_batch(rows, seed + 100 * kind + number, head=head, pad=pad) for number in range(micro_batches)]
        for kind in range(3)
    ]
    units = tuple(float(sum(count_units(labels_of(batch)) for batch in group)) for group in groups)
    return MetaWindow(*groups, units)


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    # Some heads compute their own loss in float32.
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return nn.functional.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten())


def reference_inner_gradient(model, rtn, module, window, *, detach, pinned=None):
    """Return ∇θ of L_S + L_G over all parameters, from the definition and the model's own loss."""

    def hook(_, args, output):
        states = output if isinstance(output, Tensor) else output[0]
        seen = pinned if pinned is not None else states
        inner = rtn.slots[0]
        raw = inner.up(inner.activation(inner.down(seen)))
        if inner.gate == "tied":
            change = torch.sigmoid(raw[..., -1:]) * raw[..., :-1]
        elif inner.gate == "separate":
            change = torch.sigmoid(inner.gate_up(inner.activation(inner.gate_down(seen)))) * raw
        else:
            change = raw
        if detach:
            # A constant for the encoder, and still a function of the RTN.
            change = _Constant.apply(states, change)
            new = states + change
        else:
            new = states + change
        return new if isinstance(output, Tensor) else (new, *output[1:])

    handle = module.register_forward_hook(hook)
    source = _loss(model, window.sources[0])
    handle.remove()
    total = source + _loss(model, window.trains[0])
    return torch.autograd.grad(total, list(model.parameters()), allow_unused=True)


class _Constant(torch.autograd.Function):
    """Passes a value on without a gradient."""

    @staticmethod
    def forward(ctx, states, change):
        return change.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None, None


def reference_meta_loss(model, rtn, module_path, window, rate, *, detach):
    """Return L_E(θ - η g(φ)) from the definition: a copy of the model really takes the step."""
    moved = copy.deepcopy(model)
    gradients = reference_inner_gradient(model, rtn, model.get_submodule(module_path), window, detach=detach)
    with torch.no_grad():
        for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
            if gradient is not None:
                parameter -= rate * gradient
        return _loss(moved, window.metas[0]).item()


def central_difference(rtn, value, direction, step):
    """Return the slope of `value()` as the RTN moves along a direction (one tensor per parameter), to fourth order."""
    start = [parameter.detach().clone() for parameter in rtn.parameters()]

    def at(distance):
        with torch.no_grad():
            for parameter, origin, change in zip(rtn.parameters(), start, direction, strict=True):
                parameter.copy_(origin + distance * change)
        return value()

    slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    at(0.0)
    return slope


def relative_error(found, expected) -> float:
    """Return the norm of the difference of two lists of tensors over the norm of the second."""
    pairs = [(one, two) for one, two in zip(found, expected, strict=True) if two is not None]
    gap = torch.stack([(one - two).norm() for one, two in pairs]).norm()
    return float(gap / torch.stack([two.norm() for _, two in pairs]).norm())
