"""OpenAI-compatible endpoints: one call in, one raw body out. Sorts failures; retries and records are the caller's."""

import math
import os
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, cast

import aiohttp
import httpx2
import msgspec
from openai import APIConnectionError, AsyncOpenAI, AsyncStream, DefaultAioHttpClient, Timeout
from pydantic import ValidationError

from builder.config import Teacher
from builder.errors import EndpointError, FatalReply, UsageError
from builder.flow import Flow, Gate
from builder.open_files import allow_connections
from builder.room import Held, Room
from builder.section import Endpoint

# No total limit, but a silent connection ends. Replies are not streamed, so all of a reply's making is silence: two
# hours are 65,536 tokens at 9 a second. Too long costs waiting, once; too short pays for the same tokens six times.
_TIMEOUT = Timeout(None, connect=15.0, read=7200.0, write=120.0, pool=None)
MAX_BODY_BYTES = 256 * 2**20
"""A reply of 65,536 tokens with 20 alternatives each is about 150 MB, with one 12 MB."""
_UNANNOUNCED = 2**20
"""Bytes that an answer of no announced size is taken to have."""
_ERROR_BYTES = 2**16
_NO_KEY = "none"
_NO_MONEY = "insufficient_quota"
_STOPS_THE_RUN = frozenset({401, 402, 403, 404, 405})
_WORTH_A_RETRY = frozenset({408, 409, 425})
_MAY_ASK_FOR_A_PAUSE = frozenset({503, 529})
_OVERLOADED = frozenset({502, 503, 504, 529})


class RefusedError(EndpointError):
    """The endpoint refuses every request of this run: key, address or model name are wrong."""

    kind = "refused"


class RejectedError(FatalReply):
    """The endpoint turns this one request down; nothing was paid."""

    kind = "rejected request"


class RetryableError(EndpointError):
    """The same request may succeed later. `retry_after_s` is the endpoint's own wish, if any.

    `overloaded` where fewer requests at a time may help: timeouts, broken connections.
    """

    kind = "server or network"

    def __init__(self, message: str, retry_after_s: float | None = None, *, overloaded: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.overloaded = overloaded


class BusyError(RetryableError):
    """The endpoint takes no request now, whichever it is: 429, or a pause that it asks for."""

    kind = "busy"


class AbsentError(BusyError):
    """Nobody answers at the address."""

    kind = "nobody there"


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model] | None = None


@dataclass
class Lane:
    """One endpoint with its client and how much it bears.

    `gives_token_ids` turns false once the endpoint refuses vLLM's flag for them. `proven` once it gave a reply that
    this run can use; before that its refusals say nothing about a request.
    """

    endpoint: Endpoint
    client: AsyncOpenAI
    key: str = field(repr=False)
    gives_token_ids: bool = True
    proven: bool = False
    flow: Flow = field(init=False)

    def __post_init__(self) -> None:
        self.flow = Flow(self.endpoint.max_in_flight)


@dataclass
class Client:
    """All endpoints of a run: `async with Client(endpoints) as client: body = await client.post(route, payload)`."""

    endpoints: Sequence[Endpoint]
    lanes: list[Lane] = field(default_factory=list)
    room: Room = field(default_factory=Room)
    gate: Gate[Lane] = field(init=False)

    def __post_init__(self) -> None:
        self.gate = Gate(self.lanes)

    async def __aenter__(self) -> "Client":
        keys = [api_key(endpoint) for endpoint in self.endpoints]  # all of them before anything is opened
        allow_connections(self.capacity)
        for endpoint, key in zip(self.endpoints, keys, strict=True):
            limits = httpx2.Limits(max_connections=endpoint.max_in_flight + 2, max_keepalive_connections=None)
            transport = DefaultAioHttpClient(limits=limits, timeout=_TIMEOUT, follow_redirects=False)
            client = AsyncOpenAI(
                base_url=endpoint.url, api_key=key, max_retries=0, timeout=_TIMEOUT, http_client=transport
            )
            lane = Lane(endpoint, client, key)
            transport.event_hooks = {"response": [_Hook(lane)]}
            self.lanes.append(lane)
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

    async def models(self, lane: Lane | None = None) -> list[str]:
        """Names that the endpoint lists, none where its list cannot be read; raises EndpointError when it is down."""
        lane = lane or self.lanes[0]
        client = lane.client.with_options(timeout=30.0)
        with sorted_errors(lane):
            listed = await client.get("/models", cast_to=httpx2.Response, stream=True, stream_cls=AsyncStream[Any])
            body = await _read(lane, listed)
        try:
            return [model.id for model in msgspec.json.decode(body, type=_Models).data or []]
        except (msgspec.DecodeError, UnicodeDecodeError):
            return []

    async def post(
        self, route: str, payload: dict[str, Any], lane: Lane | None = None, held: Held | None = None
    ) -> bytes:
        """POST a route below the base address: raw body, read once `held` has room for it.

        Raises RetryableError, RefusedError or RejectedError; FatalReply for a body above MAX_BODY_BYTES.
        """
        lane = lane or self.lanes[0]
        with sorted_errors(lane):
            answer = await lane.client.post(
                route, body=payload, cast_to=httpx2.Response, stream=True, stream_cls=AsyncStream[Any]
            )
            return await _read(lane, answer, held)


def endpoints_of(teacher: Teacher, section: str = "teacher") -> list[Endpoint]:
    """Endpoints of the recipe's section, else OPENAI_BASE_URL. Raises UsageError when neither is there."""
    if teacher.endpoints:
        return teacher.endpoints
    url = os.environ.get("OPENAI_BASE_URL")
    if not url:
        raise UsageError(
            f"No endpoint for {section} {teacher.model!r}: the recipe names none and OPENAI_BASE_URL is not set. "
            f"Set it, or pass {section}.endpoints.0.url=http://host:port/v1."
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


async def _read(lane: Lane, answer: object, held: Held | None = None) -> bytes:
    """The decoded body, refused as soon as it is known to be too large."""
    response = cast("httpx2.Response", answer)  # `cast_to` decides, which openai's types do not know of streams
    size, parts = 0, []
    async with aclosing(response), aclosing(response.aiter_bytes()) as body:
        if _announced(response) > MAX_BODY_BYTES:
            raise _too_large(lane)
        if held is not None:
            await held.take(_announced(response) or _UNANNOUNCED)
        async for part in body:
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise _too_large(lane)
            parts.append(part)
    whole = b"".join(parts)
    if size < _ERROR_BYTES and _NO_MONEY.encode() in whole and b'"choices"' not in whole and _no_money(whole):
        raise _refused(lane, "200, with an error inside", whole)
    return whole


def _announced(response: httpx2.Response) -> int:
    said = response.headers.get("content-length", "")
    return int(said) if said.isdecimal() else 0


def _too_large(lane: Lane) -> FatalReply:
    return FatalReply(
        f"{lane.endpoint.url} sent an answer of more than {MAX_BODY_BYTES:,} bytes, which no reply needs; it was not "
        "read to its end, so that memory lasts. Check what answers at this address, or lower generation.max_tokens"
    )


class sorted_errors:  # noqa: N801 - reads as a phrase
    """openai's and the transport's exceptions as ours; never with the key."""

    def __init__(self, lane: Lane) -> None:
        self.url = lane.endpoint.url

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cause = error.__cause__ or error if isinstance(error, APIConnectionError) else error
        if not isinstance(cause, httpx2.HTTPError | APIConnectionError | ConnectionError | TimeoutError):
            return
        below = cause.__cause__ or cause  # the aiohttp transport names most of its errors ConnectTimeout
        if isinstance(below, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            raise AbsentError(f"{self.url} cannot be reached ({below})", overloaded=True) from None
        if isinstance(below, TimeoutError):
            raise RetryableError(f"{self.url} did not answer in time", overloaded=True) from None
        raise RetryableError(f"{self.url} broke off ({type(below).__name__}: {below})", overloaded=True) from None


@dataclass(frozen=True)
class _Hook:
    """Sees each response before its body is read; raises what an error status means, having read its beginning."""

    lane: Lane

    async def __call__(self, response: httpx2.Response) -> None:
        if response.is_success:
            return
        size, parts = 0, []
        async with aclosing(response.aiter_bytes()) as body:
            async for part in body:
                parts.append(part)
                size += len(part)
                if size >= _ERROR_BYTES:
                    break
        raise _status_error(self.lane, response, b"".join(parts)[:_ERROR_BYTES])


def _status_error(lane: Lane, response: httpx2.Response, body: bytes) -> EndpointError:
    status = response.status_code
    if _no_money(body):
        return _refused(lane, status, body)
    message = _said(lane, status, body)
    wish = _retry_after_s(response)
    if status == 429 or (status in _MAY_ASK_FOR_A_PAUSE and wish is not None):
        return BusyError(message, wish, overloaded=True)
    if status in _WORTH_A_RETRY or status >= 500:
        return RetryableError(message, wish, overloaded=status in _OVERLOADED)
    if status in _STOPS_THE_RUN:
        key = f"the key in {lane.endpoint.api_key_env or 'OPENAI_API_KEY'}"
        doubtful = {401: key, 403: key, 402: "the account"}.get(status, "the address and the model's name")
        return RefusedError(f"{message}. Check {doubtful}, then rerun: what is stored is not asked again.")
    return RejectedError(message)


def _refused(lane: Lane, status: int | str, body: bytes) -> RefusedError:
    return RefusedError(
        f"{_said(lane, status, body)}. The account has no money left; nothing else will succeed. "
        "Pay in, then rerun: what is stored is not asked again."
    )


def _said(lane: Lane, status: int | str, body: bytes) -> str:
    """Status and the beginning of what the endpoint said; some servers repeat the key that they refuse."""
    text = body.decode(errors="replace")
    if lane.key != _NO_KEY:
        text = text.replace(lane.key, "***")
    return f"{lane.endpoint.url} answered {status}: {' '.join(text.split())[:300]}"


def _no_money(body: bytes) -> bool:
    """Whether an error's code, type or message says that the account is empty; anything around them may be a prompt."""
    if _NO_MONEY.encode() not in body:
        return False
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return True
    said = said[0] if isinstance(said, list) and said else said
    error = said.get("error", said) if isinstance(said, dict) else said
    facts = [error.get(name) for name in ("code", "type", "message")] if isinstance(error, dict) else [error]
    return any(_NO_MONEY in fact for fact in facts if isinstance(fact, str))


def _retry_after_s(response: httpx2.Response) -> float | None:
    """The pause that the endpoint asks for: `retry-after-ms`, else Retry-After in seconds or as a date; raw."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            wish = float(response.headers.get(name, "")) * unit
        except ValueError:
            continue
        return None if math.isnan(wish) else wish
    until = _date_s(response.headers.get("retry-after"))
    if until is None:
        return None
    return until - (_date_s(response.headers.get("date")) or time.time())  # by the endpoint's clock, if it shows it


def _date_s(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError):
        return None
