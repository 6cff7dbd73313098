"""A server of offline batches: real HTTP on loopback, in a thread, with faults to inject. It serves online, too.

    with batch_server(faults={"POST /batches": [500, DROP_AFTER]}) as server: ...

`faults` are met in turn by the requests of a route: a status, DROP (the connection breaks before anything is done),
DROP_AFTER (it breaks after all was done), or LATE. `fate` decides what becomes of a request line in a batch.
"""

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import BodyPartReader, web
from endpoint import reply_to

DROP, DROP_AFTER = "drop", "drop-after"
ROUTES = (
    "POST /files",
    "GET /files/{id}/content",
    "POST /batches",
    "GET /batches/{id}",
    "GET /batches",
    "POST /batches/{id}/cancel",
)
Fate = Callable[[int, dict[str, Any]], Any]
"""Of batch number and request: None for a reply; bytes or a dict for another body; a status; "lost", "error", "expired"
or "unanswered" (no line at all)."""


@dataclass
class Batches:
    """What the server was given, and what it made of it. `billed` counts replies that were made, by request key."""

    faults: dict[str, list[Any]] = field(default_factory=dict)
    fate: Fate = lambda number, body: None
    status: Callable[[int], str] = lambda number: "completed"
    problems: Callable[[int, list[dict[str, Any]]], list[dict[str, Any]]] = lambda number, given: []
    polls: int = 1  # a batch ends at this many looks
    logprobs: bool = True
    lists: bool = True
    extra_lines: Callable[[list[bytes]], list[bytes]] = lambda lines: lines
    cut_bytes: int = 0  # of the first download of each output file
    gone: set[str] = field(default_factory=set)  # ids of files and batches that it has forgotten
    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    looks: Counter[str] = field(default_factory=Counter)
    calls: list[str] = field(default_factory=list)
    billed: Counter[str] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)  # requests of each batch
    downloads: Counter[str] = field(default_factory=Counter)

    @web.middleware
    async def meet_faults(self, request: web.Request, handler: Any) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = f"{request.method} {(resource.canonical if resource else '').removeprefix('/v1')}"
        self.calls.append(route)
        fault = self.faults[route].pop(0) if self.faults.get(route) else None
        if isinstance(fault, int):
            return web.json_response({"error": {"message": f"scripted {fault}"}}, status=fault)
        if fault != DROP:
            answer = await handler(request)
            if isinstance(fault, bytes):
                return web.Response(body=fault, content_type="application/json")
            if fault != DROP_AFTER:
                return answer  # type: ignore[no-any-return]
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def upload(self, request: web.Request) -> web.Response:
        parts: dict[str | None, bytes] = {}
        async for part in await request.multipart():  # not request.post(), whose files stay open where a client dies
            assert isinstance(part, BodyPartReader)
            parts[part.name] = bytes(await part.read())
        assert parts["purpose"] == b"batch"
        number = f"file-{len(self.files):03d}"
        self.files[number] = parts["file"]
        return web.json_response({"id": number, "object": "file", "bytes": len(self.files[number]), "purpose": "batch"})

    async def content(self, request: web.Request) -> web.StreamResponse:
        number = request.match_info["id"]
        if number in self.gone or number not in self.files:
            return web.json_response({"error": {"message": "No such File object"}}, status=404)
        self.downloads[number] += 1
        body = self.files[number]
        if self.cut_bytes and self.downloads[number] == 1:
            body = body[: -self.cut_bytes]
        return web.Response(body=body)

    async def create(self, request: web.Request) -> web.Response:
        given = await request.json()
        assert given["endpoint"] == "/v1/chat/completions"
        number = len(self.batches)
        batch = {
            "id": f"batch_{number:03d}",
            "object": "batch",
            "status": "validating",
            "created_at": 1_000_000 + number,
            "expires_at": 1_000_000 + number + 86_400,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            **given,
        }
        self.batches[batch["id"]] = batch
        lines = [json.loads(line) for line in self.files[given["input_file_id"]].splitlines()]
        batch["lines"] = lines
        self.sizes.append(len(lines))
        assert len({line["custom_id"] for line in lines}) == len(lines)
        return web.json_response(told(batch))

    async def look(self, request: web.Request) -> web.Response:
        number = request.match_info["id"]
        if number in self.gone or number not in self.batches:
            return web.json_response({"error": {"message": "No batch found"}}, status=404)
        batch = self.batches[number]
        self.looks[number] += 1
        if batch["status"] in ("validating", "in_progress", "finalizing"):
            if self.looks[number] >= self.polls:
                self.end(batch)
            else:
                batch["status"] = "in_progress"
        return web.json_response(told(batch))

    def end(self, batch: dict[str, Any]) -> None:
        """Answer every line, in any order."""
        number = int(batch["id"][-3:])
        batch["status"] = self.status(number)
        if problems := self.problems(number, batch["lines"]):
            batch["status"], batch["errors"] = "failed", {"object": "list", "data": problems}
        if batch["status"] == "failed":
            return
        output, errors = [], []
        for line in batch["lines"]:
            key, said = line["custom_id"], self.fate(number, line["body"])
            frame: dict[str, Any] = {"id": f"req-{key[:6]}", "custom_id": key, "response": None, "error": None}
            if said == "unanswered":
                continue
            if said in ("expired", "error"):
                code = "batch_expired" if said == "expired" else "server_error"
                frame["error"] = {"code": code, "message": f"scripted {said}"}
                errors.append(frame)
                continue
            if isinstance(said, int):
                body: Any = {"error": {"message": f"scripted {said}"}}
                frame["response"] = {"status_code": said, "request_id": "r", "body": body}
                errors.append(frame)
                continue
            self.billed[key] += 1
            if said == "lost":
                continue
            body = reply_to(line["body"], self.logprobs) if said is None else said
            frame["response"] = {"status_code": 200, "request_id": "r", "body": body}
            output.append(frame)
        dice = random.Random(number)
        for name, frames in (("output_file_id", output), ("error_file_id", errors)):
            if frames:
                dice.shuffle(frames)
                lines = [json.dumps(frame).encode() for frame in frames]
                if name == "output_file_id":
                    lines = self.extra_lines(lines)
                batch[name] = f"file-{len(self.files):03d}"
                self.files[batch[name]] = b"\n".join(lines) + b"\n"
        batch["request_counts"] = {"total": len(batch["lines"]), "completed": len(output), "failed": len(errors)}

    async def listed(self, request: web.Request) -> web.Response:
        if not self.lists:
            return web.json_response({"error": {"message": "no such route"}}, status=404)
        newest = sorted(self.batches.values(), key=lambda batch: -batch["created_at"])
        ids = [batch["id"] for batch in newest]
        begin = ids.index(request.query["after"]) + 1 if "after" in request.query else 0
        page = newest[begin : begin + 2]  # small pages, whatever limit is asked: there are more than one
        more = begin + 2 < len(newest)
        return web.json_response({"object": "list", "data": [told(batch) for batch in page], "has_more": more})

    async def cancel(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        batch["status"] = "cancelled"
        return web.json_response(told(batch))

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "toy", "object": "model"}]})

    async def chat(self, request: web.Request) -> web.Response:
        return web.json_response(reply_to(await request.json(), self.logprobs))


def told(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as the protocol shows it."""
    return {name: value for name, value in batch.items() if name != "lines"}


@contextmanager
def batch_server(**options: Any) -> Iterator[Batches]:
    """Serve until the block ends; `url` is the base address."""
    server = Batches(**options)
    loop = asyncio.new_event_loop()
    ready, done = threading.Event(), asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**28, middlewares=[server.meet_faults])
        app.add_routes(
            [
                web.get("/v1/models", server.models),
                web.post("/v1/chat/completions", server.chat),
                web.post("/v1/files", server.upload),
                web.get("/v1/files/{id}/content", server.content),
                web.post("/v1/batches", server.create),
                web.get("/v1/batches", server.listed),
                web.get("/v1/batches/{id}", server.look),
                web.post("/v1/batches/{id}/cancel", server.cancel),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await done.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()
