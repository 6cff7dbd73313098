"""OpenAI-compatible endpoints: one call in, one raw body out. Sorts failures; retries and records are the caller's."""

import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx2
import msgspec
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, DefaultAioHttpClient, Timeout
from pydantic import ValidationError

from builder.config import Endpoint, Teacher
from builder.errors import EndpointError, FatalReply, UsageError

# A long chain of thought takes as long as it takes: no total limit, but a silent connection ends.
_TIMEOUT = Timeout(None, connect=15.0, read=1800.0, write=120.0, pool=None)
_NO_KEY = "none"
_STOPS_THE_RUN = frozenset({401, 402, 403, 404, 405})
_WORTH_A_RETRY = frozenset({408, 409, 425, 429})


class RefusedError(EndpointError):
    """The endpoint refuses every request of this run: key, address or model name are wrong."""


class RejectedError(FatalReply):
    """The endpoint turns this one request down; nothing was paid."""


class RetryableError(EndpointError):
    """The same request may succeed later. `retry_after_s` is the endpoint's own wish, if any."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model] | None = None


@dataclass
class Lane:
    """One endpoint with its client and the number of requests that it was chosen for.

    `gives_token_ids` turns false once the endpoint refuses vLLM's flag for them.
    """

    endpoint: Endpoint
    client: AsyncOpenAI
    key: str = field(repr=False)
    in_flight: int = 0
    gives_token_ids: bool = True

    @property
    def load(self) -> float:
        return self.in_flight / self.endpoint.max_in_flight


@dataclass
class Client:
    """All endpoints of a run: `async with Client(endpoints) as client: body = await client.post(route, payload)`."""

    endpoints: Sequence[Endpoint]
    lanes: list[Lane] = field(default_factory=list)

    async def __aenter__(self) -> "Client":
        keys = [api_key(endpoint) for endpoint in self.endpoints]  # all of them before anything is opened
        for endpoint, key in zip(self.endpoints, keys, strict=True):
            limits = httpx2.Limits(max_connections=endpoint.max_in_flight + 2, max_keepalive_connections=None)
            transport = DefaultAioHttpClient(limits=limits, timeout=_TIMEOUT, follow_redirects=False)
            client = AsyncOpenAI(
                base_url=endpoint.url, api_key=key, max_retries=0, timeout=_TIMEOUT, http_client=transport
            )
            self.lanes.append(Lane(endpoint, client, key))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self.lanes:
            await lane.client.close()

    @property
    def capacity(self) -> int:
        """Requests that may be in flight at once, over all endpoints."""
        return sum(endpoint.max_in_flight for endpoint in self.endpoints)

    @contextmanager
    def taken(self, lane: Lane | None = None) -> Iterator[Lane]:
        """That endpoint, else the least loaded one. It counts as loaded at once, before anything is sent."""
        lane = lane or min(self.lanes, key=lambda lane: lane.load)
        lane.in_flight += 1
        try:
            yield lane
        finally:
            lane.in_flight -= 1

    async def models(self, lane: Lane | None = None) -> list[str]:
        """Names that the endpoint lists, none where its list cannot be read; raises EndpointError when it is down."""
        lane = lane or self.lanes[0]
        with _sorted_errors(lane):
            raw = await lane.client.with_options(timeout=30.0).models.with_raw_response.list()
        try:
            return [model.id for model in msgspec.json.decode(raw.content, type=_Models).data or []]
        except (msgspec.DecodeError, UnicodeDecodeError):
            return []

    async def post(self, route: str, payload: dict[str, Any], lane: Lane | None = None) -> bytes:
        """POST a route below the base address: raw body. Raises RetryableError, RefusedError or RejectedError."""
        lane = lane or self.lanes[0]
        with _sorted_errors(lane):
            raw = await lane.client.post(route, body=payload, cast_to=httpx2.Response)
            return bytes(raw.content)


def endpoints_of(teacher: Teacher) -> list[Endpoint]:
    """Endpoints of the recipe, else OPENAI_BASE_URL. Raises UsageError when neither is there."""
    if teacher.endpoints:
        return teacher.endpoints
    url = os.environ.get("OPENAI_BASE_URL")
    if not url:
        raise UsageError(
            f"No endpoint for teacher {teacher.model!r}: the recipe names none and OPENAI_BASE_URL is not set. "
            "Set it, or pass teacher.endpoints.0.url=http://host:port/v1."
        )
    try:
        return [Endpoint(url=url)]
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"OPENAI_BASE_URL is no address such as http://host:port/v1: {said}.") from None


def api_key(endpoint: Endpoint) -> str:
    """The key from the environment; servers on one's own machines need none, so its absence is no error here."""
    if endpoint.api_key_env is not None:
        key = os.environ.get(endpoint.api_key_env)
        if not key:
            raise UsageError(
                f"Endpoint {endpoint.url} takes its key from {endpoint.api_key_env}, which is not set. Export it first."
            )
        return key
    return os.environ.get("OPENAI_API_KEY") or _NO_KEY


def backoff_s(attempt: int, retry_after_s: float | None) -> float:
    """Seconds before the next try: the endpoint's wish up to two minutes, else full jitter up to 2, 4, 8 … 60 s.

    A wish is met up to a second late, so that a thousand refused requests do not all come back at once.
    """
    if retry_after_s is not None:
        return min(max(retry_after_s, 0.0), 120.0) + random.uniform(0, 1)
    return random.uniform(0, min(60.0, 2.0**attempt))


class _sorted_errors:  # noqa: N801 - reads as a phrase
    """openai's exceptions as ours, with the status and the beginning of the message; never with the key."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.url = lane.endpoint.url

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, APIStatusError):
            raise _status_error(self.lane, error) from None
        if isinstance(error, APITimeoutError) and isinstance(error.__cause__, httpx2.ConnectTimeout):
            # the aiohttp transport names every failed connection so, refused ones and unknown hosts too
            raise RetryableError(f"{self.url} cannot be reached ({error.__cause__})") from None
        if isinstance(error, APITimeoutError):
            raise RetryableError(f"{self.url} did not answer in time") from None
        if isinstance(error, APIConnectionError):
            cause = error.__cause__ or error
            raise RetryableError(f"{self.url} cannot be reached ({type(cause).__name__}: {cause})") from None
        if isinstance(error, httpx2.HTTPError | ConnectionError | TimeoutError):
            raise RetryableError(f"{self.url} broke off ({type(error).__name__}: {error})") from None


def _status_error(lane: Lane, error: APIStatusError) -> EndpointError:
    status = error.status_code
    text = error.response.text
    if lane.key != _NO_KEY:
        text = text.replace(lane.key, "***")  # some servers repeat the key that they refuse
    said = " ".join(text.split())[:300]
    message = f"{lane.endpoint.url} answered {status}: {said}"
    if status in _WORTH_A_RETRY or status >= 500:
        if "insufficient_quota" in said:
            return RefusedError(message + ". The account has no money left; nothing else will succeed.")
        return RetryableError(message, _retry_after(error))
    if status in _STOPS_THE_RUN:
        return RefusedError(message)
    return RejectedError(message)


def _retry_after(error: APIStatusError) -> float | None:
    try:
        wish = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return None if math.isnan(wish) else wish
