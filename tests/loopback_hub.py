"""A Hub on the loopback for tests, with faults. State lies in `loopback_repo`, the routes in `loopback_routes`.

Clients find it by HF_ENDPOINT, which they read at import; Xet must be off (HF_HUB_DISABLE_XET=1), because large files
go the way of LFS here.
"""

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from loopback_repo import Refusal
from loopback_routes import TOKEN, Answer, Fault, Hub

_API: Final = "/api/(?:datasets|models)"
"""Datasets and models share their names here."""
_REPO: Final = r"(?P<repo>[^/]+/[^/]+)"
_AT: Final = r"(?P<revision>[^/]+)"
_OID: Final = r"(?P<oid>[0-9a-f]{64})"
_ROUTES: Final = tuple(
    (step, method, re.compile(path))
    for step, method, path in (
        ("whoami", "GET", "/api/whoami-v2"),
        ("validate", "POST", "/api/validate-yaml"),
        ("create", "POST", "/api/repos/create"),
        ("refs", "GET", f"{_API}/{_REPO}/refs"),
        ("tree", "GET", f"{_API}/{_REPO}/tree/{_AT}(?:/(?P<path>.+))?"),
        ("paths", "POST", f"{_API}/{_REPO}/paths-info/{_AT}"),
        ("commits", "GET", f"{_API}/{_REPO}/commits/{_AT}"),
        ("preupload", "POST", f"{_API}/{_REPO}/preupload/{_AT}"),
        ("batch", "POST", rf"(?:/datasets)?/{_REPO}\.git/info/lfs/objects/batch"),
        ("put", "PUT", f"/lfs/{_REPO}/{_OID}"),
        ("verify", "POST", f"/lfs/{_REPO}/verify"),
        ("get", "GET", f"/lfs/{_REPO}/{_OID}"),
        ("commit", "POST", f"{_API}/{_REPO}/commit/{_AT}"),
        ("tag", "POST", f"{_API}/{_REPO}/tag/{_AT}"),
        ("branch", "POST", f"{_API}/{_REPO}/branch/(?P<name>[^/]+)"),
        ("resolve", "GET", f"(?:/datasets)?/{_REPO}/resolve/{_AT}/(?P<path>.+)"),
        ("info", "GET", f"{_API}/{_REPO}(?:/revision/{_AT})?"),
    )
)

EXCUSED: Final = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""huggingface_hub uploads files in a way that its own HTTP client calls old."""


@contextmanager
def hub() -> Iterator[Hub]:
    """A running Hub without datasets."""
    state = Hub()
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(state: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path, token: str | None = TOKEN) -> None:
    """Let clients in this process talk to it, with an empty cache, and wait for nothing between tries."""
    from huggingface_hub import close_session, constants

    close_session()
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    template = f"{state.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


class _Handler(BaseHTTPRequestHandler):
    """One request after another of one connection: find its route, do what the faults say, answer."""

    state: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def _serve(self) -> None:
        body = self._body()
        url = urlsplit(self.path)
        step, named = _route("GET" if self.command == "HEAD" else self.command, url.path)
        with self.state.lock:
            self.state.log.append((step, url.path))
        fault = self.state.due(step)
        kind = fault.kind if fault is not None else None
        if callable(kind):
            kind()
        if kind in ("kill_before", "down"):
            self._drop(kill=kind == "kill_before")
            return
        if isinstance(kind, int):
            self._send(Answer(b'{"error": "the loopback Hub was told to fail"}', kind, {"Retry-After": "0"}))
            return
        if fault is not None and kind == "slow":
            threading.Event().wait(fault.seconds)  # tests may have taken the sleep out of time.sleep
        answer = self._answer(step, named, body, parse_qs(url.query))
        if kind in ("kill_after", "lost"):
            self._drop(kill=kind == "kill_after")
        elif kind == "wrong":
            self._send(Answer(_wrong(answer.body), answer.status, answer.headers))
        else:
            self._send(answer, cut=kind == "truncated")

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _answer(self, step: str, named: Mapping[str, Any], body: bytes, query: dict[str, list[str]]) -> Answer:
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        given = {name: unquote(value) for name, value in named.items() if value is not None}
        try:
            found = getattr(self.state, f"do_{step}")(token=token, body=body, query=query, **given)
        except Refusal as refusal:
            words = {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            return Answer(json.dumps({"error": str(refusal)}).encode(), refusal.status, words)
        return found if isinstance(found, Answer) else Answer(json.dumps(found).encode())

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, answer: Answer, *, cut: bool = False) -> None:
        status, body, extra = answer.status, answer.body, {}
        if (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")) and status == 200:
            first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
            extra = {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
            status, body = 206, body[first : last + 1]
        with suppress(ConnectionError):
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **answer.headers, **extra}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._drop()

    def _drop(self, *, kill: bool = False) -> None:
        if kill:
            self.state.kill()
        self.close_connection = True

    def log_message(self, *_: Any) -> None: ...


def _route(method: str, path: str) -> tuple[str, Mapping[str, Any]]:
    for step, wanted, pattern in _ROUTES:
        if method == wanted and (found := pattern.fullmatch(path)):
            return step, found.groupdict()
    return "unknown", {}


def _wrong(body: bytes) -> bytes:
    """The same answer with the first digits of every hash of a file turned round."""
    return re.sub(rb'"oid": "([0-9a-f]{40,64})"', lambda found: b'"oid": "%s"' % found[1][::-1], body)


__all__ = ["EXCUSED", "TOKEN", "Fault", "Hub", "hub", "use"]
