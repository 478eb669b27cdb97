"""Where methods act on layouts other than BERT's: final norms, nested configs; and what they draw."""

import ast
import json
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny import make_model, make_rows, make_tokenizer, same_weights
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    EsmConfig,
    EsmForSequenceClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
    Gemma3Config,
    Gemma3TextConfig,
    PhiConfig,
    PhiForSequenceClassification,
    T5Config,
    T5ForQuestionAnswering,
    T5Model,
)

import hf_xlt
from hf_xlt.averaging.compatibility import check_configs
from hf_xlt.averaging.heads import head_parameters, read_head
from hf_xlt.embedded.phrases import LABELS
from hf_xlt.embedded.probe import BATCH_SIZE, finetune
from hf_xlt.errors import ConfigError
from hf_xlt.randomness import generators
from hf_xlt.strategies.metaxl.placement import find_module
from hf_xlt.strategies.metaxl.rtn_optimizer import RTNOptimizer
from hf_xlt.strategies.robust.certificate import probability_lower_bound
from hf_xlt.strategies.soft_layers import SoftLayerSelectionConfig
from hf_xlt.strategies.soft_layers.groups import find_groups
from hf_xlt.strategies.soft_layers.setup import GateSetup

SEEDERS = ("torch.manual_seed", "torch.seed", "np.random.seed", "numpy.random.seed", "random.seed")
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


def _seeds_all(call):
    """Say whether a call seeds a global generator: of torch, of NumPy or of the standard library."""
    name = ast.unparse(call.func)
    device = name.startswith("torch.") and name.endswith((".manual_seed", ".manual_seed_all"))
    return name in SEEDERS or (device and ".Generator(" not in name)


def test_no_file_but_that_of_the_guard_seeds_a_global_generator():
    package = Path(hf_xlt.__file__).parent
    seeding = {
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if path.name != "randomness.py" and isinstance(node, ast.Call) and _seeds_all(node)
    }
    assert not seeding
    assert all(_seeds_all(ast.parse(f"{name}(0)").body[0].value) for name in (*SEEDERS, "torch.cuda.manual_seed_all"))
    assert not _seeds_all(ast.parse("torch.Generator().manual_seed(0)").body[0].value)


def test_the_bare_loop_draws_as_it_always_did_and_leaves_no_trace():
    rows = make_rows("en", BATCH_SIZE, 0)
    trained = [make_model(hidden_dropout_prob=0.5, num_labels=len(LABELS)) for _ in range(2)]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    finetune(trained[0], make_tokenizer(), rows, steps=2, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        # The global generator seeded, as the recorded figures were made.
        patch.setattr("hf_xlt.embedded.probe.generators", lambda device, seed: nullcontext())
        torch.manual_seed(3)
        finetune(trained[1], make_tokenizer(), rows, steps=2, seed=3)
    assert same_weights(*trained)


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


def test_layers_that_cannot_be_told_are_refused_with_the_way_out(tmp_path):
    albert = AlbertForSequenceClassification(AlbertConfig(**SIZES, embedding_size=8))
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": []}
    with pytest.raises(ConfigError, match="no layers are found in `AlbertForSequenceClassification`") as caught:
        GateSetup.make(albert, SoftLayerSelectionConfig(**settings), None, None)
    assert "`granularity` to `tensor`" in str(caught.value) and "\n" not in str(caught.value)
    whole = SoftLayerSelectionConfig(**settings, granularity="uniform")
    assert GateSetup.make(albert, whole, None, None).gated == ("all",)
    own = SoftLayerSelectionConfig(**settings, layer_groups='{"attention": "attention"}')
    assert "attention" in GateSetup.make(albert, own, None, None).gated


def test_a_list_of_lists_is_no_list_of_layers():
    config = FunnelConfig(vocab_size=40, d_model=16, n_head=2, d_head=8, d_inner=16, block_sizes=[1, 1])
    with pytest.raises(ConfigError, match="has 0 module lists of length 2"):
        find_module(FunnelForSequenceClassification(config), -1)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5])
def test_the_rate_of_the_transformation_rises_and_falls_as_it_always_did(ratio):
    optimizer = RTNOptimizer(nn.Linear(2, 2), rate=3e-4, weight_decay=0.0, warmup_ratio=ratio, max_grad_norm=0.0)
    rise = math.ceil(25 * ratio)
    for update in range(27):
        share = update / max(1, rise) if update < rise else max(0.0, (25 - update) / (25 - rise))
        assert optimizer.rate_at(update, 25) == pytest.approx(3e-4 * share, rel=1e-12)
    assert optimizer.optimizer.param_groups[0]["lr"] == 3e-4


def test_the_head_is_found_where_a_model_holds_the_parts_of_its_body(tmp_path):
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    model = T5ForQuestionAnswering(config)
    assert set(head_parameters(model)) == {"qa_outputs.weight", "qa_outputs.bias"}
    model.save_pretrained(tmp_path / "task")
    assert set(read_head(tmp_path / "task").tensors) == set(head_parameters(model))
    bare = T5Model(config)
    assert head_parameters(bare) == {}
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="bare encoder"):
        read_head(tmp_path / "bare")


def test_configs_are_compared_down_to_the_text_model(tmp_path):
    for name, depth in (("one", 2), ("other", 3)):
        text = {"num_hidden_layers": depth, "hidden_size": 16}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    with pytest.raises(ConfigError, match="`num_hidden_layers` is 2 in .* and 3 in"):
        check_configs([tmp_path / "one", tmp_path / "other"], True, [])
