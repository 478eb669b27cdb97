import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from card_parts import figures, header, table
from hub_store import card_errors
from records import ACCURACY, make_demo_record, make_oracle_record, make_record, make_results, make_run, named
from strategy_records import soft_layers

from hf_xlt.cli import card as card_command
from hf_xlt.errors import ConfigError
from hf_xlt.hub import push
from hf_xlt.model_cards.card import check, is_generated, render
from hf_xlt.model_cards.checks import contradictions, leaks
from hf_xlt.record import SOURCE_VALIDATION, TRAINED, RunRecord
from hf_xlt.registry import get_strategy

REPO = "user/topic-robust"


def run_command(*arguments):
    app = typer.Typer()
    card_command.register(app)
    app.callback()(lambda: None)
    return app([*arguments], standalone_mode=False)


def test_every_gap_is_the_source_average_less_the_score():
    scores = make_record().scores
    header_row, source, *targets = table(render(make_record()), "Results")
    place = header_row.index("gap")
    assert source[place] == "" and len(targets) == 3
    for row, score in zip(targets, scores.of_role("target"), strict=True):
        assert row[place] == f"{100 * (scores.source_average - score.metrics['accuracy']):.1f}"


@pytest.mark.parametrize(("count", "named_weakest"), [(1, 0), (2, 1), (3, 1), (4, 2), (6, 3), (9, 3)])
def test_the_weakest_languages_are_named_and_are_at_most_half(count, named_weakest):
    codes = ["de", "fr", "sw", "yo", "quy", "so", "ha", "ig", "zu"][:count]
    accuracy = {"en": 0.875, **{code: 0.75 - number / 16 for number, code in enumerate(codes)}}
    text = render(make_record(results=make_results(accuracy).to_dict()))
    expected = [f"({code}) {100 * accuracy[code]:.1f}" for code in codes[::-1][:named_weakest]]
    lines = [line for line in text.splitlines() if line.startswith("- Weakest: ")]
    assert re.findall(r"\(\w+\) [\d.]+", "".join(lines)) == expected


def test_the_plot_is_shown_where_there_is_one():
    assert "](results.png)" in render(make_record(plots=["results.png"]))
    assert "![" not in render(make_record())
    blocks = soft_layers()
    assert "](gates.png)" in render(blocks)
    blocks.plots = ["results.png"]
    assert "gates.png" not in render(blocks) and "### How much each layer could move" in render(blocks)


def test_the_same_record_gives_the_same_bytes():
    record = make_record()
    before = json.dumps(record.to_dict())
    assert render(record, REPO) == render(RunRecord.from_dict(json.loads(before)), REPO)
    assert json.dumps(record.to_dict()) == before


def test_every_figure_of_the_header_is_the_records():
    scores = make_results()
    expected = {
        (score.language, name.replace("_", " ")): value
        for score in scores.scores
        for name, value in score.metrics.items()
        if name != "loss"
    }
    expected[("average-target", "accuracy")] = scores.target_average
    assert figures(render(make_record(), REPO)) == expected


def test_several_source_languages_have_an_average():
    accuracy = {**ACCURACY, "fr": 0.75}
    results = make_results(accuracy).to_dict()
    results["languages"]["fr"]["role"] = "source"
    record = make_record(results=results, languages={"source": named("en", "fr"), "target": named("de", "sw", "quy")})
    assert figures(render(record))[("average-source", "accuracy")] == (0.8125 + 0.75) / 2
    assert record.scores.source_average == (0.8125 + 0.75) / 2


def test_every_figure_of_the_table_is_the_records():
    record = make_demo_record()
    _, *rows = table(render(record), "Results")
    assert len(rows) == len(record.scores.scores)
    for row, score, floor in zip(rows, record.scores.scores, record.scores_beside["floor"].scores, strict=True):
        accuracy, macro_f1 = score.metrics["accuracy"], score.metrics["macro_f1"]
        assert row[1:4] == [score.language, score.role, f"{score.examples:,}"]
        assert [row[4], *row[6:]] == [
            f"{100 * value:.1f}" for value in (accuracy, macro_f1, floor.metrics["accuracy"])
        ]
    text = render(record)
    assert f"Target average {100 * record.scores.target_average:.1f}, over 3 languages" in text
    assert f"Transfer gap {100 * record.scores.transfer_gap:.1f} points" in text
    assert "Weakest: Ayacucho Quechua (quy) 40.6\n" in text


def test_header_is_what_the_hub_accepts():
    for record in (make_record(), make_demo_record(), make_oracle_record(), make_record(results=None)):
        for repo_id in (None, REPO):
            text = render(record, repo_id)
            assert card_errors(text) == [] and check(text) == []


def test_header_names_languages_tags_and_base_model():
    values = header(render(make_record(), REPO))
    assert values["language"] == ["en", "de", "sw", "quy"]
    assert values["tags"] == ["hf_xlt", "cross-lingual-transfer", "robust"]
    assert values["base_model"] == "FacebookAI/xlm-roberta-base"
    assert values["license"] == "mit" and values["library_name"] == "transformers"
    assert values["pipeline_tag"] == "text-classification" and values["metrics"] == ["accuracy", "f1"]
    assert "datasets" not in values


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("FacebookAI/xlm-roberta-base", "FacebookAI/xlm-roberta-base"),
        ("xlm-roberta-base", "xlm-roberta-base"),
        ("hf-xlt-embedded-encoder", None),
        ("my-own-model", None),
        ("out/models/mine", None),
        (None, None),
    ],
)
def test_base_model_is_a_hub_id_or_absent(name, expected):
    text = render(make_record(model={"name": name, "model_type": "bert"}))
    assert header(text).get("base_model") == expected
    assert "](https://huggingface.co/)" not in text and "None" not in text


def test_data_sets_are_hub_ids():
    data = {
        "source": {"sources": ["org/set"], "hub_ids": ["org/set"], "split": "train", "examples": {"en": 5}},
        "target": {"sources": ["org/set"], "hub_ids": ["org/set"], "split": "test", "examples": {"sw": 5}},
        "source test": {"sources": ["topic/{lang}.csv"], "hub_ids": [], "split": "test", "examples": {"en": 5}},
    }
    values = header(render(make_record(data=data)))
    assert values["datasets"] == ["org/set"]
    kinds = {entry["dataset"]["config"]: entry["dataset"]["type"] for entry in values["model-index"][0]["results"]}
    assert kinds["sw"] == "org/set" and kinds["en"] == "topic"


@pytest.mark.parametrize(
    ("license_name", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("Unicode License v3", {"license": "other", "license_name": "unicode-license-v3"}),
        (None, {}),
    ],
)
def test_a_license_is_given_only_where_known(license_name, expected):
    values = header(render(make_record(model={"name": None, "license": license_name})))
    assert {key: value for key, value in values.items() if key.startswith("license")} == expected


def test_oracle_selection_is_shown_loudly():
    text = render(make_oracle_record())
    assert "> **Oracle selection: not zero-shot transfer.**" in text
    assert text.index("Oracle selection") < text.index("## Results")
    assert "no labelled example" not in text
    assert "chosen on target-language validation (oracle) by `target_avg_accuracy`" in text
    assert "| Transfer | not zero-shot: target-language labels chose the checkpoint |" in text
    # Figures of the header are shown elsewhere, without the card.
    names = {r["dataset"]["config"]: r["dataset"]["name"] for r in header(text)["model-index"][0]["results"]}
    assert {code for code, name in names.items() if "oracle" in name} == {"de", "sw", "quy", "average-target"}
    for plain in (render(make_record()), render(make_demo_record())):
        assert "oracle" not in plain.lower()


def test_demo_says_that_its_numbers_mean_nothing():
    assert "> **Demonstration.**" in render(make_demo_record())
    assert "emonstration" not in render(make_record())


def test_few_shot_runs_say_so():
    few = make_record(few_shot={"shots": 10, "shot_seed": 3, "mode": "joint"}, seeds={"seed": 7, "shot_seed": 3})
    text = render(few)
    assert "10 labelled examples of each target language" in text and "`shot_seed` 3" in text
    assert "no labelled example" not in text and "zero-shot" not in text


def test_selection_and_parents_are_shown():
    selection = {"protocol": SOURCE_VALIDATION, "metric": "avg_accuracy", "languages": ["en"], "oracle": False}
    parents = [{"strategy": {"name": "finetune"}, "seeds": {"seed": seed}} for seed in (1, 2)]
    text = render(make_record(selection=selection, parents=parents))
    assert "| Checkpoint | chosen on source-language validation by `avg_accuracy` |" in text
    assert "| Made from | a run of `finetune`, `seed` 2 |" in text
    assert "One training run" not in text


def test_unknown_facts_are_left_out():
    bare = RunRecord(
        strategy={"name": "finetune", "title": "Plain fine-tuning", "summary": "Fine-tune."},
        task={"name": "text-classification", "auto_model": "AutoModelForSequenceClassification"},
        status=TRAINED,
    )
    text = render(bare)
    assert check(text) == []
    assert set(header(text)) == {"library_name", "tags"}
    for word in ("None", "null", "unknown", "More information", "Citation", "Seeds", "Versions"):
        assert word not in text.split("---\n", 2)[2]
    assert "has not been scored" in text


def test_languages_without_evaluation_are_named():
    record = make_record(languages={"source": named("en"), "target": named("de", "sw", "quy", "yo")})
    assert "Not evaluated in Yoruba (yo)." in render(record)


def test_values_stay_within_their_table_cell():
    text = render(make_record(settings={"labels": ["a|b", "c\nd"]}))
    assert "| `labels` | a\\|b, c d |" in text


def test_snippet_speaks_a_target_language_and_names_the_repository():
    text = render(make_record(), REPO)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    compile(code, "snippet", "exec")
    assert f'name = "{REPO}"' in code and "# German" in code
    assert 'name = "."' in render(make_record())


def test_a_model_of_pairs_is_shown_a_pair_though_nobody_named_the_column():
    data = {"source": {**make_record().data["source"], "columns": {"text": "premise", "text_pair": "hypothesis"}}}
    assert '"text_pair": "Montag' in render(make_record(data=data))
    assert "text_pair" not in render(make_record())


def test_tasks_without_a_pipeline_get_a_snippet_without_one():
    task = {"name": "question-answering", "pipeline_tag": "question-answering"}
    text = render(make_record(task={**task, "auto_model": "AutoModelForQuestionAnswering", "metric": "f1"}))
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    compile(code, "snippet", "exec")
    assert "pipeline" not in code and "AutoModelForQuestionAnswering.from_pretrained" in code
    assert 'question, context = "Januar?", "Montag, 5. Januar 2026"  # German' in code


def test_an_edited_card_is_told_from_a_rendered_one():
    text = render(make_record(), REPO)
    assert is_generated(text)
    assert not is_generated(text.replace("German", "Low German"))
    assert not is_generated("# My model\n") and not is_generated(text + "More.\n")


@pytest.mark.parametrize(
    "bad",
    [
        "/home/me/data/train.csv",
        "see ~/models/mine",
        r"C:\Users\me\model",
        "file:///data/x",
        "`/tmp/run`",
        "(/data/out/model)",
        "hf_" + "a1B2" * 8,
    ],
)
def test_check_finds_paths_and_tokens(bad):
    text = render(make_record(), REPO)
    assert check(text) == []
    problems = check(text + bad)
    assert len(problems) == 1
    assert ("token" in problems[0]) == bad.startswith("hf_") and "a1B2" not in problems[0]


def test_check_lets_web_addresses_and_patterns_pass():
    assert leaks("https://example.org/home/page topic/{split}.{lang}.parquet hf_xlt and/or a/b [x](/docs) 3:4") == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("- quy", "- quechua", "ISO 639"),
        ("base_model: FacebookAI/xlm-roberta-base", "base_model: ../xlm", "Hub id"),
        ("license: mit", "license: [mit]", "not a text"),
        ("value: 0.8125", "value: high", "not a number"),
        ("- robust", "- 5", "not a text"),
        ("library_name: transformers", "library_name: [", "YAML"),
        ("---\nbase", "base", "missing"),
    ],
)
def test_check_finds_bad_metadata(old, new, message):
    text = render(make_record(), REPO)
    assert old in text
    problems = check(text.replace(old, new, 1))
    assert problems and message in problems[0]


def test_rendering_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from records import make_record; from hf_xlt.model_cards.card import render; "
        "render(make_record()); print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    path = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    code = f"import sys; sys.path[:0] = {path!r}; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_command_writes_and_checks_the_card(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "README.md").unlink()
    with pytest.raises(ConfigError, match="holds no card"):
        run_command("card", str(run), "--check")
    run_command("card", str(run))
    assert (run / "README.md").read_text(encoding="utf-8") == render(make_record())
    run_command("card", str(run), "--check")
    assert "ready to push, as rendered" in capsys.readouterr().out
    run_command("card", str(run), "--output", str(tmp_path / "other.md"))
    assert (tmp_path / "other.md").read_text(encoding="utf-8") == render(make_record())
    capsys.readouterr()
    run_command("card", str(run), "--check", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "card": str(run / "README.md"),
        "ready": True,
        "state": "as rendered",
    }


def test_command_tells_a_card_that_is_older_than_its_record(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    make_record(seeds={"seed": 8}).write(run)
    run_command("card", str(run), "--check")
    assert "older than its record" in capsys.readouterr().out
    (run / "results.png").write_bytes(b"png")
    run_command("card", str(run))
    run_command("card", str(run), "--check")
    assert "as rendered" in capsys.readouterr().out and "](results.png)" in (run / "README.md").read_text()


def test_figures_that_the_run_has_not_measured_are_refused(tmp_path):
    run = make_run(tmp_path / "run")
    text = render(make_record(), REPO)
    assert contradictions(text, make_record()) == []
    more = text.replace("config: de", "config: de-formal", 1)
    assert contradictions(more, make_record()) == [] and contradictions("---\ntags: [a]\n---\n", make_record()) == []
    (run / "README.md").write_text(text.replace("value: 0.7421875", "value: 0.95", 1), encoding="utf-8")
    message = "gives 0.95 as accuracy of `de`, and the run has measured 0.7421875"
    with pytest.raises(ConfigError, match=message):
        run_command("card", str(run), "--check")
    with pytest.raises(ConfigError, match=message):
        push(run, REPO, dry_run=True)


def test_command_leaves_an_edited_card_alone(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "README.md").write_text("# Mine\n")
    with pytest.raises(ConfigError, match="edited by hand.*--overwrite"):
        run_command("card", str(run))
    assert (run / "README.md").read_text() == "# Mine\n"
    run_command("card", str(run), "--overwrite")
    assert is_generated((run / "README.md").read_text(encoding="utf-8"))


def test_command_refuses_what_it_cannot_use(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds no run"):
        run_command("card", str(tmp_path))
    # Not the advice to write a card, which would fail as well.
    with pytest.raises(ConfigError, match="holds no run"):
        run_command("card", str(tmp_path), "--check")
    (tmp_path / "taken" / "README.md").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a directory"):
        run_command("card", str(run), "--output", str(tmp_path / "taken"))
    with pytest.raises(ConfigError, match="cannot be written"):
        run_command("card", str(run), "--output", str(run / "config.json" / "card.md"))
    (run / "README.md").write_text("no header, /home/me/model\n")
    with pytest.raises(ConfigError, match="metadata is missing.*local path"):
        run_command("card", str(run), "--check")


def test_an_average_is_not_what_target_labels_chose():
    facts = {"mode": "uniform", "every": 0.1, "snapshots": 2, "steps": [1, 2], "beside": "best"}
    record = make_oracle_record()
    record.phases = [{"name": "train", "updates": 2, "averaging": facts}]
    text = render(record)
    assert "Oracle selection" not in text and "oracle figures" not in text
    # Validation labels were read all the same, and that is told.
    assert "the one chosen on target-language validation (oracle) is another model" in text
    assert "no labelled example" not in text
    record.phases[0]["averaging"]["snapshots"] = 0
    assert "> **Oracle selection: not zero-shot transfer.**" in render(record)


def test_words_of_a_strategy_are_made_with_the_card():
    strategy = {name: value for name, value in make_record().strategy.items() if name not in ("summary", "notes")}
    entry = get_strategy("robust")
    assert f"{entry.summary} {entry.notes}" in render(make_record(strategy=strategy))
    own = render(make_record(strategy={"name": "of-my-own", "title": "A strategy of my own"}))
    assert "## How it was transferred\n\nA strategy of my own.\n" in own


def test_records_that_hold_their_words_keep_them():
    strategy = {**make_record().strategy, "summary": "As it was.", "notes": "And no more."}
    assert "\nAs it was. And no more.\n" in render(make_record(strategy=strategy))


@pytest.mark.parametrize(
    ("made_of", "words"),
    [
        ({"checkpoints": 1, "runs": 1, "of_means": []}, "The mean of 1 checkpoint of 1 run. Which"),
        ({"checkpoints": 4, "runs": 1, "of_means": []}, "The mean of 4 checkpoints of 1 run. Which"),
        (
            {"checkpoints": 3, "runs": 3, "of_means": [9, 10]},
            "The mean of 3 checkpoints of 3 runs, each of which is the mean of 9 or 10 snapshots. Which",
        ),
    ],
)
def test_an_average_on_disk_says_what_it_is_the_mean_of(made_of, words):
    strategy = {"name": "averaging", "title": "Run averaging", "made_of": made_of}
    assert words in render(make_record(strategy=strategy))


def test_updates_that_were_asked_for_and_not_made_are_told():
    phase = {"name": "train", "updates": 1050, "updates_asked": 2000, "seconds": 1.0}
    assert "| Training | train: 1,050 of 2,000 updates |" in render(make_record(phases=[phase]))
    assert "| Training | train: 1,050 updates |" in render(make_record(phases=[{**phase, "updates_asked": 1050}]))
