import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from endpoint import DROP, endpoint, reply_to

from builder import client as clients
from builder.client import Client, RefusedError, RejectedError, RetryableError, backoff_s, endpoints_of
from builder.config import Endpoint, Teacher
from builder.errors import EndpointError, UsageError

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
        (429, RetryableError),
        (500, RetryableError),
        (503, RetryableError),
        (529, RetryableError),
    ],
)
def test_a_status_is_sorted_by_what_helps(status: int, kind: type[EndpointError]) -> None:
    error = failure(status)
    assert type(error) is kind
    assert f"answered {status}: " in str(error)


REAL = {400: RejectedError, 401: RefusedError, 404: RefusedError, 429: RetryableError}


@pytest.mark.parametrize("row", [row for row in WIRE if row["status"] != 200], ids=lambda row: row["id"])
def test_real_errors_are_sorted_by_their_status(row: dict[str, Any]) -> None:
    error = failure(lambda: web.Response(status=row["status"], text=row["body"], content_type="application/json"))
    assert type(error) is REAL[row["status"]]


def test_an_empty_account_stops_although_its_status_says_try_again() -> None:
    error = failure(lambda: web.json_response({"error": {"code": "insufficient_quota"}}, status=429))
    assert isinstance(error, RefusedError)
    assert "no money left" in str(error)


@pytest.mark.parametrize(
    ("header", "wish"), [("7", 7.0), ("0.5", 0.5), ("nan", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("", None)]
)
def test_retry_after_is_read_in_seconds(header: str, wish: float | None) -> None:
    error = failure(lambda: web.Response(status=429, headers={"Retry-After": header}))
    assert isinstance(error, RetryableError)
    assert error.retry_after_s == wish


@pytest.mark.parametrize(
    ("wish", "low", "high"), [(7.0, 7, 8), (-3.0, 0, 1), (1e9, 120, 121), (float("inf"), 120, 121), (None, 0, 60)]
)
def test_back_off_honours_a_wish_within_reason(wish: float | None, low: float, high: float) -> None:
    for attempt in (1, 3, 50):
        assert low <= backoff_s(attempt, wish) <= high


def test_a_broken_connection_is_worth_another_try() -> None:
    assert isinstance(failure(DROP), RetryableError)


def test_a_body_that_breaks_off_in_the_middle_is_worth_another_try() -> None:
    def half() -> web.Response:
        return web.Response(body=b'{"choices"', headers={"Content-Length": "5000", "Content-Encoding": "gzip"})

    assert isinstance(failure(half), RetryableError)


def test_nobody_at_the_address_is_worth_another_try() -> None:
    with pytest.raises(RetryableError, match="cannot be reached"):
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


def test_the_least_loaded_endpoint_is_taken_and_counts_as_loaded_at_once() -> None:
    small, large = (Endpoint(url=f"http://{name}/v1", max_in_flight=size) for name, size in (("s", 1), ("l", 3)))
    client = Client([small, large])
    client.lanes = [clients.Lane(each, None, "none") for each in (small, large)]  # type: ignore[arg-type]
    taken = [client.taken() for _ in range(4)]
    names = [one.__enter__().endpoint.url[7] for one in taken]
    assert sorted(names) == ["l", "l", "l", "s"]
    for one in taken:
        one.__exit__(None, None, None)
    assert [lane.in_flight for lane in client.lanes] == [0, 0]


def test_the_default_reply_depends_on_messages_and_seed_alone() -> None:
    assert reply_to(PAYLOAD) == reply_to(PAYLOAD | {"temperature": 1.0})
    assert reply_to(PAYLOAD) != reply_to(PAYLOAD | {"seed": 1})
