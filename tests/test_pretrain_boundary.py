"""`hf-xlt pretrain`: what passes from one phase to the next, on the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from pretraining_setup import TOKENIZER, TRAINING, make_plan, make_world
from safetensors.torch import load_file
from tiny import make_rows, same_weights, write_rows

from hf_xlt.cli.main import main
from hf_xlt.pretraining.loading import load_phase_text
from hf_xlt.pretraining.plan_file import read_plan
from hf_xlt.pretraining.unseen import seen_pieces

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("pretraining"))


@pytest.fixture
def english(world, tmp_path):
    """Text that holds only some of the vocabulary's words."""
    rows = make_rows("en", 60, seed=0)
    for row in rows:
        row["text"] = " ".join(f"w{int(word[1:]) % 40}" for word in row["text"].split())
    (tmp_path / "few").mkdir()
    write_rows(tmp_path / "few" / "en.jsonl", rows)
    return str(tmp_path / "few" / "{lang}.jsonl")


def weights(folder):
    return load_file(folder / "model.safetensors")


def refused(capsys, arguments):
    code = main(["pretrain", *arguments])
    return code, capsys.readouterr().err


def two_phases(world, folder, english, first=None, second=None, **training):
    phases = [
        {"name": "meta", "steps": 4, "sources": [english], **(first or {})},
        {"name": "cross", "steps": 6, "alpha": 0.5, **(second or {})},
    ]
    return make_plan(world, folder, phases=phases, training={**TRAINING, "disable_tqdm": True, **training})


def cut_second_phase(out, keep):
    """Leave of the second phase what a killed run would have left after its update `keep`."""
    ledger = json.loads((out / "phases.json").read_text())
    (out / "phases.json").write_text(json.dumps({"phases": ledger["phases"][:1]}))
    own = out / "phase-1-cross"
    shutil.rmtree(own / "final")
    for folder in own.glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > keep:
            shutil.rmtree(folder)
    (out / "model.safetensors").unlink()
    record = json.loads((out / "xlt_run.json").read_text())
    (out / "xlt_run.json").write_text(json.dumps({**record, "status": "running"}))


def steps_of(checkpoint):
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    return {int(entry["step"]) for entry in state.values()}


def test_moments_are_carried_over_and_a_cut_run_ends_the_same(world, tmp_path, english, capsys):
    plan = two_phases(world, tmp_path, english, second={"optimizer_carry": True})
    assert main(["pretrain", "--config", plan]) == 0
    out = tmp_path / "out"
    assert "Phase cross: AdamW moments of" in capsys.readouterr().out
    assert steps_of(out / "phase-0-meta" / "checkpoint-4") == {4}
    assert steps_of(out / "phase-1-cross" / "checkpoint-6") == {10}
    whole = weights(out)
    # Begun anew it takes the moments of the first phase again, cut later it has its own and needs them no longer.
    for keep in (0, 2):
        cut_second_phase(out, keep)
        if keep:
            shutil.rmtree(out / "phase-0-meta" / "checkpoint-4")
        assert main(["pretrain", "--config", plan, "--resume"]) == 0
        assert same_weights(whole, weights(out))
    cut_second_phase(out, 0)
    capsys.readouterr()
    code, text = refused(capsys, ["--config", plan, "--resume"])
    assert code == 2 and len(text.strip().splitlines()) == 1, text
    assert "needs the checkpoint of update 4 of phase `meta` in `phase-0-meta`; the newest there is" in text


def test_carried_moments_make_a_difference_only_if_asked_for(world, tmp_path, english):
    results = {}
    for name, second in (("carried", {"optimizer_carry": True}), ("plain", {}), ("not", {"optimizer_carry": False})):
        (tmp_path / name).mkdir()
        assert main(["pretrain", "--config", two_phases(world, tmp_path / name, english, second=second)]) == 0
        results[name] = weights(tmp_path / name / "out")
    assert same_weights(results["plain"], results["not"])
    assert not same_weights(results["plain"], results["carried"])


@pytest.mark.parametrize(
    ("first", "second", "training", "message"),
    [
        ({"optimizer_carry": True}, {}, {}, "it is the first phase"),
        ({}, {"optimizer_carry": True}, {"save_strategy": "no"}, "Set `save_strategy: steps`"),
        ({"unseen_rows": "drop"}, {}, {}, "choose from leave, redraw, freeze"),
        ({}, {}, {"max_failed_shards": 1.0}, "`max_failed_shards` is 1.0; it must be a share in [0, 1)"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    first,
    second,
    training,
    message,
    world,
    tmp_path,
    english,
    capsys,
):
    code, text = refused(capsys, ["--config", two_phases(world, tmp_path, english, first, second, **training)])
    assert code == 2 and message in text and len(text.strip().splitlines()) == 1, text
    assert not (tmp_path / "out").exists()


def test_unseen_rows_are_drawn_anew_at_the_boundary(world, tmp_path, english, capsys):
    # So low a rate leaves the weights of the second phase's start.
    plan = two_phases(world, tmp_path, english, {"unseen_rows": "redraw"}, {"learning_rate": 1e-30})
    assert main(["pretrain", "--config", plan]) == 0
    out = tmp_path / "out"
    printed = capsys.readouterr().out
    assert "Phase cross: 20 of 65 embeddings are drawn anew; no text so far holds their pieces." in printed
    before, after = load_file(out / "phase-0-meta" / "final" / "model.safetensors"), weights(out)
    text = load_phase_text(read_plan(plan).phases[0], TOKENIZER, seed=42)
    seen = torch.from_numpy(seen_pieces(text, TOKENIZER, 65))
    moved = ~(before[EMBEDDINGS] == after[EMBEDDINGS]).all(dim=1)
    assert torch.equal(moved, ~seen) and int(moved.sum()) == 20
    others = {name for name in before if not torch.equal(before[name], after[name])}
    assert others - {EMBEDDINGS} <= {"cls.predictions.bias", "cls.predictions.decoder.bias"}
    cut_second_phase(out, 2)
    assert main(["pretrain", "--config", plan, "--resume"]) == 0
    assert same_weights(after, weights(out))


def test_frozen_rows_stay_and_the_log_tells_their_norm(world, tmp_path, english):
    settings = {"logging_steps": 2, "weight_decay": 0.1}
    plan = two_phases(world, tmp_path, english, {"unseen_rows": "freeze"}, **settings)
    assert main(["pretrain", "--config", plan]) == 0
    out = tmp_path / "out"
    state = json.loads((out / "phase-0-meta" / "checkpoint-4" / "trainer_state.json").read_text())
    norms = [entry["unseen_row_norm"] for entry in state["log_history"] if "loss" in entry]
    assert len(norms) == 2 and norms[0] == norms[1]
    one, two = (load_file(out / "phase-0-meta" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4))
    assert torch.equal(one[EMBEDDINGS][45:], two[EMBEDDINGS][45:])
    assert not torch.equal(one[EMBEDDINGS][5:45], two[EMBEDDINGS][5:45])
    later = json.loads((out / "phase-1-cross" / "checkpoint-6" / "trainer_state.json").read_text())
    assert not [entry for entry in later["log_history"] if "unseen_row_norm" in entry]


def test_plans_of_before_can_be_resumed(world, tmp_path, english):
    """Fields that came later are no part of a phase that does not set them."""
    plan = two_phases(world, tmp_path, english)
    assert main(["pretrain", "--config", plan, "--phase", "meta"]) == 0
    definition = json.loads((tmp_path / "out" / "xlt_run.json").read_text())["settings"]["phases"][0]
    assert not {"optimizer_carry", "unseen_rows"} & definition.keys()
    assert main(["pretrain", "--config", plan, "--resume"]) == 0
    assert Path(tmp_path / "out" / "model.safetensors").is_file()
