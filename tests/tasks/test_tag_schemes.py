"""Tags of spans under every scheme come out as IOB2; what is no span stays as it is."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from tiny import save_encoder, write_rows

from hf_xlt.cli.main import main as command
from hf_xlt.data.labels import LabelInventory
from hf_xlt.errors import ConfigError
from hf_xlt.run import main
from hf_xlt.tasks import get_task
from hf_xlt.tasks.tag_schemes import describe_readings, find_reading, iob2_names, is_spans

COLUMNS = {"tokens": "tokens", "tags": "tags"}
# One sentence with a long, a neighbouring and a single span, in every scheme.
SCHEMES = {
    "IOB2": "B-PER I-PER B-PER I-PER O B-LOC",
    "IOB1": "I-PER I-PER B-PER I-PER O I-LOC",
    "IOE": "I-PER E-PER I-PER E-PER O E-LOC",
    "BIOES": "B-PER E-PER B-PER E-PER O S-LOC",
    "BILOU": "B-PER L-PER B-PER L-PER O U-LOC",
    "BMES": "B-PER E-PER B-PER E-PER O S-LOC B-X M-X E-X",
    "BMEWO": "B-PER E-PER B-PER E-PER O W-LOC B-X M-X E-X",
}


def table(*sentences, names=None):
    tags = [sentence.split() for sentence in sentences]
    if names is None:
        return Dataset.from_dict({"tags": tags}, Features({"tags": List(Value("string"))}))
    features = Features({"tags": List(ClassLabel(names=names))})
    return Dataset.from_dict({"tags": [[names.index(tag) for tag in row] for row in tags]}, features)


def read(rows, given=None):
    """The scheme, and the tags by name as they are read."""
    reading = find_reading(rows, COLUMNS, given)
    read_rows = reading(rows)
    names = getattr(read_rows.features["tags"].feature, "names", None)
    named = [[names[tag] for tag in row] if names else row for row in read_rows["tags"]]
    return reading, [" ".join(map(str, row)) for row in named]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("declared", [False, True], ids=["strings", "ClassLabel"])
def test_every_scheme_is_found_and_read_as_iob2(scheme, declared):
    right = SCHEMES["IOB2"] + (" B-X I-X I-X" if " M-X" in SCHEMES[scheme] else "")
    names = ["O", *dict.fromkeys(tag for tag in SCHEMES[scheme].split() if tag != "O")] if declared else None
    reading, rows = read(table("O", SCHEMES[scheme], "", names=names))
    assert (reading.scheme, reading.slips, reading.converts) == (scheme, 0, scheme != "IOB2")
    assert rows == ["O", right, ""]
    assert len(describe_readings({"x": reading})) == reading.converts


def test_a_converted_inventory_has_both_tags_of_every_type():
    assert iob2_names(["O", "I-PER", "S-LOC"]) == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    rows = table("I-PER O", names=["O", "I-PER", "I-LOC"])
    read_rows = find_reading(rows, COLUMNS, None)(rows)
    assert read_rows.features["tags"].feature.names == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    inventory = get_task("token-classification").find_labels([read_rows], COLUMNS, None)
    assert inventory.names == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize(
    ("sentences", "scheme", "slips"),
    [
        # Few B- and many I-, all of them in their place.
        (["B-PER I-PER I-PER I-PER I-PER I-PER O"], "IOB2", 0),
        # An annotator's slips are few.
        (["B-PER O B-LOC", "I-PER O", "B-LOC I-PER"], "IOB2", 2),
        # As many of one as of the other: read strictly.
        (["B-PER O I-PER"], "IOB2", 1),
        (["I-PER O I-LOC", "B-PER O"], "IOB1", 1),
        (["I-PER B-PER"], "IOB1", 0),
        # A span of another type behind one, opened by B-, is as in IOB2.
        (["B-PER B-LOC I-LOC"], "IOB2", 0),
        # At the end of one sentence and the start of the next no span goes on.
        (["B-PER", "I-PER I-PER", "I-PER", "I-PER"], "IOB1", 1),
        (["O O"], "IOB2", 0),
    ],
)
def test_openings_tell_iob1_from_iob2(sentences, scheme, slips):
    if sentences == ["O O"]:
        assert find_reading(table(*sentences), COLUMNS, None) is None
        return
    reading = find_reading(table(*sentences), COLUMNS, None)
    assert (reading.scheme, reading.slips) == (scheme, slips)
    assert len(describe_readings({"x": reading})) == (scheme == "IOB1") + bool(slips)


@pytest.mark.parametrize(
    "names", [["NOUN", "O"], ["B", "I", "O"], ["N-sg", "O"], ["O"], ["S-a", "U-b"], ["B-", "O"], []]
)
def test_tags_that_are_no_spans_are_untouched(names):
    assert not is_spans(names)
    assert find_reading(table(" ".join(names)), COLUMNS, None) is None


def test_numbers_are_read_by_the_names_given_for_them():
    rows = Dataset.from_dict({"tags": [[2, 2, 0, 2], [0]]})
    reading, read_rows = read(rows, ["O", "B-PER", "I-PER"])
    assert reading.scheme == "IOB1" and read_rows == ["1 2 0 1", "0"]
    with pytest.raises(ConfigError, match="those of BIOES: `I-X` is missing to read them as IOB2"):
        find_reading(Dataset.from_dict({"tags": [[1, 2, 0]]}), COLUMNS, ["O", "B-X", "E-X", "S-X"])
    assert find_reading(rows, COLUMNS, None) is None


@pytest.mark.parametrize("values", [[None], [[None, "B-X"]], ["B-X"], [["B-X"], None], [[5]]])
def test_rows_that_cannot_be_used_are_left_to_the_check_that_names_them(values):
    assert find_reading(Dataset.from_dict({"tags": values}), COLUMNS, ["O", "B-X"]) is None


def test_a_model_of_another_scheme_is_scored_by_spans():
    import numpy as np
    from transformers import EvalPrediction

    inventory = LabelInventory(("O", "B-X", "I-X", "E-X", "S-X"))
    task = get_task("token-classification").given_labels(inventory)
    assert task.metric == "f1"
    # The model writes B E O S where the data say B I O B.
    logits = np.eye(5)[[[1, 3, 0, 4]]]
    inputs = {"sentence": [0], "tags": [[1, 2, 0, 1]], "words": [[0, 1, 2, 3]]}
    prediction = EvalPrediction(logits, np.array([[1, 2, 0, 1]]), inputs=inputs)
    assert task.compute_metrics(inventory)(prediction)["f1"] == 1
    assert task.item_scores(inventory)(prediction).tolist() == [[4, 4]]


def write_schemes(folder, schemes):
    """Sentences whose words tell their tags, written in one scheme per file."""
    folder.mkdir()
    kinds = {"O": "w1", "B-PER": "w21", "I-PER": "w22", "B-LOC": "w41"}
    for (split, language), scheme in schemes.items():
        words = [kinds.get(tag, "w1") for tag in SCHEMES["IOB2"].split()]
        row = {"tokens": words, "tags": SCHEMES[scheme].split()}
        rows = [row, {"tokens": ["w41", "w1"], "tags": ["O", "O"]}] if split == "nothing" else [row] * 8
        write_rows(folder / f"{split}.{language}.jsonl", rows)
    return str(folder / "{split}.{lang}.jsonl")


def test_a_run_trains_in_one_scheme_and_is_scored_in_others(tmp_path, capsys):
    schemes = {
        ("train", "en"): "IOB1",
        ("validation", "en"): "BIOES",
        ("test", "en"): "IOB2",
        ("test", "de"): "BILOU",
        ("test", "sw"): "IOB1",
        ("train", "de"): "IOE",
        ("train", "sw"): "IOB2",
    }
    data, out = write_schemes(tmp_path / "data", schemes), tmp_path / "out"
    arguments = ["--task", "token-classification", "--dataset", data, "--model", str(save_encoder(tmp_path / "model"))]
    arguments += ["--max-steps", "30", "--learning-rate", "1e-2", "--disable-tqdm", "--output-dir", str(out)]
    arguments += ["--eval-strategy", "steps", "--eval-steps", "15", "--save-steps", "15", "--load-best-model-at-end"]
    assert main([*arguments, "--shots", "2", "--dry-run"]) == 0
    assert "tags are IOB1, and are read as IOB2" in capsys.readouterr().out
    assert main([*arguments, "--shots", "2"]) == 0
    record = json.loads((out / "xlt_run.json").read_text())
    assert record["labels"] == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    assert record["data"]["source"]["written_in"] == {"en": "IOB1"}
    assert record["data"]["target"]["written_in"] == {"de": "BILOU", "sw": "IOB1"}
    assert "written_in" not in record["data"]["source test"]
    scores = {code: entry["metrics"]["f1"] for code, entry in record["results"]["languages"].items()}
    assert scores == {"en": 1, "de": 1, "sw": 1}
    assert "Tags written in IOB1 were read as IOB2: source en, target sw." in (out / "README.md").read_text()
    capsys.readouterr()
    assert command(["evaluate", str(out), "--dataset", data, "--output-dir", str(tmp_path / "again")]) == 0
    assert "tags are BILOU" in capsys.readouterr().out
    again = json.loads((tmp_path / "again" / "results.json").read_text())["languages"]
    assert {code: entry["metrics"]["f1"] for code, entry in again.items()} == scores
