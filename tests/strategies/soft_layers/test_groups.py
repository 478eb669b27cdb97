"""Layer groups over model families: exhaustive, disjoint, as deep as the model."""

import pytest
import torch
from tiny import make_model
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    T5Config,
    XLMConfig,
    XLMRobertaConfig,
)

from hf_xlt.adapters import wrap
from hf_xlt.errors import ConfigError
from hf_xlt.peft_arguments import PeftArguments
from hf_xlt.strategies.soft_layers.groups import find_groups, layer_number
from hf_xlt.tasks import get_task

SMALL = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CONFIGS = {
    "bert": (BertConfig(**SMALL), {"word_embeddings", "embeddings", "pooler", "head"}),
    "xlm-r": (XLMRobertaConfig(**SMALL), {"word_embeddings", "embeddings", "head"}),
    "electra": (ElectraConfig(**SMALL, embedding_size=8), {"word_embeddings", "embeddings", "head"}),
    "distilbert": (
        DistilBertConfig(vocab_size=20, dim=16, n_layers=3, n_heads=2, hidden_dim=24, max_position_embeddings=20),
        {"word_embeddings", "embeddings", "head"},
    ),
    "deberta": (
        DebertaConfig(**SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"]),
        {"word_embeddings", "embeddings", "encoder_shared", "head"},
    ),
    "deberta-v2": (
        DebertaV2Config(
            **SMALL,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            conv_kernel_size=3,
            norm_rel_ebd="layer_norm",
            position_buckets=4,
        ),
        {"word_embeddings", "embeddings", "encoder_shared", "head"},
    ),
    "modernbert": (ModernBertConfig(**SMALL, **TOKENS), {"word_embeddings", "embeddings", "encoder_shared", "head"}),
    "xlm": (
        XLMConfig(vocab_size=20, emb_dim=16, n_layers=3, n_heads=2, max_position_embeddings=20, pad_index=0),
        None,
    ),
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_every_family_is_partitioned(family, kind):
    config, beside = CONFIGS[family]
    model = kind.from_config(config)
    groups = find_groups(model)
    named = [name for names in groups.members.values() for name in names]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    layers = [group for group in groups.names if layer_number(group) is not None]
    assert layers == [f"layer_{index}" for index in range(3)]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert all(groups.sizes[group] == sum(sizes[name] for name in names) for group, names in groups.members.items())
    # The word embeddings are the largest table over the vocabulary, alone in their group.
    (words,) = groups.members["word_embeddings"]
    assert dict(model.named_parameters())[words] is model.get_input_embeddings().weight
    if beside is not None:
        expected = beside - ({"pooler"} if kind is AutoModelForTokenClassification else set())
        assert set(groups.names) - set(layers) == expected


def test_layers_hold_what_they_hold():
    groups = find_groups(AutoModelForSequenceClassification.from_config(CONFIGS["bert"][0]))
    assert groups.names == ("word_embeddings", "embeddings", "layer_0", "layer_1", "layer_2", "pooler", "head")
    for index in range(3):
        assert all(f"encoder.layer.{index}." in name for name in groups.members[f"layer_{index}"])
        assert len(groups.members[f"layer_{index}"]) == 16
    assert groups.members["head"] == ("classifier.bias", "classifier.weight")


def test_weights_shared_over_depth_are_one_group_and_two_stacks_do_not_collide():
    shared = find_groups(AutoModel.from_config(AlbertConfig(**SMALL, embedding_size=8)))
    assert [group for group in shared.names if layer_number(group) is not None] == []
    two = find_groups(
        AutoModel.from_config(T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2))
    )
    layers = [group for group in two.names if layer_number(group) is not None]
    assert layers == ["encoder_layer_0", "encoder_layer_1", "decoder_layer_0", "decoder_layer_1"]


def test_the_order_of_registration_changes_nothing():
    class Turned(nn.Module):
        def __init__(self, model):
            super().__init__()
            for name, child in reversed(list(model.named_children())):
                setattr(self, name, child)
            self.config, self.base_model_prefix = model.config, model.base_model_prefix
            self.get_input_embeddings = model.get_input_embeddings

    model = AutoModelForSequenceClassification.from_config(CONFIGS["xlm-r"][0])
    assert find_groups(model) == find_groups(Turned(model))


def test_frozen_tensors_are_in_no_group_and_tied_ones_count_once():
    model = AutoModelForSequenceClassification.from_config(CONFIGS["bert"][0])
    for parameter in model.bert.encoder.layer[1].parameters():
        parameter.requires_grad_(False)
    assert "layer_1" not in find_groups(model).names
    model.classifier.weight = nn.Parameter(torch.zeros(2, 16))
    model.tied = nn.Linear(16, 2)
    model.tied.weight = model.classifier.weight
    names = [name for names in find_groups(model).members.values() for name in names]
    assert names.count("classifier.weight") == 1 and "tied.weight" not in names
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="no weight of the model is trained"):
        find_groups(model)


def test_adapters_are_in_their_layers_and_the_trained_head_is_the_head():
    arguments = PeftArguments(peft="lora", lora_rank=2, lora_alpha=4, lora_dropout=0.0)
    model = wrap(make_model(), arguments, get_task("text-classification"), seed=0)
    groups = find_groups(model)
    layers = [group for group in groups.names if layer_number(group) is not None]
    assert layers == ["layer_0", "layer_1"] and "head" in groups.names
    assert all("lora_" in name and ".layer.0." in name for name in groups.members["layer_0"])
    assert any("modules_to_save" in name for name in groups.members["head"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for names in groups.members.values() for name in names} == trained


def test_finer_coarser_and_own_groups():
    model = AutoModelForSequenceClassification.from_config(CONFIGS["bert"][0])
    sublayers = find_groups(model, granularity="sublayer").names
    assert sublayers[2:4] == ("layer_0.attention", "layer_0.feed_forward")
    assert find_groups(model, granularity="uniform").names == ("all", "head")
    tensors = find_groups(model, granularity="tensor")
    assert len(tensors.names) == len(list(model.named_parameters())) - 1
    assert "word_embeddings" not in find_groups(model, separate_word_embeddings=False).names
    own = find_groups(model, patterns={r"layer\.[01]\.": "bottom", r"layer\.2\.": "top"})
    assert set(own.names) == {"word_embeddings", "embeddings", "bottom", "top", "pooler", "head"}
    called = find_groups(model, group_of=lambda name: "norms" if "LayerNorm" in name else None)
    assert len(called.members["norms"]) == 14
    with pytest.raises(ConfigError, match="no regular expression"):
        find_groups(model, patterns={"(": "x"})
