"""Robust training on the encoders people use: BERT, XLM-R, DistilBERT, DeBERTa-v2/v3, ModernBERT."""

import pytest
import torch

from hf_xlt.errors import ConfigError

LAYOUTS = ("bert", "xlm-roberta", "distilbert", "deberta-v2", "modernbert")
SETTINGS = {
    "adv": {"method": "adv", "epsilon": 0.2, "steps": 2, "init": "uniform"},
    "rs_rp": {"method": "rs_rp", "epsilon": 0.2, "noise": "gaussian"},
}
EAGER = {"attn_implementation": "eager"}


def test_the_list_is_that_of_the_kit(kit):
    assert kit.layouts == LAYOUTS


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_perturbs_text_alone_and_moves_the_weights(kit, perturbations, layout, settings):
    model = kit.model(layout, dropout=True)
    before = {name: value.clone() for name, value in model.named_parameters()}
    kit.trainer(model, examples=kit.examples(16), max_steps=2, **settings).train()
    assert len(perturbations) == 2
    for delta in perturbations:
        assert delta.dtype == torch.float32 and delta.isfinite().all() and delta.abs().sum() > 0
    unmoved = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    # A softmax does not feel a constant added to all keys' scores.
    assert all("key" in name or "k_lin" in name for name in unmoved), unmoved
    assert all(value.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_is_not_perturbed_and_its_embedding_does_not_matter(kit, perturbations, layout, side):
    model, batch = kit.model(layout, **EAGER), kit.collate(kit.examples(), side=side)
    padding = ~batch["attention_mask"].bool()
    for settings in SETTINGS.values():
        trainer = kit.trainer(model, eps_mode="absolute", **settings)
        kit.open_window(trainer, batch)
        loss = trainer.compute_loss(model, batch)
        assert torch.equal(perturbations[-1][padding], torch.zeros_like(perturbations[-1][padding]))
        weight = model.get_input_embeddings().weight
        kept = weight[kit.pad].clone()
        with torch.no_grad():
            weight[kit.pad] = 3.0
        kit.open_window(trainer, batch)
        torch.testing.assert_close(trainer.compute_loss(model, batch), loss, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            weight[kit.pad] = kept


@pytest.mark.parametrize("layout", ["bert", "xlm-roberta"])
def test_positions_are_those_of_the_unperturbed_model_on_either_side(kit, layout):
    # XLM-R counts positions from the padding in `input_ids`; a perturbation must not make it count otherwise.
    model = kit.model(layout)
    for side in ("right", "left"):
        batch = kit.collate(kit.examples(), side=side)
        trainer = kit.trainer(model, epsilon=1e-8, eps_mode="absolute")
        kit.open_window(trainer, batch)
        torch.testing.assert_close(trainer.compute_loss(model, batch), model(**batch).loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bf16_autocast_trains_close_to_float32(kit, perturbations, layout):
    losses = {}
    for bf16 in (False, True):
        trainer = kit.trainer(
            kit.model(layout, **EAGER), examples=kit.examples(16), max_steps=2, bf16=bf16, epsilon=0.05
        )
        trainer.train()
        losses[bf16] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[True] != losses[False] and losses[True] == pytest.approx(losses[False], rel=0.1)
    assert all(delta.dtype == torch.float32 for delta in perturbations)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_activation_checkpointing_changes_no_gradient(kit, layout):
    batch, gradients = kit.collate(kit.examples()), []
    for checkpointing in (False, True):
        model = kit.model(layout, dropout=True, **EAGER)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        trainer = kit.trainer(model, epsilon=0.2, steps=2, activation_checkpointing=checkpointing)
        gradients.append(kit.update_gradients(trainer, batch))
        assert model.is_activation_checkpointing == checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("trains_embeddings", [False, True])
def test_with_lora_only_the_adapter_gets_gradients(kit, perturbations, trains_embeddings):
    peft = pytest.importorskip("peft")
    saved = ["word_embeddings"] if trains_embeddings else None
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=saved)
    model = peft.get_peft_model(kit.model(), config)
    batch = kit.collate(kit.examples())
    gradients = kit.update_gradients(kit.trainer(model, epsilon=0.2, steps=2), batch)
    assert perturbations[-1].abs().sum() > 0
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert gradients.keys() == trainable
    assert any("word_embeddings" in name for name in gradients) == trains_embeddings


def test_a_model_put_under_reentrant_checkpointing_is_refused(kit):
    model, batch = kit.model(), kit.collate(kit.examples())
    model.activation_checkpointing_enable({"use_reentrant": True})
    trainer = kit.trainer(model)
    kit.open_window(trainer, batch)
    with pytest.raises(ConfigError, match="use_reentrant"):
        trainer.compute_loss(model, batch)
