import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from endpoint import DROP, endpoint, reply_to

from builder import client as clients
from builder.client import AbsentError, BusyError, Client, RefusedError, RejectedError, RetryableError, endpoints_of
from builder.config import Teacher
from builder.errors import EndpointError, FatalReply, UsageError
from builder.section import Endpoint

PAYLOAD = {"model": "toy", "messages": [{"role": "user", "content": "q?"}], "max_tokens": 9}
WIRE_FILE = Path(__file__).parents[1] / "data/wire_replies.jsonl"
WIRE = [json.loads(line) for line in WIRE_FILE.read_text(encoding="utf-8").split("\n") if line]


def call(url: str, **options: Any) -> bytes:
    async def once() -> bytes:
        async with Client([Endpoint(url=url, **options)]) as client:
            return await client.post("/chat/completions", PAYLOAD, client.lanes[0])

    return asyncio.run(once())


def failure(said: Any, **options: Any) -> EndpointError:
    with endpoint(script=lambda ask: said() if callable(said) else said) as server:
        with pytest.raises(EndpointError) as caught:
            call(server.url, **options)
        assert len(server.asks) == 1  # the openai client's own retries are off
        return caught.value


def test_a_body_comes_back_byte_for_byte() -> None:
    raw = b'  {"choices": NaN, "half": '
    with endpoint(script=lambda ask: raw) as server:
        assert call(server.url) == raw


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RejectedError),
        (401, RefusedError),
        (402, RefusedError),
        (403, RefusedError),
        (404, RefusedError),
        (408, RetryableError),
        (409, RetryableError),
        (413, RejectedError),
        (422, RejectedError),
        (425, RetryableError),
        (429, BusyError),
        (500, RetryableError),
        (503, RetryableError),
        (529, RetryableError),
    ],
)
def test_a_status_is_sorted_by_what_helps(status: int, kind: type[EndpointError]) -> None:
    error = failure(status)
    assert type(error) is kind
    assert f"answered {status}: " in str(error)


REAL = {400: RejectedError, 401: RefusedError, 404: RefusedError, 429: BusyError}


@pytest.mark.parametrize("row", [row for row in WIRE if row["status"] != 200], ids=lambda row: row["id"])
def test_real_errors_are_sorted_by_their_status(row: dict[str, Any]) -> None:
    error = failure(lambda: web.Response(status=row["status"], text=row["body"], content_type="application/json"))
    assert type(error) is REAL[row["status"]]


def test_an_empty_account_stops_although_its_status_says_try_again() -> None:
    error = failure(lambda: web.json_response({"error": {"code": "insufficient_quota"}}, status=429))
    assert isinstance(error, RefusedError)
    assert "no money left" in str(error)


@pytest.mark.parametrize("status", [400, 403, 429, 500])
@pytest.mark.parametrize(
    "said",
    [
        b'{"error": {"code": "insufficient_quota", "message": "no"}}',
        b'{"error": {"type": "insufficient_quota"}}',
        b'[{"error": {"message": "insufficient_quota: pay first"}}]',
        b'{"object": "error", "type": "insufficient_quota"}',
        b'{"error": "insufficient_quota"}',
        b"<p>insufficient_quota</p>",
    ],
)
def test_an_empty_account_stops_in_any_status_and_form(status: int, said: bytes) -> None:
    assert isinstance(failure(lambda: web.Response(status=status, body=said)), RefusedError)


def test_an_empty_account_stops_even_as_a_200() -> None:
    assert isinstance(failure(b'{"error": {"code": "insufficient_quota"}}'), RefusedError)


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (400, b'{"error": {"code": 400, "message": "bad"}, "input": "what is insufficient_quota?"}', RejectedError),
        (429, b'{"error": {"code": "rate_limit_exceeded"}, "asked": "insufficient_quota"}', BusyError),
    ],
)
def test_a_prompt_about_empty_accounts_is_none(status: int, said: bytes, kind: type[EndpointError]) -> None:
    assert type(failure(lambda: web.Response(status=status, body=said))) is kind


def test_a_reply_about_empty_accounts_is_a_reply() -> None:
    raw = b'{"choices": [{"message": {"content": "insufficient_quota"}}]}'
    with endpoint(script=lambda ask: raw) as server:
        assert call(server.url) == raw


def wish_of(status: int = 429, **headers: str) -> float | None:
    error = failure(lambda: web.Response(status=status, headers={k.replace("_", "-"): v for k, v in headers.items()}))
    assert isinstance(error, RetryableError)
    return error.retry_after_s


@pytest.mark.parametrize(("header", "wish"), [("7", 7.0), ("0.5", 0.5), ("nan", None), ("soon", None), ("", None)])
def test_retry_after_is_read_in_seconds(header: str, wish: float | None) -> None:
    assert wish_of(retry_after=header) == wish


def test_retry_after_is_read_in_milliseconds_first() -> None:
    assert wish_of(retry_after_ms="250", retry_after="7") == 0.25


def test_retry_after_is_read_as_a_date_by_the_endpoints_clock() -> None:
    until = "Wed, 21 Oct 2020 07:28:30 GMT"
    assert wish_of(retry_after=until, date="Wed, 21 Oct 2020 07:28:00 GMT") == 30.0
    assert wish_of(retry_after=until, date="no date") < 0  # type: ignore[operator]


@pytest.mark.parametrize("status", [503, 529])
def test_a_503_that_asks_for_a_pause_is_busy(status: int) -> None:
    error = failure(lambda: web.Response(status=status, headers={"Retry-After": "3"}))
    assert type(error) is BusyError


def test_a_broken_connection_is_worth_another_try() -> None:
    assert isinstance(failure(DROP), RetryableError)


def test_a_body_that_breaks_off_in_the_middle_is_worth_another_try() -> None:
    def half() -> web.Response:
        return web.Response(body=b'{"choices"', headers={"Content-Length": "5000", "Content-Encoding": "gzip"})

    assert isinstance(failure(half), RetryableError)


def test_nobody_at_the_address_is_the_endpoints_state() -> None:
    with pytest.raises(AbsentError, match="cannot be reached"):
        call("http://127.0.0.1:9/v1")


def test_a_silent_endpoint_ends_in_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_TIMEOUT", clients.Timeout(None, connect=5, read=0.1, write=5, pool=None))
    with endpoint(delay_s=2) as server, pytest.raises(RetryableError, match="did not answer in time"):
        call(server.url)


def test_the_key_is_sent_and_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-hunter2-hunter2")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    with endpoint(script=lambda ask: web.Response(status=401, text=f"wrong key: {ask.authorization}")) as server:
        with pytest.raises(RefusedError) as caught:
            call(server.url, api_key_env="TEACHER_KEY")
        assert server.asks[0].authorization == "Bearer sk-hunter2-hunter2"
    assert "hunter2" not in str(caught.value)
    lane = clients.Lane(Endpoint(url="http://h/v1"), None, "sk-hunter2")  # type: ignore[arg-type]
    assert "hunter2" not in repr(lane)


def test_a_named_key_that_is_not_set_is_a_usage_error_before_anything_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(UsageError, match="TEACHER_KEY, which is not set"):
        call("http://127.0.0.1:9/v1", api_key_env="TEACHER_KEY")


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://me:hunter2@host/v1"])
def test_a_base_url_that_cannot_be_used_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UsageError, match="OPENAI_BASE_URL") as caught:
        endpoints_of(Teacher(model="m"))
    assert "hunter2" not in str(caught.value)


def test_the_recipes_endpoints_win_over_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://other:1/v1/")
    assert [each.url for each in endpoints_of(Teacher(model="m"))] == ["http://other:1/v1"]
    own = [Endpoint(url="http://own:1/v1")]
    assert endpoints_of(Teacher(model="m", endpoints=own)) == own


def test_without_any_endpoint_the_error_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UsageError, match=r"teacher\.endpoints\.0\.url="):
        endpoints_of(Teacher(model="m"))


@pytest.mark.parametrize("listed", [b"<html>", b"{}", b'{"data": null}', b'{"data": [{"name": "toy"}]}', b"[]"])
def test_a_list_of_models_that_cannot_be_read_is_no_list(listed: bytes) -> None:
    async def names(url: str) -> list[str]:
        async with Client([Endpoint(url=url)]) as client:
            return await client.models()

    with endpoint() as server:
        server.models_body = listed
        assert asyncio.run(names(server.url)) == []


class Endless:
    """Chunks of a body that is made while it is sent; counts them."""

    def __init__(self, chunks: int) -> None:
        self.left = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.left:
            self.left -= 1
            yield bytes(2**20)


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_300_mb_is_refused_and_not_read(announced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "MAX_BODY_BYTES", 8 * 2**20)
    body = Endless(300)
    length = {"Content-Length": str(300 * 2**20)} if announced else {}
    error = failure(lambda: web.Response(body=body, headers=length))
    assert isinstance(error, FatalReply)
    assert "more than 8,388,608 bytes" in str(error)
    assert body.left > 200


def test_a_small_body_that_unpacks_to_a_large_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "MAX_BODY_BYTES", 2**20)
    bomb = gzip.compress(bytes(2**23))
    error = failure(lambda: web.Response(body=bomb, headers={"Content-Encoding": "gzip"}))
    assert isinstance(error, FatalReply)


def test_of_an_endless_error_only_the_beginning_is_read() -> None:
    body = Endless(300)
    assert isinstance(failure(lambda: web.Response(status=500, body=body)), RetryableError)
    assert body.left > 200


def test_a_compressed_body_comes_back_unpacked() -> None:
    packed = gzip.compress(b'{"choices": []}')
    with endpoint(script=lambda ask: web.Response(body=packed, headers={"Content-Encoding": "gzip"})) as server:
        assert call(server.url) == b'{"choices": []}'


def test_a_connection_serves_again_after_a_reply_and_after_an_error() -> None:
    async def several(url: str) -> None:
        async with Client([Endpoint(url=url)]) as client:
            for _ in range(3):
                await client.post("/chat/completions", PAYLOAD)
                with pytest.raises(RetryableError):
                    await client.post("/chat/completions", PAYLOAD)

    with endpoint(script=lambda ask: 500 if ask.number % 2 else None) as server:
        asyncio.run(several(server.url))
        assert len({ask.peer for ask in server.asks}) == 1


def test_a_reply_may_drip_for_longer_than_silence_may_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_TIMEOUT", clients.Timeout(None, connect=5, read=0.5, write=5, pool=None))

    class Drip:
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for byte in b'{"drip": 1}':
                await asyncio.sleep(0.1)
                yield bytes([byte])

    with endpoint(script=lambda ask: web.Response(body=Drip())) as server:
        assert call(server.url) == b'{"drip": 1}'


def test_a_reply_that_stalls_in_the_middle_ends_in_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_TIMEOUT", clients.Timeout(None, connect=5, read=0.2, write=5, pool=None))

    class Stall:
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b'{"choices'
            await asyncio.sleep(2)

    with endpoint(script=lambda ask: web.Response(body=Stall())) as server:
        with pytest.raises(RetryableError, match="did not answer in time") as caught:
            call(server.url)
        assert caught.value.overloaded


def test_the_default_reply_depends_on_messages_and_seed_alone() -> None:
    assert reply_to(PAYLOAD) == reply_to(PAYLOAD | {"temperature": 1.0})
    assert reply_to(PAYLOAD) != reply_to(PAYLOAD | {"seed": 1})


def test_a_silent_connection_ends_but_not_before_a_long_reply_is_made() -> None:
    """65,536 tokens at 10 a second; nobody waits for a dead server for a day."""
    assert 65_536 / 10 <= clients._TIMEOUT.read <= 4 * 3600
    assert clients._TIMEOUT.connect < 60
