"""Perturbations of models with two stacks, windows or turned inputs: the encoder's look-up, and that alone."""

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BartConfig,
    LEDConfig,
    LongformerConfig,
    MT5Config,
    T5Config,
    T5GemmaConfig,
    XLNetConfig,
)

from hf_xlt.errors import ConfigError
from hf_xlt.strategies.robust.embedding_hook import perturbed_embeddings, word_embedding
from hf_xlt.strategies.robust.vocabulary import mean_embedding_norm

IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "num_labels": 3}
T5 = {
    "vocab_size": 60,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 1,
}
BART = {"vocab_size": 60, "d_model": 16, "max_position_embeddings": 64, "scale_embedding": True, "init_std": 0.3} | {
    f"{stack}_{size}": number
    for stack in ("encoder", "decoder")
    for size, number in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 16))
}
LED = BART | {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 4}
BERT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "attention_window": 4,
}
STACK = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    **IDS,
}
XLNET = {"vocab_size": 60, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16}
LAYOUTS = {
    "t5": (T5Config, T5),
    "mt5": (MT5Config, T5),
    "bart": (BartConfig, BART),
    "led": (LEDConfig, LED),
    "t5gemma": (T5GemmaConfig, {"encoder": STACK, "decoder": STACK, "is_encoder_decoder": True}),
    "longformer": (LongformerConfig, BERT),
    "xlnet": (XLNetConfig, XLNET),
}


def build(layout):
    torch.manual_seed(0)
    config, settings = LAYOUTS[layout]
    auto = AutoModelForQuestionAnswering if layout == "led" else AutoModelForSequenceClassification
    model = auto.from_config(config(**{**settings, **IDS})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3)
    return model


def make_batch():
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(output):
    return output["logits"] if "logits" in output else output["start_logits"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_perturbation_is_added_to_what_the_encoder_reads(layout):
    model, inputs = build(layout), make_batch()
    delta = torch.zeros(2, 9, 16, requires_grad=True)
    with perturbed_embeddings(model, inputs, delta) as perturbed:
        output = logits(model(**perturbed))
    torch.testing.assert_close(output, logits(model(**inputs)))
    (gradient,) = torch.autograd.grad(output.square().sum(), delta)
    assert gradient.shape == delta.shape and (gradient.flatten(1).norm(dim=1) > 0).all()
    # The change of one example leaves the other as it is: nothing is turned about.
    shift = torch.zeros(2, 9, 16)
    shift[0, 2] = torch.linspace(-1, 2, 16) ** 2
    with perturbed_embeddings(model, inputs, shift) as perturbed:
        changed = logits(model(**perturbed))
    torch.testing.assert_close(changed[1], output[1])
    assert not torch.allclose(changed[0], output[0])


@pytest.mark.parametrize("layout", ["t5", "bart"])
def test_the_decoder_reads_its_own_tokens_unperturbed(layout):
    model, inputs = build(layout), make_batch()
    seen = []
    decoder = model.get_decoder().get_input_embeddings()
    handle = decoder.register_forward_hook(lambda module, args, output: seen.append(output))
    model(**inputs)
    with perturbed_embeddings(model, inputs, torch.ones(2, 9, 16)) as perturbed:
        apart = logits(model(**perturbed))
    torch.testing.assert_close(seen[0], seen[1])
    handle.remove()
    # One module for both stacks, as in models that share it by object.
    model.get_decoder().set_input_embeddings(model.get_encoder().get_input_embeddings())
    with perturbed_embeddings(model, inputs, torch.ones(2, 9, 16)) as perturbed:
        torch.testing.assert_close(logits(model(**perturbed)), apart)
    assert not model.get_encoder()._forward_hooks and not model.get_encoder()._forward_pre_hooks


def test_the_radius_is_measured_on_what_the_encoder_reads():
    model = build("bart")
    weight = model.get_input_embeddings().weight
    expected = 4.0 * weight.norm(dim=-1).mean().item()
    assert mean_embedding_norm(word_embedding(model), None) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["adv", "rs_rp", "freelb"])
@pytest.mark.parametrize("layout", ["t5", "bart"])
def test_training_moves_encoder_and_decoder(kit, perturbations, layout, method):
    model = build(layout)
    before = {name: value.clone() for name, value in model.named_parameters()}
    settings = {"method": method} | ({"steps": 2} if method != "rs_rp" else {})
    kit.trainer(model, examples=kit.examples(16), max_steps=2, epsilon=0.2, **settings).train()
    assert perturbations[-1].abs().sum() > 0
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any("encoder" in name for name in moved) and any("decoder" in name for name in moved)


def test_a_model_that_looks_up_elsewhere_is_told_of_in_one_line():
    model, inputs = build("t5"), make_batch()
    elsewhere = torch.nn.Embedding(60, 16)
    model.get_encoder().get_input_embeddings = lambda: elsewhere
    with (
        pytest.raises(ConfigError, match="did not look up") as caught,
        perturbed_embeddings(model, inputs, torch.ones(2, 9, 16)) as perturbed,
    ):
        model(**perturbed)
    assert "\n" not in str(caught.value)
