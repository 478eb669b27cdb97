"""Adapters: the exact mean of what they change, in every mode, or a refusal."""

import json

import numpy as np
import pytest
import torch
from averaging_setup import load_average
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import make_model, make_tokenizer
from transformers import BertForSequenceClassification

from hf_xlt.averaging import average_checkpoints, extract_head
from hf_xlt.averaging.lora import truncated
from hf_xlt.errors import ConfigError

INPUTS = torch.arange(5, 25).reshape(2, 10)


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    make_model(0).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_adapter(folder, base, seed, **changes):
    """Save an adapter with random factors and a random head; return the model's change of every weight."""
    settings = {
        "r": 3,
        "lora_alpha": 12,
        "target_modules": ["query", "value"],
        "modules_to_save": ["classifier"],
        "task_type": "SEQ_CLS",
        **changes,
    }
    model = get_peft_model(BertForSequenceClassification.from_pretrained(base), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=generator)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def merged_state(base, folder):
    model = PeftModel.from_pretrained(BertForSequenceClassification.from_pretrained(base), folder)
    return model.merge_and_unload().state_dict()


def mean_state(base, folders, weights=None):
    states = [merged_state(base, folder) for folder in folders]
    weights = weights or [1] * len(states)
    names = [name for name, tensor in states[0].items() if tensor.is_floating_point()]
    return {
        name: sum(w * state[name].double() for w, state in zip(weights, states, strict=True)) / sum(weights)
        for name in names
    }


def error_of(state, wanted):
    return max((state[name].double() - wanted[name]).abs().max().item() for name in wanted)


VARIANTS = {
    "plain": [{}, {}, {}],
    "rslora": [{"use_rslora": True}] * 3,
    "mixed": [{"r": 2}, {"r": 5, "use_rslora": True}, {"lora_alpha": 30}],
    "patterns": [{"rank_pattern": {"query": 6}, "alpha_pattern": {"layer.1.attention.self.value": 40}}] * 3,
    "embedding": [{"target_modules": ["query", "word_embeddings"]}] * 3,
}


@pytest.mark.parametrize("weights", [None, [3, 1, 2]])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merge_and_concat_are_the_mean_of_the_changes(tmp_path, base, variant, weights):
    folders = [make_adapter(tmp_path / f"a{n}", base, n, **c) for n, c in enumerate(VARIANTS[variant])]
    wanted = mean_state(base, folders, weights)
    report = average_checkpoints(folders, tmp_path / "merged", lora_mode="merge", weights=weights)
    model, info = BertForSequenceClassification.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values()), info
    assert error_of(model.state_dict(), wanted) <= 1e-6
    assert report.lora_mode == "merge" and (tmp_path / "merged" / "tokenizer.json").is_file()
    average_checkpoints(folders, tmp_path / "concat", lora_mode="concat", weights=weights)
    assert error_of(merged_state(base, tmp_path / "concat"), wanted) <= 1e-6
    for name in ("merged", "concat"):
        assert str(tmp_path) not in (tmp_path / name / "averaging.json").read_text()
        assert all(str(tmp_path) not in path.read_text() for path in (tmp_path / name).glob("*config.json"))


@pytest.mark.parametrize("mode", ["merge", "concat", "factors", "svd"])
def test_copies_of_one_adapter_give_its_function(tmp_path, base, mode):
    folders = [make_adapter(tmp_path / f"a{number}", base, 4, use_rslora=True) for number in range(3)]
    average_checkpoints(folders, tmp_path / "out", lora_mode=mode)
    wanted = {name: t.double() for name, t in merged_state(base, folders[0]).items() if t.is_floating_point()}
    found = load_average(tmp_path / "out") if mode == "merge" else merged_state(base, tmp_path / "out")
    assert error_of(found, wanted) <= 1e-6


def test_factors_differ_from_the_mean_and_stay_within_a_run(tmp_path, base):
    folders = [make_adapter(tmp_path / "run" / f"checkpoint-{n}", base, n) for n in (1, 2)]
    average_checkpoints(folders, tmp_path / "out", lora_mode="factors")
    assert error_of(merged_state(base, tmp_path / "out"), mean_state(base, folders)) > 1e-3
    first, second = (load_average_adapter(folder) for folder in folders)
    found = load_average_adapter(tmp_path / "out")
    assert all(torch.allclose(found[name], (first[name] + second[name]) / 2, atol=1e-7) for name in found)
    other = make_adapter(tmp_path / "other" / "checkpoint-1", base, 3)
    with pytest.raises(ConfigError, match="across runs"):
        average_checkpoints([*folders, other], tmp_path / "refused", lora_mode="factors")
    finals = [make_adapter(tmp_path / name / "adapter", base, 3) for name in ("x", "y")]
    with pytest.raises(ConfigError, match="across runs"):
        average_checkpoints(finals, tmp_path / "refused", lora_mode="factors")
    wider = make_adapter(tmp_path / "run" / "checkpoint-3", base, 3, r=4)
    with pytest.raises(ConfigError, match="other ranks or scales"):
        average_checkpoints([folders[0], wider], tmp_path / "refused", lora_mode="factors")
    assert not (tmp_path / "refused").exists()


def load_average_adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_svd_is_the_best_of_its_rank(tmp_path, base):
    folders = [make_adapter(tmp_path / f"a{number}", base, number) for number in range(3)]
    report = average_checkpoints(folders, tmp_path / "out", lora_mode="svd")
    assert 0 < report.discarded_energy < 1
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    start = make_model(0).state_dict()[name].double()
    change = (mean_state(base, folders)[name] - start).numpy()
    found = (merged_state(base, tmp_path / "out")[name].double() - start).numpy()
    values = np.linalg.svd(change, compute_uv=False)
    assert np.linalg.norm(change - found) == pytest.approx(np.sqrt(np.sum(values[3:] ** 2)), rel=1e-4)
    rng = np.random.default_rng(0)
    first, second, cut, total = truncated(rng.normal(size=(9, 4)), rng.normal(size=(5, 9)), 6)
    assert first.shape == (6, 4) and second.shape == (5, 6) and cut == pytest.approx(0, abs=1e-9) and total > 0


def test_weights_of_zero_and_windows(tmp_path, base):
    run = tmp_path / "run"
    folders = [make_adapter(run / f"checkpoint-{number}", base, number) for number in (1, 2, 10)]
    average_checkpoints([run], tmp_path / "one", lora_mode="concat", last_k=1)
    wanted = {n: t.double() for n, t in merged_state(base, folders[2]).items() if t.is_floating_point()}
    assert error_of(merged_state(base, tmp_path / "one"), wanted) <= 1e-6
    average_checkpoints(folders, tmp_path / "weighed", lora_mode="merge", weights=[0, 0, 2])
    assert error_of(load_average(tmp_path / "weighed"), wanted) <= 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"kasa_config": {"beta": 0.1}}, "KaSA"),
        ({"peft_type": "ADALORA"}, "AdaLoRA"),
        ({"peft_type": "VERA"}, "VeRA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"lora_bias": True}, "a bias"),
        ({"bias": "all"}, "trained biases"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"task_type": "TOKEN_CLS"}, "`task_type` is"),
        ({"base_model_name_or_path": "org/other"}, "`base_model_name_or_path`"),
    ],
)
def test_kinds_that_are_refused(tmp_path, base, change, message):
    folders = [make_adapter(tmp_path / f"a{number}", base, number) for number in range(2)]
    path = folders[1] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        average_checkpoints(folders, tmp_path / "out", lora_mode="concat")
    assert not (tmp_path / "out").exists()


def test_other_refusals(tmp_path, base):
    one = make_adapter(tmp_path / "one", base, 1)
    two = make_adapter(tmp_path / "two", base, 2, target_modules=["query"])
    with pytest.raises(ConfigError, match='choose `lora_mode="merge"`'):
        average_checkpoints([one], tmp_path / "out")
    with pytest.raises(ConfigError, match="adapts what .* does not"):
        average_checkpoints([one, two], tmp_path / "out", lora_mode="concat")
    with pytest.raises(ConfigError, match="some inputs are adapters"):
        average_checkpoints([one, base], tmp_path / "out", lora_mode="concat")
    path = one / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="`base`"):
        average_checkpoints([one], tmp_path / "out", lora_mode="merge")
    average_checkpoints([one], tmp_path / "out", lora_mode="merge", base=str(base))
    make_model(0, hidden_size=16).save_pretrained(tmp_path / "small")
    with pytest.raises(ConfigError, match="`base`"):
        average_checkpoints([one], tmp_path / "other", lora_mode="merge", base=str(tmp_path / "small"))
    report = average_checkpoints([one], None, check_only=True, lora_mode="merge")
    assert report.tensors == {"averaged": 2 * 4 + 2, "copied": 0}


def test_head_of_an_adapter(tmp_path, base):
    from safetensors.torch import load_file

    folder = make_adapter(tmp_path / "a", base, 1)
    head = load_file(extract_head(folder, tmp_path / "head.safetensors"))
    assert set(head) == {"classifier.weight", "classifier.bias"}
