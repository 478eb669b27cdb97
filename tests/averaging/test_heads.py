"""Heads of runs: found from the model's class, shared, frozen, compared bit for bit."""

import pytest
import torch
from averaging_setup import load_average
from records import make_record
from tiny import make_config, make_features, make_model
from torch import nn
from transformers import BertForSequenceClassification, BertForTokenClassification, BertModel

from hf_xlt.averaging import average_checkpoints, average_runs, extract_head, load_shared_head
from hf_xlt.averaging.heads import head_digest, head_names, head_parameters
from hf_xlt.errors import ConfigError

HEAD = {"classifier.weight", "classifier.bias"}


def add_decoy(model):
    """Give the encoder a module that is named like a head; it is trained and differs between runs."""
    model.bert.encoder.classifier = nn.Linear(4, 4)
    model.bert.encoder.qa_outputs = nn.Linear(4, 2)
    return model


def save_run(folder, models):
    for step, model in enumerate(models, 1):
        model.save_pretrained(folder / f"checkpoint-{step}")
    return folder


def train(model, seed):
    torch.manual_seed(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.5)
    for row in make_features(3, seed):
        loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder.classifier" in name or "qa_outputs" in name:
                parameter.normal_()
    return model


@pytest.fixture
def donor(tmp_path):
    folder = tmp_path / "donor"
    train(add_decoy(make_model(1)), 1).save_pretrained(folder)
    return folder


def body_runs(tmp_path, donor):
    """Two runs of two snapshots that share the donor's head, frozen."""
    path = extract_head(donor, tmp_path / "head.safetensors")
    runs = []
    for seed in (2, 3):
        model = add_decoy(make_model(seed))
        assert set(load_shared_head(model, path)) == HEAD
        digest = head_digest(model)
        first = train(model, seed)
        first.save_pretrained(tmp_path / f"run{seed}" / "checkpoint-1")
        train(model, seed + 10).save_pretrained(tmp_path / f"run{seed}" / "checkpoint-2")
        assert head_digest(model) == digest
        runs.append(tmp_path / f"run{seed}")
    return runs, path


def test_head_is_what_lies_outside_the_encoder(donor):
    names = list(load_average(donor))
    assert any("encoder.classifier" in name for name in names)
    assert set(head_names(donor, names)) == HEAD
    assert set(head_parameters(add_decoy(make_model(0)))) == HEAD
    assert head_parameters(BertModel(make_config())) == {}


def test_shared_heads_stay_bit_identical(tmp_path, donor):
    runs, path = body_runs(tmp_path, donor)
    report = average_runs(runs, tmp_path / "out")
    assert len(report.inputs) == 4 and report.tensors["copied"] == 2
    found, head = load_average(tmp_path / "out"), load_average(donor)
    assert all(torch.equal(found[name], head[name]) for name in HEAD)
    members = [load_average(run / f"checkpoint-{step}") for run in runs for step in (1, 2)]
    decoy = "bert.encoder.classifier.weight"
    assert not torch.equal(members[0][decoy], members[2][decoy])
    assert torch.allclose(found[decoy], sum(member[decoy] for member in members) / 4, atol=1e-6)
    # Only the last snapshots, and through the plain function: the rule holds there as well.
    assert len(average_runs(runs, tmp_path / "last", last_k=1).inputs) == 2
    average_checkpoints(runs, tmp_path / "plain")
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_unequal_heads_are_refused(tmp_path):
    runs = [save_run(tmp_path / f"run{seed}", [make_model(seed), make_model(seed)]) for seed in (2, 3)]
    message = "`classifier.weight` differs between .*run2.* and .*run3.*shared and frozen head"
    for attempt in (lambda: average_runs(runs, tmp_path / "out"), lambda: average_checkpoints(runs, tmp_path / "out")):
        with pytest.raises(ConfigError, match=message):
            attempt()
        assert not (tmp_path / "out").exists()
    # Final models with a record are runs, however they are given.
    for seed in (2, 3):
        make_model(seed).save_pretrained(tmp_path / f"final{seed}")
        make_record().write(tmp_path / f"final{seed}")
    with pytest.raises(ConfigError, match="`classifier.weight` differs"):
        average_checkpoints([tmp_path / "final2", tmp_path / "final3"], tmp_path / "out")
    # Within one run heads move, and are averaged.
    average_checkpoints([save_run(tmp_path / "one", [make_model(5), make_model(6)])], tmp_path / "within")
    report = average_runs(runs, tmp_path / "first", head="take-first")
    assert any("head" in note for note in report.notes)
    assert torch.equal(load_average(tmp_path / "first")["classifier.weight"], make_model(2).classifier.weight)
    average_runs(runs, tmp_path / "mean", head="average")
    mean = (make_model(2).classifier.weight + make_model(3).classifier.weight) / 2
    assert torch.allclose(load_average(tmp_path / "mean")["classifier.weight"], mean, atol=1e-7)


def test_one_bit_of_a_head_counts(tmp_path):
    one, two = make_model(2), make_model(2)
    with torch.no_grad():
        two.classifier.bias[0] = torch.nextafter(two.classifier.bias[0], torch.tensor(9.0))
    runs = [save_run(tmp_path / "a", [one]), save_run(tmp_path / "b", [two])]
    with pytest.raises(ConfigError, match="`classifier.bias` differs"):
        average_runs(runs, tmp_path / "out")


def test_loading_a_head(tmp_path, donor):
    path = extract_head(donor, tmp_path / "head.safetensors")
    model = make_model(7)
    load_shared_head(model, path, freeze=False)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.classifier.weight, load_average(donor)["classifier.weight"])
    load_shared_head(model, path)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == HEAD
    with pytest.raises(ConfigError, match="exists already"):
        extract_head(donor, path)
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    for other, message in (
        (make_model(0, num_labels=4), "shape"),
        (BertForSequenceClassification(make_config(**labels)), "trained for the classes"),
        (BertModel(make_config()), "this model's none"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_shared_head(other, path)
    load_shared_head(BertForTokenClassification(make_config()), path)
    BertModel(make_config()).save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="bare encoder"):
        extract_head(tmp_path / "bare", tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="cannot be read as a head"):
        load_shared_head(model, tmp_path / "broken.safetensors")


def test_a_head_of_an_unknown_class_is_refused(tmp_path, donor):
    runs = [save_run(tmp_path / name, [make_model(2)]) for name in "ab"]
    for run in runs:
        (run / "checkpoint-1" / "config.json").write_text('{"architectures": ["Mystery"]}')
    with pytest.raises(ConfigError, match='known class.*Mystery.*`head="average"`'):
        average_runs(runs, tmp_path / "out")
