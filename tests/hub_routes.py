"""The routes of the loopback Hub: one function each, called with the store's lock held."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from hub_store import ORGANISATIONS, USER, Commit, Entry, HubError, Store, card_errors

if TYPE_CHECKING:
    from hub_server import Handler

_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, re.Pattern[str], Callable]] = []


def route(method: str, pattern: str) -> Callable:
    """Register a handler for a method and a path; HEAD is served by GET."""

    def register(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern.replace("REPO", _REPO)), function))
        return function

    return register


@route("GET", "/api/whoami-v2")
def whoami(handler: Handler) -> None:
    role = handler.role()
    if role is None:
        raise HubError(401, "Invalid username or password.")
    organisations = [{"type": "org", "name": name} for name in ORGANISATIONS]
    token = {"accessToken": {"displayName": "tests", "role": role}}
    handler.reply_json({"type": "user", "name": USER, "orgs": organisations, "auth": token})


@route("POST", "/api/repos/create")
def create_repo(handler: Handler) -> None:
    asked = handler.json()
    namespace = asked.get("organization") or USER
    handler.check_write(namespace)
    repo_id = f"{namespace}/{asked['name']}"
    answer = {"url": f"{handler.server.url}/{repo_id}", "name": repo_id, "id": repo_id}
    if repo_id in handler.store.repos:
        return handler.reply_json({"error": "You already created this model repo", **answer}, 409)
    handler.store.create_repo(repo_id, asked.get("visibility") == "private")
    handler.reply_json(answer)


@route("POST", "/api/validate-yaml")
def validate_yaml(handler: Handler) -> None:
    errors = [{"message": message} for message in card_errors(handler.json()["content"])]
    handler.reply_json({"errors": errors, "warnings": []}, 400 if errors else 200)


@route("POST", "/api/models/REPO/preupload/(?P<revision>[^/]+)")
def preupload(handler: Handler, repo: str, revision: str) -> None:
    creates_pr = "create_pr" in handler.query
    found = handler.find_repo(repo, write=not creates_pr)
    tree = found.resolve(revision).tree
    files = handler.json()["files"]
    if len(files) > 256:
        raise HubError(413, "at most 256 files")
    answer = []
    for file in files:
        mode = handler.store.upload_mode(file["path"], file["size"])
        info = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        if file["path"] in tree:
            info["oid"] = tree[file["path"]].sha256 or tree[file["path"]].oid
        answer.append(info)
    handler.reply_json({"files": answer})


@route("POST", r"/REPO\.git/info/lfs/objects/batch")
def lfs_batch(handler: Handler, repo: str) -> None:
    handler.find_repo(repo, write=True)
    asked, store, url = handler.json(), handler.store, handler.server.url
    objects = []
    transfer = "basic"
    for wanted in asked["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        entry: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in store.blobs:
            upload: dict[str, Any] = {"href": f"{url}/_lfs/{oid}"}
            if size > store.multipart_above and "multipart" in asked["transfers"]:
                transfer = "multipart"
                count = -(-size // store.part_size)
                parts = {f"{n:05d}": f"{url}/_lfs/{oid}/part/{n}" for n in range(1, count + 1)}
                upload = {
                    "href": f"{url}/_lfs/{oid}/complete",
                    "header": {"chunk_size": str(store.part_size), **parts},
                }
            entry["actions"] = {"upload": upload, "verify": {"href": f"{url}/{repo}.git/info/lfs/verify"}}
        objects.append(entry)
    handler.reply_json({"transfer": transfer, "objects": objects})


@route("PUT", "/_lfs/(?P<sha256>[0-9a-f]{64})")
def put_blob(handler: Handler, sha256: str) -> None:
    handler.store.add_blob(sha256, handler.body)
    handler.reply(b"")


@route("PUT", "/_lfs/(?P<sha256>[0-9a-f]{64})/part/(?P<number>[0-9]+)")
def put_part(handler: Handler, sha256: str, number: str) -> None:
    handler.store.parts.setdefault(sha256, {})[int(number)] = handler.body
    handler.reply(b"", headers={"ETag": f'"{hashlib.md5(handler.body).hexdigest()}"'})


@route("POST", "/_lfs/(?P<sha256>[0-9a-f]{64})/complete")
def complete_parts(handler: Handler, sha256: str) -> None:
    parts = handler.store.parts.get(sha256, {})
    for part in handler.json()["parts"]:
        body = parts.get(part["partNumber"], b"")
        if part["etag"] != f'"{hashlib.md5(body).hexdigest()}"':
            raise HubError(400, f"part {part['partNumber']} has another etag")
    handler.store.add_blob(sha256, b"".join(parts[number] for number in sorted(parts)))
    handler.reply_json({"success": True})


@route("POST", r"/REPO\.git/info/lfs/verify")
def verify(handler: Handler, repo: str) -> None:
    asked = handler.json()
    if len(handler.store.blobs.get(asked["oid"], b"")) != asked["size"]:
        raise HubError(404, "LFS object is missing or has another size")
    handler.reply_json({})


@route("POST", "/api/models/REPO/commit/(?P<revision>[^/]+)")
def commit(handler: Handler, repo: str, revision: str) -> None:
    creates_pr = "create_pr" in handler.query
    found = handler.find_repo(repo, write=not creates_pr)
    lines = [json.loads(line) for line in handler.body.splitlines() if line]
    header = next(line["value"] for line in lines if line["key"] == "header")
    base = found.resolve(revision)
    if header.get("parentCommit") not in (None, base.oid):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    tree = _changed_tree(handler.store, base, lines)
    ref = found.find_ref(revision)
    if creates_pr:
        ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in found.refs)}"
    made = found.commit(ref, tree, header["summary"], header.get("description", ""), onto=found.find_ref(revision))
    url = f"{handler.server.url}/{repo}"
    answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}"}
    if creates_pr:
        answer["pullRequestUrl"] = f"{url}/discussions/{ref.rsplit('/', 1)[1]}"
    handler.reply_json(answer)


def _changed_tree(store: Store, base: Commit, lines: list[dict]) -> dict[str, Entry]:
    tree = dict(base.tree)
    for line in lines:
        value = line["value"]
        match line["key"]:
            case "file":
                data = base64.b64decode(value["content"])
                if store.upload_mode(value["path"], len(data)) == "lfs" and data:
                    raise HubError(400, f"{value['path']} must be uploaded through LFS")
                tree[value["path"]] = Entry.regular(data)
            case "lfsFile":
                if len(store.blobs.get(value["oid"], b"")) != value["size"]:
                    raise HubError(400, f"LFS object of {value['path']} is missing")
                tree[value["path"]] = Entry.lfs(value["oid"], value["size"])
            case "deletedFile":
                if tree.pop(value["path"], None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            case "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                tree = {path: entry for path, entry in tree.items() if not path.startswith(folder)}
    return tree


@route("GET", "/api/models/REPO(/revision/(?P<revision>[^/]+))?")
def model_info(handler: Handler, repo: str, revision: str) -> None:
    found = handler.find_repo(repo)
    at = found.resolve(revision or "main")
    handler.reply_json(
        {
            "_id": hashlib.md5(repo.encode()).hexdigest()[:24],
            "id": repo,
            "modelId": repo,
            "author": repo.split("/")[0],
            "sha": at.oid,
            "lastModified": at.date,
            "private": found.private,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in sorted(at.tree)],
        }
    )


@route("GET", "/api/models/REPO/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
def tree(handler: Handler, repo: str, revision: str, folder: str) -> None:
    at = handler.find_repo(repo).resolve(revision)
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    inside = {path: entry for path, entry in at.tree.items() if path.startswith(prefix)}
    if folder and not inside:
        raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound", X_Repo_Commit=at.oid)
    entries = _listing(inside, prefix, handler.query.get("recursive", "").lower() in ("true", "1"))
    start, size = int(handler.query.get("cursor", 0)), handler.store.page_size
    headers = {}
    if start + size < len(entries):
        bare = re.sub(r"[?&]cursor=\d+", "", handler.path)
        joint = "&" if "?" in bare else "?"
        headers["Link"] = f'<{handler.server.url}{bare}{joint}cursor={start + size}>; rel="next"'
    handler.reply_json(entries[start : start + size], headers=headers)


def _listing(tree: dict[str, Entry], prefix: str, recursive: bool) -> list[dict]:
    folders = {
        path[: match.start()] for path in tree for match in re.finditer("/", path) if match.start() > len(prefix)
    }
    listed = [_folder(path) for path in folders] + [entry.listing(path) for path, entry in tree.items()]
    if not recursive:
        listed = [entry for entry in listed if "/" not in entry["path"][len(prefix) :]]
    return sorted(listed, key=lambda entry: entry["path"])


def _folder(path: str) -> dict:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


@route("POST", "/api/models/REPO/paths-info/(?P<revision>[^/]+)")
def paths_info(handler: Handler, repo: str, revision: str) -> None:
    at = handler.find_repo(repo).resolve(revision)
    if "json" in handler.headers.get("Content-Type", ""):
        paths = handler.json()["paths"]
    else:
        paths = parse_qs(handler.body.decode()).get("paths", [])
    listed = [at.tree[path].listing(path) for path in paths if path in at.tree]
    listed += [_folder(path) for path in paths if any(name.startswith(f"{path}/") for name in at.tree)]
    handler.reply_json(listed)


@route("GET", "/api/models/REPO/refs")
def refs(handler: Handler, repo: str) -> None:
    found = handler.find_repo(repo)
    kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
    answer: dict[str, list] = {"converts": []}
    for kind, prefix in kinds.items():
        answer[kind] = [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
            for ref, oid in found.refs.items()
            if ref.startswith(prefix)
        ]
    handler.reply_json(answer)


@route("GET", "/api/models/REPO/commits/(?P<revision>[^/]+)")
def commits(handler: Handler, repo: str, revision: str) -> None:
    found = handler.find_repo(repo)
    history: list[dict] = []
    at: Commit | None = found.resolve(revision)
    while at is not None:
        history.append(
            {"id": at.oid, "title": at.title, "message": at.message, "date": at.date, "authors": [{"user": USER}]}
        )
        at = found.commits.get(at.parent) if at.parent else None
    handler.reply_json(history)


@route("POST", "/api/models/REPO/(?P<kind>tag|branch)/(?P<name>[^/]+)")
def add_ref(handler: Handler, repo: str, kind: str, name: str) -> None:
    found = handler.find_repo(repo, write=True)
    asked = handler.json() if handler.body else {}
    if kind == "tag":
        found.add_ref(f"refs/tags/{asked['tag']}", found.resolve(name))
    else:
        found.add_ref(f"refs/heads/{name}", found.resolve(asked.get("startingPoint", "main")))
    handler.reply_json({"success": True})


@route("DELETE", "/api/models/REPO/(?P<kind>tag|branch)/(?P<name>[^/]+)")
def delete_ref(handler: Handler, repo: str, kind: str, name: str) -> None:
    found = handler.find_repo(repo, write=True)
    if found.refs.pop(f"refs/{'tags' if kind == 'tag' else 'heads'}/{name}", None) is None:
        raise HubError(404, f"no such {kind}", "RevisionNotFound")
    handler.reply_json({"success": True})


@route("GET", "/REPO/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(handler: Handler, repo: str, revision: str, path: str) -> None:
    found = handler.find_repo(repo)
    at = found.resolve(revision)
    if found.gated:
        raise HubError(403, "Access to this model is restricted", "GatedRepo", X_Repo_Commit=at.oid)
    entry = at.tree.get(path)
    if entry is None:
        raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=at.oid)
    if entry.sha256 is None:
        return _send(handler, entry.data, {"X-Repo-Commit": at.oid, "ETag": f'"{entry.oid}"'})
    headers = {
        # Another host name than the API's: the client follows redirects within one host by itself, and would then
        # miss `X-Repo-Commit`.
        "Location": f"http://localhost:{handler.server.server_port}/_lfs/{entry.sha256}",
        "X-Repo-Commit": at.oid,
        "X-Linked-Etag": f'"{entry.sha256}"',
        "X-Linked-Size": str(entry.size),
    }
    handler.reply(b"", 302, headers)


@route("GET", "/_lfs/(?P<sha256>[0-9a-f]{64})")
def get_blob(handler: Handler, sha256: str) -> None:
    if sha256 not in handler.store.blobs:
        raise HubError(404, "no such object")
    _send(handler, handler.store.blobs[sha256], {"ETag": f'"{sha256}"'})


def _send(handler: Handler, data: bytes, headers: dict[str, str]) -> None:
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    if asked is None:
        return handler.reply(data, headers=headers)
    start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
    if start >= len(data):
        return handler.reply(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    handler.reply(data[start : end + 1], 206, headers)
