"""`hf-xlt average` and the greedy soup."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from averaging_setup import make_state, save_state, save_states
from records import make_record
from tiny import CLASSES, make_features, make_model, make_rows, make_tokenizer, write_data, write_rows

from hf_xlt.arguments import DataArguments
from hf_xlt.averaging import average_checkpoints, streaming
from hf_xlt.averaging.greedy import SourceScorer, add_while_not_worse
from hf_xlt.cli.main import main
from hf_xlt.data.sources import make_source
from hf_xlt.record import RunRecord


def test_average(tmp_path, capsys):
    places = save_states(tmp_path, [make_state(0), make_state(1), make_state(2)])
    arguments = ["average", *map(str, places), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--check-only"]) == 0 and not (tmp_path / "out").exists()
    assert "nothing was written" in capsys.readouterr().out
    assert main([*arguments, "--weights", "1,2,1"]) == 0
    output = capsys.readouterr()
    assert "0.5000" in output.out and f"Saved in {tmp_path / 'out'}" in output.out
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error:") and "--overwrite" in error and error.count("\n") == 1
    assert main([*arguments, "--overwrite", "--json", "--ema", "0.5", "--dtype", "bfloat16"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [entry["weight"] for entry in report["inputs"]] == [0.25, 0.25, 0.5]
    assert report["dtypes"] == ["bfloat16"] and report["inputs"][0]["name"] == str(places[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "1,x"], "finite numbers"),
        (["--window", "x"], "--window"),
        (["--last", "0"], "--last"),
        (["--accumulate", "float8"], "accumulate"),
        (["--greedy"], "--dataset"),
        (["--nonsense"], "--nonsense"),
        (["--dtype", "int8"], "--dtype int8"),
    ],
)
def test_usage_errors(tmp_path, capsys, arguments, message):
    places = save_states(tmp_path, [make_state(0), make_state(1)])
    assert main(["average", *map(str, places), "-o", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_failures_and_interruption(tmp_path, capsys, monkeypatch):
    # A shell lets what it starts in the background ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    places = save_states(tmp_path, [make_state(0), make_state(1)])
    arguments = ["average", *map(str, places), "-o", str(tmp_path / "out")]
    work = streaming.BlockWorker.work

    def touching(self, *block):
        os.utime(places[0] / "model.safetensors", ns=(1, 1))
        return work(self, *block)

    monkeypatch.setattr(streaming.BlockWorker, "work", touching)
    assert main(arguments) == 1
    assert "changed while it was read" in capsys.readouterr().err
    monkeypatch.setattr(streaming._Pass, "run", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert main(arguments) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c0", "c1"]


def test_checking_imports_no_torch(tmp_path):
    places = save_states(tmp_path, [make_state(0), make_state(1)])
    code = (
        "import sys; from hf_xlt.cli.main import main; "
        f"assert main(['average', {str(places[0])!r}, {str(places[1])!r}, '--check-only']) == 0; "
        f"assert main(['average', {str(places[0])!r}, {str(places[1])!r}, '-o', {str(tmp_path / 'out')!r}]) == 0; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_command_in_the_record_names_no_folder(tmp_path, monkeypatch):
    run = tmp_path / "run"
    save_state(run / "checkpoint-1", make_state(1))
    (run / "checkpoint-1" / "complete.json").write_text('{"files": {}}')
    make_record().write(run)
    arguments = ["average", "--run", str(run), "-o", str(tmp_path / "out"), "--last", "1"]
    monkeypatch.setattr(sys, "argv", ["hf-xlt", *arguments])
    assert main(arguments) == 0
    assert RunRecord.read(tmp_path / "out").command == "hf-xlt average --run run --last 1"


def test_greedy_choice():
    values = {(0,): 1.0, (1,): 3.0, (2,): 2.0, (1, 2): 3.5, (0, 1, 2): 3.4}
    members, trials = add_while_not_worse(3, values.__getitem__)
    assert members == (1, 2) and dict(trials) == values
    assert add_while_not_worse(3, lambda members: 1.0)[0] == (0, 1, 2)
    assert add_while_not_worse(1, lambda members: 0.0)[0] == (0,)


def train(model, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for row in make_features(steps, 5):
        loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_greedy_takes_bare_numbers_where_the_run_or_the_user_named_them(tmp_path, capsys):
    rows = [{"text": row["text"], "label": row["label"]} for row in make_rows("en", 20, 0)]
    write_rows(tmp_path / "validation.en.jsonl", rows)
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: n for n, name in enumerate(CLASSES)}}
    for step in (1, 2):
        make_model(step, **labels).save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
        make_tokenizer().save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    inputs = [str(tmp_path / "run" / f"checkpoint-{step}") for step in (1, 2)]
    line = ["average", *inputs, "--greedy", "--dataset", f"{tmp_path}/{{split}}.{{lang}}.jsonl"]
    assert main([*line, "-o", str(tmp_path / "a")]) == 2
    assert "bare number, and the classes have names" in capsys.readouterr().err
    assert main([*line, "-o", str(tmp_path / "a"), "--labels", ",".join(CLASSES)]) == 0
    record = make_record()
    record.arguments["labels"], record.arguments["max_length"] = list(CLASSES), 32
    record.write(tmp_path / "run")
    assert main([*line, "-o", str(tmp_path / "b")]) == 0


def test_greedy_reads_source_validation_only(tmp_path, capsys, monkeypatch):
    pattern = write_data(tmp_path / "data", ("en", "de"))
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: n for n, name in enumerate(CLASSES)}}
    model = make_model(0, **labels)
    for step in (20, 40, 60):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        train(model, 20).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
    with torch.no_grad():
        # A spoiled snapshot, which a greedy soup leaves out.
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path / "run" / "checkpoint-80")
    make_tokenizer().save_pretrained(tmp_path / "run" / "checkpoint-80")
    source_class, read = type(make_source(pattern, None, "train")), []
    original = source_class.read
    monkeypatch.setattr(source_class, "read", lambda self, *a: (read.append(a), original(self, *a))[1])
    for path in (tmp_path / "data").glob("*.de.jsonl"):
        path.write_text("not json\n")
    arguments = ["average", str(tmp_path / "run"), "-o", str(tmp_path / "out"), "--greedy", "--dataset", pattern]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(read) == {("en", "validation")}
    names = [entry["name"].rpartition("/")[2] for entry in report["inputs"]]
    assert names and "checkpoint-80" not in names
    singles = {trial["names"][0]: trial["score"] for trial in report["greedy"]["trials"] if len(trial["names"]) == 1}
    assert len(singles) == 4
    score = SourceScorer(DataArguments(dataset=pattern))(tmp_path / "out")
    kept = [trial["score"] for trial in report["greedy"]["trials"] if trial["names"] == names]
    assert score == kept[0] >= max(singles.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out", "run"]
    assert report["greedy"]["metric"] == "accuracy" and report["greedy"]["languages"] == ["en"]


def test_greedy_takes_no_weights(tmp_path):
    places = save_states(tmp_path, [make_state(0), make_state(1)])
    for settings in ({"weights": [1, 2]}, {"ema_decay": 0.5}, {"per_run": True}):
        with pytest.raises(ValueError, match="weighs its members equally"):
            average_checkpoints(places, tmp_path / "out", mode="greedy", score=lambda folder: 0.0, **settings)
