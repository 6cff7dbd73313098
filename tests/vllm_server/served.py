"""A vLLM with the toy teacher, as tests see it."""

import asyncio
import urllib.request
from dataclasses import dataclass
from typing import Any

from builder.client import Client
from builder.section import Endpoint


@dataclass(frozen=True)
class Served:
    """A server, and how reasoning comes back with the teacher's own template and with one that opens the block."""

    url: str
    form: str
    prefilled_form: str

    def ask(self, *requests: dict[str, Any], route: str = "/chat/completions") -> list[bytes]:
        """Raw answers, asked for at once."""

        async def send() -> list[bytes]:
            async with Client([Endpoint(url=self.url)]) as client:
                sent = (client.post(route, {"model": "toy-teacher", **request}) for request in requests)
                return await asyncio.gather(*sent)

        return asyncio.run(send())

    def answered(self) -> int:
        """Requests that vLLM finished since it started, by its own count."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("vllm:request_success_total"))
