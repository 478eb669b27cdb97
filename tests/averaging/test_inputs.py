"""What is found in folders: order, runs, shards, pickles, tied weights, and what is left out."""

import json
import os
import shutil

import pytest
import torch
from averaging_setup import load_average, make_state, rounded, save_state, save_states, weighted_mean
from safetensors.torch import save_file
from tiny import make_tokenizer
from transformers import AutoModelForMaskedLM, XLMRobertaConfig, XLMRobertaForMaskedLM, set_seed

from hf_xlt.averaging import average_checkpoints
from hf_xlt.errors import ConfigError
from hf_xlt.training.checkpoints import seal


def make_run(folder, steps, seed=0, config=None):
    states = {step: make_state(seed + step) for step in steps}
    for step, state in states.items():
        save_state(folder / f"checkpoint-{step}", state, config)
    return states


def names_of(report):
    return [entry.path.name for entry in report.inputs]


def assert_mean(folder, states, weights=None):
    for name, tensor in load_average(folder).items():
        assert torch.equal(tensor, rounded(weighted_mean(states, name, weights or [1] * len(states)), torch.float32))


def test_checkpoints_are_in_numeric_order_and_nothing_else_is_taken(tmp_path):
    run = tmp_path / "run"
    states = make_run(run, (2, 10, 100))
    for name in ("averaged", "best", "checkpoint-last", ".checkpoint-7.part"):
        save_state(run / name, make_state(99))
    os.symlink(run / "checkpoint-100", run / "last")
    report = average_checkpoints([run], tmp_path / "out")
    assert names_of(report) == ["checkpoint-2", "checkpoint-10", "checkpoint-100"]
    assert_mean(tmp_path / "out", list(states.values()))
    # A shell lists checkpoint-10 before checkpoint-2.
    places = sorted(run.glob("checkpoint-[0-9]*"))
    report = average_checkpoints(places, tmp_path / "listed", weights=[10 if "-10" in p.name else 1 for p in places])
    assert names_of(report) == ["checkpoint-2", "checkpoint-10", "checkpoint-100"]
    weights = [1 if step == 2 else 10 for step in states]
    assert_mean(tmp_path / "listed", list(states.values()), weights)


def test_last_and_window(tmp_path):
    run = tmp_path / "run"
    make_run(run, (10, 20, 30, 40, 50))
    check = {"output": None, "check_only": True}
    assert names_of(average_checkpoints([run], last_k=2, **check)) == ["checkpoint-40", "checkpoint-50"]
    assert len(average_checkpoints([run], last_k=9, **check).inputs) == 5
    for window, steps in (("0.4:1.0", (20, 30, 40, 50)), ("15:30", (20, 30)), (":20", (10, 20)), ("0.8:", (40, 50))):
        assert names_of(average_checkpoints([run], window=window, **check)) == [f"checkpoint-{s}" for s in steps]
    assert len(average_checkpoints([run], window=(0.5, 1.0), last_k=2, **check).inputs) == 2
    for bad in ("1", "b:a", "3:2", "-1:2"):
        with pytest.raises(ConfigError, match="`window"):
            average_checkpoints([run], window=bad, **check)
    with pytest.raises(ConfigError, match="leaves no snapshot"):
        average_checkpoints([run], window="60:70", **check)
    with pytest.raises(ConfigError, match="`last_k"):
        average_checkpoints([run], last_k=0, **check)
    loose = save_states(tmp_path, [make_state(0), make_state(1)])
    with pytest.raises(ConfigError, match="have no step"):
        average_checkpoints(loose, window="0:1", **check)


def test_only_complete_checkpoints_of_our_runs_count(tmp_path):
    run = tmp_path / "run"
    make_run(run, (1, 2, 3))
    for step in (1, 2):
        seal(run / f"checkpoint-{step}")
    report = average_checkpoints([run], None, check_only=True)
    assert names_of(report) == ["checkpoint-1", "checkpoint-2"]
    assert any("checkpoint-3" in note for note in report.notes)
    os.truncate(run / "checkpoint-2" / "model.safetensors", 100)
    assert names_of(average_checkpoints([run], None, check_only=True)) == ["checkpoint-1"]
    (run / "checkpoint-1" / "complete.json").write_text("{}")
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        average_checkpoints([run], None, check_only=True)


def test_of_phases_the_last_with_checkpoints_counts(tmp_path):
    run = tmp_path / "run"
    make_run(run / "phase-0-donor", (1,))
    make_run(run / "phase-1-train", (4, 8))
    (run / "phase-2-end").mkdir()
    report = average_checkpoints([run], None, check_only=True)
    assert names_of(report) == ["checkpoint-4", "checkpoint-8"] and "phase-1-train" in report.notes[0]


def test_a_run_without_checkpoints_gives_its_model(tmp_path):
    (one,) = save_states(tmp_path, [make_state(0)])
    report = average_checkpoints([], tmp_path / "out", runs=[one])
    assert any("keeps no checkpoints" in note for note in report.notes)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match="neither checkpoints nor a model"):
        average_checkpoints([], tmp_path / "other", runs=[tmp_path / "bare"])


def test_the_same_file_twice_is_refused(tmp_path):
    run = tmp_path / "run"
    make_run(run, (1, 2))
    os.symlink(run / "checkpoint-2", run / "checkpoint-3")
    with pytest.raises(ConfigError, match="one and the same file"):
        average_checkpoints([run], tmp_path / "out")
    (run / "checkpoint-3").unlink()
    (tmp_path / "hard").mkdir()
    os.link(run / "checkpoint-2" / "model.safetensors", tmp_path / "hard" / "model.safetensors")
    for twin in (tmp_path / "hard", run / "checkpoint-2", run / "checkpoint-2" / "model.safetensors"):
        with pytest.raises(ConfigError, match="one and the same file"):
            average_checkpoints([run, twin], tmp_path / "out")


def shard(folder, state, groups):
    folder.mkdir(parents=True)
    index = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: state[name] for name in names}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_shards_anywhere_give_the_same_bytes(tmp_path):
    states = [make_state(seed) for seed in range(3)]
    names = list(states[0])
    whole = save_states(tmp_path, states)
    parts = [
        shard(tmp_path / "s0", states[0], [names[:1], names[1:]]),
        shard(tmp_path / "s1", states[1], [names[2:], names[:2]]),
        whole[2],
    ]
    average_checkpoints(whole, tmp_path / "one")
    average_checkpoints(parts, tmp_path / "two")
    expected = (tmp_path / "one" / "model.safetensors").read_bytes()
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == expected
    index = [parts[0] / "model.safetensors.index.json", *parts[1:]]
    average_checkpoints(index, tmp_path / "three")
    assert (tmp_path / "three" / "model.safetensors").read_bytes() == expected
    (parts[1] / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match="names 2 shards, and `model-00002-of-00002.safetensors` is missing"):
        average_checkpoints(parts, tmp_path / "four")


def test_single_files_and_pickles(tmp_path):
    states = [make_state(seed) for seed in range(3)]
    places = save_states(tmp_path, states)
    torch.save(states[1], tmp_path / "weights.bin")
    (tmp_path / "pickled").mkdir()
    torch.save(
        {name: torch.nn.Parameter(value) for name, value in states[2].items()},
        tmp_path / "pickled" / "pytorch_model.bin",
    )
    average_checkpoints(
        [places[0] / "model.safetensors", tmp_path / "weights.bin", tmp_path / "pickled"], tmp_path / "out"
    )
    assert_mean(tmp_path / "out", states)


def make_tied(seed):
    set_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(vocab_size=40, max_position_embeddings=20, **sizes))
    with torch.no_grad():
        model.lm_head.bias.normal_()
    return model


def assert_tied_output(folder, models):
    loaded, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert loaded.lm_head.decoder.weight is loaded.roberta.embeddings.word_embeddings.weight
    for name, tensor in loaded.state_dict().items():
        if tensor.is_floating_point():
            wanted = sum(model.state_dict()[name].double() for model in models) / len(models)
            assert torch.allclose(tensor.double(), wanted, rtol=1e-6, atol=1e-9), name


def test_tied_weights_are_averaged_once_whatever_the_format(tmp_path):
    models = [make_tied(seed) for seed in range(3)]
    pickled, plain, doubled = [], [], []
    for number, model in enumerate(models):
        folder = tmp_path / f"plain-{number}"
        model.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        plain.append(folder)
        for kind, places in (("pickle", pickled), ("double", doubled)):
            place = tmp_path / f"{kind}-{number}"
            shutil.copytree(folder, place)
            (place / "model.safetensors").unlink()
            places.append(place)
        # state_dict() holds the tied weight under both names, on one storage.
        torch.save(model.state_dict(), pickled[-1] / "pytorch_model.bin")
        copies = {name: value.clone() for name, value in model.state_dict().items()}
        save_file(copies, doubled[-1] / "model.safetensors", {"format": "pt"})
    for number, places in enumerate((plain, pickled, doubled, [plain[0], pickled[1], doubled[2]])):
        average_checkpoints(places, tmp_path / f"out-{number}")
        assert_tied_output(tmp_path / f"out-{number}", models)
        names = load_average(tmp_path / f"out-{number}")
        if places is not doubled:
            assert "lm_head.bias" in names and not any("decoder" in name for name in names)
    # A second copy that is not a copy is no tied weight.
    copies["lm_head.decoder.weight"][0, 0] += 1
    save_file(copies, doubled[2] / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="`lm_head.decoder.weight`"):
        average_checkpoints([plain[0], doubled[2]], tmp_path / "differs")


def test_beyond_256_files_each_read_opens_its_own(tmp_path, monkeypatch):
    from hf_xlt.averaging import streaming

    monkeypatch.setattr(streaming, "_DESCRIPTORS", 2)
    states = [make_state(seed) for seed in range(4)]
    average_checkpoints(save_states(tmp_path, states), tmp_path / "out")
    assert_mean(tmp_path / "out", states)


def test_per_run_and_unequal_runs(tmp_path):
    one = list(make_run(tmp_path / "a", (1, 2, 3)).values())
    two = list(make_run(tmp_path / "b", (9,), seed=50).values())
    runs = [tmp_path / "a", tmp_path / "b"]
    config = {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}
    for folder in (*(runs[0].iterdir()), *(runs[1].iterdir())):
        (folder / "config.json").write_text(json.dumps(config))
    report = average_checkpoints([], tmp_path / "plain", runs=runs, head="average")
    assert any("3, 1 snapshots" in note for note in report.notes)
    assert_mean(tmp_path / "plain", [*one, *two])
    average_checkpoints([], tmp_path / "even", runs=runs, head="average", per_run=True)
    assert_mean(tmp_path / "even", [*one, *two], [1, 1, 1, 3])
