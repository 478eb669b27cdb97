"""Pushing through a bad network and past every refusal of the Hub; the tag that comes last."""

import httpx2
import pytest
from hub_store import Fault
from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import OfflineModeIsEnabled
from records import make_record, make_run

from hf_xlt.errors import ConfigError, RunError, describe
from hf_xlt.hub import push
from hf_xlt.model_cards.card import render

REPO = "user/topic-robust"


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def waits(monkeypatch):
    """The pauses between attempts, which do not happen."""
    waited = []
    monkeypatch.setattr("hf_xlt.hub.errors._sleep", waited.append)
    return waited


def commits(hub):
    return hub.store.requests("POST", "/commit/")


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


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OfflineModeIsEnabled("offline mode is enabled"), "HF_HUB_OFFLINE is set"),
        (RuntimeError("Network error: xet-write-token not found"), "HF_HUB_DISABLE_XET=1"),
    ],
    ids=["offline", "xet"],
)
def test_what_switches_help_with_is_told(run, monkeypatch, api, error, advice):
    def refuse():
        raise error

    monkeypatch.setattr(api, "whoami", refuse)
    with pytest.raises(RunError, match=advice):
        push(run, REPO, api=api)


@pytest.mark.parametrize(("method", "route"), [("POST", "/preupload/"), ("PUT", "/_lfs/")])
def test_what_the_client_repeats_is_not_repeated_again(hub, api, run, waits, monkeypatch, method, route):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.store.faults.append(Fault(method, route, times=99))
    with pytest.raises(RunError, match=r"the Hub failed \(status 500\)"):
        push(run, REPO, api=api)
    assert waits == [] and len(hub.store.requests(method, route)) == 6
