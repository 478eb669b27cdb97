"""Where methods act on layouts other than BERT's: final norms, nested configs; and what they draw."""

import pytest
import torch
from torch import nn
from transformers import (
    EsmConfig,
    EsmForSequenceClassification,
    Gemma3Config,
    Gemma3TextConfig,
    PhiConfig,
    PhiForSequenceClassification,
)

from hf_xlt.randomness import generators
from hf_xlt.strategies.metaxl.placement import find_module
from hf_xlt.strategies.robust.certificate import probability_lower_bound
from hf_xlt.strategies.soft_layers.groups import find_groups

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
}


def test_the_last_placement_is_after_a_final_norm_of_any_name():
    phi = PhiForSequenceClassification(PhiConfig(**SIZES))
    assert find_module(phi, -1) is phi.model.final_layernorm
    esm = EsmForSequenceClassification(EsmConfig(**SIZES, position_embedding_type="rotary"))
    assert find_module(esm, -1) is esm.esm.encoder.emb_layer_norm_after


class _Nested(nn.Module):
    base_model_prefix = "model"

    def __init__(self):
        super().__init__()
        self.config = Gemma3Config(text_config=Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=8))
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))


def test_layers_are_found_by_a_nested_text_config():
    assert find_groups(_Nested()).names == ("layer_0", "layer_1")


def test_a_guarded_block_draws_from_its_seed_and_leaves_no_trace():
    device, before = torch.device("cpu"), torch.get_rng_state()
    with generators(device, 3):
        first = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    with generators(device, 3):
        assert torch.equal(torch.rand(2), first)


def test_the_guard_knows_no_device_by_name(monkeypatch):
    class Module:
        state = torch.zeros(1)

        @classmethod
        def get_rng_state(cls, device):
            return cls.state.clone()

        @classmethod
        def set_rng_state(cls, state, device):
            cls.state = state

        @classmethod
        def manual_seed(cls, seed):
            cls.state = torch.tensor([float(seed)])

    monkeypatch.setattr(torch, "get_device_module", lambda device: Module)
    with generators(torch.device("xpu", 0), 5):
        assert Module.state.item() == 5
    assert Module.state.item() == 0


@pytest.mark.parametrize(("successes", "trials"), [(1, 1), (10, 10), (70, 100), (990, 1000)])
def test_the_lower_bound_leaves_alpha_above_it(successes, trials):
    bound = probability_lower_bound(successes, trials, 0.01)
    tail = torch.distributions.Binomial(trials, torch.tensor(bound, dtype=torch.float64))
    counts = torch.arange(successes, trials + 1, dtype=torch.float64)
    assert tail.log_prob(counts).exp().sum().item() == pytest.approx(0.01, rel=1e-6)
