"""The pre-training: tokenizer, both losses, and the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import ModernBertForMaskedLM

from hf_xlt.embedded.phrases import PhraseGenerator, item_split
from hf_xlt.embedded.pretraining import PairSampler, contrastive_loss, encoder_config, make_encoder, pretrain
from hf_xlt.embedded.tokenizer import tokenizer_lines, train_tokenizer
from hf_xlt.errors import ConfigError

LANGUAGES = ("en", "de", "ru", "sw")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def generator():
    return PhraseGenerator(LANGUAGES)


@pytest.fixture(scope="module")
def tokenizer(generator):
    return train_tokenizer(tokenizer_lines(generator, 3000), vocabulary_size=1000)


def test_tokenizer_writes_what_the_model_takes(tokenizer):
    encoded = tokenizer("5 kilometers", "5 Kilometer")
    assert sorted(encoded) == ["attention_mask", "input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and tokens.count("[SEP]") == 2


def test_digits_are_single_pieces(tokenizer):
    assert [piece for piece in tokenizer.tokenize("1999") if piece.strip("▁")] == ["1", "9", "9", "9"]


def test_thirty_steps_lower_both_losses(generator, tokenizer):
    model, losses = pretrain(generator, tokenizer, steps=30, seed=0)
    for values in (losses.contrastive, losses.masked):
        third = len(values) // 3
        assert sum(values[-third:]) < sum(values[:third])
    assert not model.training


def test_a_seed_repeats_bit_for_bit(generator, tokenizer):
    first, again, other = (pretrain(generator, tokenizer, steps=6, seed=seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.decoder.weight, other.decoder.weight)


class RecordingSampler(PairSampler):
    """Remembers the specs it was asked to render."""

    def _pair(self, spec):
        self.specs = [*getattr(self, "specs", []), spec]
        return super()._pair(spec)


def test_contrastive_batch_has_no_item_twice_and_one_number(generator, tokenizer):
    sampler = RecordingSampler(generator, tokenizer, seed=3)
    batch = sampler.contrastive_batch()
    assert batch["input_ids"].shape[0] == 2 * len(sampler.specs) == 128
    assert len({(spec.kind, spec.item) for spec in sampler.specs}) == 64
    assert len({spec.number for spec in sampler.specs if spec.number}) == 1


def test_pretraining_uses_training_items_only(generator, tokenizer):
    sampler = RecordingSampler(generator, tokenizer, seed=4)
    sampler.contrastive_batch()
    next(sampler.masked_batches())
    assert {item_split(spec.kind, spec.item) for spec in sampler.specs} == {"train"}


def test_contrastive_loss_is_lower_for_parallel_sides(tokenizer):
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(encoder_config(tokenizer)).eval()
    left = ["Germany", "in 10 weeks", "5 kilometers"]
    parallel = tokenizer([*left, *left], padding=True, return_tensors="pt")
    crossed = tokenizer([*left, *left[1:], left[0]], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert contrastive_loss(model, parallel) < contrastive_loss(model, crossed)


def test_config_names_no_place_and_no_attention(tokenizer):
    written = encoder_config(tokenizer).to_json_string()
    assert "attn_implementation" not in written and "name_or_path" not in written
    assert encoder_config(tokenizer).classifier_pooling == "mean"


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="new or empty"):
        make_encoder(tmp_path, seeds=(0,), steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_the_command_makes_an_encoder_that_transfers(tmp_path):
    output = tmp_path / "encoder"
    root = Path(__file__).resolve().parents[2]
    finished = subprocess.run(
        [sys.executable, "-m", "hf_xlt.embedded.pretraining", "--output-dir", str(output)]
        + ["--seeds", "0", "1", "--steps", "200"],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "shipped: seed" in finished.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder"]
    names = {path.name for path in output.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "--seeds 0 1 --steps 200" in card and "Unicode License v3" in card and str(tmp_path) not in card
    retrieval = [float(line.split("retrieval ")[1].split(",")[0]) for line in finished.stdout.splitlines()[:3]]
    # 200 of 1,600 steps: about 39 after about 30 without training.
    assert min(retrieval[1:]) > retrieval[0] + 5
