"""A Hub on loopback: what huggingface_hub 2.4 asks of the real one when models are pushed and loaded.

`python tests/hub_server.py --port 0` starts one and prints its address, for trying by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from hub_routes import ROUTES
from hub_store import ORGANISATIONS, TOKENS, USER, HubError, Repo, Store


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    # Headers and body in one packet: otherwise every answer waits 40 ms for the client's delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True
    store: Store
    body: bytes

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: the store keeps a log."""

    def _handle(self) -> None:
        store, method = self.server.store, self.command
        self.store = store
        with store.lock:
            store.log.append((method, self.path))
            store.statuses.append(None)
            self.position = len(store.log) - 1
            fault = store.take_fault(method, self.path)
        if fault and fault.kind == "drop":
            self.rfile.read(min(1024, int(self.headers.get("Content-Length") or 0)))
            return self._cut()
        self.body = self._read_body()
        if fault and fault.kind == "stall":
            time.sleep(fault.seconds)
            return self._cut()
        if fault and fault.kind == "status":
            return self.reply_json({"error": f"acted-out failure {fault.code}"}, fault.code, fault.headers)
        self.muted = fault is not None
        try:
            with store.lock:
                self._dispatch(method)
        except HubError as error:
            headers = {"X-Error-Message": str(error), **error.headers}
            if error.code:
                headers["X-Error-Code"] = error.code
            self.reply_json({"error": str(error)}, error.status, headers)
        if self.muted:
            self._cut()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _dispatch(self, method: str) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        for verb, pattern, function in ROUTES:
            match = pattern.fullmatch(parts.path)
            if match and verb == ("GET" if method == "HEAD" else method):
                return function(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
        self.store.unknown.append(f"{method} {self.path}")
        raise HubError(404, "no such route")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer; to HEAD without the body, and with nothing where the reply is to be lost."""
        if getattr(self, "muted", False):
            return
        self.store.statuses[self.position] = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON."""
        self.reply(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def json(self) -> Any:
        """Return the request's JSON."""
        return json.loads(self.body)

    def role(self) -> str | None:
        """Return `write`, `read`, or None for a stranger.

        Raises:
            HubError: a token was given that nobody has.
        """
        given = self.headers.get("Authorization")
        if given is None:
            return None
        token = given.removeprefix("Bearer ")
        if token not in TOKENS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return TOKENS[token]

    def check_write(self, namespace: str) -> None:
        """Refuse who may not write to a namespace."""
        role = self.role()
        if role is None:
            raise HubError(401, "Invalid username or password.")
        if role != "write":
            raise HubError(403, "your token has no write permission")
        if namespace not in (USER, *ORGANISATIONS):
            raise HubError(403, f'You don\'t have the rights to write to the namespace "{namespace}"')

    def find_repo(self, repo: str, write: bool = False) -> Repo:
        """Return a repository that the caller may see, and change if so asked."""
        found = self.store.repos.get(repo)
        role = self.role()
        if found is None or (found.private and role is None):
            status = 401 if role is None else 404
            raise HubError(status, "Repository not found", "RepoNotFound")
        if write:
            self.check_write(repo.split("/")[0])
        return found


class LoopbackHub(ThreadingHTTPServer):
    """A running server; a context manager.

    Attributes:
        url: its address, the value of `HF_ENDPOINT`.
        store: what it knows.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.store = Store()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def log(self) -> list[tuple[str, str]]:
        """`(method, path)` of every request, in order."""
        return self.store.log

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent when a client went away; show everything else."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    with LoopbackHub(parser.parse_args().port) as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN=hf_good HF_HUB_DISABLE_XET=1", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            hub._thread.join()


if __name__ == "__main__":
    main()
