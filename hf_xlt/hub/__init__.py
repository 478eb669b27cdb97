"""Pushing a finished run to the Hub: what is sent, what is refused, and what a failure means.

A push is one commit of an allow-list of files. Everything that can be checked without the network is checked before
the network is touched; a failure leaves the run as it was and names the command that tries again.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError, RunError, one_line
from hf_xlt.hub.errors import explain, persist
from hf_xlt.hub.files import Upload, collect, command_of
from hf_xlt.record import FINISHED, TRAINED, RunRecord

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
    changed: bool | None
    dry_run: bool
    card: str = field(repr=False)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {**asdict(self), "notes": list(self.notes)}


@dataclass
class _Push:
    """One push: what was asked for, and the words that every failure ends in."""

    folder: Path
    repo_id: str
    private: bool | None
    revision: str | None
    message: str | None
    create_pr: bool
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
        return shlex.join(parts + ["--create-pr"] * self.create_pr + ["--force"] * self.force)

    @property
    def way_out(self) -> str:
        return f"The run is unharmed in `{self.folder}`; to try again: `{self.command}`"


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
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
    task = _Push(Path(folder), repo_id, private, revision, commit_message, create_pr, force)
    _check_arguments(task)
    record = _check_run(task)
    uploads, card, notes = collect(task.folder, record, repo_id)
    if dry_run:
        return _describe_only(task, api, uploads, card, notes)
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
    try:
        return _send(task, api, record, uploads, card, notes)
    except (ConfigError, RunError):
        raise
    # Below the Hub's own errors lie those of its HTTP library and of its storage client, which share no base class.
    except Exception as error:
        raise explain(error, task.repo_id, api.endpoint, task.way_out) from error


def _describe_only(task: _Push, api: HfApi | None, uploads: list[Upload], card: str, notes: list[str]) -> PushReport:
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


def _check_run(task: _Push) -> RunRecord:
    """Read the record and refuse what should not be published."""
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


def _send(
    task: _Push, api: HfApi, record: RunRecord, uploads: list[Upload], card: str, notes: list[str]
) -> PushReport:
    """Create what is missing on the Hub, and commit."""
    from huggingface_hub import CommitOperationAdd

    user = persist(api.whoami, api.endpoint)
    role = ((user.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise RunError(
            "the Hub access token may only read. Make one with write access at "
            f"https://huggingface.co/settings/tokens, then `hf auth login`. {task.way_out}"
        )
    private, before = _prepare_repo(task, api)

    def commit() -> Any:
        # Operations remember what was sent; fresh ones find out whether a commit whose reply was lost is there.
        return api.create_commit(
            task.repo_id,
            [CommitOperationAdd(upload.name, upload.content) for upload in uploads],
            commit_message=task.message or f"Push of a `{record.strategy['name']}` run by hf_xlt",
            revision=task.revision,
            create_pr=task.create_pr,
        )

    info = persist(commit, api.endpoint, repeatable=not task.create_pr)
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
        changed=info.oid != before,
        dry_run=False,
        card=card,
        notes=tuple(notes),
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
