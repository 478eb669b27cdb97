"""The memory of the loopback Hub: repositories with commits and refs, LFS objects, faults, the request log."""

from __future__ import annotations

import datetime
import fnmatch
import hashlib
import re
import threading
from dataclasses import dataclass, field

import yaml

# Any other token is refused. `hf_read` may read what `hf_good` may read, and write nothing.
TOKENS = {"hf_good": "write", "hf_read": "read"}
USER = "user"
ORGANISATIONS = ("team",)

_LFS_PATTERNS = ("*.safetensors", "*.bin", "*.png")
_GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS_PATTERNS).encode()
_DATA_SET_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}|code|multilingual")


class HubError(Exception):
    """An answer other than success.

    Attributes:
        status: HTTP status.
        code: value of `X-Error-Code`, or None.
        headers: further headers.
    """

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Fault:
    """A failure to act out.

    Attributes:
        method: HTTP method it applies to.
        path: regular expression, searched in path and query.
        kind: `status` answers with `code` and does nothing, `drop` cuts the connection while the body arrives,
            `lost reply` does what was asked and cuts the connection, `stall` says nothing for `seconds` and does it
            neither, then cuts.
        times: how many requests it hits.
        code: status of kind `status`.
        headers: headers of kind `status`.
    """

    method: str
    path: str
    kind: str = "status"
    times: int = 1
    code: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 2.0


@dataclass(frozen=True)
class Entry:
    """A file of a commit: its bytes, or the hash of an LFS object."""

    oid: str
    size: int
    data: bytes | None = None
    sha256: str | None = None

    @classmethod
    def regular(cls, data: bytes) -> Entry:
        return cls(blob_oid(data), len(data), data=data)

    @classmethod
    def lfs(cls, sha256: str, size: int) -> Entry:
        return cls(blob_oid(lfs_pointer(sha256, size)), size, sha256=sha256)

    def listing(self, path: str) -> dict:
        """Return the entry as tree and paths-info show it."""
        shown = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        if self.sha256:
            pointer = len(lfs_pointer(self.sha256, self.size))
            shown["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": pointer}
        return shown


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    parent: str | None
    title: str
    message: str
    date: str
    tree: dict[str, Entry]


@dataclass
class Repo:
    """A repository; every ref is a full name (`refs/heads/main`) and the commit it points at."""

    id: str
    private: bool
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(
        self, ref: str, tree: dict[str, Entry], title: str, message: str = "", onto: str | None = None
    ) -> Commit:
        """Add a commit and move `ref` to it."""
        parent = self.refs.get(onto or ref)
        content = "".join(f"{path}\0{entry.oid}\0" for path, entry in sorted(tree.items()))
        oid = hashlib.sha1(f"{parent}\0{title}\0{message}\0{len(self.commits)}\0{content}".encode()).hexdigest()
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        commit = self.commits[oid] = Commit(oid, parent, title, message, date, tree)
        self.refs[ref] = oid
        return commit

    def find_ref(self, revision: str) -> str | None:
        """Return the full name of a branch, tag or pull request."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return name
        return None

    def resolve(self, revision: str) -> Commit:
        """Return the commit of a branch, tag, pull request, or commit hash.

        Raises:
            HubError: there is none.
        """
        oid = self.refs.get(self.find_ref(revision) or "", revision)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def add_ref(self, name: str, commit: Commit) -> None:
        """Add a branch or tag.

        Raises:
            HubError: the name is taken.
        """
        if name in self.refs:
            raise HubError(409, f"Reference already exists: {name}")
        self.refs[name] = commit.oid


class Store:
    """Everything the server knows; handlers hold `lock` while they read or write it.

    Attributes:
        log: `(method, path)` of every request, in order.
        statuses: the answers to them; None where the connection was cut.
        unknown: requests that no route fits.
        faults: failures to act out.
        lfs_above: size in bytes above which any file is an LFS file.
        multipart_above: size in bytes above which an LFS file is uploaded in parts.
        part_size: size in bytes of such a part.
        page_size: entries per page of a tree listing.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.log: list[tuple[str, str]] = []
        self.statuses: list[int | None] = []
        self.unknown: list[str] = []
        self.faults: list[Fault] = []
        self.lfs_above = 1_000_000
        self.multipart_above = 5_000_000
        self.part_size = 1_000_000
        self.page_size = 1000

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return the first fault that fits, and count it."""
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def requests(self, method: str, path: str) -> list[str]:
        """Return the logged paths of a method that a regular expression is found in."""
        return [logged for verb, logged in self.log if verb == method and re.search(path, logged)]

    def create_repo(self, repo_id: str, private: bool = False) -> Repo:
        """Create a repository with a first commit, as the Hub does."""
        repo = self.repos[repo_id] = Repo(repo_id, private)
        repo.commit("refs/heads/main", {".gitattributes": Entry.regular(_GITATTRIBUTES)}, "initial commit")
        return repo

    def upload_mode(self, path: str, size: int) -> str:
        """Say how a file is to be uploaded: `lfs` or `regular`."""
        is_lfs = size > self.lfs_above or any(fnmatch.fnmatch(path, pattern) for pattern in _LFS_PATTERNS)
        return "lfs" if is_lfs else "regular"

    def add_blob(self, sha256: str, data: bytes) -> None:
        """Keep an LFS object.

        Raises:
            HubError: the bytes do not have this hash.
        """
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HubError(400, f"sha256 of the body is not {sha256}")
        self.blobs[sha256] = data

    def read(self, entry: Entry) -> bytes:
        """Return a file's bytes."""
        return self.blobs[entry.sha256] if entry.sha256 else entry.data

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision."""
        tree = self.repos[repo_id].resolve(revision).tree
        return {path: self.read(entry) for path, entry in sorted(tree.items())}


def blob_oid(data: bytes) -> str:
    """Return git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the text that stands for an LFS object in git."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def card_errors(content: str) -> list[str]:
    """Check a card's metadata as the Hub does: language codes, data set ids, types.

    Returns:
        Messages; empty when the card is valid.
    """
    match = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", content, re.DOTALL)
    if match is None:
        return []
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"YAML cannot be parsed: {error}"]
    if not isinstance(metadata, dict):
        return ["YAML metadata must be a mapping"]
    errors = [
        f'"language[{i}]" with value "{code}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code (two/three '
        'letters), or a special value like "code", "multilingual".'
        for i, code in enumerate(_as_list(metadata.get("language")))
        if not (isinstance(code, str) and _LANGUAGE_CODE.fullmatch(code))
    ]
    for key, kind in (("datasets", "dataset"), ("base_model", "model")):
        errors += [
            f'"{key}[{i}]" with value "{name}" is not valid. Use a {kind} id from https://hf.co/{kind}s.'
            for i, name in enumerate(_as_list(metadata.get(key)))
            if not (isinstance(name, str) and _DATA_SET_ID.fullmatch(name))
        ]
    errors += [
        f'"{key}" must be a string'
        for key in ("license", "pipeline_tag", "library_name")
        if key in metadata and not isinstance(metadata[key], str)
    ]
    if not all(isinstance(tag, str) for tag in _as_list(metadata.get("tags"))):
        errors.append('"tags" must be an array of strings')
    return errors + _model_index_errors(metadata.get("model-index"))


def _model_index_errors(index: object) -> list[str]:
    errors = []
    for i, model in enumerate(_as_list(index)):
        if not model.get("name"):
            errors.append(f'"model-index[{i}].name" is required')
        for j, result in enumerate(model.get("results") or []):
            where = f'"model-index[{i}].results[{j}]'
            if "type" not in result.get("task", {}):
                errors.append(f'{where}.task.type" is required')
            errors += [
                f'{where}.dataset.{key}" is required'
                for key in ("type", "name")
                if not result.get("dataset", {}).get(key)
            ]
            for metric in result.get("metrics", []):
                if "type" not in metric or not isinstance(metric.get("value"), int | float):
                    errors.append(f'{where}.metrics" need a type and a number')
    return errors


def _as_list(value: object) -> list:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
