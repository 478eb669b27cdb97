"""The card of a pre-trained encoder, and its way to the Hub and back."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from huggingface_hub import HfApi, ModelCard
from pretraining_setup import TOKENIZER, make_encoder
from records import SENT, make_pretraining_phases, make_pretraining_record, make_record, make_run, named
from tiny import make_rows, write_rows

from hf_xlt.cli import card as card_command
from hf_xlt.errors import ConfigError
from hf_xlt.files import write_text
from hf_xlt.hub import push
from hf_xlt.model_cards.card import check, is_generated, render
from hf_xlt.model_cards.checks import leaks
from hf_xlt.model_cards.pretraining import is_pretraining, plan_yaml
from hf_xlt.modelling.saving import save_final
from hf_xlt.pretrain import Pretraining, Request
from hf_xlt.pretraining.plan_file import read_plan
from hf_xlt.record import INTERRUPTED, RUNNING, RunRecord

GOLDEN = Path(__file__).parent / "golden" / "pretraining_card.md"
REPO = "user/quechua-encoder"


def metadata(text):
    return ModelCard(text).data.to_dict()


def code(text, language="python"):
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


def definitions(*phases):
    return {"phases": [phase.definition() for phase in phases]}


def test_card_equals_the_golden_file():
    assert render(make_pretraining_record(), REPO) == GOLDEN.read_text(encoding="utf-8")


def test_the_same_record_gives_the_same_bytes():
    record = make_pretraining_record()
    before = json.dumps(record.to_dict())
    assert render(record, REPO) == render(RunRecord.from_dict(json.loads(before)), REPO)
    assert json.dumps(record.to_dict()) == before
    assert is_generated(render(record, REPO))


def test_only_a_record_of_fill_mask_gets_this_card():
    assert is_pretraining(make_pretraining_record()) and not is_pretraining(make_record())
    assert "## How it was transferred" in render(make_record())
    assert "## Text by language" not in render(make_record())


def test_metadata_is_what_the_hub_accepts():
    values = metadata(render(make_pretraining_record(), REPO))
    assert values == {
        "datasets": ["org/quechua"],
        "language": ["en", "de", "quy"],
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["hf_xlt", "cross-lingual-transfer", "meta-pretrain", "modernbert"],
    }


def test_an_encoder_of_the_hub_is_the_base_and_its_license_is_named():
    model = {
        "name": "FacebookAI/xlm-roberta-base",
        "new": None,
        "revision": "0f" * 20,
        "parameters": 278_000_000,
        "model_type": "xlm-roberta",
        "license": "mit",
    }
    text = render(make_pretraining_record(model=model), REPO)
    assert metadata(text)["base_model"] == "FacebookAI/xlm-roberta-base" and metadata(text)["license"] == "mit"
    assert "[FacebookAI/xlm-roberta-base](https://huggingface.co/FacebookAI/xlm-roberta-base), an encoder" in text
    assert "pre-trained further" in text and "random weights" not in text
    assert "is that of the encoder that pre-training continued" in text and "0f" * 20 in text


def test_an_encoder_of_a_local_folder_has_no_base():
    model = {"name": None, "new": None, "parameters": 1000, "model_type": "bert"}
    text = render(make_pretraining_record(model=model))
    assert not {"base_model", "license"} & set(metadata(text))
    assert "`MODEL` stands for the encoder to continue" in text and "TOKENIZER" not in text
    assert check(text) == []


def test_every_figure_of_the_phases_is_the_records():
    record = make_pretraining_record()
    text = render(record)
    for phase in record.settings["phases"]:
        rate = phase["learning_rate"] or record.arguments["learning_rate"]
        entry = record.data[phase["name"]]
        (row,) = re.findall(rf"^\| {phase['name']} \| `mlm` × 1 \|.*$", text, re.MULTILINE)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[3:] == [
            f"{phase['steps']:,}",
            f"{rate:g}",
            f"{phase['alpha']:g}",
            str(len(entry["tokens"])),
            f"{entry['row_tokens']:,}",
        ]
        for code_, tokens in entry["tokens"].items():
            mark = "~" if code_ in entry["estimated"] else ""
            assert (
                f"| {code_} | {mark}{tokens:,} | {entry['shares'][code_]:.2%} | {entry['epochs'][code_]:.2f} |" in text
            )


def test_the_plan_on_the_card_is_the_one_that_was_run(tmp_path):
    record = make_pretraining_record()
    path = tmp_path / "plan.yaml"
    path.write_text(code(render(record), "yaml"), encoding="utf-8")
    plan = read_plan(str(path))
    assert [phase.definition() for phase in plan.phases] == record.settings["phases"]
    assert plan.phases == make_pretraining_phases()
    assert plan.model == record.model["new"] and plan.training["seed"] == 3
    assert plan.training["adam_beta2"] == 0.98 and "disable_tqdm" not in plan.training


def test_phases_with_the_same_text_name_it_once():
    phases = make_pretraining_phases()[1:] * 2
    plan = yaml.safe_load(plan_yaml(make_pretraining_record(settings=definitions(*phases))))
    assert len(plan["sources"]) == 2 and all("sources" not in phase for phase in plan["phases"])


def test_our_additions_are_told_from_the_paper():
    first, second = make_pretraining_phases()
    text = render(make_pretraining_record())
    assert "The two phases here are the paper's" in text and "contrastive" not in text
    phase = type(second)("cross", 9, second.sources[:1], {"mlm": 1.0, "tlm": 0.5, "contrastive": 0.7})
    text = render(make_pretraining_record(settings=definitions(first, phase)))
    assert "`mlm` × 1, `tlm` × 0.5, `contrastive` × 0.7" in text
    assert re.search(r"- `contrastive`: .* our addition", text)
    text = render(make_pretraining_record(settings=definitions(second)))
    assert "the one phase here is a plan of our own" in text and "are the paper's, one language" not in text


def test_epochs_are_left_out_where_no_masked_row_reads_the_text():
    _, second = make_pretraining_phases()
    phase = type(second)("cross", 9, second.sources[:1], {"contrastive": 1.0})
    assert "| cross | German | de | 2,500,000 | 36.52% |  |" in render(
        make_pretraining_record(settings=definitions(phase))
    )


def test_a_new_tokenizer_within_the_pretraining_is_told():
    first, second = make_pretraining_phases()
    phase = type(second)("cross", 9, second.sources, tokenizer="wide", embedding_warmup_steps=3)
    text = render(make_pretraining_record(settings=definitions(first, phase)))
    assert (
        "Phase `cross` begins with another tokenizer, `wide`; the embeddings of new pieces start by `overlap`" in text
    )


def test_many_languages_are_folded():
    codes = "en de fr es it pt nl sv da fi pl cs sk hu ro bg ru uk tr ar he fa hi bn sw".split()
    figures = {code_: 1000 + number for number, code_ in enumerate(codes)}
    entry = {"tokens": figures, "shares": dict.fromkeys(codes, 0.04), "epochs": dict.fromkeys(codes, 1.0)}
    record = make_pretraining_record(data={"cross": entry}, languages={"text": named(*codes)})
    assert "<details>" in render(record) and "<details>" not in render(make_pretraining_record())


def test_limits_say_what_is_not_known():
    text = render(make_pretraining_record())
    limits = text.split("## Limits\n")[1]
    assert "The encoder was not evaluated" in limits
    assert "Text is scarcest in Ayacucho Quechua: 90,000 tokens." in limits
    assert "licences of the text are not recorded: check the terms" in limits
    unfinished = make_pretraining_record(status=RUNNING, phases=[{"name": "meta", "updates": 500}])
    assert "not finished: 1 of 2 phases are done" in render(unfinished)
    assert "not finished" not in text


def test_a_record_with_little_in_it_makes_a_card_with_little_in_it():
    bare = RunRecord(
        strategy={"name": "meta-pretrain", "summary": "", "notes": ""}, task=make_pretraining_record().task
    )
    text = render(bare)
    assert check(text) == []
    assert set(metadata(text)) == {"library_name", "pipeline_tag", "tags"}
    for word in ("None", "null", "Citation", "Seeds", "Versions", "MODEL", "paper"):
        assert word not in text.split("---\n", 2)[2]


def test_languages_are_named_where_only_the_data_tell_them():
    """Records of the first pre-trainings have no languages and no resolved arguments."""
    text = render(make_pretraining_record(languages={}, arguments={}), REPO)
    assert metadata(text)["language"] == ["en", "de", "quy"] and "Ayacucho Quechua" in text


@pytest.mark.parametrize(
    ("codes", "masked"),
    [
        (("en",), 'f"Monday, {tokenizer.mask_token} 5, 2026"'),
        (("quy", "de"), 'f"Montag, 5. {tokenizer.mask_token} 2026"'),
        (("zh",), 'f"2026年1月5日{tokenizer.mask_token}"'),
        (("shp",), 'f"Monday, {tokenizer.mask_token} 5, 2026"'),
    ],
)
def test_the_snippet_masks_a_word_of_a_language_of_the_text(codes, masked):
    snippet = code(render(make_pretraining_record(languages={"text": named(*codes)}), REPO))
    compile(snippet, "snippet", "exec")
    assert masked in snippet and f'name = "{REPO}"' in snippet


def test_the_snippet_runs(tmp_path, monkeypatch, capsys):
    save_final(make_encoder(), TOKENIZER, tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code(render(make_pretraining_record())), "README.md", "exec"), {})
    guesses = eval(capsys.readouterr().out.strip().splitlines()[-1])
    assert len(guesses) == 5 and all(isinstance(guess, str) for guess in guesses)


def test_rendering_imports_neither_torch_nor_transformers():
    path = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    program = (
        f"import sys; sys.path[:0] = {path!r}; from records import make_pretraining_record; "
        "from hf_xlt.model_cards.card import render; "
        "render(make_pretraining_record()); print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SHAPE = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
TRAINING = {"per_device_train_batch_size": 4, "row_length": 16, "learning_rate": 1e-3, "disable_tqdm": True}
TOKEN = "hf_" + "Zq9x" * 8


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The output of a tiny pre-training whose paths and token must not show."""
    root = tmp_path_factory.mktemp("somebody-private")
    TOKENIZER.save_pretrained(root / "words")
    (root / "text").mkdir()
    for language in ("en", "de", "sw"):
        write_rows(root / "text" / f"{language}.jsonl", make_rows(language, 40, 0))
    plan = {
        "model": SHAPE,
        "tokenizer": str(root / "words"),
        "output_dir": str(root / "elsewhere"),
        "threads": 1,
        "sources": [str(root / "text" / "{lang}.jsonl")],
        "training": {**TRAINING, "hub_token": TOKEN, "run_name": str(root / "diary")},
        "phases": [
            {"name": "meta", "steps": 3, "sources": [{"text": str(root / "text/{lang}.jsonl"), "languages": "en"}]},
            {"name": "cross", "steps": 3, "objectives": ["mlm", "contrastive"], "pairs": 4},
        ],
    }
    path = root / "plan.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    command = ["--config", str(path), f"--output-dir={root / 'out'}"]
    return Pretraining(read_plan(str(path)), Request(output_dir=str(root / "out"), command=command)).go()


def command(name, module, *arguments):
    app = typer.Typer()
    module.register(app)
    app.callback()(lambda: None)
    return app([name, *map(str, arguments)], standalone_mode=False)


def test_pretraining_writes_its_card(pretrained):
    text = (pretrained / "README.md").read_text(encoding="utf-8")
    record = RunRecord.read(pretrained)
    assert text == render(record) and check(text) == [] and is_generated(text)
    assert metadata(text)["language"] == ["en", "de", "sw"]
    assert record.arguments["adam_beta2"] == 0.98 and record.model["tokenizer"] == "words"
    assert [entry["row_tokens"] for entry in record.data.values()] == [3 * 4 * 15] * 2
    assert record.languages == {"text": named("en", "de", "sw")}


def test_no_path_and_no_token_is_in_card_or_record(pretrained):
    for name in ("README.md", "xlt_run.json"):
        text = (pretrained / name).read_text(encoding="utf-8")
        assert leaks(text) == [] and TOKEN not in text
        assert "somebody-private" not in text and str(pretrained.parent) not in text and "elsewhere" not in text
    assert RunRecord.read(pretrained).command == "hf-xlt pretrain --config plan.yaml --output-dir=out"


def test_the_same_plan_comes_back_from_the_card(pretrained, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(code((pretrained / "README.md").read_text(encoding="utf-8"), "yaml"), encoding="utf-8")
    plan = read_plan(str(path))
    assert [phase.definition() for phase in plan.phases] == RunRecord.read(pretrained).settings["phases"]
    assert plan.model == SHAPE and plan.tokenizer == "words" and plan.threads == 1


def test_the_card_command_serves_a_pretraining(pretrained, tmp_path, capsys):
    command("card", card_command, pretrained, "--check")
    assert "ready to push, as rendered" in capsys.readouterr().out
    command("card", card_command, pretrained, "--output", tmp_path / "card.md")
    assert (tmp_path / "card.md").read_bytes() == (pretrained / "README.md").read_bytes()


def test_a_pretraining_says_what_comes_next_and_leaves_an_edited_card(pretrained, capsys):
    card = pretrained / "README.md"
    rendered = card.read_text(encoding="utf-8")
    plan, record = read_plan(str(pretrained.parent / "plan.yaml")), RunRecord.read(pretrained)
    try:
        for before, now in ((None, rendered), ("# Mine\n", "# Mine\n")):
            RunRecord.from_dict({**record.to_dict(), "status": RUNNING}).write(pretrained)
            card.unlink() if before is None else write_text(card, before)
            Pretraining(plan, Request(resume=True, output_dir=str(pretrained))).go()
            printed = capsys.readouterr().out
            assert f"Next: hf-xlt push {pretrained} USER/NAME" in printed
            assert is_generated(card.read_text(encoding="utf-8")) if before is None else card.read_text() == now
            assert ("edited by hand" in printed) == (before is not None)
    finally:
        record.write(pretrained)
        write_text(card, rendered)


def test_an_unfinished_pretraining_is_not_pushed(tmp_path):
    for status in (RUNNING, INTERRUPTED):
        folder = make_run(tmp_path / status, make_pretraining_record(status=status))
        with pytest.raises(ConfigError, match="not finished.*`hf-xlt pretrain` command with `--resume`"):
            push(folder, REPO, dry_run=True)
    folder = make_run(tmp_path / "cut", make_pretraining_record())
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="Repeat the `hf-xlt pretrain` command"):
        push(folder, REPO, dry_run=True)


def test_a_finished_pretraining_needs_no_force_to_be_pushed(tmp_path):
    folder = make_run(tmp_path / "run", make_pretraining_record())
    report = push(folder, REPO, dry_run=True)
    assert set(report.files) == {"README.md", "xlt_run.json", *SENT}
    assert report.card == render(make_pretraining_record(), REPO)


# What a stranger does with nothing but the repository's name; the folder serves for comparison only.
STRANGER = """
import json, sys
import torch
torch.set_num_threads(1)
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

repo_id, folder, snippet = sys.argv[1:]
model, report = AutoModelForMaskedLM.from_pretrained(repo_id, output_loading_info=True)
saved, loaded = load_file(folder + "/model.safetensors"), model.state_dict()
AutoModel.from_pretrained(repo_id)
exec(compile(snippet, "README.md", "exec"), {})
print(json.dumps({
    "missing": sorted(set(saved) - set(loaded)),
    "differing": [name for name in saved if not torch.equal(loaded[name], saved[name])],
    "misfits": sorted(map(str, [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]])),
    "ids": AutoTokenizer.from_pretrained(repo_id)("w1 w2 w59")["input_ids"],
}))
"""


def test_a_pushed_encoder_comes_back_bit_for_bit(pretrained, hub, hub_env, tmp_path):
    report = push(pretrained, REPO, private=True, api=HfApi(endpoint=hub.url, token="hf_good"))
    files = hub.store.files(REPO)
    assert set(files) == {".gitattributes", *report.files}
    assert set(report.files) == {"README.md", "xlt_run.json", *SENT} - {"results.json", "results.md"}
    assert not any(TOKEN.encode() in data for data in files.values())
    card = files["README.md"].decode()
    assert card == render(RunRecord.read(pretrained), REPO)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, REPO, str(pretrained), code(card)],
        env=hub_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *answer, last = done.stdout.splitlines()
    seen = json.loads(last)
    assert seen["missing"] == seen["differing"] == seen["misfits"] == []
    assert seen["ids"] == TOKENIZER("w1 w2 w59")["input_ids"]
    assert answer[-1].startswith("['") and answer[-1].count(",") == 4
