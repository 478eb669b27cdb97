"""`hf-xlt evaluate` on models that no run of ours made: task, labels and languages off their config and the data."""

import json
import os

import pytest
from records import make_record
from tiny import CLASSES, make_rows, make_tokenizer, write_data, write_rows
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    set_seed,
)

from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError
from hf_xlt.scoring import task_of

DATA = "--dataset data/{split}.{lang}.jsonl"


def save_model(folder, names=None, cls=BertForSequenceClassification, order=range(3), **settings):
    """Save a plain model with seeded weights; `order` permutes its classes, and with them what they mean."""
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=len(order),
        # A fresh model with small weights gives every text the same class.
        initializer_range=0.5,
        **settings,
    )
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    set_seed(3)
    model = cls(config)
    if hasattr(model, "classifier"):
        model.classifier.weight.data = model.classifier.weight.data[list(order)]
        model.classifier.bias.data = model.classifier.bias.data[list(order)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("any")
    write_data(root / "data")
    save_model(root / "unnamed")
    save_model(root / "named", CLASSES)
    # The same model with its classes in another order, spelt otherwise.
    save_model(root / "turned", ("PLAIN", "Bad", "g-ood"), order=(2, 0, 1))
    return root


@pytest.fixture
def score(world, monkeypatch, tmp_path, capsys):
    """Run `evaluate ... --json`; return exit code, document or None, and stderr."""
    monkeypatch.chdir(world)

    def call(line, out=None):
        code = main(["evaluate", *line.split(), "--json", "--output-dir", str(out or tmp_path / "out"), "--overwrite"])
        stdout, stderr = capsys.readouterr()
        return code, json.loads(stdout) if code == 0 else None, stderr

    return call


def metrics(found):
    """Scores without the loss, which the order of the classes changes by rounding."""
    return {
        code: (entry["metrics"]["accuracy"], entry["metrics"]["macro_f1"])
        for code, entry in found["languages"].items()
    }


def test_classes_are_matched_by_name_in_any_order_and_spelling(score):
    _, named, _ = score(f"named {DATA}")
    _, turned, _ = score(f"turned {DATA}")
    assert metrics(named) == metrics(turned)
    assert all(macro > 0.2 for _, macro in metrics(named).values()), "all texts get one class: nothing is tested"
    # The order in which the user names them is that of numbers, of which there are none here.
    assert metrics(score(f"turned {DATA} --labels bad,good,plain")[1]) == metrics(named)
    # Under other names the order is the model's.
    _, wrong, _ = score(f"unnamed {DATA} --labels good,plain,bad")
    assert metrics(wrong) != metrics(named)


def test_unnamed_classes_are_those_of_the_data_in_order(score):
    code, found, _ = score(f"unnamed {DATA}")
    assert code == 0 and any("0 = bad, 1 = good, 2 = plain" in note for note in found["notes"])
    assert found["languages"] == score(f"named {DATA}")[1]["languages"]
    assert list(found["languages"]) == ["en", "de", "sw", "zh"]
    assert any("en is taken as the source" in note for note in found["notes"])


def test_labels_given_as_names_need_an_order(score, world):
    code, _, error = score(f"unnamed {DATA} --label-column label_text")
    assert code == 2 and "name the classes in the model's order with `--labels`" in error and error.count("\n") == 1
    code, found, _ = score(f"unnamed {DATA} --label-column label_text --labels bad,good,plain")
    assert code == 0 and found["languages"] == score(f"named {DATA}")[1]["languages"]


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (("x", "y", "z"), "", "labels that the model has no class for: `bad`, `good`, `plain`. The model's classes"),
        (("bad", "good"), "", "no class for: `plain`"),
        (None, "", "the model has 2 classes, and"),
        (("x", "y", "z"), "--labels bad,good", "`--labels` names 2 classes, and the model has 3"),
        (("x", "y", "z"), "--labels bad,bad,good", "a class is named twice"),
    ],
)
def test_a_mismatch_is_one_line(score, tmp_path, names, more, message):
    save_model(tmp_path / "model", names, order=range(len(names or "ab")))
    code, _, error = score(f"{tmp_path}/model {DATA} {more}")
    assert code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("written", [int, str])
def test_bare_numbers_do_not_go_with_a_models_named_classes(score, tmp_path, written):
    for language in ("en", "de"):
        rows = [{"text": row["text"], "label": written(row["label"])} for row in make_rows(language, 12, 5)]
        write_rows(tmp_path / f"test.{language}.jsonl", rows)
    data = f"--dataset {tmp_path}/{{split}}.{{lang}}.jsonl"
    for model in ("named", "turned"):
        code, _, error = score(f"{model} {data}")
        assert code == 2 and "bare number, and the classes have names" in error and "`--labels`" in error
    code, named, _ = score(f"named {data} --labels bad,good,plain")
    assert code == 0
    assert metrics(named) == metrics(score(f"turned {data} --labels bad,good,plain")[1])
    assert metrics(named) == metrics(score(f"unnamed {data}")[1])
    assert metrics(named) != metrics(score(f"named {data} --labels good,plain,bad")[1])


def test_languages_choose_what_is_scored(score):
    assert list(score(f"named {DATA} --languages sw,de")[1]["languages"]) == ["sw", "de"]
    only = score(f"named {DATA} --languages en")[1]
    assert list(only["languages"]) == ["en"] and only["target_average"] is None
    found = score(f"named {DATA} --languages en,de --source-languages de")[1]
    assert {code: entry["role"] for code, entry in found["languages"].items()} == {"de": "source", "en": "target"}
    code, _, error = score(f"named {DATA} --languages en,xx")
    assert code == 2 and "`xx` has no `test` split" in error


def test_the_task_is_that_of_the_head(score, tmp_path):
    save_model(tmp_path / "tags", ("O", "B-PER", "I-PER"), BertForTokenClassification)
    tags = {"en": ["B-per", "I-per", "O"], "de": ["O", "O", "B-per"]}
    for language, values in tags.items():
        write_rows(tmp_path / f"test.{language}.jsonl", [{"tokens": ["w1", "w2", "w3"], "tags": values}] * 4)
    code, found, error = score(f"{tmp_path}/tags --dataset {tmp_path}/{{split}}.{{lang}}.jsonl")
    assert code == 0, error
    assert found["metric"] == "f1" and set(found["languages"]) == {"en", "de"}


def test_models_without_a_single_class_are_refused(score, tmp_path):
    save_model(tmp_path / "many", CLASSES, problem_type="multi_label_classification")
    code, _, error = score(f"{tmp_path}/many {DATA}")
    assert code == 2 and "row 0: column `label` holds 'bad'; give a list of names" in error
    code, _, error = score(f"{tmp_path}/many {DATA} --task text-classification")
    assert code == 2 and "predicts no single class (multi label classification, 3 outputs)" in error
    save_model(tmp_path / "lm", cls=BertForMaskedLM)
    code, _, error = score(f"{tmp_path}/lm {DATA}")
    assert code == 2 and "`BertForMaskedLM` is no model with a head that is scored here" in error


def test_a_config_without_architectures_is_taken_as_a_classifier():
    assert task_of(BertConfig()) == "text-classification"
    assert task_of(BertConfig(architectures=["XLMRobertaForQuestionAnswering"])) == "question-answering"
    with pytest.raises(ConfigError, match="T5ForConditionalGeneration"):
        task_of(BertConfig(architectures=["T5ForConditionalGeneration"]))


def test_an_output_that_cannot_be_written_is_told_before_the_model_is_loaded(score, tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    monkeypatch.setattr("hf_xlt.models.ModelSource.load_trained", lambda *rest: pytest.fail("was loaded"))
    for place in (tmp_path / "mine", tmp_path / "mine" / "below"):
        code, _, error = score(f"named {DATA}", place)
        assert code == 2 and f"`{tmp_path}/mine` is a file; give a directory" in error
    monkeypatch.setattr("hf_xlt.output.os.access", lambda *rest: False)
    code, _, error = score(f"named {DATA}", tmp_path / "readonly")
    assert code == 2 and "nothing can be written to" in error and error.count("\n") == 1


def test_a_folder_without_a_model_says_what_to_give_instead(score, world, tmp_path):
    save_model(tmp_path / "run")
    (tmp_path / "run" / "adapter").mkdir()
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    code, _, error = score(f"{tmp_path}/run/adapter {DATA}")
    assert code == 2 and f"it is an adapter alone. Give `{tmp_path}/run`, which" in error
    code, _, error = score(f"{tmp_path} {DATA}")
    assert code == 2 and f"give one of the models in it, such as `{tmp_path}/run`" in error
    code, _, error = score(f"data {DATA}")
    assert code == 2 and "no `config.json`; give a saved model" in error


def test_no_record_is_looked_for_beside_a_model_that_is_not_there(score, monkeypatch):
    def absent(source):
        raise ConfigError("model `nothing` cannot be loaded")

    monkeypatch.setattr("hf_xlt.models.ModelSource.load_config", absent)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *rest, **more: pytest.fail("was asked for"))
    code, _, error = score(f"nothing {DATA}")
    assert code == 2 and "model `nothing` cannot be loaded" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "it is no JSON object"),
        ('{"format_version": 1, "strategy": {}, "task": {}, "results": 3, "labels": {}}', "['labels', 'results']"),
        ('{"format_version": 1, "strategy": {', "cannot be read as a run record"),
    ],
)
def test_a_damaged_record_is_one_line(score, tmp_path, text, message):
    save_model(tmp_path / "run", CLASSES)
    (tmp_path / "run" / "xlt_run.json").write_text(text)
    code, _, error = score(f"{tmp_path}/run {DATA}")
    assert code == 2 and message in error and "run/xlt_run.json`" in error and error.count("\n") == 1


def test_a_task_that_is_not_that_of_the_run_is_refused(score, tmp_path):
    save_model(tmp_path / "run", CLASSES)
    make_record().write(tmp_path / "run")
    for task, message in (("token-classification", "was trained for text-classification"), ("nonsense", "unknown")):
        code, _, error = score(f"{tmp_path}/run {DATA} --task {task}")
        assert code == 2 and message in error
    assert score(f"{tmp_path}/run {DATA} --task text-classification")[0] == 0


def test_a_plain_model_of_the_hub(hub, hub_env, world, tmp_path):
    """In a process of its own, since the client reads its settings when it is imported."""
    import subprocess
    import sys
    from pathlib import Path

    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.url, token="hf_good")
    api.create_repo("user/plain")
    api.upload_folder(repo_id="user/plain", folder_path=world / "named")
    root = Path(__file__).resolve().parent.parent
    line = [sys.executable, "-m", "hf_xlt.cli.main", "evaluate", "user/plain", *DATA.split(), "--json", "--quiet"]
    (tmp_path / "data").symlink_to(world / "data")
    environment = {**hub_env, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["languages"]) == ["en", "de", "sw", "zh"]
    assert (tmp_path / "evaluations" / "user--plain" / "data" / "results.json").is_file()
