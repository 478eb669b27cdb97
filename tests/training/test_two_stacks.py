"""Evaluation of models that give more than logits: encoder-decoders, nested outputs."""

import numpy as np
import pytest
import torch
from tiny import make_features, make_tokenizer
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BartConfig,
    DataCollatorWithPadding,
    T5Config,
    T5GemmaConfig,
)

from hf_xlt.training.config import XLTConfig
from hf_xlt.training.languages import join_languages
from hf_xlt.training.trainer import XLTTrainer

IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "num_labels": 3}
T5 = {"vocab_size": 65, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
BART = {"vocab_size": 65, "d_model": 16, "max_position_embeddings": 64} | {
    f"{stack}_{size}": number
    for stack in ("encoder", "decoder")
    for size, number in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 16))
}
STACK = {
    "vocab_size": 65,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    **IDS,
}
CONFIGS = {
    "t5": T5Config(**T5, **IDS, decoder_start_token_id=0),
    "bart": BartConfig(**BART, **IDS),
    "t5gemma": T5GemmaConfig(encoder=STACK, decoder=STACK, is_encoder_decoder=True, **IDS),
    "t5gemma, all states": T5GemmaConfig(
        encoder=STACK, decoder=STACK, is_encoder_decoder=True, output_hidden_states=True, **IDS
    ),
}


def make_trainer(model, folder, data):
    args = XLTConfig(
        str(folder), per_device_eval_batch_size=4, report_to=[], use_cpu=True, metric_for_best_model="eval_loss"
    )
    collate = DataCollatorWithPadding(make_tokenizer())
    return XLTTrainer(model, args, eval_dataset=data, data_collator=collate, source_languages=["en"])


@pytest.mark.parametrize("name", CONFIGS)
def test_an_encoder_decoder_gives_a_loss_and_its_logits_alone(name, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[name]).eval()
    data = {"en": make_features(6), "de": make_features(5, seed=1)}
    trainer = make_trainer(model, tmp_path, data)
    predictions = trainer.predict_languages(data)
    assert all(isinstance(part.predictions, np.ndarray) for part in predictions.values())
    assert predictions["de"].predictions.shape == (5, 3)
    metrics = trainer.evaluate()
    for language, rows in data.items():
        logits = torch.from_numpy(predictions[language].predictions)
        labels = torch.tensor([row["labels"] for row in rows])
        expected = torch.nn.functional.cross_entropy(logits, labels).item()
        assert metrics[f"eval_{language}_loss"] == pytest.approx(expected, rel=1e-5)
    # One data set as the stock Trainer takes it.
    assert trainer.predict(data["de"]).predictions.shape == (5, 3)
    assert not model._forward_hooks


def test_questions_of_an_encoder_decoder_give_starts_and_ends(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(
        T5Config(**T5, **IDS | {"num_labels": 2}, decoder_start_token_id=0)
    ).eval()
    rows = [
        {name: row[name] for name in ("input_ids", "attention_mask")} | {"start_positions": 1, "end_positions": 2}
        for row in make_features(6)
    ]
    metrics = make_trainer(model, tmp_path, {"en": rows}).evaluate()
    assert metrics["eval_en_loss"] > 0


def test_outputs_asked_for_by_leaving_out_others_are_kept(tmp_path):
    model = AutoModelForSequenceClassification.from_config(CONFIGS["t5"]).eval()
    rows = [dict(row) for row in make_features(4)]
    output = make_trainer(model, tmp_path, {"en": rows}).predict_languages({"en": rows}, ["past_key_values"])
    logits, states = output["en"].predictions
    assert logits.shape == (4, 3) and states.shape[0] == 4


def test_nested_predictions_are_cut_by_language():
    data = {"en": [{"input_ids": [1] * 3}, {"input_ids": [1]}], "de": [{"input_ids": [1] * 2}]}
    joined = join_languages(data)
    lengths = np.array([3, 2, 1])
    parts = joined.split((lengths, (lengths, [lengths]), {"a": lengths}), None)
    assert parts["en"].predictions[1][1][0].tolist() == [3, 1]
    assert parts["de"].predictions[2]["a"].tolist() == [2]
