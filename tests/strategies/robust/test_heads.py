"""Every method on the three kinds of head: sentences, tokens and spans, padded on either side."""

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

HEADS = {
    "sentences": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "spans": AutoModelForQuestionAnswering,
}
METHODS = {
    "adv": {"method": "adv", "steps": 2},
    "adv, clean loss": {"method": "adv", "clean_weight": 0.3},
    "adv, kl": {"method": "adv", "inner_loss": "kl", "init": "uniform"},
    "rs_rp": {"method": "rs_rp", "num_samples": 2, "noise": "l2_ball"},
    "freelb": {"method": "freelb", "steps": 2, "init": "uniform"},
    "r3f": {"method": "rs_rp", "consistency": "symkl"},
    "smart": {"method": "adv", "inner_loss": "kl", "init": "gaussian", "consistency": "symkl"},
}
LAYOUTS = ("bert", "xlm-roberta", "distilbert", "modernbert")


def model_of(kit, layout, head, **options):
    config = kit.model(layout, attn_implementation="eager", **options).config
    config.num_labels = 2 if head == "spans" else 3
    torch.manual_seed(0)
    return HEADS[head].from_config(config, attn_implementation="eager")


def batch_of(kit, head, side="right", rows=slice(None), width=None):
    examples = kit.examples(8, token_labels=head == "tokens")[rows]
    batch = kit.collate(examples, side=side, width=width)
    if head == "spans":
        del batch["labels"]
        lengths = batch["attention_mask"].sum(1)
        first = batch["attention_mask"].argmax(1)
        batch |= {"start_positions": first + 1, "end_positions": first + lengths - 1}
    return batch


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_weight_gets_a_gradient_and_padding_no_part(kit, perturbations, layout, head, method):
    model = model_of(kit, layout, head)
    for side in ("right", "left"):
        batch = batch_of(kit, head, side)
        padding = ~batch["attention_mask"].bool()
        perturbations.clear()
        trainer = kit.trainer(model, epsilon=0.2, eps_mode="absolute", **method)
        gradients = kit.update_gradients(trainer, batch)
        assert gradients.keys() == {name for name, value in model.named_parameters() if value.requires_grad}
        assert all(value.isfinite().all() for value in gradients.values())
        assert perturbations[-1][~padding].abs().sum() > 0
        assert all(delta[padding].eq(0).all() for delta in perturbations)
        weight = model.get_input_embeddings().weight
        kept = weight[kit.pad].clone()
        with torch.no_grad():
            weight[kit.pad] = 3.0
        again = kit.update_gradients(trainer, batch)
        with torch.no_grad():
            weight[kit.pad] = kept
        head_name = next(name for name in gradients if name.endswith("weight") and name.split(".")[0] != "model")
        # Question answering scores padding as well: there the heads' own loss depends on it.
        if head != "spans":
            torch.testing.assert_close(again[head_name], gradients[head_name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("head", HEADS)
def test_special_tokens_are_left_out_where_asked(kit, perturbations, head, method):
    model, batch = model_of(kit, "bert", head), batch_of(kit, head)
    special = torch.isin(batch["input_ids"], torch.tensor([0, 2]))
    settings = {"epsilon": 0.2, "perturb_special_tokens": False, "tokenizer": kit.tokenizer()}
    kit.update_gradients(kit.trainer(model, **settings, **method), batch)
    assert all(delta[special].eq(0).all() for delta in perturbations)
    assert perturbations[-1][~special].abs().sum() > 0


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("head", ["tokens", "spans"])
def test_gradients_do_not_depend_on_how_a_batch_is_split(kit, head, method):
    model = model_of(kit, "bert", head)
    options = {"epsilon": 0.2, **method}
    width = batch_of(kit, head)["input_ids"].shape[1]
    whole = kit.update_gradients(kit.trainer(model, **options), batch_of(kit, head))
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    # The heads for spans score padding, so there the width must be that of the whole.
    width = width if head == "spans" else None
    parts = [batch_of(kit, head, rows=slice(start, start + 2), width=width) for start in range(0, 8, 2)]
    got = kit.update_gradients(kit.trainer(model, **options, **split), *parts)
    for name, gradient in whole.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_with_lora_only_the_adapter_gets_gradients(kit, method):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="TOKEN_CLS", r=2, target_modules=["query"])
    model = peft.get_peft_model(model_of(kit, "bert", "tokens"), config)
    gradients = kit.update_gradients(kit.trainer(model, epsilon=0.2, **method), batch_of(kit, "tokens"))
    assert gradients.keys() == {name for name, value in model.named_parameters() if value.requires_grad}
    assert all("lora" in name or "classifier" in name for name in gradients)
    assert any(value.abs().sum() > 0 for name, value in gradients.items() if "lora" in name)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("head", HEADS)
def test_bf16_trains_every_head(kit, perturbations, head, method):
    model, batch = model_of(kit, "xlm-roberta", head), batch_of(kit, head)
    gradients = kit.update_gradients(kit.trainer(model, bf16=True, epsilon=0.2, **method), batch)
    # A pass without gradients must not leave its cast copies of the weights to the passes that train.
    assert gradients.keys() == {name for name, value in model.named_parameters() if value.requires_grad}
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in gradients.values())
    assert all(delta.dtype == torch.float32 for delta in perturbations)
