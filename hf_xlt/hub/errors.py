"""The Hub's failures: which are worth another try, and what each means to the user."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from hf_xlt.errors import ConfigError, RunError, one_line

T = TypeVar("T")

_ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 120.0
# The client itself waits for ever for an answer; a commit of many large files takes the Hub a minute or two.
_LONGEST_SILENCE_SECONDS = 300.0
# Of these the client retries none where it matters: at the commit, at creation, at whoami.
_NOT_DONE = frozenset({409, 429, 503})
_PERHAPS_DONE = frozenset({500, 502, 504})
_sleep = time.sleep


def persist(call: Callable[[], T], endpoint: str, repeatable: bool = True) -> T:
    """Call the Hub until it answers; waits as long as it asks for.

    Args:
        call: what to do.
        endpoint: address of the Hub.
        repeatable: whether doing it twice does no harm; where it does, only what surely was not done is repeated.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(1, _ATTEMPTS + 1):
        wait = min(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
        try:
            return call()
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else None
            worth_it = status in _NOT_DONE or (repeatable and status in _PERHAPS_DONE)
            if not worth_it or attempt == _ATTEMPTS or _retried_already(error, endpoint):
                raise
            wait = _asked_wait(error.response.headers) or wait
        except httpx2.TransportError as error:
            unreachable = isinstance(error, (httpx2.ConnectError, httpx2.UnsupportedProtocol))
            if unreachable or not repeatable or attempt == _ATTEMPTS or _retried_already(error, endpoint):
                raise
        _sleep(min(wait, _LONGEST_WAIT_SECONDS))
    raise AssertionError("unreachable")


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Inside the block, take a connection for broken on which nothing has moved for minutes."""
    import httpx2
    from huggingface_hub import get_session

    session = get_session()
    before, session.timeout = session.timeout, httpx2.Timeout(_LONGEST_SILENCE_SECONDS, connect=30.0, pool=None)
    try:
        yield
    finally:
        session.timeout = before


def _retried_already(error: Any, endpoint: str) -> bool:
    """Say whether the client itself repeats this request: the transfer of files and what prepares it."""
    try:
        # The Hub's own errors carry the request with the response only.
        url = str((getattr(error, "response", None) or error).request.url)
    except RuntimeError:
        return False
    return "/preupload/" in url or not url.startswith(f"{endpoint}/api/")


def _asked_wait(headers: Any) -> float | None:
    try:
        return max(float(headers.get("Retry-After")), 0.1)
    except (TypeError, ValueError):
        return None


def explain(error: Exception, repo_id: str, endpoint: str, way_out: str) -> ConfigError | RunError:
    """Turn whatever a push failed with into one sentence that names the cause and the way out.

    Args:
        error: what was raised.
        repo_id: where the push went.
        endpoint: address of the Hub.
        way_out: what is kept and which command tries again.
    """
    import httpx2
    from huggingface_hub import errors

    if type(error) is RuntimeError and isinstance(error.__cause__, (errors.HfHubHTTPError, httpx2.TransportError)):
        # A failed transfer of a file comes wrapped in words that leave out why.
        error = error.__cause__
    if isinstance(error, errors.LocalTokenNotFoundError):
        return RunError(f"no Hub access token was found. Log in with `hf auth login`, or set HF_TOKEN. {way_out}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return RunError(f"HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it. {way_out}")
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return RunError(f"{_explain_status(error, repo_id)} {way_out}")
    if isinstance(error, ValueError) and "Invalid metadata" in str(error):
        return ConfigError(f"the Hub refuses the card: {one_line(error)}. Mend README.md. {way_out}")
    if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
        return RunError(f"cannot reach {endpoint}: {one_line(error)}. Check the network and HF_ENDPOINT. {way_out}")
    if isinstance(error, httpx2.TransportError):
        return RunError(
            f"the connection to {endpoint} broke: {one_line(error)}. Look at {endpoint}/{repo_id} whether the push "
            f"arrived. {way_out}"
        )
    storage = " Setting HF_HUB_DISABLE_XET=1 uploads without the xet protocol." if "xet" in str(error).lower() else ""
    return RunError(f"the push to `{repo_id}` failed: {one_line(error)}.{storage} {way_out}")


def _explain_status(error: Any, repo_id: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    status, namespace = error.response.status_code, repo_id.split("/")[0]
    said = f" ({one_line(RuntimeError(error.server_message))})" if error.server_message else ""
    if isinstance(error, RepositoryNotFoundError):
        return f"`{repo_id}` is not to be found with this access token{said}. Check the name and the token's rights."
    if status == 401:
        return f"the Hub refuses the access token (401){said}. Log in with `hf auth login`, or set another HF_TOKEN."
    if status == 403:
        return (
            f"the access token may not write to `{repo_id}` (403){said}. Use a token with write access to "
            f"`{namespace}`, or push to your own namespace."
        )
    if status == 409:
        return f"the Hub reports a conflict (409){said}: somebody else is writing to `{repo_id}`. Wait a moment."
    if status == 412:
        return f"`{repo_id}` has changed while the push was on its way (412){said}. Look at what is new there."
    if status == 429:
        return f"the Hub allows no more requests for now (429){said}. Wait some minutes."
    if status >= 500:
        return f"the Hub failed (status {status}){said}; https://status.huggingface.co shows whether it is known."
    return f"the Hub refused the push to `{repo_id}` (status {status}){said}."
