"""A proxy before a real server: counts what passes, and spoils what a test wants spoiled."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

Json = dict[str, Any]
Ask = Callable[[], Coroutine[Any, Any, Json]]
Spoil = Callable[[Json, Ask], Any]


@dataclass
class Proxy:
    """Stands before a server. `spoil` sees a request and a function that asks the server: what it returns is sent.

    None breaks the connection off, a number is the status of an error, bytes and JSON are a body.
    """

    behind: str
    spoil: Spoil
    url: str = ""
    asks: list[Json] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def models(self, _: web.Request) -> web.Response:
        async with aiohttp.ClientSession() as session, session.get(f"{self.behind}/models") as answer:
            return web.Response(body=await answer.read(), content_type="application/json")

    async def forward(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asks.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

        async def ask() -> Json:
            target = self.behind + request.path.removeprefix("/v1")
            async with aiohttp.ClientSession() as session, session.post(target, json=body) as answer:
                return dict(await answer.json())

        try:
            said = self.spoil(body, ask)
            said = await said if asyncio.iscoroutine(said) else said
        finally:
            self.in_flight -= 1
        if said is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(said, int):
            return web.json_response({"error": {"message": f"scripted {said}"}}, status=said)
        return web.Response(
            body=said if isinstance(said, bytes) else json.dumps(said).encode(), content_type="application/json"
        )


@contextmanager
def proxy(behind: str, spoil: Spoil = lambda body, ask: ask()) -> Iterator[Proxy]:
    server = Proxy(behind, spoil)
    loop = asyncio.new_event_loop()
    ready, done = threading.Event(), asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**26)
        routes = [web.post(f"/v1{route}", server.forward) for route in ("/completions", "/chat/completions")]
        app.add_routes([web.get("/v1/models", server.models), *routes])
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
