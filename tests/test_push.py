import json
import struct

import httpx2
import pytest
import typer
from hub_store import Fault
from huggingface_hub import CommitOperationAdd, HfApi, get_session
from records import SENT, make_demo_record, make_record, make_run

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
def api(hub):
    return HfApi(endpoint=hub.url, token="hf_good")


@pytest.fixture
def waits(monkeypatch):
    """The pauses between attempts, which do not happen."""
    waited = []
    monkeypatch.setattr("hf_xlt.hub.errors._sleep", waited.append)
    return waited


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


def tags(hub):
    return {name[10:]: at for name, at in hub.store.repos[REPO].refs.items() if name.startswith("refs/tags/")}


def test_the_tag_comes_after_the_commit_and_stays_with_the_run(hub, api, run):
    first = push(run, REPO, api=api)
    assert tags(hub) == {first.tag: first.commit} and first.tag.startswith("run-2026-03-01-")
    routes = [path for method, path in hub.log if method == "POST"]
    assert "/commit/" in routes[-2] and "/tag/" in routes[-1]
    # Another card of the same run keeps the tag where it is; another run has another one.
    (run / "README.md").write_text(render(make_record(), REPO) + "\nThanks.\n", encoding="utf-8")
    assert push(run, REPO, api=api).tag == first.tag
    assert tags(hub) == {first.tag: first.commit}
    make_record(seeds={"seed": 8}).write(run)
    other = push(run, REPO, api=api)
    assert tags(hub) == {first.tag: first.commit, other.tag: other.commit} and other.tag != first.tag


def test_a_tag_of_ones_own_is_set_once_and_never_moved(hub, api, run):
    first = push(run, REPO, tag="v1.0", api=api)
    assert tags(hub) == {"v1.0": first.commit} and push(run, REPO, tag="v1.0", api=api).tag == "v1.0"
    make_record(seeds={"seed": 8}).write(run)
    second = push(run, REPO, tags=False, api=api)
    assert second.tag is None and second.commit != first.commit
    sent = len(commits(hub))
    with pytest.raises(ConfigError, match="has a tag `v1.0` already.*Nothing was pushed"):
        push(run, REPO, tag="v1.0", api=api)
    assert tags(hub) == {"v1.0": first.commit} and len(commits(hub)) == sent


@pytest.mark.parametrize("tag", ["", "a b", "../x", "a..b", "-v1", "v1.lock", "v1.", "a/b", "v~1"])
def test_names_that_git_refuses_are_refused_before_the_network_is_touched(hub, api, run, tag):
    with pytest.raises(ConfigError, match="not the name of a tag"):
        push(run, REPO, tag=tag, api=api)
    assert hub.log == []


def test_a_pull_request_has_no_tag(hub, api, run):
    api.create_repo(REPO)
    assert push(run, REPO, create_pr=True, api=api).tag is None and not tags(hub)
    with pytest.raises(ConfigError, match="before it is merged"):
        push(run, REPO, create_pr=True, tag="v1", api=api)
    with pytest.raises(ConfigError, match="exclude each other"):
        push(run, REPO, tags=False, tag="v1", api=api)


@pytest.mark.parametrize("kind", ["lost reply", "status", "drop"])
def test_a_tag_whose_request_fails_is_set_all_the_same(hub, api, run, waits, kind):
    hub.store.faults.append(Fault("POST", "/tag/", kind=kind, code=500))
    report = push(run, REPO, api=api)
    assert tags(hub) == {report.tag: report.commit} and len(waits) == 1


def test_a_tag_that_cannot_be_set_says_that_the_push_arrived(hub, api, run, waits):
    hub.store.faults.append(Fault("POST", "/tag/", code=403, times=9))
    with pytest.raises(RunError, match=r"\(403\).*The push itself arrived.*only the tag `v2` is missing") as caught:
        push(run, REPO, tag="v2", api=api)
    assert describe(caught.value).endswith(f"`hf-xlt push {run} {REPO} --tag v2`")
    assert "model.safetensors" in hub.store.files(REPO) and not tags(hub)
    hub.store.faults.clear()
    again = push(run, REPO, tag="v2", api=api)
    assert not again.changed and tags(hub) == {"v2": again.commit} and len(commits(hub)) == 1


def test_a_hub_that_says_nothing_is_not_waited_for_for_ever(hub, api, run, waits, monkeypatch):
    monkeypatch.setattr("hf_xlt.hub.errors._LONGEST_SILENCE_SECONDS", 0.3)
    before = get_session().timeout
    hub.store.faults += [Fault("GET", "whoami", kind="stall"), Fault("POST", "/commit/", kind="stall")]
    assert push(run, REPO, api=api).changed and len(waits) == 2
    assert get_session().timeout == before


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


@pytest.mark.parametrize(
    ("route", "method"), [("whoami", "GET"), ("repos/create", "POST"), ("/commit/", "POST"), ("/api/models/", "GET")]
)
@pytest.mark.parametrize("code", [429, 500, 503])
def test_passing_failures_are_waited_out(hub, api, run, waits, route, method, code):
    if "models" in route:
        api.create_repo(REPO)
    hub.store.faults.append(Fault(method, route, times=2, code=code, headers={"Retry-After": "7"}))
    assert push(run, REPO, api=api).changed
    assert waits == [7.0, 7.0]
    assert len(commits(hub)) == (3 if "commit" in route else 1)


def test_a_conflict_at_the_commit_is_tried_again(hub, api, run, waits):
    hub.store.faults.append(Fault("POST", "/commit/", code=409, times=3))
    assert push(run, REPO, api=api).changed
    assert waits == [1.0, 2.0, 4.0]


def test_a_commit_whose_reply_was_lost_counts_as_done(hub, api, run, waits):
    hub.store.faults.append(Fault("POST", "/commit/", kind="lost reply"))
    report = push(run, REPO, api=api)
    assert report.changed and len(commits(hub)) == 1 and len(waits) == 1
    assert report.commit == hub.store.repos[REPO].resolve("main").oid


@pytest.mark.parametrize("kind", ["lost reply", "status"])
def test_a_pull_request_is_not_opened_twice(hub, api, run, waits, kind):
    api.create_repo(REPO)
    hub.store.faults.append(Fault("POST", "/commit/", kind=kind, code=500))
    with pytest.raises(RunError, match="to try again"):
        push(run, REPO, create_pr=True, api=api)
    assert len(commits(hub)) == 1 and waits == []


@pytest.mark.parametrize("kind", ["status", "drop", "lost reply"])
def test_a_failed_lfs_upload_is_left_to_the_client(hub, api, run, waits, kind):
    hub.store.faults.append(Fault("PUT", "/_lfs/", kind=kind))
    assert push(run, REPO, api=api).changed
    assert len(hub.store.requests("PUT", "/_lfs/")) == 2 and waits == []


@pytest.mark.parametrize(
    ("code", "attempts", "message"),
    [
        (401, 1, r"refuses the access token \(401\).*hf auth login"),
        (403, 1, r"may not write to `user/topic-robust` \(403\).*`user`"),
        (409, 5, r"conflict \(409\)"),
        (412, 1, r"has changed while the push was on its way \(412\)"),
        (418, 1, r"refused the push.*\(status 418\)"),
        (429, 5, r"allows no more requests for now \(429\)"),
        (500, 5, r"the Hub failed \(status 500\)"),
    ],
)
def test_lasting_failures_name_cause_and_retry(hub, api, run, waits, code, attempts, message):
    hub.store.faults.append(Fault("POST", "/commit/", code=code, times=99))
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(RunError, match=message) as caught:
        push(run, REPO, private=True, commit_message="It's new", api=api)
    assert len(commits(hub)) == attempts
    line = describe(caught.value)
    assert line.endswith(f"""`hf-xlt push {run} {REPO} --private --commit-message 'It'"'"'s new'`""")
    assert "\n" not in line
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_bad_tokens_are_told_apart(hub, run, monkeypatch):
    with pytest.raises(RunError, match=r"refuses the access token \(401\)"):
        push(run, REPO, api=HfApi(endpoint=hub.url, token="hf_stolen"))
    with pytest.raises(RunError, match="may only read"):
        push(run, REPO, api=HfApi(endpoint=hub.url, token="hf_read"))
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(RunError, match="no Hub access token was found.*hf auth login"):
        push(run, REPO, api=HfApi(endpoint=hub.url))
    assert not hub.store.repos


def test_a_foreign_namespace_is_refused(hub, api, run):
    with pytest.raises(RunError, match=r"may not write to `stranger/model` \(403\).*namespace"):
        push(run, "stranger/model", api=api)


def test_an_unreachable_hub_is_named(run, waits):
    with pytest.raises(RunError, match=r"cannot reach http://127.0.0.1:9.*unharmed.*hf-xlt push") as caught:
        push(run, REPO, api=HfApi(endpoint="http://127.0.0.1:9", token="hf_good"))
    assert waits == [] and isinstance(caught.value.__cause__, httpx2.ConnectError)


def test_offline_mode_is_named(run, monkeypatch, api):
    from huggingface_hub.errors import OfflineModeIsEnabled

    def refuse():
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(api, "whoami", refuse)
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        push(run, REPO, api=api)


def test_xet_failures_name_the_switch(run, monkeypatch, api):
    def refuse():
        raise RuntimeError("Network error: xet-write-token not found")

    monkeypatch.setattr(api, "whoami", refuse)
    with pytest.raises(RunError, match="HF_HUB_DISABLE_XET=1"):
        push(run, REPO, api=api)


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


@pytest.mark.parametrize(("method", "route"), [("POST", "/preupload/"), ("PUT", "/_lfs/")])
def test_what_the_client_repeats_is_not_repeated_again(hub, api, run, waits, monkeypatch, method, route):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.store.faults.append(Fault(method, route, times=99))
    with pytest.raises(RunError, match=r"the Hub failed \(status 500\)"):
        push(run, REPO, api=api)
    assert waits == [] and len(hub.store.requests(method, route)) == 6
