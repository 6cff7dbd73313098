"""`builder serve --engine local`: a small OpenAI-compatible server on transformers, for toy models.

It speaks vLLM's dialect (see `local_request` and `local_reply`) so that what works here works there. Loopback only:
it has no authentication. `python -m builder.local_server MODEL --port 0` is the same server as a program.
"""

import argparse
import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from builder.errors import ServeError

if TYPE_CHECKING:
    from aiohttp import web

    from builder.local_engine import Engine
    from builder.local_reply import ReasoningParser

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LARGEST_REQUEST_BYTES = 64 * 2**20
START_SECONDS = 180.0

Json = dict[str, Any]
Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]


def serve(
    model_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int,
    model_name: str | None = None,
    max_batch: int = 64,
    threads: int | None = None,
    max_model_len: int | None = None,
    reasoning_parser: "ReasoningParser" = "auto",
    delay_ms: int = 0,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the model in `model_dir` until interrupted; `ready` gets the base URL, `http://…/v1`, once it listens.

    Port 0 takes a free port. `model_name` defaults to the folder's name, `max_model_len` to the model's positions.
    `delay_ms` holds every reply back, so that tests can act while requests are in flight.
    Raises ServeError for a host beyond this machine, a folder without a model, or a port in use.
    """
    if host not in LOOPBACK:
        raise ServeError(
            f"The local server has no authentication and listens on this machine only, so --host {host} is refused. "
            f"Use {', '.join(LOOPBACK)}, or serve with --engine vllm."
        )
    from builder.local_engine import Engine

    engine = Engine(model_dir, max_batch=max_batch, threads=threads)
    longest = engine.max_model_len if max_model_len is None else max_model_len
    if longest > engine.max_model_len:
        raise ServeError(f"max_model_len {longest} is beyond the {engine.max_model_len} positions of {model_dir}.")
    name = model_name or model_dir.resolve().name
    service = _Service(engine, name, longest, reasoning_parser, delay_ms / 1000)
    try:
        asyncio.run(_listen(service, host, port, ready))
    finally:
        engine.close()


@contextlib.contextmanager
def running_server(
    model_dir: Path,
    *,
    model_name: str | None = None,
    port: int = 0,
    max_batch: int = 64,
    threads: int | None = None,
    max_model_len: int | None = None,
    reasoning_parser: "ReasoningParser" = "auto",
    delay_ms: int = 0,
) -> Iterator[str]:
    """Run the server in a process of its own and give its base URL; it ends with the block, or with this process.

    Raises ServeError with the server's own last words when it does not come up.
    """
    options = {
        "--model-name": model_name,
        "--port": port,
        "--max-batch": max_batch,
        "--threads": threads,
        "--max-model-len": max_model_len,
        "--reasoning-parser": reasoning_parser,
        "--delay-ms": delay_ms,
    }
    given = [text for name, value in options.items() if value is not None for text in (name, str(value))]
    command = [sys.executable, "-m", "builder.local_server", str(model_dir), "--exit-with-stdin", *given]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment(threads)
        )
        try:
            yield _announced_url(process, log)
        finally:
            _end(process)


def _environment(threads: int | None) -> dict[str, str]:
    """This process's environment, with this copy of `builder` first and thread pools no larger than asked."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    pools = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    own = {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
    # Threads that spin for long while they wait would take the cores from whoever asks this server.
    return {"GOMP_SPINCOUNT": "10000"} | os.environ | own | pools


def _announced_url(process: "subprocess.Popen[str]", log: Any) -> str:
    assert process.stdout is not None
    late = threading.Timer(START_SECONDS, process.kill)
    late.start()
    try:
        for line in process.stdout:
            if line.startswith("serving ") and " at " in line:
                return line.rsplit(" at ", 1)[1].strip()
    finally:
        late.cancel()
    process.wait()
    log.seek(0)
    raise ServeError(f"The local server did not start (exit {process.returncode}): {log.read().strip()[-2000:]}")


def _end(process: "subprocess.Popen[str]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Service:
    """The routes, and the counts behind `/stats`."""

    def __init__(
        self, engine: "Engine", name: str, longest: int, parser: "ReasoningParser", delay_seconds: float
    ) -> None:
        from builder.local_reply import Replies
        from builder.local_request import Requests

        self.name = name
        self._engine = engine
        self._longest = longest
        self._delay_seconds = delay_seconds
        self._requests = Requests(engine, name, longest)
        self._replies = Replies(engine, name, parser)
        self._by_status: Counter[int] = Counter()
        self._completion_tokens = 0
        self._started = int(time.time())

    def application(self) -> "web.Application":
        from aiohttp import web

        app = web.Application(client_max_size=LARGEST_REQUEST_BYTES)
        asks, replies = self._requests, self._replies
        app.router.add_get("/health", self._health)
        app.router.add_get("/stats", self._stats)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", functools.partial(self._answer, asks.chat_asks, replies.chat))
        app.router.add_post(
            "/v1/completions", functools.partial(self._answer, asks.completion_asks, replies.completion)
        )
        return app

    async def _answer(self, read: Any, write: Any, request: "web.Request") -> "web.StreamResponse":
        from builder.local_request import Refused

        try:
            body = _parse(await request.read())
            asks = read(body)
            done = await asyncio.gather(*(asyncio.wrap_future(self._engine.submit(ask)) for ask in asks))
            self._completion_tokens += sum(len(one.ids) for one in done)
            status, reply = 200, write(body, asks, done)
        except Refused as refused:
            status, reply = refused.status, refused.body()
        except Exception as error:  # this request's 500, not the server's end
            status, reply = 500, Refused(f"{type(error).__name__}: {error}", status=500).body()
        if self._delay_seconds:
            await asyncio.sleep(self._delay_seconds)
        self._by_status[status] += 1
        return _json(reply, status)

    async def _health(self, _: "web.Request") -> "web.StreamResponse":
        return _json({}, 200 if self._engine.alive else 503)

    async def _stats(self, _: "web.Request") -> "web.StreamResponse":
        """What was answered since the start: what a client paid for, to compare with what it stored."""
        return _json(
            {
                "requests": self._by_status.total(),
                "completion_tokens": self._completion_tokens,
                "by_status": {str(status): count for status, count in sorted(self._by_status.items())},
            }
        )

    async def _models(self, _: "web.Request") -> "web.StreamResponse":
        card = {
            "id": self.name,
            "object": "model",
            "created": self._started,
            "owned_by": "builder",
            "root": self.name,
            "parent": None,
            "max_model_len": self._longest,
        }
        return _json({"object": "list", "data": [card]})


def _parse(raw: bytes) -> Json:
    from builder.local_request import Refused

    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise Refused(f"The request body is not a JSON object: {error}") from error


def _json(value: Json, status: int = 200) -> "web.StreamResponse":
    from aiohttp import web

    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def _listen(service: _Service, host: str, port: int, ready: Callable[[str], None] | None) -> None:
    from aiohttp import web

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if threading.current_thread() is threading.main_thread():
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop.set)
    runner = web.AppRunner(service.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, backlog=1024).start()
        except OSError as error:
            raise ServeError(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another --port.") from error
        address = f"[{host}]" if ":" in host else host
        if ready is not None:
            ready(f"http://{address}:{runner.addresses[0][1]}/v1")
        await stop.wait()
    finally:
        await runner.cleanup()


def _exit_with_stdin() -> None:
    """End this process when its parent closes the pipe or dies."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m builder.local_server", description=__doc__)
    parser.add_argument("model", type=Path, help="folder with weights, configuration and tokenizer")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free port")
    parser.add_argument("--model-name", help="default: the folder's name")
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--reasoning-parser", choices=("auto", "think", "none"), default="auto")
    parser.add_argument("--delay-ms", type=int, default=0, help="hold every reply back (for tests)")
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when standard input closes")
    options = vars(parser.parse_args())
    model_dir: Path = options.pop("model")
    if options.pop("exit_with_stdin"):
        _exit_with_stdin()
    name = options["model_name"] or model_dir.resolve().name
    try:
        serve(model_dir, ready=lambda url: print(f"serving {name} at {url}", flush=True), **options)
    except ServeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
