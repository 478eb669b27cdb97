import json
import struct

import numpy
import pytest
import typer
from hub_store import Fault
from huggingface_hub import CommitOperationAdd
from records import SENT, make_demo_record, make_record, make_run
from safetensors.numpy import save_file
from strategy_records import lora

from hf_xlt.cli import push as push_command
from hf_xlt.errors import ConfigError, RunError, describe
from hf_xlt.hub import push
from hf_xlt.model_cards.card import is_generated, render
from hf_xlt.record import INTERRUPTED, RUNNING, TRAINED

REPO = "user/topic-robust"
TOKEN = "hf_" + "Zq9x" * 8


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def command(hub, monkeypatch):
    """`hf-xlt push` in this process, against the loopback Hub."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    app = typer.Typer()
    push_command.register(app)
    app.callback()(lambda: None)
    return lambda *arguments: app(["push", *map(str, arguments)], standalone_mode=False)


def commits(hub):
    return hub.store.requests("POST", "/commit/")


def test_push_sends_the_allowed_files_and_nothing_else(hub, api, run):
    report = push(run, REPO, private=True, api=api)
    files = hub.store.files(REPO)
    assert set(files) == {".gitattributes", "README.md", "xlt_run.json", *SENT}
    for name in (*SENT, "xlt_run.json"):
        assert files[name] == (run / name).read_bytes()
    assert report.files == {name: len(data) for name, data in files.items() if name != ".gitattributes"}
    assert report.private and hub.store.repos[REPO].private and report.changed
    assert report.commit == hub.store.repos[REPO].resolve("main").oid and report.url == f"{hub.url}/{REPO}"
    assert len(commits(hub)) == 1


def test_shards_go_with_their_index(hub, api, run):
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for shard in shards:
        (run / shard).write_bytes(weights)
    index = run / "model.safetensors.index.json"
    with pytest.raises(ConfigError, match="`model.safetensors` is missing"):
        push(run, REPO, api=api)
    index.write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
    push(run, REPO, api=api)
    assert {*shards, index.name} <= set(hub.store.files(REPO))
    (run / shards[1]).unlink()
    with pytest.raises(ConfigError, match="00002.*is missing"):
        push(run, REPO, api=api)


def test_weights_of_an_earlier_push_that_would_be_loaded_instead_are_removed(hub, api, run):
    api.create_repo(REPO)
    old = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json"}
    adds = [CommitOperationAdd(name, b"{}" * 9) for name in (*old, "notes.txt", "eval.json")]
    api.create_commit(REPO, adds, commit_message="earlier")
    # The reply is lost and the commit repeated: what is gone already must not be removed twice.
    hub.store.faults.append(Fault("POST", "/commit/", kind="lost reply"))
    report = push(run, REPO, api=api)
    files = set(hub.store.files(REPO))
    assert not files & old and {"notes.txt", "eval.json", "model.safetensors"} <= files
    assert report.changed and push(run, REPO, api=api).removed == ()


def test_removed_files_are_named(hub, api, run):
    api.create_repo(REPO)
    api.create_commit(REPO, [CommitOperationAdd("adapter_model.safetensors", b"x" * 9)], commit_message="earlier")
    assert push(run, REPO, api=api).removed == ("adapter_model.safetensors",)


def test_a_picture_that_is_not_pushed_is_named(hub, api, run):
    (run / "results.png").write_bytes(b"png")
    assert "![Score" in push(run, REPO, api=api).card and "results.png" in hub.store.files(REPO)
    edited = render(make_record(), REPO) + "![mine](my%20own.png) ![theirs](https://example.org/a.png)\n"
    (run / "README.md").write_text(edited, encoding="utf-8")
    notes = push(run, REPO, api=api).notes
    assert any("the card shows my%20own.png, which is not pushed" in note for note in notes)
    assert not any("example.org" in note for note in notes)


def test_the_pushed_card_names_the_repository(hub, api, run):
    before = (run / "README.md").read_bytes()
    push(run, REPO, api=api)
    assert hub.store.files(REPO)["README.md"].decode() == render(make_record(), REPO)
    assert (run / "README.md").read_bytes() == before


def test_a_card_edited_by_hand_goes_as_it_stands(hub, api, run):
    edited = render(make_record(), REPO).replace("## Limits", "## Limits and thanks")
    (run / "README.md").write_text(edited, encoding="utf-8")
    report = push(run, REPO, api=api)
    assert hub.store.files(REPO)["README.md"].decode() == edited
    assert "edited by hand" in report.notes[0]


def test_a_bad_card_is_refused_before_the_network_is_touched(hub, api, run):
    (run / "README.md").write_text("---\nlanguage: english\n---\nMade in /home/me/model\n")
    with pytest.raises(ConfigError, match="english.*local path"):
        push(run, REPO, api=api)
    assert hub.log == []


def test_a_card_that_only_the_hub_refuses_is_a_usage_error(hub, api, run, monkeypatch):
    monkeypatch.setattr("hub_routes.card_errors", lambda content: ['"license" must be one of [...]'])
    with pytest.raises(ConfigError, match='the Hub refuses the card.*"license" must be one of'):
        push(run, REPO, api=api)
    assert not hub.store.blobs and not commits(hub)


def test_a_second_push_changes_nothing(hub, api, run):
    first = push(run, REPO, api=api)
    second = push(run, REPO, api=api)
    assert first.changed and not second.changed and first.commit == second.commit
    assert len(commits(hub)) == 1


def test_push_to_a_branch_creates_it(hub, api, run):
    report = push(run, REPO, revision="trial", commit_message="First trial", api=api)
    assert "model.safetensors" in hub.store.files(REPO, "trial")
    assert set(hub.store.files(REPO)) == {".gitattributes"}
    assert report.url.endswith(f"{REPO}/tree/trial") and report.revision == "trial"
    assert api.list_repo_commits(REPO, revision="trial")[0].title == "First trial"
    push(run, REPO, revision="trial", api=api)


def test_push_as_a_pull_request(hub, api, run):
    api.create_repo(REPO)
    report = push(run, REPO, create_pr=True, api=api)
    assert report.pull_request.endswith("/discussions/1") and report.revision == "refs/pr/1"
    assert set(hub.store.files(REPO)) == {".gitattributes"}
    assert "model.safetensors" in hub.store.files(REPO, "refs/pr/1")
    with pytest.raises(ConfigError, match="not both"):
        push(run, REPO, create_pr=True, revision="trial", api=api)


@pytest.mark.parametrize(("exists", "asked"), [(False, True), (True, False)])
def test_visibility_of_an_existing_repository_is_not_passed_over(hub, api, run, exists, asked):
    api.create_repo(REPO, private=exists)
    with pytest.raises(ConfigError, match="Nothing was pushed"):
        push(run, REPO, private=asked, api=api)
    assert not commits(hub)
    assert push(run, REPO, api=api).private is exists


def test_dry_run_needs_no_network_and_sends_nothing(hub, run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    report = push(run, REPO, dry_run=True)
    assert report.dry_run and report.commit is None and hub.log == []
    assert set(report.files) == {"README.md", "xlt_run.json", *SENT}
    assert report.card == render(make_record(), REPO)
    assert not (run / "model.safetensors").stat().st_size == 0


@pytest.mark.parametrize(
    ("repo_id", "message"),
    [("topic", "write `USER/topic`"), ("a/b/c", "USER/NAME"), ("user/a b", "USER/NAME"), ("", "USER/NAME|USER/")],
)
def test_bad_repository_ids_are_refused(hub, api, run, repo_id, message):
    with pytest.raises(ConfigError, match=message):
        push(run, repo_id, api=api)
    assert hub.log == []


@pytest.mark.parametrize("status", [RUNNING, INTERRUPTED])
def test_unfinished_runs_are_refused_even_with_force(api, tmp_path, status):
    run = make_run(tmp_path / "run", make_record(status=status))
    for force in (False, True):
        with pytest.raises(ConfigError, match=f"not finished.*{status}.*--resume"):
            push(run, REPO, api=api, force=force)


def test_unscored_runs_and_demos_need_force(hub, api, tmp_path):
    unscored = make_run(tmp_path / "unscored", make_record(status=TRAINED, results=None))
    demo = make_run(tmp_path / "demo", make_demo_record())
    average = make_run(tmp_path / "average", make_record(status=TRAINED, results=None, parents=[{"seeds": {}}]))
    with pytest.raises(ConfigError, match="not scored.*hf-xlt run.*--resume.*--force"):
        push(unscored, REPO, api=api)
    with pytest.raises(ConfigError, match="not scored.*hf-xlt evaluate .*average.*--force"):
        push(average, REPO, api=api)
    with pytest.raises(ConfigError, match="demonstration.*--force"):
        push(demo, REPO, api=api)
    assert hub.log == []
    push(unscored, REPO, api=api, force=True)
    push(demo, "user/demo", api=api, force=True)
    assert "Demonstration" in hub.store.files("user/demo")["README.md"].decode()


@pytest.fixture
def adapted(tmp_path):
    """A run through LoRA, with its adapter beside the merged model."""
    folder = make_run(tmp_path / "adapted", lora())
    (folder / "adapter").mkdir()
    save_file({"a": numpy.ones(6, numpy.float32)}, folder / "adapter" / "adapter_model.safetensors")
    config = {"base_model_name_or_path": "FacebookAI/xlm-roberta-base", "peft_type": "LORA"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter" / "optimizer.pt").write_bytes(b"stays here")
    return folder


def test_an_adapter_goes_without_the_model(hub, api, adapted):
    report = push(adapted, REPO, adapter=True, api=api)
    beside = {"README.md", "xlt_run.json", *SENT} - {"model.safetensors", "config.json"}
    assert set(report.files) == beside | {"adapter_config.json", "adapter_model.safetensors"}
    assert hub.store.files(REPO)["README.md"].decode() == render(lora().with_plots(adapted), REPO, adapter=True)
    assert report.tag.startswith("adapter-2026-03-01-")
    # The merged model takes the adapter's place, and the other way round: never are both there.
    push(adapted, REPO, api=api)
    assert "adapter_config.json" not in hub.store.files(REPO) and "model.safetensors" in hub.store.files(REPO)
    push(adapted, REPO, adapter=True, api=api)
    assert "model.safetensors" not in hub.store.files(REPO) and "adapter_config.json" in hub.store.files(REPO)
    assert len(hub.store.repos[REPO].refs) == 3


def test_an_edited_card_of_the_merged_model_does_not_go_with_the_adapter(api, adapted):
    (adapted / "README.md").write_text(render(lora(), REPO) + "\nThanks.\n", encoding="utf-8")
    report = push(adapted, REPO, adapter=True, api=api)
    assert is_generated(report.card) and "tells of the merged model" in report.notes[0]


def test_adapters_that_nobody_could_load_are_refused(hub, api, run, adapted):
    with pytest.raises(ConfigError, match="trained no adapter"):
        push(run, REPO, adapter=True, api=api)
    place = adapted / "adapter"
    config = place / "adapter_config.json"
    good = config.read_text()
    for bad, message in [
        ("{", "is damaged"),
        ('{"base_model_name_or_path": null}', "trained them in an earlier phase"),
        ('{"base_model_name_or_path": "/home/me/base"}', "trained them in an earlier phase"),
    ]:
        config.write_text(bad)
        with pytest.raises(ConfigError, match=message):
            push(adapted, REPO, adapter=True, api=api)
    config.write_text(good)
    (place / "adapter_model.safetensors").write_bytes(b"abc")
    with pytest.raises(ConfigError, match="adapter_model.safetensors` is damaged"):
        push(adapted, REPO, adapter=True, api=api)
    (place / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="`adapter_model.safetensors` is missing"):
        push(adapted, REPO, adapter=True, api=api)
    local = lora()
    local.model["name"] = None
    local.write(adapted)
    save_file({"a": numpy.ones(6, numpy.float32)}, place / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="they are local.*Leave `--adapter` out"):
        push(adapted, REPO, adapter=True, api=api)
    assert hub.log == []


def test_a_folder_of_several_runs_names_them(hub, api, tmp_path):
    for name in ("run-2", "averaged"):
        make_run(tmp_path / "sweep" / name)
    with pytest.raises(ConfigError, match="holds 2 runs and is none itself.*averaged, run-2"):
        push(tmp_path / "sweep", REPO, api=api)
    assert hub.log == []


def test_a_folder_without_a_run_is_refused(api, tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="holds no run"):
            push(folder, REPO, api=api)


def test_damaged_weights_are_refused(hub, api, run):
    weights = run / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:20], whole + b"x"):
        weights.write_bytes(damaged)
        with pytest.raises(ConfigError, match=f"model.safetensors` is damaged: it has {len(damaged):,} bytes"):
            push(run, REPO, api=api)
    for nonsense in (b"", b"abc", struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 2) + b"[]"):
        weights.write_bytes(nonsense)
        with pytest.raises(ConfigError, match="model.safetensors` is damaged: it has no safetensors header"):
            push(run, REPO, api=api)
    (run / "config.json").unlink()
    with pytest.raises(ConfigError, match="`config.json` is missing"):
        push(run, REPO, api=api)
    assert hub.log == []


@pytest.mark.parametrize("bad", ["/home/me/models/mine", TOKEN])
def test_paths_and_tokens_in_a_config_are_refused(hub, api, run, bad):
    (run / "config.json").write_text(json.dumps({"_name_or_path": bad}))
    with pytest.raises(ConfigError, match="config.json` is not pushed as it is") as caught:
        push(run, REPO, api=api)
    assert TOKEN not in str(caught.value) and hub.log == []


def test_no_token_is_printed_or_stored(hub, run, monkeypatch, capsys, command):
    monkeypatch.setattr("hub_store.TOKENS", {TOKEN: "write"})
    monkeypatch.setattr("hub_server.TOKENS", {TOKEN: "write"})
    command(run, REPO, "--token", TOKEN)
    hub.store.faults.append(Fault("POST", "/commit/", code=403, headers={"X-Error-Message": f"token {TOKEN} may not"}))
    (run / "results.md").write_text("new")
    with pytest.raises(RunError) as caught:
        command(run, REPO, "--token", TOKEN)
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err + str(caught.value) + describe(caught.value)
    kept = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in data for data in [*kept, *hub.store.files(REPO).values()])


def test_command_prints_where_it_went(hub, run, capsys, command):
    command(run, REPO, "--dry-run")
    dry = capsys.readouterr().out
    assert f"Would push to {hub.url}/{REPO}" in dry and "model.safetensors" in dry and "# topic-robust" in dry
    assert "branch main, tag run-2026-03-01-" in dry
    command(run, REPO, "--dry-run", "--no-tag")
    assert "branch main, no tag," in capsys.readouterr().out
    assert hub.log == []
    command(run, REPO, "--private", "--tag", "v1.0")
    out = capsys.readouterr().out
    assert f"Pushed to {hub.url}/{REPO} (private, main, commit" in out
    assert f'from_pretrained("{REPO}", revision="v1.0")' in out
    command(run, REPO)
    assert "has all of it already" in capsys.readouterr().out


def test_command_prints_one_json_document(hub, run, capsys, command):
    command(run, REPO, "--json", "--no-private")
    report = json.loads(capsys.readouterr().out)
    assert report["repo_id"] == REPO and report["private"] is False and report["changed"] is True
    assert set(report["files"]) == {"README.md", "xlt_run.json", *SENT}
    assert is_generated(report["card"])
