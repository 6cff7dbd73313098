"""The clients that `generate.py` compares, one a process: `python clients.py ARM URL REPLIES IN_FLIGHT WARM_UP`.

Prints one JSON object: seconds and CPU seconds for the replies after the warm-up, peak memory of the process in bytes.
"""

import asyncio
import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from openai import AsyncOpenAI, DefaultAioHttpClient
from replies import MODEL

QUESTION = "Natalia sold {} clips in April and half as many in May. How many did she sell in April and May together?"
MAX_TOKENS = 65536


class _Token(msgspec.Struct, gc=False):
    token: str = ""
    logprob: float | None = None
    bytes: list[int] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Token] | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: dict[str, Any] | None = None


def _asked(number: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION.format(number)}],
        "max_tokens": MAX_TOKENS,
        "seed": number,
        "temperature": 0.6,
        "top_p": 1.0,
        "logprobs": True,
        "top_logprobs": 0,
    }


async def _loop(ask: Callable[[int], Awaitable[None]], numbers: range, in_flight: int) -> None:
    """The whole flow control of the two bare arms: so many workers draw from one iterator."""
    waiting = iter(numbers)

    async def work() -> None:
        for number in waiting:
            await ask(number)

    await asyncio.gather(*(work() for _ in range(in_flight)))


def bare(url: str, runs: "list[range]", in_flight: int, measured: Callable[[], None]) -> None:
    """openai over its aiohttp transport, raw responses, one typed decode; nothing is kept.

    As fast as such a loop can be made: structs that the garbage collector passes over, a settled heap.
    """
    decoder = msgspec.json.Decoder(_Completion)
    limits = httpx2.Limits(max_connections=in_flight + 2, max_keepalive_connections=None)

    async def main() -> None:
        async with AsyncExitStack() as stack:
            transport = await stack.enter_async_context(DefaultAioHttpClient(limits=limits))
            client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=None, http_client=transport)

            async def ask(number: int) -> None:
                raw = await client.chat.completions.with_raw_response.create(**_asked(number))
                assert decoder.decode(raw.content).choices[0].logprobs is not None

            gc.freeze()
            for numbers in runs:
                measured()
                await _loop(ask, numbers, in_flight)

    asyncio.run(main())


def typed(url: str, runs: "list[range]", in_flight: int, measured: Callable[[], None]) -> None:
    """openai as usually called: its own transport, typed objects; nothing is kept."""

    async def main() -> None:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=None) as client:

            async def ask(number: int) -> None:
                reply = await client.chat.completions.create(**_asked(number))
                assert reply.choices[0].logprobs is not None

            for numbers in runs:
                measured()
                await _loop(ask, numbers, in_flight)

    asyncio.run(main())


def ours(url: str, runs: "list[range]", in_flight: int, measured: Callable[[], None]) -> None:
    """`builder generate` without its progress bar: journal on, every reply stored and sealed into tables."""
    from builder.config import Recipe
    from builder.generate import generate
    from builder.identity import prompt_id
    from builder.prompts import Prompts
    from builder.store import Run

    for numbers in runs:
        rows = []
        for number in numbers:
            messages = [{"role": "user", "content": QUESTION.format(number)}]
            rows.append({"prompt_id": prompt_id(messages), "messages": messages})
        recipe = Recipe.model_validate(
            {
                "name": "benchmark",
                "teacher": {"model": MODEL, "endpoints": [{"url": url, "max_in_flight": in_flight}]},
                "generation": {"samples": 1, "temperatures": 0.6, "max_tokens": MAX_TOKENS},
            }
        )
        with tempfile.TemporaryDirectory() as folder:
            measured()
            tally = generate(Run(Path(folder)), recipe, Prompts(rows, len(rows), 0, 0))
            assert tally.replies == len(rows), tally
            assert Run(Path(folder)).rows("logprobs") == len(rows)


ARMS = {"bare": bare, "ours": ours, "typed": typed}


def _peak_bytes() -> int:
    """Peak memory of this process; not `ru_maxrss` where it can be helped, which begins with the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Run one arm: the warm-up, then what is measured."""
    arm, url, replies, in_flight, warm_up = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    began: list[tuple[float, float]] = []
    ARMS[arm](
        url,
        [range(warm_up), range(warm_up, warm_up + replies)],
        in_flight,
        lambda: began.append((time.perf_counter(), time.process_time())),
    )
    wall, cpu = time.perf_counter() - began[-1][0], time.process_time() - began[-1][1]
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_bytes": _peak_bytes()}))


if __name__ == "__main__":
    main()
