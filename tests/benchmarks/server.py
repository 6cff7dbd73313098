"""An endpoint that costs far less than any client: a bare asyncio protocol that writes bodies made beforehand.

python server.py TOKENS {0,1 alternatives} LATENCY_S      prints its port, serves until its input closes
"""

import asyncio
import json
import re
import sys

from replies import MODEL, body

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_BODIES = 8


class Answers(asyncio.Protocol):
    """Keep-alive HTTP/1.1, just enough of it: a list of models, and a reply to every POST after the latency."""

    def __init__(self, replies: list[bytes], models: bytes, latency_s: float) -> None:
        self.replies, self.models, self.latency_s = replies, models, latency_s
        self.loop = asyncio.get_running_loop()
        self.received = b""
        self.asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self.received, 0, end)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self.received) < total:
                return
            is_post = self.received.startswith(b"POST")
            self.received = self.received[total:]
            if is_post:
                self.asked += 1
                self.loop.call_later(self.latency_s, self._write, self.replies[self.asked % len(self.replies)])
            else:
                self._write(self.models)

    def _write(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)


def _http(content: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def serve(tokens: int, alternatives: bool, latency_s: float) -> None:
    """Serve on a free port of the loopback interface."""
    replies = [_http(body(tokens, alternatives=alternatives, seed=seed)) for seed in range(_BODIES)]
    models = _http(json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode())
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answers(replies, models, latency_s), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2] == "1", float(sys.argv[3])))
