"""Pushing a finished run to the Hub: what is sent, what is refused, and what a failure means.

A push is one commit of an allow-list of files, and a tag once that has arrived. Everything that can be checked without
the network is checked before the network is touched; a failure leaves the run as it was and names the command that
tries again.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, RunError, one_line
from hf_xlt.hub.errors import explain, impatient, persist
from hf_xlt.hub.files import Upload, collect, command_of, stale
from hf_xlt.hub.tags import check_name, default_tag, find_tag, set_tag
from hf_xlt.record import FINISHED, RECORD_NAME, TRAINED, RunRecord

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class PushReport:
    """What a push did, or with `dry_run` would do.

    Attributes:
        repo_id: `user/name`.
        url: web address of the repository, branch or pull request.
        files: name to size in bytes.
        private: visibility; None when it is not known yet.
        revision: branch.
        commit: hash of the commit; None for a dry run.
        pull_request: web address of the pull request, or None.
        tag: name that the commit can be loaded by; None for a pull request, or where none was wanted.
        removed: weight files of earlier pushes that would have been loaded in place of these.
        changed: whether the Hub lacked anything of it; None for a dry run.
        dry_run: whether nothing was sent.
        card: the card as pushed.
        notes: what the user should know, in sentences.
    """

    repo_id: str
    url: str
    files: dict[str, int]
    private: bool | None
    revision: str
    commit: str | None
    pull_request: str | None
    tag: str | None
    changed: bool | None
    dry_run: bool
    card: str = field(repr=False)
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {**asdict(self), "removed": list(self.removed), "notes": list(self.notes)}


@dataclass
class _Push:
    """One push: what was asked for, and the words that every failure ends in."""

    folder: Path
    repo_id: str
    private: bool | None
    revision: str | None
    message: str | None
    create_pr: bool
    adapter: bool
    tag: str | None
    tags: bool
    force: bool

    @property
    def command(self) -> str:
        """The command that tries again, without the token."""
        parts = ["hf-xlt", "push", str(self.folder), self.repo_id]
        if self.private is not None:
            parts.append("--private" if self.private else "--no-private")
        if self.revision:
            parts += ["--revision", self.revision]
        if self.message:
            parts += ["--commit-message", self.message]
        if self.tag:
            parts += ["--tag", self.tag]
        parts += ["--create-pr"] * self.create_pr + ["--adapter"] * self.adapter
        return shlex.join(parts + ["--no-tag"] * (not self.tags) + ["--force"] * self.force)

    @property
    def way_out(self) -> str:
        return f"The run is unharmed in `{self.folder}`; to try again: `{self.command}`"

    def tag_of(self, record: RunRecord) -> str | None:
        """Return the tag to set; none for a pull request, whose commit is on no branch yet."""
        return (self.tag or default_tag(record, self.adapter)) if self.tags and not self.create_pr else None


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    adapter: bool = False,
    tag: str | None = None,
    tags: bool = True,
    token: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    api: HfApi | None = None,
) -> PushReport:
    """Push a finished run or pre-training: weights, tokenizer, card, record and, where there are any, results.

    Args:
        folder: output directory of a run.
        repo_id: `user/name` or `organisation/name`; created if missing.
        private: visibility of a new repository, which an existing one must have; None leaves it to the Hub.
        revision: branch to push to, created if missing; None is the main one.
        commit_message: first line of the commit.
        create_pr: open a pull request instead of changing the branch.
        adapter: push the LoRA adapter instead of the model that it is merged into.
        tag: name for the commit, set once it has arrived; None makes one of the run's date and hash.
        tags: whether to set a tag at all.
        token: access token; None takes the one of the environment or of `hf auth login`. Never printed or stored.
        dry_run: check everything and send nothing; needs no network.
        force: push a demonstration, or a model that was not scored.
        api: client to use instead of a new one; its own token then serves.

    Returns:
        What was pushed, and where to.

    Raises:
        ConfigError: the run or the arguments cannot be used as given.
        RunError: the Hub could not be reached, or refused.
    """
    task = _Push(
        Path(folder),
        repo_id,
        private,
        revision,
        commit_message,
        create_pr,
        adapter,
        tag,
        tags and not create_pr,
        force,
    )
    _check_arguments(task)
    record = _check_run(task)
    uploads, card, notes = collect(task.folder, record, repo_id, adapter)
    if dry_run:
        return _describe_only(task, api, record, uploads, card, notes)
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
    try:
        with impatient():
            return _send(task, api, record, uploads, card, notes)
    except (ConfigError, RunError):
        raise
    # Below the Hub's own errors lie those of its HTTP library and of its storage client, which share no base class.
    except Exception as error:
        raise explain(error, task.repo_id, api.endpoint, task.way_out) from error


def _describe_only(
    task: _Push, api: HfApi | None, record: RunRecord, uploads: list[Upload], card: str, notes: list[str]
) -> PushReport:
    from huggingface_hub import constants

    endpoint = api.endpoint if api is not None else constants.ENDPOINT
    return PushReport(
        repo_id=task.repo_id,
        url=f"{endpoint}/{task.repo_id}",
        files={upload.name: upload.size for upload in uploads},
        private=task.private,
        revision=task.revision or "main",
        commit=None,
        pull_request=None,
        tag=task.tag_of(record),
        changed=None,
        dry_run=True,
        card=card,
        notes=tuple(notes),
    )


def _check_arguments(task: _Push) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(task.repo_id)
    except HFValidationError as error:
        raise ConfigError(f"{task.repo_id!r} is not a repository id: write `USER/NAME`. {one_line(error)}") from error
    if task.repo_id.count("/") != 1:
        raise ConfigError(f"{task.repo_id!r} is not a full repository id: write `USER/{task.repo_id.strip('/')}`.")
    if task.create_pr and task.revision not in (None, "main"):
        raise ConfigError(
            "a pull request always goes to the main branch: give `--create-pr` or `--revision`, not both."
        )
    if task.tag is not None:
        check_name(task.tag)
        if task.create_pr:
            raise ConfigError("a pull request has no commit to tag before it is merged: leave `--tag` out.")
        if not task.tags:
            raise ConfigError("`--tag` and `--no-tag` exclude each other.")


def _check_run(task: _Push) -> RunRecord:
    """Read the record and refuse what should not be published."""
    _refuse_sweep(task.folder)
    record = RunRecord.read(task.folder)
    if record.status not in (FINISHED, TRAINED):
        raise ConfigError(
            f"the run in `{task.folder}` is not finished ({record.status}). Repeat its `{command_of(record)}` command "
            "with `--resume`, then push."
        )
    if record.status == TRAINED and not task.force:
        how = (
            f"Score it with `hf-xlt evaluate {task.folder} --dataset ...`"
            if record.parents
            else "Repeat its `hf-xlt run` command with `--resume`"
        )
        raise ConfigError(
            f"the model in `{task.folder}` was not scored, so its card would show no results. {how}, or push it all "
            "the same with `--force`."
        )
    if record.demo and not task.force:
        raise ConfigError(
            f"`{task.folder}` holds a run of the embedded demonstration, whose model is of no use elsewhere. Push it "
            "all the same with `--force`, or run with your own `--model` and `--dataset`."
        )
    return record


def _refuse_sweep(folder: Path) -> None:
    """Say which runs can be pushed where a folder holds several.

    Raises:
        ConfigError: it does.
    """
    if (folder / RECORD_NAME).is_file() or not folder.is_dir():
        return
    runs = sorted(path.name for path in folder.iterdir() if (path / RECORD_NAME).is_file())
    if runs:
        raise ConfigError(
            f"`{folder}` holds {len(runs)} run{'s' * (len(runs) > 1)} and is none itself: push one of them, such as "
            f"`{folder / runs[0]}`. There are {', '.join(runs[:8])}{', ...' * (len(runs) > 8)}."
        )


def _send(
    task: _Push, api: HfApi, record: RunRecord, uploads: list[Upload], card: str, notes: list[str]
) -> PushReport:
    """Create what is missing on the Hub, commit, and tag."""
    _check_rights(task, api)
    private, before = _prepare_repo(task, api)
    tag = task.tag_of(record)
    _check_tag(task, api, before)
    removed: list[str] = []

    def commit() -> Any:
        # Operations remember what was sent; fresh ones find out whether a commit whose reply was lost is there.
        operations, removed[:] = _operations(task, api, uploads)
        return api.create_commit(
            task.repo_id,
            operations,
            commit_message=task.message or f"Push of a `{record.strategy['name']}` run by hf_xlt",
            revision=task.revision,
            create_pr=task.create_pr,
        )

    info = persist(commit, api.endpoint, repeatable=not task.create_pr)
    if tag is not None:
        _tag(task, api, tag, info.oid)
    url = f"{api.endpoint}/{task.repo_id}"
    if task.revision not in (None, "main"):
        url += f"/tree/{task.revision}"
    return PushReport(
        repo_id=task.repo_id,
        url=info.pr_url or url,
        files={upload.name: upload.size for upload in uploads},
        private=private,
        revision=info.pr_revision or task.revision or "main",
        commit=info.oid,
        pull_request=info.pr_url,
        tag=tag,
        changed=info.oid != before,
        dry_run=False,
        card=card,
        removed=tuple(removed),
        notes=tuple(notes),
    )


def _check_rights(task: _Push, api: HfApi) -> None:
    user = persist(api.whoami, api.endpoint)
    role = ((user.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise RunError(
            "the Hub access token may only read. Make one with write access at "
            f"https://huggingface.co/settings/tokens, then `hf auth login`. {task.way_out}"
        )


def _operations(task: _Push, api: HfApi, uploads: list[Upload]) -> tuple[list[Any], list[str]]:
    """Return what the commit does: add the files, and remove weights that would be loaded in place of them."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    present = [sibling.rfilename for sibling in api.model_info(task.repo_id, revision=task.revision).siblings or ()]
    old = stale(present, uploads)
    adds = [CommitOperationAdd(upload.name, upload.content) for upload in uploads]
    return [*adds, *(CommitOperationDelete(name) for name in old)], old


def _check_tag(task: _Push, api: HfApi, head: str | None) -> None:
    """Refuse a tag that the user has given to something else; found out before gigabytes are sent.

    Raises:
        ConfigError: it is taken.
    """
    at = find_tag(api, task.repo_id, task.tag) if task.tag else None
    # Where it is at the branch's last commit, this may be the repetition of a push whose reply was lost.
    if at not in (None, head):
        raise ConfigError(
            f"`{task.repo_id}` has a tag `{task.tag}` already, at commit {at[:12]}. Tags are not moved. Nothing was "
            "pushed; give another name."
        )


def _tag(task: _Push, api: HfApi, tag: str, commit: str) -> None:
    """Tag what has arrived.

    Raises:
        ConfigError: the name was taken in the meantime.
        RunError: the Hub refused, after the push itself had succeeded.
    """
    try:
        set_tag(api, task.repo_id, tag, commit)
        at = find_tag(api, task.repo_id, tag) if task.tag else commit
    except Exception as error:
        words = f"The push itself arrived (commit {commit[:12]}); only the tag `{tag}` is missing. To set it: "
        raise explain(error, task.repo_id, api.endpoint, f"{words}`{task.command}`") from error
    if at != commit:
        raise ConfigError(
            f"the push arrived (commit {commit[:12]}), but `{task.repo_id}` has a tag `{tag}` already, at commit "
            f"{(at or '')[:12]}. Tags are not moved: push again with another `--tag`."
        )


def _prepare_repo(task: _Push, api: HfApi) -> tuple[bool, str | None]:
    """Make sure that repository and branch are there.

    Returns:
        Whether the repository is private, and the commit that the branch is at.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    def info(revision: str | None = None) -> Any:
        return persist(lambda: api.model_info(task.repo_id, revision=revision), api.endpoint)

    try:
        found = info()
    except RepositoryNotFoundError:
        create = {"private": task.private, "exist_ok": True}
        persist(lambda: api.create_repo(task.repo_id, **create), api.endpoint)
        found = info()
    if task.private is not None and bool(found.private) != task.private:
        words = ("private", "--no-private") if found.private else ("public", "--private")
        raise ConfigError(
            f"`{task.repo_id}` is {words[0]}, and `{words[1]}` was asked for. Nothing was pushed. Leave the flag out "
            "to keep it so, change it in the repository's settings, or give another name."
        )
    if task.revision in (None, "main"):
        return bool(found.private), found.sha
    try:
        return bool(found.private), info(task.revision).sha
    except RevisionNotFoundError:
        branch = {"branch": task.revision, "exist_ok": True}
        persist(lambda: api.create_branch(task.repo_id, **branch), api.endpoint)
        return bool(found.private), found.sha
