"""A teacher in a process of its own that writes down what it bills, before it answers.

    python teacher.py FOLDER          prints its port; every run has its own address:
    http://127.0.0.1:PORT/SITE/MODE/v1

FOLDER/SITE.log gets a line `ask SEED BODY_HASH` when a request is there and `paid SEED BODY_HASH` before its reply goes
out, each in one write to a file opened for appending: what a client's crash leaves there is what a provider would bill.
MODE says how it misbehaves, such as `drop` or `storm=20`; most modes spoil only the first answer to each body.
"""

import asyncio
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "builder"))
from endpoint import reply_to

HUGE = 100 * 2**20
BODIES = {
    "html": b"<html><body>502 Bad Gateway</body></html>",
    "empty": b"",
    "nochoices": b'{"error": {"message": "overloaded", "code": 500}}',
    "notjson": b'{"choices": [{"message": {"content": "half of a',
    "nothing": b'{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}',
}


class Teacher:
    """Answers as MODE says, and remembers only how often it saw a body and when a run's first request came."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs: dict[str, int] = {}
        self.seen: dict[tuple[str, str], int] = {}
        self.first: dict[tuple[str, str], float] = {}

    def write(self, site: str, line: str) -> None:
        if site not in self.logs:
            self.logs[site] = os.open(self.folder / f"{site}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(self.logs[site], f"{line}\n".encode())

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "toy", "object": "model"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self.answer(request)
        except Exception as error:
            self.write(request.match_info["site"], f"bug 0 {error!r}")
            raise

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        site, (mode, _, argument) = request.match_info["site"], request.match_info["mode"].partition("=")
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        self.write(site, f"ask {body['seed']} {digest[:16]}")
        before = self.seen[site, digest] = self.seen.get((site, digest), -1) + 1
        first = self.first.setdefault((site, mode), time.monotonic())
        number = 0.0 if argument in ("", "always") else float(argument)

        def bill() -> bytes:
            """The reply, billed now."""
            reply: dict[str, Any] = reply_to(body)
            if mode == "long":
                reply["padding"] = "".join(hashlib.sha256(f"{digest}{n}".encode()).hexdigest() for n in range(128))
            raw = json.dumps(reply).encode()
            if mode == "nan":
                raw = raw.replace(b'"logprob": -0.125', b'"logprob": NaN').replace(
                    b'"logprob": -0.5,', b'"logprob": -Infinity,'
                )
            self.write(site, f"paid {body['seed']} {digest[:16]}")
            return raw

        if mode == "storm" and time.monotonic() - first < number:
            return web.json_response({"error": {"message": "slow down"}}, status=429)
        if mode == "status":
            return web.json_response({"error": {"message": "scripted"}}, status=int(number))
        if mode == "late":
            await asyncio.sleep(int(digest[:4], 16) % 16 / 15 * number / 1000)
        if before == 0 or argument == "always":
            spoiled = await self.spoiled(mode, request, bill)
            if spoiled is not None:
                return spoiled
        return web.Response(body=bill(), content_type="application/json")

    async def spoiled(self, mode: str, request: web.Request, bill: Any) -> web.StreamResponse | None:
        if mode in BODIES:
            return web.Response(body=BODIES[mode], content_type="text/html" if mode == "html" else "application/json")
        if mode == "drop":
            return abort(request)
        if mode == "stall":
            await asyncio.sleep(3600)
        if mode not in ("half", "hush", "drip", "huge"):
            return None
        raw = bill() if mode == "drip" else b'{"choices": ['
        length = {"drip": len(raw), "huge": HUGE}.get(mode, 1000)
        response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(length)})
        await response.prepare(request)
        try:
            if mode == "drip":
                for place in range(len(raw)):
                    await response.write(raw[place : place + 1])
                    await asyncio.sleep(0)
            elif mode == "huge":
                for _ in range(HUGE // 2**20):
                    await response.write(b" " * 2**20)
            else:
                await response.write(raw)
                if mode == "hush":
                    await asyncio.sleep(3600)
                return abort(request)
            await response.write_eof()
        except ConnectionError:
            pass  # the client has had enough
        return response


def abort(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def serve(folder: Path) -> None:
    teacher = Teacher(folder)
    app = web.Application(client_max_size=2**26)
    base = "/{site}/{mode}/v1"
    app.add_routes([web.get(f"{base}/models", teacher.models), web.post(f"{base}/chat/completions", teacher.chat)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until whoever started it is gone
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
