"""`hf-xlt compare` on runs whose figures are planted, from folders to the report."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from planted_runs import LANGUAGES, Page, plant, right_answers

from hf_xlt.cli.main import main
from hf_xlt.comparing.comparison import compare_runs
from hf_xlt.comparing.report import METHOD
from hf_xlt.comparing.statistics import PairedItems, bootstrap_interval, item_test
from hf_xlt.errors import ConfigError
from hf_xlt.record import RUNNING
from hf_xlt.results import AUXILIARY, SOURCE, TARGET


@pytest.fixture
def runs(tmp_path):
    """Six seeds: `robust` is right more often on every item that matters, `averaging` is as the baseline."""
    for seed in range(6):
        plant(tmp_path / "runs" / f"finetune-{seed}", "finetune", seed, 0.50)
        plant(tmp_path / "runs" / f"robust-{seed}", "robust", seed, 0.62)
        plant(tmp_path / "runs" / f"averaging-{seed}", "averaging", seed, 0.501)
    return tmp_path / "runs"


def test_figures_are_recomputed_from_the_planted_answers(runs):
    found = compare_runs([str(runs)])
    assert found.baseline == "finetune" and set(found.conditions) == {"finetune", "robust", "averaging"}
    assert list(found.roles) == list(LANGUAGES)
    ours, theirs = (
        {code: np.stack([right_answers(seed, share)[code] for seed in range(6)]) for code in LANGUAGES}
        for share in (0.62, 0.50)
    )
    gap = found.differences["robust"]
    expected = np.mean([ours[code].mean(1) - theirs[code].mean(1) for code in ("de", "sw")], axis=0)
    np.testing.assert_allclose(gap.values, expected, atol=1e-7)
    pairs = {
        code: PairedItems(
            *(np.stack([side[code], np.ones_like(side[code])], -1).astype(float) for side in (ours, theirs))
        )
        for code in ("de", "sw")
    }
    assert gap.interval == pytest.approx(bootstrap_interval(pairs)) and gap.p_items == item_test(pairs)
    assert gap.p_runs == 2 / 2**6 and gap.seeds == tuple(range(6))
    assert found.average("robust", SOURCE).values == pytest.approx(tuple(ours["en"].mean(1)))


def test_planted_effects_are_told_from_noise(runs):
    found = compare_runs([str(runs)])
    assert found.differences["robust"].reading() == "better"
    assert found.differences["averaging"].reading() == "within noise"
    # Two conditions were tested: the smaller p is doubled.
    gap = found.differences["robust"]
    assert gap.p_adjusted == pytest.approx(2 * gap.p_items)
    other = compare_runs([str(runs)], "robust").differences["finetune"]
    assert other.mean == pytest.approx(-gap.mean) and other.reading() == "worse"


def test_without_items_only_runs_are_tested(tmp_path):
    for seed in range(5):
        plant(tmp_path / f"a{seed}", "finetune", seed, 0.5, items=seed != 3)
        plant(tmp_path / f"b{seed}", "robust", seed, 0.7)
    found = compare_runs([str(tmp_path)])
    gap = found.differences["robust"]
    assert gap.p_items is None and not gap.over_items and gap.p_adjusted == gap.p_runs == 2 / 2**5
    # All five are better, and that cannot reach 5 %.
    assert min(gap.values) > 0 and gap.reading() == "within noise"
    assert any("it takes 6 to reach 5 %" in note for note in found.notes)


def test_settings_make_conditions_and_seeds_do_not(tmp_path):
    for seed in range(2):
        for rate in (1e-4, 3e-4):
            plant(tmp_path / f"f{seed}{rate}", "finetune", seed, 0.5, learning_rate=rate)
        plant(tmp_path / f"r{seed}", "robust", seed, 0.5, method="adv", shared_head="of `x`, frozen (SHA-256 0)")
    found = compare_runs([str(tmp_path)], "finetune, learning_rate=0.0003")
    assert set(found.conditions) == {"finetune, learning_rate=0.0001", "finetune, learning_rate=0.0003", "robust"}
    with pytest.raises(ConfigError, match="beginning of 2 conditions"):
        compare_runs([str(tmp_path)], "finetune")
    with pytest.raises(ConfigError, match="is no condition.*Did you mean `robust`"):
        compare_runs([str(tmp_path)], "robst")


def test_what_differs_besides_the_strategy_is_told(tmp_path):
    plant(tmp_path / "a", "finetune", 0, 0.5)
    plant(tmp_path / "b", "robust", 0, 0.5, learning_rate=3e-4)
    notes = compare_runs([str(tmp_path)]).notes
    assert any("`learning_rate` differs as well: 0.0001 in `finetune`, 0.0003 in `robust`" in note for note in notes)


def test_labels_that_one_condition_alone_had_are_told_and_settings_of_data_that_none_took_are_not(tmp_path):
    unused = {"auxiliary_languages": ["all"], "auxiliary_split": "train"}
    plant(tmp_path / "a", "finetune", 0, 0.5, **unused)
    plant(tmp_path / "b", "averaging", 0, 0.5, **unused | {"auxiliary_split": "validation"})
    other = plant(tmp_path / "c", "robust", 0, 0.5, auxiliary_languages=["sw"], auxiliary_split="validation")
    assert not compare_runs([str(tmp_path / name) for name in "ab"]).notes[:-1]
    record = json.loads((other / "xlt_run.json").read_text())
    record["data"]["auxiliary"] = {"fingerprints": {"sw": "0"}}
    record["languages"]["auxiliary"] = [{"code": "sw", "iso": "sw", "name": "Swahili"}]
    (other / "xlt_run.json").write_text(json.dumps(record))
    notes = " ".join(compare_runs([str(tmp_path)]).notes)
    assert "`finetune`, `averaging` in en; `robust` in en, sw." in notes and "differs as well" not in notes


def test_languages_scored_on_other_data_are_left_out(tmp_path):
    plant(tmp_path / "a", "finetune", 0, 0.5)
    other = plant(tmp_path / "b", "robust", 0, 0.5)
    record = json.loads((other / "xlt_run.json").read_text())
    record["data"]["target"]["fingerprints"]["sw"] = "another"
    (other / "xlt_run.json").write_text(json.dumps(record))
    found = compare_runs([str(tmp_path)])
    assert list(found.roles) == ["en", "de"] and any("left out: sw" in note for note in found.notes)
    plant(tmp_path / "c", "averaging", 0, 0.5, data="1")
    with pytest.raises(ConfigError, match="no language was scored on the same test data"):
        compare_runs([str(tmp_path)])


def test_a_language_with_labels_in_one_run_is_no_target_of_the_comparison(tmp_path):
    """Same test data, but an auxiliary language to one strategy: its gain there would be no transfer."""
    plant(tmp_path / "a", "finetune", 0, 0.5)
    other = plant(tmp_path / "b", "robust", 0, 0.5)
    record = json.loads((other / "xlt_run.json").read_text())
    record["results"]["languages"]["sw"]["role"] = AUXILIARY
    prints = record["data"]["target"]["fingerprints"]
    record["data"]["auxiliary test"] = {"fingerprints": {"sw": prints.pop("sw")}}
    (other / "xlt_run.json").write_text(json.dumps(record))
    found = compare_runs([str(tmp_path)])
    assert found.roles == {"en": SOURCE, "de": TARGET}
    assert any("in the same role, and left out: sw" in note for note in found.notes)


def test_only_common_seeds_are_paired(tmp_path):
    for seed in (0, 1, 2):
        plant(tmp_path / f"a{seed}", "finetune", seed, 0.5)
    for seed in (2, 3):
        plant(tmp_path / f"b{seed}", "robust", seed, 0.5)
    plant(tmp_path / "c", "averaging", 9, 0.5)
    found = compare_runs([str(tmp_path)])
    assert found.differences["robust"].seeds == (2,) and "averaging" not in found.differences
    assert any("1 seed in common" in note for note in found.notes)
    assert any("no seed in common" in note for note in found.notes)
    assert "not known" in found.differences["robust"].reading()


@pytest.mark.parametrize("case", ["missing", "empty", "twice", "metrics", "unfinished"])
def test_bad_input_is_one_line(tmp_path, capsys, case):
    place = tmp_path / "runs"
    place.mkdir()
    message = {
        "missing": "is missing",
        "empty": "holds no run",
        "twice": "both `finetune` with seed 0",
        "metrics": "compare runs of one task",
        "unfinished": "no finished run",
    }[case]
    if case == "missing":
        place = tmp_path / "none"
    if case in ("twice", "metrics"):
        for name in "ab":
            plant(place / name, "finetune", 0, 0.5)
    if case == "metrics":
        record = json.loads((place / "a" / "xlt_run.json").read_text())
        record["results"]["metric"] = "f1"
        (place / "a" / "xlt_run.json").write_text(json.dumps(record))
    if case == "unfinished":
        plant(place / "a", "finetune", 0, 0.5, status=RUNNING)
    assert main(["compare", str(place)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_a_file_in_the_place_of_the_output_is_refused(runs, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert main(["compare", str(runs), "-o", str(tmp_path / "mine")]) == 2
    assert "mine` is a file; give a directory" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"


def test_all_forms_tell_the_same(runs, tmp_path, capsys):
    assert main(["compare", str(runs), "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    found, folder = compare_runs([str(runs)]), tmp_path / "out"
    values = json.loads((folder / "comparison.json").read_text())
    assert values["differences"]["robust"]["mean"] == found.differences["robust"].mean
    with open(folder / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 6 * 3
    for row in rows:
        spread = found.conditions[row["condition"]][row["language"]]
        assert float(row["accuracy"]) == spread.values[int(row["seed"])] and row["role"] == LANGUAGES[row["language"]]
    page = Page()
    page.feed((folder / "comparison.html").read_text())
    assert page.links == []
    text = (folder / "comparison.md").read_text()
    for cell in (cell for row in found.summary_table()[1:] for cell in row if cell):
        assert cell in page.cells and cell in text and cell in printed
    assert all(line in text and line in printed for line in found.sentences())
    assert METHOD in text and (folder / "comparison.png").stat().st_size > 5000


def test_names_cannot_inject_markup(tmp_path):
    plant(tmp_path / "a", "finetune", 0, 0.5)
    plant(tmp_path / "b", "finetune", 0, 0.5, note="<script>alert(1)</script>")
    assert main(["compare", str(tmp_path), "-o", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_json_is_one_document(runs, capsys):
    assert main(["compare", str(runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["baseline"] == "finetune"


def test_twenty_seven_conditions_have_names_of_their_own(runs):
    found = compare_runs([str(runs)])
    many = {f"c{number}": next(iter(found.conditions.values())) for number in range(30)}
    letters = dataclasses.replace(found, conditions=many).letters()
    assert len(set(letters.values())) == 30
