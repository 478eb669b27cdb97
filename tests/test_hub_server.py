"""The contract between huggingface_hub and the loopback Hub: one test per call that pushing and loading make."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from hub_store import Fault
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = "user/model"
WEIGHTS = bytes(range(256)) * 16


@pytest.fixture
def repo(api):
    api.create_repo(REPO, private=True)
    return REPO


def push(api, files, **options):
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(REPO, operations, commit_message=options.pop("message", "push"), **options)


def test_whoami_tells_name_organisations_and_role(hub):
    answer = HfApi(endpoint=hub.url, token="hf_read").whoami()
    assert answer["name"] == "user" and [org["name"] for org in answer["orgs"]] == ["team"]
    assert answer["auth"]["accessToken"]["role"] == "read"


def test_a_wrong_token_is_refused(hub):
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as caught:
        HfApi(endpoint=hub.url, token="hf_stolen").whoami()
    assert caught.value.response.status_code == 401


def test_a_wrong_token_is_not_taken_for_a_missing_repository(hub, repo):
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi(endpoint=hub.url, token="hf_stolen").model_info(repo)
    assert caught.value.response.status_code == 401
    assert not isinstance(caught.value, RepositoryNotFoundError)


def test_create_repo_twice_conflicts_unless_allowed(hub, api, repo):
    assert hub.store.repos[repo].private
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo(repo)
    assert caught.value.response.status_code == 409
    assert api.create_repo(repo, exist_ok=True).repo_id == repo


def test_create_repo_needs_rights(hub, api):
    with pytest.raises(HfHubHTTPError, match="no write permission") as caught:
        HfApi(endpoint=hub.url, token="hf_read").create_repo(REPO)
    assert caught.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError, match="namespace"):
        api.create_repo("stranger/model")
    assert api.create_repo("team/model").repo_id == "team/model"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("language:\n- english", "ISO 639"),
        ("language: no", "ISO 639"),
        ("datasets:\n- data/topic/{lang}.parquet", "dataset id"),
        ("base_model: /home/me/model", "model id"),
        ("tags:\n- 1", "tags"),
        ("a: [", "cannot be parsed"),
        ("model-index:\n- results: []", "name"),
        ("model-index:\n- name: m\n  results:\n  - task: {type: t}\n    dataset: {name: d}\n", "dataset.type"),
        (
            "model-index:\n- name: m\n  results:\n  - task: {type: t}\n    metrics: [{type: accuracy, value: x}]\n",
            "number",
        ),
    ],
)
def test_validate_yaml_refuses_bad_cards_before_any_upload(hub, api, repo, metadata, message):
    card = f"---\n{metadata}\n---\n# Model\n"
    with pytest.raises(ValueError, match=message):
        push(api, {"README.md": card.encode(), "model.safetensors": WEIGHTS})
    assert not hub.store.requests("POST", "preupload") and not hub.store.blobs


def test_validate_yaml_accepts_a_good_card(api, repo):
    card = "---\nlanguage:\n- en\n- 'no'\n- quy\ndatasets: org/set\nbase_model: xlm-roberta-base\ntags: [a]\n---\n"
    push(api, {"README.md": card.encode()})


def test_preupload_sends_weights_through_lfs_and_text_through_the_commit(hub, api, repo):
    push(api, {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    tree = hub.store.repos[REPO].resolve("main").tree
    assert tree["model.safetensors"].sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert tree["config.json"].data == b"{}"
    assert len(hub.store.requests("PUT", "/_lfs/")) == 1
    assert len(hub.store.requests("POST", "lfs/verify")) == 1


def test_lfs_multipart_assembles_the_parts(hub, api, repo):
    hub.store.multipart_above, hub.store.part_size = 2000, 1500
    push(api, {"model.safetensors": WEIGHTS})
    assert len(hub.store.requests("PUT", "/part/")) == 3
    assert hub.store.files(REPO)["model.safetensors"] == WEIGHTS


def test_lfs_refuses_a_body_with_another_hash(hub):
    answer = httpx2.put(f"{hub.url}/_lfs/{'0' * 64}", content=b"something")
    assert answer.status_code == 400 and not hub.store.blobs


def test_commit_refuses_an_lfs_object_that_was_never_uploaded(hub, api, repo):
    header = '{"key": "header", "value": {"summary": "s"}}\n'
    line = '{"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "%s", "size": 3}}' % ("0" * 64)
    answer = httpx2.post(
        f"{hub.url}/api/models/{repo}/commit/main",
        content=header + line,
        headers={"Authorization": "Bearer hf_good"},
    )
    assert answer.status_code == 400 and "missing" in answer.json()["error"]


def test_commit_adds_and_deletes(hub, api, repo):
    first = push(api, {"a.txt": b"a", "folder/b.txt": b"b"})
    second = api.create_commit(
        REPO, [CommitOperationDelete("a.txt"), CommitOperationDelete("folder/")], commit_message="delete"
    )
    assert set(hub.store.files(REPO)) == {".gitattributes"}
    assert set(hub.store.files(REPO, first.oid)) == {".gitattributes", "a.txt", "folder/b.txt"}
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)][:2] == [second.oid, first.oid]


def test_a_push_of_the_same_files_makes_no_commit(hub, api, repo):
    files = {"model.safetensors": WEIGHTS, "config.json": b"{}"}
    assert push(api, files).oid == push(api, files).oid
    assert len(hub.store.requests("POST", "/commit/")) == 1
    assert hub.store.requests("GET", "/revision/main")


def test_a_stale_parent_is_refused_and_not_retried(hub, api, repo):
    stale = api.model_info(REPO).sha
    push(api, {"a.txt": b"a"})
    with pytest.raises(HfHubHTTPError) as caught:
        push(api, {"b.txt": b"b"}, parent_commit=stale)
    assert caught.value.response.status_code == 412
    assert len(hub.store.requests("POST", "/commit/")) == 2


def test_model_info_lists_files_and_visibility(api, repo):
    info = api.model_info(REPO)
    assert info.private and [file.rfilename for file in info.siblings] == [".gitattributes"]
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("user/nothing")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="nothing")


def test_private_repositories_are_hidden_from_strangers(hub, repo):
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info(REPO)


def test_tree_paginates_and_tells_lfs(hub, api, repo):
    push(api, {"model.safetensors": WEIGHTS, "a/b/c.txt": b"c", "a/d.txt": b"d"})
    hub.store.page_size = 2
    listed = {entry.path: entry for entry in api.list_repo_tree(REPO, recursive=True)}
    assert set(listed) == {".gitattributes", "model.safetensors", "a", "a/b", "a/b/c.txt", "a/d.txt"}
    assert listed["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert [entry.path for entry in api.list_repo_tree(REPO, "a")] == ["a/b", "a/d.txt"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "nothing"))


def test_paths_info_returns_what_is_there(api, repo):
    push(api, {"model.safetensors": WEIGHTS, "a/d.txt": b"d"})
    infos = api.get_paths_info(REPO, ["model.safetensors", "a", "nothing"])
    assert [info.path for info in infos] == ["model.safetensors", "a"]
    assert infos[0].size == len(WEIGHTS)


def test_tags_and_branches(api, repo):
    oid = push(api, {"a.txt": b"a"}).oid
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="try")
    refs = api.list_repo_refs(REPO)
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", oid)]
    assert {ref.name for ref in refs.branches} == {"main", "try"}
    for again in (lambda: api.create_tag(REPO, tag="v1"), lambda: api.create_branch(REPO, branch="try")):
        with pytest.raises(HfHubHTTPError) as caught:
            again()
        assert caught.value.response.status_code == 409
    other = push(api, {"b.txt": b"b"}, revision="try").oid
    assert api.model_info(REPO, revision="try").sha == other and api.model_info(REPO, revision="v1").sha == oid
    api.delete_tag(REPO, tag="v1")
    api.delete_branch(REPO, branch="try")
    assert [ref.name for ref in api.list_repo_refs(REPO).branches] == ["main"]


def test_a_pull_request_leaves_main_alone(hub, api, repo):
    before = api.model_info(REPO).sha
    made = push(api, {"a.txt": b"a"}, create_pr=True)
    assert made.pr_revision == "refs/pr/1" and made.pr_url.endswith("/discussions/1")
    assert api.model_info(REPO).sha == before
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
    assert "a.txt" in hub.store.files(REPO, "refs/pr/1")


def test_download_follows_lfs_to_the_other_host(hub, api, repo, tmp_path):
    push(api, {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    weights = api.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
    assert Path(weights).read_bytes() == WEIGHTS
    assert Path(api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)).read_bytes() == b"{}"
    assert hub.store.requests("GET", "^/_lfs/")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "nothing.json", cache_dir=tmp_path)


def test_snapshot_download_takes_everything(hub, api, repo, tmp_path):
    push(api, {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    folder = Path(api.snapshot_download(REPO, cache_dir=tmp_path, max_workers=1))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.store.files(REPO)


def test_ranges_are_served(hub, api, repo):
    push(api, {"model.safetensors": WEIGHTS})
    url = f"{hub.url}/_lfs/{hashlib.sha256(WEIGHTS).hexdigest()}"
    answer = httpx2.get(url, headers={"Range": "bytes=10-19"})
    assert answer.status_code == 206 and answer.content == WEIGHTS[10:20]
    assert answer.headers["Content-Range"] == f"bytes 10-19/{len(WEIGHTS)}"
    assert httpx2.get(url, headers={"Range": "bytes=4000-"}).content == WEIGHTS[4000:]
    assert httpx2.get(url, headers={"Range": "bytes=9999-"}).status_code == 416


def test_unknown_routes_are_recorded(hub):
    assert httpx2.get(f"{hub.url}/api/nothing").status_code == 404
    assert hub.store.unknown == ["GET /api/nothing"]
    hub.store.unknown.clear()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "/_lfs/"),
        Fault("PUT", "/_lfs/", kind="drop"),
        Fault("POST", "/objects/batch"),
        Fault("POST", "/objects/batch", code=429),
        Fault("POST", "/lfs/verify"),
        Fault("POST", "/preupload/"),
    ],
    ids=lambda fault: f"{fault.path} {fault.kind} {fault.code}",
)
def test_the_client_retries_a_failed_transfer(hub, api, repo, fault):
    hub.store.faults.append(fault)
    push(api, {"model.safetensors": WEIGHTS * 64})
    assert len(hub.store.requests(fault.method, fault.path)) == 2
    assert hub.store.files(REPO)["model.safetensors"] == WEIGHTS * 64


def test_a_stalled_transfer_is_retried_once_the_client_gives_up(hub, api, repo, monkeypatch):
    from huggingface_hub import get_session

    monkeypatch.setattr(get_session(), "timeout", httpx2.Timeout(0.3))
    hub.store.faults.append(Fault("POST", "/objects/batch", kind="stall", seconds=1.0))
    push(api, {"model.safetensors": WEIGHTS})
    assert len(hub.store.requests("POST", "/objects/batch")) == 2


def test_a_download_that_fails_once_fails(hub, api, repo, tmp_path):
    push(api, {"config.json": b"{}"})
    hub.store.faults.append(Fault("GET", "/resolve/"))
    with pytest.raises(HfHubHTTPError) as caught:
        api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
    assert caught.value.response.status_code == 500
    assert Path(api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)).read_bytes() == b"{}"


def test_a_gated_repository_is_told_from_a_missing_one(hub, api, repo, tmp_path):
    push(api, {"config.json": b"{}"})
    hub.store.repos[REPO].gated = True
    with pytest.raises(GatedRepoError):
        api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)


def test_the_client_waits_at_preupload_as_told(hub, api, repo):
    hub.store.faults.append(Fault("POST", "/preupload/", code=429, headers={"Retry-After": "1"}))
    start = time.monotonic()
    push(api, {"a.txt": b"a"})
    assert time.monotonic() - start >= 1
    assert len(hub.store.requests("POST", "/preupload/")) == 2


@pytest.mark.parametrize("code", [401, 403, 409, 412, 429, 500])
def test_the_client_does_not_retry_a_failed_commit(hub, api, repo, code):
    hub.store.faults.append(Fault("POST", "/commit/", code=code, headers={"Retry-After": "0"}))
    with pytest.raises(HfHubHTTPError) as caught:
        push(api, {"a.txt": b"a"})
    assert caught.value.response.status_code == code
    assert len(hub.store.requests("POST", "/commit/")) == 1


def test_a_lost_reply_leaves_the_commit_in_place(hub, api, repo):
    hub.store.faults.append(Fault("POST", "/commit/", kind="lost reply"))
    with pytest.raises(httpx2.TransportError):
        push(api, {"a.txt": b"a"})
    assert hub.store.files(REPO)["a.txt"] == b"a"
    assert push(api, {"a.txt": b"a"}).oid == hub.store.repos[REPO].resolve("main").oid
    assert len(hub.store.requests("POST", "/commit/")) == 1


def test_the_server_runs_by_itself(tmp_path):
    script = Path(__file__).parent / "hub_server.py"
    process = subprocess.Popen(
        [sys.executable, str(script), "--port", "0"], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        line = process.stdout.readline()
        url = line.split("HF_ENDPOINT=")[1].split()[0]
        assert HfApi(endpoint=url, token="hf_good").whoami()["name"] == "user"
    finally:
        process.terminate()
        process.wait(10)
