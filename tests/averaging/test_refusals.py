"""Inputs that cannot be averaged: one clear error each, and nothing written."""

import json
import os
import random
import shutil
import struct

import pytest
import torch
from averaging_setup import make_state, save_state, save_states
from safetensors.torch import save_file
from tiny import make_model, make_tokenizer

from hf_xlt.averaging import average_checkpoints, streaming
from hf_xlt.errors import ConfigError, RunError


def refuse(tmp_path, inputs, message, error=ConfigError, **settings):
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error, match=message):
        average_checkpoints(inputs, tmp_path / "out", **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.fixture
def pair(tmp_path):
    return save_states(tmp_path, [make_state(0), make_state(1)])


def test_names(tmp_path, pair):
    save_state(pair[1], {**make_state(1), "extra.weight": torch.ones(2)})
    refuse(tmp_path, pair, "c1` holds 1 tensors that `.*c0` lacks: `extra.weight`")
    save_state(pair[1], {f"other.{number}": torch.ones(1) for number in range(15)})
    refuse(tmp_path, pair, "and 5 more|holds 4 tensors")


def test_a_missing_tensor_is_not_explained_by_an_equal_one(tmp_path):
    zeros = {"norm.bias": torch.zeros(4)}
    more = {**zeros, "dense.bias": torch.zeros(4)}
    places = save_states(tmp_path, [{**make_state(0), **zeros}, {**make_state(1), **more}])
    refuse(tmp_path, places, "holds 1 tensors that .* lacks: `dense.bias`")


def test_shapes(tmp_path):
    states = [make_state(0), make_state(1)]
    for state, rows in zip(states, (7, 8), strict=True):
        state["embeddings.word_embeddings.weight"] = torch.zeros(rows, 4)
    places = save_states(tmp_path, states)
    refuse(tmp_path, places, r"shape \[7, 4\] in .*c0` and \[8, 4\] in .*c1`. The vocabularies differ in size")


CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 32,
    "pad_token_id": 0,
    "id2label": {"0": "bad", "1": "good", "2": "plain"},
}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "roberta", "`model_type` is 'bert'.*'roberta'"),
        ("architectures", ["BertModel"], "`architectures`"),
        ("hidden_size", 64, "`hidden_size` is 32 .* and 64"),
        ("pad_token_id", 1, "`pad_token_id`"),
        ("id2label", {"0": "good", "1": "bad", "2": "plain"}, "`id2label` is .*'bad', 'good'.*same index"),
        ("quantization_config", {"bits": 4}, "quantised"),
    ],
)
def test_configs(tmp_path, key, value, message):
    places = save_states(tmp_path, [make_state(0), make_state(1)], CONFIG)
    average_checkpoints(places, None, check_only=True)
    save_state(places[1], make_state(1), {**CONFIG, key: value})
    refuse(tmp_path, places, message)
    if key != "quantization_config":
        report = average_checkpoints(places, None, check_only=True, strict=False)
        assert any(key in note for note in report.notes)


def test_other_base_models_are_only_noted(tmp_path):
    places = save_states(tmp_path, [make_state(0), make_state(1)])
    for place, base in zip(places, ("org/one", "org/two"), strict=True):
        save_state(place, make_state(0), {**CONFIG, "_name_or_path": base})
    assert any("different base models" in n for n in average_checkpoints(places, None, check_only=True).notes)


def test_tokenizers(tmp_path):
    places = []
    for number in range(2):
        folder = tmp_path / f"c{number}"
        make_model(number).save_pretrained(folder)
        tokenizer = make_tokenizer()
        if number:
            # What a tokenizer last did is no difference.
            tokenizer(["w1 w2", "w3"], truncation=True, max_length=5, padding=True)
        tokenizer.save_pretrained(folder)
        places.append(folder)
    average_checkpoints(places, None, check_only=True)
    text = (places[1] / "tokenizer.json").read_text()
    (places[1] / "tokenizer.json").write_text(text.replace('"w17"', '"other"'))
    refuse(tmp_path, places, "tokenizers differ: .*c0/tokenizer.json` and `.*c1/tokenizer.json")
    for place in places:
        (place / "tokenizer.json").unlink()
    assert any(
        "no input comes with a tokenizer" in n for n in average_checkpoints(places, None, check_only=True).notes
    )


@pytest.mark.parametrize("number", range(20))
def test_cut_off_anywhere(tmp_path, pair, number):
    path = pair[1] / "model.safetensors"
    size = path.stat().st_size
    # The ends of the length, of the header and of the data, and places between.
    header = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
    edges = [0, 1, 7, 8, 9, header - 1, header, header + 1, size - 1]
    places = edges + random.Random(0).sample([n for n in range(size) if n not in edges], 20 - len(edges))
    os.truncate(path, places[number])
    refuse(tmp_path, pair, "c1/model.safetensors` (is cut off|is damaged)")


def rewrite(path, change):
    """Change a safetensors header and keep the data."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = change(json.loads(raw[8 : 8 + length]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def entry_change(name, **values):
    return lambda header: {**header, name: {**header[name], **values}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entry_change("body.bias", data_offsets=[4, 48]), "overlaps|hole"),
        (entry_change("body.bias", dtype="F99"), "unknown dtype 'F99'"),
        (entry_change("body.bias", dtype="F16"), "44 bytes, and F16 of shape .11. takes 22"),
        (entry_change("body.bias", dtype="F8_E4M3"), "quantised"),
        (entry_change("body.bias", shape=[12]), "takes 48"),
        (entry_change("body.bias", shape=[-11]), "no whole number"),
        (entry_change("body.bias", data_offsets=[0.5, 44.5]), "no whole number"),
        (
            lambda header: {**header, "more": {"dtype": "F32", "shape": [2], "data_offsets": [10**6, 10**6 + 8]}},
            "hole",
        ),
        (lambda header: {"__metadata__": {"format": "pt"}}, "no tensors"),
        (lambda header: b"[1, 2]", "damaged"),
        (lambda header: b"{not json", "damaged"),
        (lambda header: b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 3}', "stands twice"),
        (lambda header: b"\xff\xfe", "damaged"),
    ],
)
def test_headers_that_lie(tmp_path, pair, change, message):
    rewrite(pair[1] / "model.safetensors", change)
    refuse(tmp_path, pair, message)


def test_foreign_files(tmp_path, pair):
    path = pair[1] / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refuse(tmp_path, pair, "c1/model.safetensors` is a git-lfs pointer.*git lfs pull")
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refuse(tmp_path, pair, "its header would be 1,152,921,504,606,846,976 bytes")
    path.write_bytes(struct.pack("<Q", 90_000_000) + b"{}")
    refuse(tmp_path, pair, "is cut off")
    path.write_bytes(b"")
    refuse(tmp_path, pair, "is cut off: it has 0 bytes")
    save_state(pair[1], make_state(1))
    path.write_bytes(path.read_bytes() + b"more")
    refuse(tmp_path, pair, "its tensors end at byte")
    path.unlink()
    refuse(tmp_path, pair, "holds no weights")
    (pair[1] / "optimizer.pt").write_bytes(b"x")
    refuse(tmp_path, pair, "optimizer and no weights")
    refuse(tmp_path, [pair[0], tmp_path / "nowhere"], "nowhere` is missing")
    (tmp_path / "notes.txt").write_text("x")
    refuse(tmp_path, [pair[0], tmp_path / "notes.txt"], "is no weight file")
    refuse(tmp_path, [], "nothing to average")


class Foreign:
    def __reduce__(self):
        return (open, (str(os.environ["FOREIGN_MARK"]), "w"))


def test_pickles_run_nothing(tmp_path, pair, monkeypatch):
    mark = tmp_path / "mark"
    monkeypatch.setenv("FOREIGN_MARK", str(mark))
    path = tmp_path / "model.bin"
    torch.save({"weight": torch.ones(2), "code": Foreign()}, path)
    refuse(tmp_path, [pair[0], path], "holds more than tensors")
    torch.save({"state": {}, "param_groups": []}, path)
    refuse(tmp_path, [pair[0], path], "state of an optimizer")
    torch.save({"epoch": 3}, path)
    refuse(tmp_path, [pair[0], path], "`epoch` is none")
    torch.save([torch.ones(1)], path)
    refuse(tmp_path, [pair[0], path], "no state dict")
    torch.save(make_state(0), path, _use_new_zipfile_serialization=False)
    refuse(tmp_path, [pair[0], path], "before PyTorch 1.6")
    torch.save({**make_state(0), "body.weight": make_state(0)["body.weight"].T.contiguous().T}, path)
    refuse(tmp_path, [pair[0], path], "cannot be read in one piece")
    torch.save(make_state(0), path)
    for share in (0.2, 0.5, 0.9):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        refuse(tmp_path, [pair[0], path], "damaged or cut off")
        path.write_bytes(whole)
    assert not mark.exists()


def test_quantised_codes(tmp_path):
    state = {**make_state(0), "body.qweight": torch.ones(4, dtype=torch.int32)}
    refuse(tmp_path, save_states(tmp_path, [state, state]), "quantised")


def test_changed_while_reading(tmp_path, pair, monkeypatch):
    work = streaming.BlockWorker.work
    path = pair[1] / "model.safetensors"

    def touching(self, *arguments):
        os.utime(path, ns=(1, 1))
        return work(self, *arguments)

    monkeypatch.setattr(streaming.BlockWorker, "work", touching)
    refuse(tmp_path, pair, "c1/model.safetensors` changed while it was read", RunError)
    monkeypatch.setattr(streaming.BlockWorker, "work", lambda self, *a: (os.truncate(path, 50), work(self, *a))[1])
    refuse(tmp_path, pair, "cut short|changed while it was read", RunError)


def test_output_in_an_input_or_over_one(tmp_path, pair):
    run = tmp_path / "run"
    for step in (1, 2):
        shutil.copytree(pair[0], run / f"checkpoint-{step}")
    for output in (pair[0], pair[0] / "averaged", tmp_path, run, run / "averaged", run / "checkpoint-1"):
        with pytest.raises(ConfigError, match="is or lies in an input, or holds one"):
            average_checkpoints([*pair, run], output, overwrite=True)
    os.symlink(pair[0], tmp_path / "link")
    with pytest.raises(ConfigError, match="is or lies in an input"):
        average_checkpoints(pair, tmp_path / "link" / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        average_checkpoints(pair, tmp_path / "file")


def test_settings(tmp_path, pair):
    for settings, message in (
        ({"accumulate": "float16"}, "accumulate.*float16"),
        ({"mode": "slerp"}, "`mode` 'slerp'"),
        ({"mode": "ema"}, "needs `ema_decay`"),
        ({"head": "drop"}, '`head="drop"`'),
        ({"lora_mode": "ties"}, "lora_mode"),
        ({"max_shard_size": "many"}, '`max_shard_size="many"`'),
        ({"ema_decay": 0.5, "weights": [1, 1]}, "leave out `weights`"),
        ({"mode": "greedy"}, "needs data to score on"),
    ):
        refuse(tmp_path, pair, message, **settings)
    with pytest.raises(ConfigError, match="no output"):
        average_checkpoints(pair, None)


def test_mixed_whole_numbers(tmp_path, pair):
    for place, dtype in zip(pair, (torch.int64, torch.int32), strict=True):
        save_file({"ids": torch.arange(3, dtype=dtype)}, place / "model.safetensors")
    refuse(tmp_path, pair, "`ids` is I64 .* I32 .*Integers are not converted", dtype="float32")
