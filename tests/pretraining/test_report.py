"""The figures that a plan is announced with."""

import pytest
from pretraining_setup import make_config, make_phase, make_text

from hf_xlt.pretraining.report import report_phase


def test_tokens_epochs_and_memory_are_counted(tmp_path):
    text = make_text()
    phase = make_phase(steps=10, objectives={"mlm": 1.0, "tlm": 1.0}, tlm_share=0.25, alpha=0.5)
    config = make_config(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3)
    report = report_phase(phase, text, 1000, config)
    assert report.tokens == 10 * 12 * 15
    read = sum(report.epochs[code] * text.sizes[code] for code in text.sizes)
    assert read == pytest.approx(0.75 * report.tokens)
    assert report.logits_bytes == 4 * 16 * 1000 * 4
    assert report.masked_bytes == int(4 * 16 * 0.15) * 1000 * 4


def test_warnings_name_languages_and_a_way_out(tmp_path):
    text, config = make_text(), make_config(tmp_path, epoch_limit=0.5)
    report = report_phase(make_phase(steps=100, alpha=1.5), text, 65, config)
    joined = " ".join(report.warnings)
    assert "3 languages would be read more than 0.5 times (en, de, sw); raise alpha, or lower the steps" in joined
    assert "alpha is 1.5: above 1 it favours large languages" in joined


def test_few_pairs_are_warned_of(tmp_path):
    phase = make_phase(objectives={"contrastive": 1.0}, pairs=None)
    assert any(
        "few translation pairs" in line for line in report_phase(phase, make_text(), 65, make_config(tmp_path)).lines()
    )
