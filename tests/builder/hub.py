"""A loopback Hub with one dataset, org/toy: the routes that reading a pinned version needs."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c" * 40


@contextmanager
def hub(release: Path) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the files that were asked for. Tag v1 stands at COMMIT, which holds this release."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            files = sorted(one for one in release.rglob("*") if one.is_file())
            names = [one.relative_to(release).as_posix() for one in files]
            resolve = f"/datasets/org/toy/resolve/{COMMIT}/"
            if path.startswith(resolve) and path.removeprefix(resolve) in names:
                asked.append(path.removeprefix(resolve))
                body = (release / asked[-1]).read_bytes()
            elif path in (f"/api/datasets/org/toy/revision/{revision}" for revision in ("v1", COMMIT)):
                listed = [{"rfilename": name} for name in names]
                body = json.dumps({"id": "org/toy", "sha": COMMIT, "siblings": listed}).encode()
            elif path == f"/api/datasets/org/toy/tree/{COMMIT}":
                sizes = [one.stat().st_size for one in files]
                tree = zip(names, sizes, strict=True)
                body = json.dumps([{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in tree]).encode()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{len(body)}-{hash(path)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
