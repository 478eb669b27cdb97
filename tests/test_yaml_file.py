"""YAML files: scalars of YAML 1.2, no key twice, wrong kinds named by key."""

import json

import pytest

from hf_xlt.errors import ConfigError
from hf_xlt.parsing import parse_arguments
from hf_xlt.pretraining.plan_file import read_plan
from hf_xlt.yaml_file import read_yaml

PLAN = "model: m\nsources: ['x/{lang}.jsonl']\nphases: [{name: one, steps: 2, %s}]\n"


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "a.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        *((text, text) for text in "no yes on off No YES n y 010 1:30 2024-01-31 0x1F 1_000 -".split()[:-1]),
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.0e-3", 1e-3),
        (".5", 0.5),
        ("-3", -3),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("<<x", "<<x"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written, scalar, value):
    found = read_yaml(written(f"a: {scalar}\n"))["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key `a` is there already, in line 1"),
        ("learning_rate: 1\nlearning-rate: 2\n", "line 2: the key `learning-rate` is there already, in line 1"),
        ("a:\n  no: 1\n  x: 2\n  no: 3\n", "line 4: the key `no` is there already, in line 2"),
        ("a: [{b: 1, b: 2}]\n", "the key `b` is there already"),
        ("1: x\n", "line 1: a key must be a text"),
        ("- a\n", "must be a mapping"),
        ("a: [\n", "cannot be read as YAML"),
    ],
)
def test_what_cannot_be_meant_is_one_line(written, text, message):
    with pytest.raises(ConfigError, match="config file") as error:
        read_yaml(written(text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_and_merged_keys_are_read(written):
    assert read_yaml(written(b"\xef\xbb\xbfa: 1\n")) == {"a": 1}
    merged = read_yaml(written("x: &x {a: 1, b: 1}\ny: &y {<<: *x, b: 2}\nz: {<<: *y, a: 3}\n"))
    assert merged["y"] == {"a": 1, "b": 2} and merged["z"] == {"a": 3, "b": 2}
    assert read_yaml(written("# nothing\n")) == {}


def test_arguments_keep_norwegian_labels_and_choices(written):
    text = "target_languages: no\nlabels: [no, true, 1.50, 01]\nsave_strategy: no\nlearning_rate: 1e-5\n"
    arguments = parse_arguments(["--config", written(text), "--output-dir", "out"])
    assert arguments.data.target_languages == ["no"] and arguments.data.labels == ["no", "true", "1.50", "01"]
    assert arguments.config.save_strategy == "no" and arguments.config.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {a: 1}\n", "`model` is a mapping"),
        ("dataset: [a, b]\n", "`dataset` is a list of 2"),
        ("labels: [[a], b]\n", "`labels` is a list of lists"),
        ("learning_rate: fast\n", "learning.rate"),
    ],
)
def test_arguments_of_the_wrong_kind_name_their_key(written, text, message):
    with pytest.raises(ConfigError, match=message):
        parse_arguments(["--config", written(text), "--output-dir", "out"])


def test_plans_read_numbers_and_norwegian(written):
    phase = read_plan(written(PLAN % "learning_rate: 1e-3, sources: [{text: x, languages: no}]")).phases[0]
    assert phase.learning_rate == 1e-3 and phase.sources[0].languages == ("no",)
    phase = read_plan(written(PLAN % "sources: [{text: x, languages: [no, nn]}], floors: {no: 0.2}")).phases[0]
    assert phase.sources[0].languages == ("no", "nn") and phase.floors == {"no": 0.2}


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("learning_rate: fast", "learning_rate"),
        ("alpha: [1]", "alpha"),
        ("whole_words: 1", "whole_words"),
        ("objectives: {mlm: much}", "objectives"),
        ("pairs: 2.5", "pairs"),
        ("sources: 3", "sources"),
        ("sources: [{text: x, languages: 3}]", "languages"),
        ("sources: [{text: x, languages: [1]}]", "languages"),
        ("sources: [{text: x, streaming: often}]", "streaming"),
    ],
)
def test_plan_values_of_the_wrong_kind_name_their_key(written, more, key):
    with pytest.raises(ConfigError, match=f"phase 'one': `{key}` is .* it must be") as error:
        read_plan(written(PLAN % more))
    assert json.dumps(str(error.value)).count("\\n") == 0


@pytest.mark.parametrize(("more", "key"), [("threads: many", "threads"), ("tokenizer: [a]", "tokenizer")])
def test_values_of_the_plan_itself_too(written, more, key):
    with pytest.raises(ConfigError, match=f"`{key}` is .* it must be"):
        read_plan(written(PLAN % "alpha: 1" + more + "\n"))
