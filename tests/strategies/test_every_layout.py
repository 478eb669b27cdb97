"""What methods do to the insides of a model is the same on every architecture, or they refuse it."""

import pytest
import torch
from architectures import WHOLE_LIBRARY, make_config
from transformers import AutoModelForSequenceClassification, set_seed

from hf_xlt.errors import ConfigError
from hf_xlt.strategies.metaxl.placement import encoder_of, find_module
from hf_xlt.strategies.robust.embedding_hook import looked_up_states, perturbed_embeddings, word_embedding
from hf_xlt.strategies.robust.vocabulary import mean_embedding_norm
from hf_xlt.strategies.soft_layers.groups import find_groups, layer_number

# Modules that scale what they look up, or give more than it, and models that scale it behind them.
SCALED = (
    "gemma",
    "gemma2",
    "gemma3",
    "biogpt",
    "minicpm3",
    "plbart",
    "bigbird_pegasus",
    "t5gemma2",
    "t5gemma",
    "ctrl",
    "ibert",
)
NORMED = (
    "phi",
    "mpt",
    "persimmon",
    "jamba",
    "esm",
    "ctrl",
    "biogpt",
    "gpt_neox",
    "falcon",
    "stablelm",
    "olmo",
    "zamba",
    "gemma3",
)
NESTED = ("gemma3", "qwen3_5", "modernvbert", "t5gemma", "ultravbert", "llama", "zamba")
# Two stacks, or lists of parts of layers, do not tell which layer is the last; CANINE's head reads what its last
# layer gives for groups of characters, and SqueezeBERT calls its layers by a method that hooks do not see.
NO_LAST_LAYER = set(
    "albert bart bigbird_pegasus canine flaubert funnel mbart mt5 mvp perceiver plbart squeezebert "
    "t5 t5gemma t5gemma2 umt5 xlm".split()
)
NO_EMBEDDING = {"canine", "perceiver"}
NO_LAYERS = {"albert", "perceiver"}
IDS = torch.tensor([[2, 10, 11, 20, 13, 14, 15, 3], [2, 30, 31, 32, 33, 34, 35, 3]])
ARCHITECTURES = WHOLE_LIBRARY["text-classification"]


def make(kind):
    set_seed(0)
    config = make_config(kind)
    config.get_text_config().pad_token_id = 0
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()


def run(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS))


@torch.no_grad()
def relative_length(kind, epsilon):
    """Return how much of the length of what the embedding gives a perturbation is, by token."""
    model = make(kind)
    embedding = word_embedding(model)
    # All rows of one length, that of padding too.
    embedding.weight.copy_(torch.nn.functional.normalize(torch.randn_like(embedding.weight), dim=-1))
    delta = torch.ones(*IDS.shape, embedding.weight.shape[-1])
    delta *= epsilon * mean_embedding_norm(embedding, None) / delta.norm(dim=-1, keepdim=True)
    given, changed = [], []
    handle = embedding.register_forward_hook(lambda *each: given.append(looked_up_states(each[2]).clone()))
    try:
        with perturbed_embeddings(model, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, delta) as inputs:
            last = embedding.register_forward_hook(lambda *each: changed.append(looked_up_states(each[2]).clone()))
            model(**inputs)
            last.remove()
    finally:
        handle.remove()
    read = [(one - two).norm(dim=-1) / one.norm(dim=-1) for one, two in zip(given, changed, strict=True)]
    # Of several look-ups all but the input's are left as they are.
    return max(read, key=torch.Tensor.sum)


def check_radius(kind):
    if kind in NO_EMBEDDING:
        with pytest.raises(ConfigError, match="returns no embedding with a weight"):
            word_embedding(make(kind))
        return
    found = relative_length(kind, 0.25)
    # What fills Longformer's windows is left as it is.
    found = found[found > 0]
    assert found.numel() == IDS.numel()
    torch.testing.assert_close(found, torch.full_like(found, 0.25), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SCALED)
def test_a_relative_radius_is_a_share_of_what_the_module_gives(kind):
    check_radius(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(ARCHITECTURES) - set(SCALED)))
def test_a_relative_radius_is_a_share_of_what_the_module_gives_everywhere(kind):
    check_radius(kind)


def check_last(kind):
    model, states = make(kind), {}
    if kind in NO_LAST_LAYER - {"canine", "squeezebert"}:
        with pytest.raises(ConfigError, match="rtn_modules"):
            find_module(model, -1)
        return
    module = find_module(model, -1)
    module.register_forward_hook(lambda *each: states.update(last=looked_up_states(each[2])))
    encoder_of(model).register_forward_hook(lambda *each: states.update(given=each[2][0]))
    run(model)
    if kind == "squeezebert":
        assert "last" not in states
    elif kind == "canine":
        assert states["last"].shape[1] < states["given"].shape[1]
    else:
        # XLNet's layers have the tokens first; Longformer fills its windows.
        last = states["last"].transpose(0, 1) if kind == "xlnet" else states["last"]
        torch.testing.assert_close(last[:, : IDS.shape[1]], states["given"], rtol=0, atol=0)


@pytest.mark.parametrize("kind", NORMED)
def test_the_last_placement_is_what_the_head_reads(kind):
    check_last(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(ARCHITECTURES) - set(NORMED)))
def test_the_last_placement_is_what_the_head_reads_everywhere(kind):
    check_last(kind)


def check_layers(kind):
    model = make(kind)
    names = [name for name in find_groups(model).names if layer_number(name) is not None]
    if kind in NO_LAYERS:
        assert not names
        return
    text = model.config.get_text_config(decoder=True)
    depth = getattr(text, "num_hidden_layers", None) or len(text.layer_types)
    stacks = {name.rpartition("layer_")[0] for name in names}
    assert len(names) == len(stacks) * depth and stacks <= {"", "encoder_", "decoder_"} | (
        {"text_model_"} if kind == "t5gemma2" else set()
    )
    assert len(stacks) == (2 if model.config.is_encoder_decoder or len(stacks) > 1 else 1)


@pytest.mark.parametrize("kind", NESTED)
def test_each_layer_of_text_has_a_gate_and_no_other_has(kind):
    check_layers(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(ARCHITECTURES) - set(NESTED)))
def test_each_layer_of_text_has_a_gate_and_no_other_has_everywhere(kind):
    check_layers(kind)
