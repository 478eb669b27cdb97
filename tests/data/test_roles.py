"""No row has two roles unless that is asked for by name: splits, columns of splits, divided sets, copies."""

import json
import os
from pathlib import Path

import pytest
from tiny import CLASSES, make_rows, save_encoder, write_data, write_rows

from hf_xlt.arguments import DataArguments
from hf_xlt.cli.main import main
from hf_xlt.data.division import Division, parse_division
from hf_xlt.data.overlap import find_seen
from hf_xlt.data.roles import SHOTS, SOURCE_TEST, TARGET_TEST, TRAINING, resolve_data
from hf_xlt.errors import ConfigError
from hf_xlt.languages import check_code
from hf_xlt.tasks import get_task

SPLITS = {"train": 24, "validation": 12, "test": 9}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Data without splits (x), with a column of splits (s), with files by split (data), and one file of all."""
    monkeypatch.chdir(tmp_path)
    for folder in ("x", "y", "s"):
        (tmp_path / folder).mkdir()
    every = []
    for language in ("en", "de", "sw"):
        write_rows(tmp_path / "x" / f"{language}.jsonl", make_rows(language, 30, 5))
        write_rows(tmp_path / "y" / f"{language}.jsonl", make_rows(language, 30, 6))
        rows = [
            {**row, "split": split}
            for seed, (split, count) in enumerate(SPLITS.items())
            for row in make_rows(language, count, seed)
        ]
        write_rows(tmp_path / "s" / f"{language}.jsonl", rows)
        every += rows
    write_rows(tmp_path / "all.jsonl", every)
    write_data(tmp_path / "data")
    return tmp_path


def resolve(needs_validation=False, **given):
    arguments = DataArguments(**given)
    return resolve_data(arguments, get_task("text-classification"), needs_validation=needs_validation)


def sizes(plan):
    return {(role, entry.language): entry.rows for role, entries in plan.sets.items() for entry in entries}


def test_a_set_without_splits_serves_one_role(world):
    with pytest.raises(ConfigError, match=r"`x/..\.jsonl` is a single set, used as `train`.*`test`.*`divide_split="):
        resolve(dataset="x/{lang}.jsonl")
    plan = resolve(dataset="data/{split}.{lang}.jsonl", target_dataset=["x/{lang}.jsonl"], target_languages=["sw"])
    assert sizes(plan)[TARGET_TEST, "sw"] == 30 and not plan.shared
    # English there is another set than what is trained on.
    assert plan.of_role(SOURCE_TEST)[0].source.name == "data/{split}.{lang}.jsonl"


@pytest.mark.parametrize("more", [{"shots": 5}, {"shots": 5, "few_shot_split": "test"}])
def test_shots_are_never_test_rows(world, more):
    with pytest.raises(ConfigError, match="single set, used as `test`|the same rows would be few-shot data"):
        resolve(dataset="data/{split}.{lang}.jsonl", target_dataset=["x/{lang}.jsonl"], **more)


def test_a_source_that_is_named_as_target_too_costs_the_gap_alone(world):
    plan = resolve(dataset="x/{lang}.jsonl", target_dataset=["x/{lang}.jsonl"])
    assert sizes(plan) == {(TRAINING, "en"): 30, (TARGET_TEST, "de"): 30, (TARGET_TEST, "sw"): 30}
    assert any("`en`: its `test` rows are in use as source data" in note for note in plan.notes)


def test_a_column_of_splits_is_read(world):
    for pattern in ("s/{lang}.jsonl", "all.jsonl"):
        plan = resolve(True, dataset=pattern, shots=5)
        found = sizes(plan)
        assert found[TRAINING, "en"] == 24 and found["validation", "en"] == 12 and found[SHOTS, "de"] == 24
        assert found[SOURCE_TEST, "en"] == found[TARGET_TEST, "sw"] == 9


def test_a_language_without_the_split_is_told(world):
    rows = [row for row in map(json.loads, open("s/sw.jsonl")) if row["split"] == "train"]
    write_rows(world / "s" / "sw.jsonl", rows)
    plan = resolve(dataset="s/{lang}.jsonl")
    assert plan.target_languages == ("de",)
    assert [note for note in plan.notes if note.startswith("sw in `s/{lang}.jsonl`: no `test` split")]


@pytest.mark.parametrize("flag", ["source_split", "target_split", "validation_split", "few_shot_split"])
@pytest.mark.parametrize("data", ["s/{lang}.jsonl", "x/{lang}.jsonl", "all.jsonl", "data/{split}.{lang}.jsonl"])
def test_a_split_that_is_not_there_is_an_error(world, flag, data):
    with pytest.raises(ConfigError) as caught:
        target = ["x/{lang}.jsonl"] if data == "x/{lang}.jsonl" and flag == "target_split" else None
        resolve(True, dataset=data, target_dataset=target, shots=2, **{flag: "nonsense"})
    if not data.startswith("x"):
        assert all(split in str(caught.value) for split in SPLITS), caught.value


def test_a_name_that_says_nothing_of_a_single_set_is_an_error(world):
    with pytest.raises(ConfigError, match="has no splits .*there is no `moon` split"):
        resolve(dataset="y/{lang}.jsonl", target_dataset=["x/{lang}.jsonl"], target_split="moon")
    os.rename("x", "moon")
    plan = resolve(dataset="y/{lang}.jsonl", target_dataset=["moon/{lang}.jsonl"], target_split="moon")
    assert sizes(plan)[TARGET_TEST, "de"] == 30


@pytest.mark.parametrize(
    ("given", "roles"),
    [
        ({"source_split": "test"}, "source data .* source test data"),
        ({"shots": 3, "few_shot_split": "test"}, "few-shot data .* target data"),
        ({"validation_split": "train"}, "source data .* validation data"),
        ({"validation_split": "test"}, "validation data .* source test data"),
        (
            {"select_on_target_validation": True, "shots": 3, "few_shot_split": "validation"},
            "target validation .* few",
        ),
        ({"text_dataset": ["data/{split}.{lang}.jsonl"], "text_split": "test"}, "text data .* (source test|target)"),
    ],
)
def test_one_split_for_two_roles_is_refused_or_told(world, given, roles):
    with pytest.raises(ConfigError, match=f"the same rows would be {roles}.*`allow_shared_rows`"):
        resolve("validation_split" in given, dataset="data/{split}.{lang}.jsonl", **given)
    plan = resolve("validation_split" in given, dataset="data/{split}.{lang}.jsonl", allow_shared_rows=True, **given)
    assert plan.shared and any("the same rows serve as" in note for note in plan.notes)


def test_text_without_labels_may_be_that_of_training(world):
    plan = resolve(dataset="data/{split}.{lang}.jsonl", text_dataset=["data/{split}.{lang}.jsonl"])
    assert not plan.shared and len(plan.sets["text"]) == 4


def test_the_same_file_by_another_name_is_the_same_rows(world):
    os.symlink(world / "data", world / "link")
    os.symlink(world / "data" / "test.de.jsonl", world / "y" / "shots.de.jsonl")
    given = {"dataset": "data/{split}.{lang}.jsonl", "target_languages": ["de"]}
    for other in (
        "link/test.{lang}.jsonl",
        "./y/../data/test.{lang}.jsonl",
        str(world / "link" / "{split}.{lang}.jsonl"),
    ):
        plan = resolve(**given, target_dataset=[other], source_split="test")
        assert not plan.of_role(SOURCE_TEST) and any("in use as source data" in note for note in plan.notes)
    with pytest.raises(ConfigError, match="the same rows would be few-shot data"):
        resolve(
            **given
            | {"dataset": "y/{split}.{lang}.jsonl", "source_languages": ["de"], "source_split": "shots"}
            | {
                "target_languages": ["sw"],
                "target_dataset": ["sw=x/{lang}.jsonl"],
                "shots": 1,
                "few_shot_split": "test",
            }
        )


def test_two_target_data_with_one_language_are_told(world):
    plan = resolve(dataset="data/{split}.{lang}.jsonl", target_dataset=["x/{lang}.jsonl", "y/{lang}.jsonl"])
    assert any("`de` is in `x/{lang}.jsonl` and in `y/{lang}.jsonl`; the first is used" in note for note in plan.notes)


# Divided sets.


def test_a_set_is_divided_by_name_and_seed(world):
    given = {"dataset": "x/{lang}.jsonl", "divide_split": ["train=0.5,validation=0.2,test=0.3"], "shots": 3}
    plan = resolve(True, **given)
    assert sizes(plan) == {
        (TRAINING, "en"): 15,
        ("validation", "en"): 6,
        (SHOTS, "de"): 15,
        (SHOTS, "sw"): 15,
        (SOURCE_TEST, "en"): 9,
        (TARGET_TEST, "de"): 9,
        (TARGET_TEST, "sw"): 9,
    }
    (note,) = [note for note in plan.notes if "divided by chance into" in note]
    assert "train 0.5, validation 0.2, test 0.3 (seed 0), stratified by class" in note and "(de, en, sw)" in note
    ids = {role: {row["id"] for row in plan.of_role(role)[0].read()} for role in (TRAINING, "validation", SOURCE_TEST)}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 30
    # The same ids are in the same part in every language, whatever the order of rows.
    write_rows(world / "x" / "de.jsonl", make_rows("de", 30, 5)[::-1])
    again = resolve(True, **given)
    assert {row["id"] for row in again.of_role(TARGET_TEST)[0].read()} == ids[SOURCE_TEST]
    labels = [row["label"] for row in again.of_role(TARGET_TEST)[0].read()]
    assert {labels.count(label) for label in CLASSES} == {3}
    other = resolve(True, **given, divide_seed=1)
    assert {row["id"] for row in other.of_role(SOURCE_TEST)[0].read()} != ids[SOURCE_TEST]


def test_only_what_has_one_split_is_divided(world):
    given = {"dataset": "data/{split}.{lang}.jsonl", "divide_split": ["train=0.4,test=0.6"], "shots": 3}
    plan = resolve(**given, target_dataset=["x/{lang}.jsonl"], target_languages=["de"])
    assert sizes(plan) == {
        (TRAINING, "en"): 48,
        (SHOTS, "de"): 12,
        (SOURCE_TEST, "en"): 12,
        (TARGET_TEST, "de"): 18,
    }
    with pytest.raises(ConfigError, match="divides nothing: the data have the splits test, train, validation"):
        resolve(**given)
    # Of a split that is there a new one is cut off.
    plan = resolve(
        True, dataset="data/{split}.{lang}.jsonl", divide_split=["train=0.75,mine=0.25"], validation_split="mine"
    )
    assert sizes(plan)[TRAINING, "en"] == 36 and sizes(plan)["validation", "en"] == 12


def test_text_beside_a_divided_set_is_that_of_its_part(world):
    given = {"dataset": "x/{lang}.jsonl", "divide_split": ["train=0.5,test=0.5"]}
    plan = resolve(**given, text_dataset=["x/{lang}.jsonl"])
    assert {entry.rows for entry in plan.sets["text"]} == {15}
    assert {entry.rows for entry in resolve(**given, text_dataset=["y/{lang}.jsonl"]).sets["text"]} == {30}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["train=0.8"], "sum to 0.8"),
        (["train=0.8,test=0.3"], "sum to 1.1"),
        (["train=80,test=20"], "between 0 and 1"),
        (["train,test"], "between 0 and 1"),
        (["train=0.5,train=0.5"], "give each part once"),
    ],
)
def test_shares_that_cannot_be_used_are_one_line(entries, message):
    with pytest.raises(ConfigError, match=message):
        parse_division(entries, 0)


def test_a_part_that_would_be_empty_is_an_error():
    with pytest.raises(ConfigError, match=r"too few for `divide_split`: `test` \(0.01\) would be empty"):
        Division((("train", 0.99), ("test", 0.01))).cut(range(10), None, "x")


def test_rows_of_one_id_stay_together():
    cut = Division((("train", 0.5), ("test", 0.5))).cut([0, 0, 1, 1, 2, 2, 3, 3], None, "x")
    assert all({row ^ 1 for row in rows} == set(rows) for rows in cut.values())


# Copies of rows elsewhere.


def test_test_rows_that_are_learned_from_are_counted(world):
    texts = [f"w{number}" for number in range(6)]
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts)]
    for split, first, last in (("train", 0, 4), ("test", 2, 6)):
        write_rows(world / "y" / f"{split}.en.jsonl", rows[first:last])
    write_rows(world / "y" / "test.de.jsonl", [rows[0], {"text": "w0 ", "label": 0}, rows[5]])
    write_rows(world / "y" / "train.de.jsonl", rows[5:])
    plan = resolve(dataset="y/{split}.{lang}.jsonl", target_languages=["de"], shots=1)
    found = {(entry.role, entry.language): dict(entry.counts) for entry in find_seen(plan, plan.read_training()[1])}
    assert found == {
        (SOURCE_TEST, "en"): {"source": 2, "few-shot": 1},
        (TARGET_TEST, "de"): {"source": 1, "few-shot": 1},
    }


# What is told of it.


def call(capsys, *line):
    code = main(["run", "--model", "encoder", *line])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_run_tells_what_was_divided_and_evaluate_divides_alike(world, capsys):
    save_encoder(world / "encoder")
    divide = ("--dataset", "x/{lang}.jsonl", "--divide-split", "train=0.5,test=0.5", "--divide-seed", "3")
    code, out, _ = call(capsys, *divide, "--dry-run")
    assert (
        code == 0 and "x/{lang}.jsonl (part)" in out and "divided by chance into train 0.5, test 0.5 (seed 3)" in out
    )
    code, out, err = call(capsys, *divide, "--max-steps", "1", "--output-dir", "out")
    assert code == 0, err
    record = json.loads((world / "out" / "xlt_run.json").read_text())
    assert record["data"]["source"]["divided"]["shares"] == {"train": 0.5, "test": 0.5}
    assert record["seeds"]["divide_seed"] == 3
    card = (world / "out" / "README.md").read_text()
    assert "`x/{lang}.jsonl` was divided into splits by chance: train 0.5, test 0.5 (seed 3)." in card
    assert "--divide-split train=0.5,test=0.5 --divide-seed 3" in card
    assert main(["evaluate", "out", "--dataset", "x/{lang}.jsonl", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["languages"] == record["results"]["languages"] and again["folder"].endswith("evaluations/x")
    assert main(["evaluate", "out", "--dataset", "y/{lang}.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["languages"]["de"]["examples"] == 30
    (world / "out" / "xlt_run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    resume = ("--max-steps", "1", "--output-dir", "out", "--resume")
    code, _, err = call(capsys, *divide[:-1], "4", *resume)
    assert code == 2 and "the run to resume was started with `divide_seed` 3, not 4" in err
    assert call(capsys, *divide, *resume)[0] == 0


def test_rows_of_one_id_stay_together_and_the_column_is_part_of_the_run(world, capsys):
    save_encoder(world / "encoder")
    for language in ("en", "de"):
        rows = [{**row, "doc": f"d{n // 3}"} for n, row in enumerate(make_rows(language, 30, 5))]
        write_rows(world / "y" / f"{language}.jsonl", rows)
    divide = ("--dataset", "y/{lang}.jsonl", "--divide-split", "train=0.5,test=0.5")
    place = ("--target-languages", "de", "--max-steps", "1", "--output-dir", "out")
    code, _, err = call(capsys, *divide, "--id-column", "docs", *place)
    assert code == 2 and "must contain a `docs` column" in err and "`doc`" in err and not (world / "out").exists()
    code, _, err = call(capsys, *divide, "--id-column", "doc", *place)
    assert code == 0, err
    record = json.loads((world / "out" / "xlt_run.json").read_text())
    assert record["data"]["source"]["divided"]["id_column"] == "doc"
    assert "(seed 0, rows of one `doc` together)" in (world / "out" / "README.md").read_text()
    assert main(["evaluate", "out", "--dataset", "y/{lang}.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["languages"] == record["results"]["languages"]
    plan = resolve(
        dataset="y/{lang}.jsonl", divide_split=["train=0.5,test=0.5"], id_column="doc", target_languages=["de"]
    )
    parts = [{row["doc"] for row in entry.read()} for entry in plan.of_role("source", "source test")]
    assert len(parts) == 2 and not parts[0] & parts[1] and parts[0] | parts[1] == {f"d{n}" for n in range(10)}
    (world / "out" / "xlt_run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    code, _, err = call(capsys, *divide, *place, "--resume")
    assert code == 2 and err.count("\n") == 1


def test_a_run_tells_shared_rows_and_copies(world, capsys):
    save_encoder(world / "encoder")
    shared = ("--dataset", "data/{split}.{lang}.jsonl", "--target-languages", "de", "--source-split", "test")
    assert call(capsys, *shared, "--dry-run")[0] == 2
    code, out, err = call(capsys, *shared, "--allow-shared-rows", "--max-steps", "1", "--output-dir", "out")
    assert code == 0, err
    assert "the same rows serve as source and source test data" in out
    assert (
        "English (en): of 12 test rows these have a text that was, to the letter, learned from: 12 in the source"
        in out
    )
    record = json.loads((world / "out" / "xlt_run.json").read_text())
    assert record["data"]["source test"]["shared_with"] == {"en": ["source"]}
    assert record["data"]["source test"]["seen"] == {"en": {"source": 12}}
    card = (world / "out" / "README.md").read_text()
    assert "The source test rows of English (en) are source rows as well" in card
    assert "English (en) 12 in the source data (of 12 rows)" in card
    assert main(["evaluate", "out", "--dataset", "data/{split}.{lang}.jsonl"]) == 0
    assert "(en, test) are the source data of the run: the score is no test of it" in capsys.readouterr().out


def test_the_plan_tells_names_that_are_not_used_and_a_map_names_them(world, capsys):
    save_encoder(world / "encoder")
    for name in ("indonesian", "en", "be-x-old"):
        (world / "n" / name).mkdir(parents=True)
        for seed, split in enumerate(("train", "test")):
            write_rows(world / "n" / name / f"{split}.jsonl", make_rows("en", 9, seed))
    line = ("--dataset", "n/{lang}/{split}.jsonl", "--dry-run", "--json")
    code, out, _ = call(capsys, *line)
    plan = json.loads(out)
    assert code == 0 and {entry["language"] for entry in plan["data"]} == {"en", "be-x-old"}
    assert any("`indonesian` in `n/{lang}/{split}.jsonl` is no language code" in note for note in plan["notes"])
    code, out, _ = call(capsys, *line, "--language-map", "indonesian=id")
    plan = json.loads(out)
    assert {entry["language"] for entry in plan["data"]} == {"en", "be-x-old", "id"}
    assert not [note for note in plan["notes"] if "indonesian" in note]
    code, _, err = call(capsys, *line, "--language-map", "indonesien=id")
    assert code == 2 and "no data of this run have a language of that name" in err


def test_lists_that_come_twice_add_up(world, capsys):
    save_encoder(world / "encoder")
    line = ("--dataset", "data/{split}.{lang}.jsonl", "--dry-run", "--json")
    _, out, _ = call(capsys, *line, "--target-languages", "de", "--target-languages=sw", "--target-languages", "zh,de")
    targets = {entry["language"] for entry in json.loads(out)["data"] if entry["role"] == TARGET_TEST}
    assert targets == {"de", "sw", "zh"}


def test_a_flag_with_one_value_that_comes_twice_is_refused(world, capsys):
    save_encoder(world / "encoder")
    line = ["evaluate", "encoder", "--dataset", "data/{split}.{lang}.jsonl", "--languages", "de", "--languages", "sw"]
    assert main(line) == 2
    assert "`--languages` is there 2 times" in capsys.readouterr().err


@pytest.mark.parametrize("code", ["be-x-old", "zh-classical", "map-bms", "zh-min-nan", "en-x-simple"])
def test_old_codes_are_codes(code):
    assert check_code(code) == code


@pytest.mark.parametrize("code", ["simple", "indonesian", "e", "en-", "en-x", "en_1", "-en"])
def test_words_are_not(code):
    with pytest.raises(ConfigError):
        check_code(code)


def test_a_data_set_folder_with_one_split_is_read_by_its_column(world):
    (world / "set").mkdir()
    write_rows(world / "set" / "rows.jsonl", list(map(json.loads, open("all.jsonl"))))
    found = sizes(resolve(True, dataset="./set", shots=2))
    assert found[TRAINING, "en"] == 24 and found["validation", "en"] == 12 and found[TARGET_TEST, "de"] == 9
    with pytest.raises(ConfigError, match="no `moon` split in its column `split`. Splits there: train, val"):
        resolve(dataset="./set", target_split="moon")


def test_a_data_set_folder_with_one_split_is_divided_on_request_alone(world):
    (world / "set").mkdir()
    rows = [row for language in ("en", "de") for row in make_rows(language, 30, 5)]
    write_rows(world / "set" / "rows.jsonl", rows)
    with pytest.raises(ConfigError, match="split `test`, cannot be loaded.*train"):
        resolve(dataset="./set")
    with pytest.raises(ConfigError, match="the same rows would be source data .* source test data"):
        resolve(dataset="./set", target_split="train")
    found = sizes(resolve(dataset="./set", divide_split=["train=0.6,test=0.4"]))
    assert found == {(TRAINING, "en"): 18, (SOURCE_TEST, "en"): 12, (TARGET_TEST, "de"): 12}


@pytest.fixture
def variants(world):
    """English, German, and Chinese in two scripts, under codes as FLORES has them."""
    for number, code in enumerate(("eng_Latn", "deu_Latn", "zho_Hans", "zho_Hant")):
        (world / "t" / code).mkdir(parents=True)
        write_rows(world / "t" / code / "test.jsonl", make_rows("de", 9, 40 + number))
    write_rows(world / "aux.train.de.jsonl", make_rows("de", 12, 50))
    return {"dataset": "data/{split}.{lang}.jsonl", "target_dataset": ["t/{lang}/{split}.jsonl"]}


def test_a_source_or_auxiliary_language_under_another_code_is_no_target(variants):
    plan = resolve(**variants, auxiliary_dataset=["aux.{split}.{lang}.jsonl"])
    assert plan.target_languages == ("zho_Hans", "zho_Hant")
    assert [entry.language for entry in plan.of_role(SOURCE_TEST)] == ["en"]
    notes = " ".join(plan.notes)
    assert "`eng_Latn` is a source language under another code (`en`)" in notes
    assert "`deu_Latn` is an auxiliary language under another code (`de`)" in notes
    assert "`zho_Hans` and `zho_Hant` are one language" in notes


@pytest.mark.parametrize(("code", "role"), [("eng_Latn", "a source"), ("deu_Latn", "an auxiliary")])
def test_a_labelled_language_named_as_target_under_another_code_is_an_error(variants, code, role):
    with pytest.raises(ConfigError, match=f"`{code}` is `..` under another code, which is both {role} and a target"):
        resolve(**variants, auxiliary_dataset=["aux.{split}.{lang}.jsonl"], target_languages=[code])


def test_an_auxiliary_language_that_is_the_source_is_left_out_or_refused(variants, world):
    write_rows(world / "aux.train.eng_Latn.jsonl", make_rows("en", 12, 51))
    plan = resolve(**variants, auxiliary_dataset=["aux.{split}.{lang}.jsonl"])
    assert plan.auxiliary_languages == ("de",)
    with pytest.raises(
        ConfigError, match="`eng_Latn` is both a source and an auxiliary language .*`en` under another"
    ):
        resolve(**variants, auxiliary_dataset=["aux.{split}.{lang}.jsonl"], auxiliary_languages=["eng_Latn"])


def test_the_source_is_tested_under_another_code_where_it_has_no_test(variants, world):
    (world / "data" / "test.en.jsonl").unlink()
    plan = resolve(**variants)
    assert [entry.language for entry in plan.of_role(SOURCE_TEST)] == ["eng_Latn"]
    assert "Source language `en` is tested on `eng_Latn`, the same language." in plan.notes
    plan.set_apart({"de"})
    assert plan.target_languages == ("zho_Hans", "zho_Hant") and plan.auxiliary_languages == ("deu_Latn",)


def test_no_language_but_the_source_is_one_line(variants, world):
    with pytest.raises(ConfigError, match="no target language is left. `eng_Latn` is a source language"):
        resolve(dataset="data/{split}.{lang}.jsonl", target_dataset=["eng_Latn=t/{lang}/{split}.jsonl"])


def test_evaluate_scores_the_source_under_another_code_as_the_source(variants, capsys):
    save_encoder(Path("encoder"))
    line = ("--dataset", "data/{split}.{lang}.jsonl", "--target-languages", "sw", "--max-steps", "1")
    assert call(capsys, *line, "--output-dir", "out")[0] == 0
    line = ["evaluate", "out", "--dataset", "t/{lang}/{split}.jsonl", "--json", "--overwrite"]
    for more in ([], ["--languages", "eng_Latn,zho_Hans"]):
        assert main([*line, *more]) == 0
        scores = json.loads(capsys.readouterr().out)["languages"]
        assert (scores["eng_Latn"]["role"], scores["zho_Hans"]["role"]) == ("source", "target")
