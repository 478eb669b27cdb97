"""The committed encoder for running text: what lies there, what its card says, and that it transfers at all."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from hf_xlt.embedded import ENCODER_NAME, encoder_directory
from hf_xlt.embedded.probe import retrieval_accuracy
from hf_xlt.embedded.shipping import DROPOUT, SIZE_LIMIT, render_card
from hf_xlt.models import ModelSource
from hf_xlt.pretraining.tokenizers import SPECIAL_TOKENS
from hf_xlt.record import RunRecord

SENTENCES = {
    "en": "How long have you had a fever?",
    "de": "Wie lange haben Sie schon Fieber?",
    "sw": "Umekuwa na homa kwa muda gani?",
    "hi": "आपको बुखार कब से है?",
    "zh": "你发烧多久了?",
    "ar": "منذ متى وأنت مصاب بالحمى؟",
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(encoder_directory())


def test_it_loads_plainly_and_is_small(tokenizer):
    assert (encoder_directory() / "model.safetensors").stat().st_size <= SIZE_LIMIT
    model, report = AutoModelForMaskedLM.from_pretrained(
        encoder_directory(), dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    AutoModel.from_pretrained(encoder_directory())
    assert model.config.vocab_size == len(tokenizer) and model.config.classifier_pooling == "mean"
    assert {name: getattr(model.config, name) for name in DROPOUT} == DROPOUT
    head = AutoModelForSequenceClassification.from_pretrained(encoder_directory(), num_labels=3, dtype=torch.float32)
    assert head(**tokenizer("a", return_tensors="pt")).logits.shape == (1, 3)


def test_its_tokenizer_knows_every_script(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    for text in [*SENTENCES.values(), "🙂 ᚠ"]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower().strip()


def test_it_is_found_by_name_and_names_nothing_else():
    source = ModelSource.find("embedded")
    assert source.name == ENCODER_NAME and source.license()["license"] == "cc-by-4.0"
    text = "".join(
        path.read_text(encoding="utf-8") for path in encoder_directory().glob("*.*") if path.suffix in (".json", ".md")
    )
    assert "/work" not in text and "/root" not in text


def test_its_card_has_recipe_figures_sources_and_licences():
    card = ModelCard.load(encoder_directory() / "README.md")
    assert card.data.license == "cc-by-4.0" and len(card.data.language) >= 50
    for part in (
        "hf-xlt pretrain",
        "seed 0",
        "minutes",
        "CC0",
        "CC BY 4.0",
        "Apache-2.0",
        "public domain",
        "Unicode",
        "random",
        "single-phase",
        "retrieval",
    ):
        assert part in card.content, part
    for barred in ("gnome-user-docs", "ntrex-128", "indian-parallel-corpora"):
        assert barred not in card.content


def test_the_card_is_a_function_of_the_record():
    phase = {
        "name": "one",
        "steps": 5,
        "sources": [{"text": "t"}],
        "objectives": {"mlm": 1.0},
        "learning_rate": 0.1,
        "alpha": 0.5,
        "pairs": None,
    }
    record = RunRecord(
        strategy={},
        task={},
        model={"model_type": "modernbert", "parameters": 7},
        settings={"phases": [phase], "per_device_train_batch_size": 2, "row_length": 8},
        data={"one": {"tokens": {"en": 1, "sw": 2}}},
        hardware={"processor": "x"},
        seeds={"seed": 3},
        versions=dict.fromkeys(("torch", "transformers", "datasets"), "1"),
        wall_time_seconds=120,
    )
    config = AutoModel.from_pretrained(encoder_directory()).config
    card = render_card(record, config, "SOURCES", "MEASURED")
    assert card == render_card(record, config, "SOURCES", "MEASURED")
    for part in ("2 minutes", "seed 3", "| one | 5 | t | 1 mlm | 0.1 | 0.5 |", "SOURCES", "MEASURED", "float32"):
        assert part in card


def test_translations_find_each_other_more_often_than_by_chance(tokenizer):
    from hf_xlt.embedded.phrases import PhraseGenerator

    model = AutoModelForMaskedLM.from_pretrained(encoder_directory(), dtype=torch.float32, attn_implementation="eager")
    generator = PhraseGenerator(("en", "ru", "hi", "zh"))
    random = AutoModelForMaskedLM.from_config(model.config)
    trained, untrained = (
        retrieval_accuracy(encoder, tokenizer, generator, "en", ["ru", "hi", "zh"]) for encoder in (model, random)
    )
    assert trained > untrained + 10


def test_the_configuration_is_for_fine_tuning():
    config = json.loads((encoder_directory() / "config.json").read_text())
    assert config["dtype"] == "float16" and config["model_type"] == "modernbert"
