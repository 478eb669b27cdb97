"""What a run prints: text, one document, or nothing; never an escape code where there is no terminal."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from tiny import save_encoder, write_data

from hf_xlt.cli.main import main
from hf_xlt.record import RunRecord
from hf_xlt.streams import print_document, unbroken


@pytest.fixture
def line(tmp_path, monkeypatch):
    """The command of a tiny run that evaluates while it trains, which would move the cursor between two bars."""
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "encoder")
    write_data(tmp_path / "data", languages=("en", "de"), train=16)
    fast = "--max-steps 2 --eval-strategy steps --eval-steps 1 --save-strategy no --logging-steps 1 --threads 1"
    return ["run", "--model", "encoder", "--dataset", "data/{split}.{lang}.jsonl", *fast.split(), "--output-dir"]


def test_json_is_the_scores_and_all_else_is_on_stderr(line, capfd):
    assert main([*line, "out", "--json"]) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    record = RunRecord.read("out")
    assert document["results"] == record.results and document["output_dir"] == "out"
    assert document["status"] == "finished" and document["oracle"] is False
    assert "Saved in out" in err and "\x1b" not in out + err
    # How it was printed is no setting of the run.
    assert "--json" not in record.command and "json" not in record.arguments | record.settings
    assert main([*line, "out", "--json", "--resume"]) == 0
    assert json.loads(capfd.readouterr().out)["results"] == record.results


def test_quiet_prints_nothing_and_a_failure_all_the_same(line, capfd):
    assert main([*line, "out", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert out == "" and "\r" not in err and "\x1b" not in err and "Saved" not in err
    assert main([*line, "out", "-q"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "holds a run already" in err
    assert main([*line, "out", "-q", "--json", "--overwrite"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["status"] == "finished" and "Saved" not in err


def test_without_a_terminal_losses_are_lines_and_no_bar_is_drawn(line, capfd):
    assert main([*line, "out"]) == 0
    out, err = capfd.readouterr()
    assert "\x1b" not in out + err and "\r" not in out + err
    assert out.count("'loss'") == 2 and "Saved in out" in out


def test_a_plan_is_a_document_too(line, capfd):
    assert main([*line, "out", "--dry-run", "--json", "--strategy", "robust"]) == 0
    out, err = capfd.readouterr()
    plan = json.loads(out)
    assert plan["updates"] == 2 and plan["plain_steps"] == pytest.approx(2 * 5 / 3)
    assert [(part["updates"], part["plain_steps"]) for part in plan["phases"]] == [(2, pytest.approx(10 / 3))]
    assert {(entry["role"], entry["language"]) for entry in plan["data"]} >= {("source", "en"), ("target", "de")}
    assert plan["labels"] == ["bad", "good", "plain"] and "Nothing was run" in err


def test_a_plan_counts_every_phase(line, capfd):
    """Two auxiliary languages, tasks of half an update: a meta-update of second order is 2 x 2 / 2 plain steps."""
    write_data(Path("data"), languages=("en", "de", "sw", "zh"), train=16)
    more = "--strategy xmaml --auxiliary-dataset data/{split}.{lang}.jsonl --auxiliary-languages sw,zh --meta-steps 6"
    own = "--per-device-train-batch-size 8 --task-batch-size 4 --target-languages de --dry-run"
    assert main([*line, "out", *more.split(), *own.split()]) == 0
    assert "Cost       source 2 x 1.00 + meta 6 x 2.00 = 14 plain steps in all" in capfd.readouterr().out
    assert main([*line, "out", *more.split(), *own.split(), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["plain_steps"] == 14


def test_the_traceback_is_shown_when_it_is_asked_for(capsys):
    for argv in (["run", "--traceback", "--strategy", "robst"], ["strategies", "robst", "--traceback"]):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err and err.strip().splitlines()[-1].startswith("error: unknown strategy")


class _Gone(io.TextIOWrapper):
    """A pipe whose reader has gone: `| head -1`."""

    def __init__(self):
        reader, self.end = os.pipe()
        os.close(reader)
        super().__init__(open(self.end, "wb", buffering=0), encoding="utf-8", write_through=True)


def test_a_reader_that_goes_away_does_not_stop_the_training(line, monkeypatch):
    monkeypatch.setattr(sys, "stdout", _Gone())
    monkeypatch.setattr(sys, "stderr", _Gone())
    assert main([*line, "out"]) == 0
    assert RunRecord.read("out").status == "finished"
    assert main(["strategies"]) == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_poor_encoding_loses_neither_document_nor_table(monkeypatch, encoding):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
    with unbroken():
        print_document({"name": "deutsch é ü 中", "mark": "\N{BYTE ORDER MARK}"})
        print("table 中 é")
    text = buffer.getvalue().decode(encoding)
    document, table = text.splitlines()
    assert json.loads(document) == {"name": "deutsch é ü 中", "mark": "\N{BYTE ORDER MARK}"}
    assert table.startswith("table \\u4e2d") and sys.stdout.encoding == encoding


def test_a_place_that_is_none_is_named_in_one_line(line, capsys):
    assert main([*line, "out"]) == 0
    for place, code in (("/proc/card.md", 2), ("out/model.safetensors/card.md", 2)):
        capsys.readouterr()
        assert main(["card", "out", "--output", place]) == code
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("error: ") and "--output" in err and "Error" not in err
