"""An endpoint whose replies are as hard to compress as real ones, and that says how many requests it held at once.

python scale_server.py TOKENS {0,1 logprobs} LATENCY_S BODIES      prints its port; at the end of its input, the most
requests that waited for their reply at one time
"""

import asyncio
import json
import sys
from typing import Any

from scale_data import body
from server import Answers, _http


class InTurn(list[bytes]):
    """Replies one after the other, whichever is asked for: connections count for themselves, and would all give the
    same few."""

    given = 0

    def __getitem__(self, _: Any) -> Any:
        self.given += 1
        return super().__getitem__(self.given % len(self))


class Held(Answers):
    """Counts the requests that wait for their reply."""

    waiting = most = 0

    def _write(self, answer: bytes) -> None:
        Held.waiting -= answer is not self.models
        super()._write(answer)

    def data_received(self, data: bytes) -> None:
        before = self.asked
        super().data_received(data)
        Held.waiting += self.asked - before
        Held.most = max(Held.most, Held.waiting)


async def serve(tokens: int, logprobs: bool, latency_s: float, bodies: int) -> None:
    """Serve on a free port of the loopback interface."""
    replies = InTurn(_http(body(tokens, logprobs=logprobs, seed=seed)) for seed in range(bodies))
    models = _http(json.dumps({"object": "list", "data": [{"id": "toy", "object": "model"}]}).encode())
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Held(replies, models, latency_s), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    print(Held.most, flush=True)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2] == "1", float(sys.argv[3]), int(sys.argv[4])))
