"""What could have been taken in place of the average: chosen on validation data, each snapshot scored once."""

import json

import pytest
import torch
from tiny import save_encoder, write_data
from transformers import AutoModelForSequenceClassification

import hf_xlt.comparators as comparators
from hf_xlt.averaging.snapshots import snapshot_folder
from hf_xlt.cli.main import main
from hf_xlt.comparator_results import AVERAGED, LAST, SOURCE_DEV, TARGET_DEV_ORACLE, Comparators
from hf_xlt.comparators import choose_snapshots, compare
from hf_xlt.errors import RunError
from hf_xlt.model_cards.card import render
from hf_xlt.record import RunRecord
from hf_xlt.results import SOURCE, TARGET, LanguageScore, Results

FAST = "--max-steps 6 --per-device-train-batch-size 8 --learning-rate 3e-3 --disable-tqdm --threads 1".split()
# Validation: source best at 20, German at 10, Swahili first at 20 and again at 30.
VALUES = {
    10: {"en": 0.5, "de": 0.9, "sw": 0.1},
    20: {"en": 0.8, "de": 0.2, "sw": 0.7},
    30: {"en": 0.7, "de": 0.3, "sw": 0.7},
}
ALL = (LAST, SOURCE_DEV, TARGET_DEV_ORACLE)


def results(values):
    role = {"en": SOURCE}
    return Results(
        "accuracy",
        tuple(LanguageScore(code, role.get(code, TARGET), 4, {"accuracy": v}) for code, v in values.items()),
    )


def test_each_rival_has_its_own_snapshot():
    chosen = choose_snapshots(ALL, [10, 20, 30], VALUES, ["en", "de", "sw"], ["en"])
    assert chosen == {
        LAST: {"en": 30, "de": 30, "sw": 30},
        SOURCE_DEV: {"en": 20, "de": 20, "sw": 20},
        # The source language has no oracle of its own; of equal snapshots the earliest is taken.
        TARGET_DEV_ORACLE: {"en": 20, "de": 10, "sw": 20},
    }
    assert choose_snapshots((LAST,), [10, 30], {}, ["en"], []) == {LAST: {"en": 30}}


def test_several_source_languages_choose_by_their_mean():
    values = {10: {"en": 0.9, "de": 0.1}, 20: {"en": 0.6, "de": 0.5}}
    assert choose_snapshots((SOURCE_DEV,), [10, 20], values, ["sw"], ["en", "de"]) == {SOURCE_DEV: {"sw": 20}}
    assert choose_snapshots((SOURCE_DEV,), [10, 20], values, ["sw"], ["en"]) == {SOURCE_DEV: {"sw": 10}}


def test_a_snapshot_is_scored_once_on_each_language(tmp_path):
    for step in VALUES:
        folder = snapshot_folder(tmp_path, step)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    calls = []

    def score(folder, features):
        step, kind = int(folder.name.removeprefix("step-")), next(iter(features.values()))
        calls.extend((step, kind, code) for code in features)
        table = VALUES[step] if kind == "dev" else dict.fromkeys(features, step / 100)
        return results({code: table[code] for code in features})

    languages = ("en", "de", "sw")
    average = results(dict.fromkeys(languages, 0.99))
    compared = compare(
        ALL, tmp_path, [10, 20, 30], average, score, dict.fromkeys(languages, "dev"), dict.fromkeys(languages, "test")
    )
    assert len(calls) == len(set(calls))
    assert {call for call in calls if call[1] == "test"} == {
        *((30, "test", code) for code in languages),
        *((20, "test", code) for code in languages),
        (10, "test", "de"),
    }
    values = {name: [row.value(code) for code in languages] for name, row in compared.rows.items()}
    assert values == {
        LAST: [0.3, 0.3, 0.3],
        SOURCE_DEV: [0.2, 0.2, 0.2],
        AVERAGED: [0.99, 0.99, 0.99],
        TARGET_DEV_ORACLE: [0.2, 0.1, 0.2],
    }
    assert compared.validation == VALUES
    assert Comparators.from_dict(json.loads(json.dumps(compared.to_dict()))) == compared


def test_a_snapshot_that_is_gone_is_told_of(tmp_path):
    with pytest.raises(RunError, match=r"step-10. is gone.*`overwrite`"):
        compare((LAST,), tmp_path, [10], results({"en": 0.5}), None, {}, {"en": "test"})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("comparators")
    save_encoder(root / "encoder")
    write_data(root / "data")
    return root


def go(world, folder, line):
    data = ["--dataset", str(world / "data" / "{split}.{lang}.jsonl")]
    argv = ["run", "--model", str(world / "encoder"), *data, *FAST, "--output-dir", str(folder)]
    return main([*argv, *line.split()])


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A run with all rivals, and the snapshots that it took."""
    folder, kept = tmp_path_factory.mktemp("finished") / "run", {}
    original = comparators.compare

    def spy(asked, run, steps, *args):
        for step in steps:
            model = AutoModelForSequenceClassification.from_pretrained(snapshot_folder(run, step))
            kept[step] = {name: value.detach().clone() for name, value in model.named_parameters()}
        return original(asked, run, steps, *args)

    comparators.compare = spy
    try:
        assert (
            go(
                world,
                folder,
                "--target-languages de,sw --average --average-every 2 --average-compare " + ",".join(ALL),
            )
            == 0
        )
    finally:
        comparators.compare = original
    return folder, kept


def test_snapshots_on_disk_are_those_of_the_average_and_go_when_scored(finished):
    folder, kept = finished
    assert sorted(kept) == [2, 4, 6]
    last = AutoModelForSequenceClassification.from_pretrained(folder / "last")
    average = AutoModelForSequenceClassification.from_pretrained(folder)
    for name, value in average.named_parameters():
        mean = torch.stack([kept[step][name].double() for step in (2, 4, 6)]).mean(0)
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
        assert torch.equal(dict(last.named_parameters())[name], kept[6][name])
    assert not (folder / "snapshots").exists()


def test_the_rows_are_the_scores_of_those_models(finished, world, tmp_path, capsys):
    folder, _ = finished
    record = RunRecord.read(folder)
    rows = record.comparator_scores.rows
    assert list(rows) == [LAST, SOURCE_DEV, AVERAGED, TARGET_DEV_ORACLE]
    assert rows[AVERAGED] == record.scores
    argv = ["evaluate", str(folder / "last"), "--dataset", str(world / "data" / "{split}.{lang}.jsonl"), "--json"]
    assert main([*argv, "--target-languages", "de,sw", "--output-dir", str(tmp_path / "last")]) == 0
    apart = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    for score in rows[LAST].scores:
        assert score.metrics["accuracy"] == apart["languages"][score.language]["metrics"]["accuracy"]
    assert sorted(record.comparator_scores.validation) == [2, 4, 6]
    assert set(record.comparator_scores.validation[2]) == {"en", "de", "sw"}


def test_files_and_card_tell_of_the_rivals_and_of_the_oracle(finished):
    folder, _ = finished
    table = (folder / "comparators.md").read_text()
    assert "| target dev oracle |" in table.splitlines()[2] and "an oracle" in table
    card = render(RunRecord.read(folder))
    assert "### In place of the average" in card and "an oracle, which true transfer does not have" in card
    # Labels that chose a rival chose nothing of what was saved.
    assert RunRecord.read(folder).selection["oracle"] is False and "Oracle selection" not in card
    assert json.loads((folder / "comparators.json").read_text())["rows"].keys() == {*ALL, AVERAGED}


def test_without_the_oracle_no_target_label_of_validation_is_read(world, tmp_path):
    rows = (world / "data" / "validation.de.jsonl").read_text()
    (world / "data" / "validation.de.jsonl").unlink()
    try:
        assert go(world, tmp_path / "a", "--target-languages de --average --average-compare source_dev") == 0
        record = RunRecord.read(tmp_path / "a")
        assert set(next(iter(record.comparator_scores.validation.values()))) == {"en"}
        assert go(world, tmp_path / "b", "--target-languages de --average --average-compare target_dev_oracle") == 2
    finally:
        (world / "data" / "validation.de.jsonl").write_text(rows)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--average --average-compare lats", "Did you mean `last`"),
        ("--average --average-compare averaged", "the average is scored anyway"),
        ("--average-compare last", "does nothing without `--average`"),
    ],
)
def test_what_cannot_be_compared_is_one_line(world, tmp_path, capsys, line, message):
    assert go(world, tmp_path / "x", line) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not (tmp_path / "x").exists()


def test_a_dry_run_says_how_many_snapshots_stay(world, tmp_path, capsys):
    assert go(world, tmp_path / "x", "--average --average-every 2 --average-compare last,source_dev --dry-run") == 0
    assert "Compared   with last, source_dev; about 3 snapshots" in capsys.readouterr().out


def test_adapters_are_merged_in_snapshots(world, tmp_path):
    line = "--target-languages de --average --average-every 3 --average-compare last,source_dev --peft lora"
    assert go(world, tmp_path / "lora", line) == 0
    compared = RunRecord.read(tmp_path / "lora").comparator_scores
    assert set(compared.chosen[LAST].values()) == {6} and set(compared.validation) == {3, 6}
