"""The committed encoder: it loads, is small, says nothing private, and transfers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from hf_xlt.embedded import SOURCE_LANGUAGE, TARGET_LANGUAGES, TRAINING_PHRASES, phrase_encoder_directory
from hf_xlt.embedded.phrases import LABELS, babel_version, phrase_rows, test_set_hash
from hf_xlt.embedded.probe import accuracy, finetune

MEGABYTE = 2**20


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(phrase_encoder_directory())


def zero_shot_after_sixty_steps(model, tokenizer):
    finetune(model, tokenizer, phrase_rows("train", SOURCE_LANGUAGE, TRAINING_PHRASES), steps=60)
    scores = [accuracy(model, tokenizer, phrase_rows("test", target, 100)) for target in TARGET_LANGUAGES]
    return sum(scores) / len(scores)


def test_importing_the_package_is_light():
    check = "import sys, hf_xlt.embedded; print([m for m in ('torch', 'transformers', 'babel') if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    finished = subprocess.run([sys.executable, "-c", check], cwd=root, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_folder_is_small():
    assert sum(path.stat().st_size for path in phrase_encoder_directory().iterdir()) < 5 * MEGABYTE


def test_files_hold_no_local_path():
    for name in ("config.json", "tokenizer_config.json", "README.md"):
        text = (phrase_encoder_directory() / name).read_text(encoding="utf-8")
        assert not any(word in text for word in ("/root", "/tmp", "/home", "/work", "name_or_path"))


def test_config_leaves_the_attention_kernel_to_the_user():
    config = json.loads((phrase_encoder_directory() / "config.json").read_text())
    assert not any("attn_implementation" in key for key in config)
    assert config["classifier_pooling"] == "mean" and config["dtype"] == "float16"


def test_masked_model_loads_without_missing_keys():
    _, report = AutoModelForMaskedLM.from_pretrained(
        phrase_encoder_directory(), dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_classifier_lacks_only_its_output_layer():
    model, report = AutoModelForSequenceClassification.from_pretrained(
        phrase_encoder_directory(), num_labels=len(LABELS), dtype=torch.float32, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert set(report["unexpected_keys"]) == {"decoder.bias"}
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("language", (SOURCE_LANGUAGE, *TARGET_LANGUAGES))
def test_tokenizer_round_trip_and_unknown_rate(tokenizer, language):
    pieces = unknown = 0
    for row in phrase_rows("test", language, 500):
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        pieces, unknown = pieces + len(ids), unknown + ids.count(tokenizer.unk_token_id)
        if tokenizer.unk_token_id not in ids:
            assert tokenizer.decode(ids).strip() == row["text"].lower()
    assert unknown / pieces < 0.05


def test_sixty_steps_beat_random_weights_zero_shot(tokenizer):
    torch.manual_seed(0)
    pretrained = AutoModelForSequenceClassification.from_pretrained(
        phrase_encoder_directory(), num_labels=len(LABELS), dtype=torch.float32, attn_implementation="eager"
    )
    config = AutoConfig.from_pretrained(phrase_encoder_directory(), num_labels=len(LABELS), dtype=torch.float32)
    random_weights = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    margin = zero_shot_after_sixty_steps(pretrained, tokenizer) - zero_shot_after_sixty_steps(
        random_weights, tokenizer
    )
    assert margin >= 10


def test_card_names_the_data_it_was_made_from():
    card = (phrase_encoder_directory() / "README.md").read_text(encoding="utf-8")
    assert test_set_hash() in card
    assert f"babel {babel_version()}" in card and "Unicode License v3" in card
