"""OpenAI-compatible endpoints: one call in, one raw body out. Sorts failures; retries and records are the caller's."""

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx2
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, DefaultAioHttpClient, Timeout

from builder.config import Endpoint
from builder.errors import EndpointError, FatalReply, UsageError

# A long chain of thought takes as long as it takes: no total limit, but a silent connection ends.
_TIMEOUT = Timeout(None, connect=15.0, read=1800.0, write=120.0, pool=None)
_STOPS_THE_RUN = frozenset({401, 402, 403, 404, 405})
_WORTH_A_RETRY = frozenset({408, 409, 425, 429})


class RefusedError(EndpointError):
    """The endpoint refuses every request of this run: key, address or model name are wrong."""


class RetryableError(EndpointError):
    """The same request may succeed later. `retry_after_s` is the endpoint's own wish, if any."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass
class _Lane:
    """One endpoint with its client and the number of requests in flight."""

    endpoint: Endpoint
    client: AsyncOpenAI
    in_flight: int = 0

    @property
    def load(self) -> float:
        return self.in_flight / self.endpoint.max_in_flight


@dataclass
class Client:
    """All endpoints of a run. `async with Client(endpoints) as client: body = await client.chat(payload, lane)`."""

    endpoints: Sequence[Endpoint]
    _lanes: list[_Lane] = field(default_factory=list)

    async def __aenter__(self) -> "Client":
        for endpoint in self.endpoints:
            limits = httpx2.Limits(max_connections=endpoint.max_in_flight + 2, max_keepalive_connections=None)
            self._lanes.append(
                _Lane(
                    endpoint,
                    AsyncOpenAI(
                        base_url=endpoint.url,
                        api_key=api_key(endpoint),
                        max_retries=0,
                        timeout=_TIMEOUT,
                        http_client=DefaultAioHttpClient(limits=limits, timeout=_TIMEOUT, follow_redirects=False),
                    ),
                )
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self._lanes:
            await lane.client.close()

    @property
    def capacity(self) -> int:
        """Requests that may be in flight at once, over all endpoints."""
        return sum(endpoint.max_in_flight for endpoint in self.endpoints)

    def choose(self) -> _Lane:
        """The least loaded endpoint."""
        return min(self._lanes, key=lambda lane: lane.load)

    async def models(self, lane: _Lane | None = None) -> list[str]:
        """Names that the endpoint lists; raises EndpointError when nothing answers there."""
        lane = lane or self._lanes[0]
        with _sorted_errors(lane.endpoint.url):
            page = await lane.client.with_options(timeout=30.0).models.list()
        return [model.id for model in page.data or []]

    async def chat(self, payload: dict[str, Any], lane: _Lane) -> tuple[bytes, float]:
        """POST /chat/completions: raw body and seconds. Raises RetryableError, RefusedError or FatalReply."""
        lane.in_flight += 1
        started = time.perf_counter()
        try:
            with _sorted_errors(lane.endpoint.url):
                raw = await lane.client.chat.completions.with_raw_response.create(**payload)
                body = raw.content
        finally:
            lane.in_flight -= 1
        return body, time.perf_counter() - started

    async def post(self, path: str, payload: dict[str, Any], lane: _Lane | None = None) -> bytes:
        """POST any route below the base address: raw body. Raises as `chat`."""
        lane = lane or self._lanes[0]
        with _sorted_errors(lane.endpoint.url):
            raw = await lane.client.post(path, body=payload, cast_to=httpx2.Response)
            return bytes(raw.content)


def api_key(endpoint: Endpoint) -> str:
    """The key from the environment; servers on one's own machines need none, so its absence is no error here."""
    if endpoint.api_key_env is not None:
        key = os.environ.get(endpoint.api_key_env)
        if not key:
            raise UsageError(
                f"Endpoint {endpoint.url} takes its key from {endpoint.api_key_env}, which is not set. Export it first."
            )
        return key
    return os.environ.get("OPENAI_API_KEY") or "none"


def backoff_s(attempt: int, retry_after_s: float | None) -> float:
    """Seconds before the next try: the endpoint's wish up to two minutes, else full jitter up to 1, 2, 4 … 60 s."""
    if retry_after_s is not None:
        return min(max(retry_after_s, 0.0), 120.0)
    return random.uniform(0, min(60.0, 2.0**attempt))


class _sorted_errors:  # noqa: N801 - reads as a phrase
    """openai's exceptions as ours, with the status and the beginning of the message; never with the key."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, APIStatusError):
            raise _status_error(self.url, error) from None
        if isinstance(error, APITimeoutError):
            raise RetryableError(f"{self.url} did not answer in time") from None
        if isinstance(error, APIConnectionError):
            cause = error.__cause__ or error
            raise RetryableError(f"{self.url} cannot be reached ({type(cause).__name__}: {cause})") from None
        if isinstance(error, httpx2.HTTPError | ConnectionError | TimeoutError):
            raise RetryableError(f"{self.url} broke off ({type(error).__name__}: {error})") from None


def _status_error(url: str, error: APIStatusError) -> EndpointError:
    status = error.status_code
    said = " ".join(error.response.text.split())[:300]
    message = f"{url} answered {status}: {said}"
    if status in _WORTH_A_RETRY or status >= 500:
        if "insufficient_quota" in said:
            return RefusedError(message + ". The account has no money left; nothing else will succeed.")
        return RetryableError(message, _retry_after(error))
    if status in _STOPS_THE_RUN:
        return RefusedError(message)
    return FatalReply(message)


def _retry_after(error: APIStatusError) -> float | None:
    try:
        return float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
