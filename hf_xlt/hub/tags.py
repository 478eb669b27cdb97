"""The tag that a push ends in: a name for exactly this run, set once everything has arrived."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from hf_xlt.errors import ConfigError
from hf_xlt.hub.errors import persist
from hf_xlt.record import RunRecord

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# What git allows as a name and a shell needs no quotes for.
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


def default_tag(record: RunRecord, adapter: bool) -> str:
    """Name a run by its date and the hash of its record: pushed again, it has the same tag."""
    digest = hashlib.sha256(json.dumps(record.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
    return "-".join(filter(None, ["adapter" if adapter else "run", record.created, digest]))


def check_name(tag: str) -> None:
    """Check the name of a tag.

    Raises:
        ConfigError: git does not allow it.
    """
    if not _NAME.fullmatch(tag) or ".." in tag or tag.endswith((".lock", ".")):
        raise ConfigError(
            f"`--tag {tag}` is not the name of a tag: take letters, digits, `.`, `-`, `_` and `+`, such as `v1.0`."
        )


def find_tag(api: HfApi, repo_id: str, tag: str) -> str | None:
    """Return the commit that a tag is at, or None where there is no such tag."""
    refs: Any = persist(lambda: api.list_repo_refs(repo_id), api.endpoint)
    return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)


def set_tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Put a tag at a commit; where it is set already it stays."""
    call = {"tag": tag, "revision": commit, "exist_ok": True}
    persist(lambda: api.create_tag(repo_id, **call), api.endpoint)
