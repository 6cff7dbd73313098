"""A scripted OpenAI-compatible server: real HTTP on loopback, in a thread. Counts what it is asked.

    with endpoint(script=lambda ask: web.Response(status=429)) as server: ...

A script sees every chat request (`Ask`) before the default reply and may answer in its place: a response, the number
of a status, raw bytes for a 200, or None for the default, which is a function of messages and seed alone.
"""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Ask:
    """One chat request: its number (from 0), body, and how often the same body came before."""

    number: int
    body: dict[str, Any]
    before: int
    authorization: str
    peer: str = ""  # the connection's other end

    @property
    def question(self) -> str:
        return str(self.body["messages"][-1]["content"] if "messages" in self.body else self.body["prompt"])


Script = Callable[[Ask], web.StreamResponse | int | bytes | None]


@dataclass
class Endpoint:
    """What the server was asked, and how it answers."""

    script: Script = lambda ask: None
    model: str | None = "toy"  # None: no list of models
    models_body: bytes | None = None
    models_status: int = 200
    delay_s: float = 0.0
    logprobs: bool = True
    completes: bool = False  # raw completions are there too; their asks have a `prompt`
    text_script: Script = lambda ask: None
    url: str = ""
    asks: list[Ask] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    answered: int = 0

    async def models(self, request: web.Request) -> web.Response:
        if self.model is None:
            return web.Response(status=404, text="no such route")
        listed = json.dumps({"object": "list", "data": [{"id": self.model, "object": "model"}]}).encode()
        return web.Response(status=self.models_status, body=self.models_body or listed, content_type="application/json")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        before = sum(ask.body == body for ask in self.asks)
        peer = request.transport and request.transport.get_extra_info("peername")
        ask = Ask(len(self.asks), body, before, request.headers.get("authorization", ""), str(peer))
        self.asks.append(ask)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            said = (self.script if "messages" in body else self.text_script)(ask)
        finally:
            self.in_flight -= 1
        if said is DROP:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        self.answered += 1
        if isinstance(said, web.StreamResponse):
            return said
        if isinstance(said, int):
            return web.json_response({"error": {"message": f"scripted {said}"}}, status=said)
        default = reply_to if "messages" in body else text_reply_to
        body_out = said if isinstance(said, bytes) else json.dumps(default(body, self.logprobs)).encode()
        return web.Response(body=body_out, content_type="application/json")


DROP = web.Response(text="the connection breaks before an answer")


def reply_to(body: dict[str, Any], logprobs: bool = True) -> dict[str, Any]:
    """Reasoning and answer in words drawn from a hash of messages and seed; cut at `max_tokens` words."""
    digest = hashlib.sha256(json.dumps([body["messages"], body.get("seed")]).encode()).digest()
    thought, answer = [f"step {byte}." for byte in digest[:3]], [str(digest[3])]
    tokens = ["<think>\n", *thought, "\n</think>\n\n", *answer, "<|im_end|>"][: body["max_tokens"]]
    closed = len(tokens) > 4
    entries = [
        {"token": token, "logprob": -(byte % 8) / 8, "bytes": list(token.encode())}
        for token, byte in zip(tokens, digest, strict=False)
    ]
    choice: dict[str, Any] = {
        "index": 0,
        "message": {
            "role": "assistant",
            "reasoning": "".join(tokens[1:4]),
            "content": "".join(tokens[5:6]) if closed else None,
        },
        "finish_reason": "stop" if len(tokens) == 7 else "length",
        "logprobs": {"content": entries} if logprobs and body.get("logprobs") else None,
    }
    if body.get("return_token_ids"):
        choice["token_ids"] = list(digest[: len(tokens)])
    usage = {"prompt_tokens": 11, "completion_tokens": len(tokens), "total_tokens": 11 + len(tokens)}
    return {"id": "c-1", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}


def text_reply_to(body: dict[str, Any], logprobs: bool = True) -> dict[str, Any]:
    """A text completion of two words; a prompt of text has a token a word, one of ids a token an id."""
    prompt = body["prompt"].split() if isinstance(body["prompt"], str) else body["prompt"]
    tokens = [" and", " so"][: body.get("max_tokens", 16)]
    named = {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens)}
    choice = {
        "index": 0,
        "text": "".join(tokens),
        "finish_reason": "length",
        "logprobs": named if logprobs and body.get("logprobs") is not None else None,
    }
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
    return {"id": "t-1", "object": "text_completion", "model": body["model"], "choices": [choice], "usage": usage}


@contextmanager
def endpoint(**options: Any) -> Iterator[Endpoint]:
    """Serve until the block ends; `url` is the base address."""
    server = Endpoint(**options)
    loop = asyncio.new_event_loop()
    ready, done = threading.Event(), asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**26)
        app.add_routes([web.get("/v1/models", server.models), web.post("/v1/chat/completions", server.chat)])
        if server.completes:
            app.add_routes([web.post("/v1/completions", server.chat)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
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


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Poll, because another process does it."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.01)
