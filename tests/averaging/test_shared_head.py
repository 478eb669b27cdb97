"""The donor's head in every model of a run, and the check that training left it alone."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_config, make_model, make_tokenizer
from transformers import BertForMaskedLM, TrainerControl, TrainerState

from hf_xlt.averaging import extract_head
from hf_xlt.averaging.heads import read_head
from hf_xlt.averaging.shared_head import FrozenHeadCheck, SharedHead
from hf_xlt.errors import ConfigError, RunError
from hf_xlt.record import RunRecord


@pytest.fixture
def donor(tmp_path):
    folder = tmp_path / "runs" / "donor"
    make_model(seed=3).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def end(check, model):
    check.on_train_end(None, TrainerState(), TrainerControl(), model=model)


def test_a_moved_head_is_told_of(donor):
    shared, model = SharedHead(str(donor)), make_model(seed=4)
    check = FrozenHeadCheck(shared)
    with pytest.raises(RunError, match="moved in training"):
        end(check, model)
    shared.put(model)
    assert not any(weight.requires_grad for weight in model.classifier.parameters())
    end(check, model)
    with torch.no_grad():
        # One unit in the last place of one weight.
        weight = model.classifier.weight.view(-1)
        weight[0] = torch.nextafter(weight[0], weight[0] + 1)
    with pytest.raises(RunError, match="cannot be averaged"):
        end(check, model)


def test_a_phase_with_another_kind_of_head_is_not_its_business(donor):
    end(FrozenHeadCheck(SharedHead(str(donor))), BertForMaskedLM(make_config()))


def test_file_folder_and_half_precision_give_the_same_head(donor, tmp_path):
    file = extract_head(donor, tmp_path / "head.safetensors")
    assert SharedHead(str(file)).digest == SharedHead(str(donor)).digest
    half = tmp_path / "half"
    make_model(seed=3).to(torch.bfloat16).save_pretrained(half)
    shared, model = SharedHead(str(half)), make_model(seed=4)
    shared.put(model)
    # The digest is of what a model in float32 holds.
    end(FrozenHeadCheck(shared), model)


def test_of_a_run_that_averages_the_head_is_that_of_its_last_weights(donor):
    make_model(seed=5).save_pretrained(donor / "last")
    facts = {"mode": "uniform", "every": 0.1, "snapshots": 2, "steps": [1, 2], "beside": "last"}
    RunRecord({}, {}, phases=[{"name": "train", "averaging": facts}]).write(donor)
    expected = load_file(donor / "last" / "model.safetensors")["classifier.weight"]
    assert torch.equal(read_head(donor).tensors["classifier.weight"], expected)
    RunRecord({}, {}, phases=[{"name": "train"}]).write(donor)
    assert not torch.equal(read_head(donor).tensors["classifier.weight"], expected)


def test_the_record_names_the_donor_without_its_path(donor):
    shared = SharedHead(str(donor))
    assert shared.settings() == {"shared_head": f"of `donor`, frozen (SHA-256 {shared.digest[:16]})"}


def test_a_missing_donor_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="share_head=.*none.. is missing; give a finished run"):
        SharedHead(str(tmp_path / "none"))
