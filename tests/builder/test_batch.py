"""`teacher.batch`: the real client against a server of the protocol, and every fault that it can meet."""

import json
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoint import wait_until
from loopback_batches import DROP, DROP_AFTER, Batches, batch_server
from pydantic import ValidationError
from test_generate import questions
from typer.testing import CliRunner

from builder import batch, batch_journal, flow, journal
from builder.batch_api import BatchApi
from builder.batch_config import batch_route, price_factor_of
from builder.batch_lines import read_line
from builder.budget import open_budget
from builder.cli import app
from builder.config import Recipe
from builder.errors import EndpointError
from builder.generate import generate
from builder.release_manifest import calls
from builder.rowset import rowset_hash
from builder.show import note
from builder.store import Run
from builder.tally import MAX_TRIES, Tally


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "backoff_s", lambda attempt, wish: 0.0)


PLAIN: dict[str, Any] = {}


def recipe(url: str, batch: dict[str, Any] | None = PLAIN, selector: str = "random", **generation: Any) -> Recipe:
    teacher: dict[str, Any] = {
        "model": "toy",
        "revision": "r1",
        "endpoints": [{"url": url}],
        "prices": {"input": 1.0, "output": 10.0},
    }
    if batch is not None:
        teacher["batch"] = {"poll_s": 0.01, **batch}
    return Recipe.model_validate(
        {
            "name": "toy",
            "teacher": teacher,
            "generation": {"samples": 2, "max_tokens": 64, **generation},
            "selection": {"selector": selector, "rules": []},
        }
    )


def content(run: Run) -> dict[str, str]:
    return {name: rowset_hash(run.read(name), run.content_columns(name)) for name in ("responses", "logprobs")}


def test_batches_make_the_tables_that_online_requests_make(tmp_path: Path) -> None:
    online, batched = Run(tmp_path / "online"), Run(tmp_path / "batched")
    with batch_server() as server:
        generate(online, recipe(server.url, None), questions(5))
        tally = generate(batched, recipe(server.url, {"max_requests": 6}), questions(5))
    assert tally.replies == tally.total == 20
    assert server.sizes == [3, 6, 6, 5]
    assert content(online) == content(batched)
    assert set(server.billed.values()) == {1}


def asked(run: Run, server: Batches, number: int = 5, **changes: Any) -> Tally:
    return generate(run, recipe(server.url, **changes), questions(number))


def whole(run: Run, number: int = 20) -> None:
    """Every reply is in the tables, once."""
    ids, scored = (run.read(name)["response_id"].to_list() for name in ("responses", "logprobs"))
    assert len(ids) == len(set(ids)) == len(set(scored)) == number


def states(run: Run) -> list[str]:
    return [row[0] for row in batch_journal._rows(run.journal_dir / "000.sqlite", "select state from batches", ())]


EVERYWHERE = [
    (route, fault)
    for route in ("POST /files", "POST /batches", "GET /batches/{id}", "GET /files/{id}/content")
    for fault in (429, 500, DROP, DROP_AFTER, b"<html>keep-alive</html>")
    if not (route.endswith("content") and isinstance(fault, bytes))
]


@pytest.mark.parametrize(("route", "fault"), EVERYWHERE)
def test_trouble_of_any_route_costs_neither_a_reply_nor_a_second_payment(
    tmp_path: Path, route: str, fault: Any
) -> None:
    run = Run(tmp_path / "run")
    with batch_server(faults={route: [fault, fault]}) as server:
        tally = asked(run, server)
    assert tally.replies == 20
    whole(run)
    assert set(server.billed.values()) == {1}
    assert server.sizes == [3, 17]


@pytest.mark.parametrize("fault", [500, DROP_AFTER])
def test_a_create_that_seemed_to_fail_is_looked_for_in_the_list_and_taken_up(tmp_path: Path, fault: Any) -> None:
    with batch_server(faults={"POST /batches": [None, fault], "GET /batches": [500]}) as server:
        assert asked(Run(tmp_path / "run"), server).replies == 20
    assert "GET /batches" in server.calls
    assert len(server.batches) == 2


def test_two_batches_of_one_reference_are_one_too_many_and_the_younger_is_cancelled(tmp_path: Path) -> None:
    """A list that lags behind shows the first only after the second is made."""
    late = iter([True, True, False, False])

    class Lagging(Batches):
        async def listed(self, request: Any) -> Any:
            if next(late, False):
                from aiohttp import web

                return web.json_response({"object": "list", "data": [], "has_more": False})
            return await super().listed(request)

    import loopback_batches

    original, loopback_batches.Batches = loopback_batches.Batches, Lagging  # type: ignore[misc]
    try:
        with batch_server(faults={"POST /batches": [DROP_AFTER, DROP_AFTER]}, polls=2) as server:
            assert asked(Run(tmp_path / "run"), server, 1).replies == 4
    finally:
        loopback_batches.Batches = original  # type: ignore[misc]
    assert "POST /batches/{id}/cancel" in server.calls
    assert set(server.billed.values()) == {1}


class Killed(BaseException):
    """The process is gone."""


def kill_at(monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> Callable[[], int]:
    """The `at`-th call of the batch API ends the process before it is sent, or once the endpoint has done it."""
    number = count(1)
    last = [0]

    def dying(original: Any) -> Any:
        async def call(self: BatchApi, *values: Any) -> Any:
            last[0] = next(number)
            if last[0] == at and not after:
                raise Killed
            answer = await original(self, *values)
            if last[0] == at:
                raise Killed
            return answer

        return call

    def dying_lines(original: Any) -> Any:
        async def lines(self: BatchApi, file_id: str) -> Any:
            last[0] = next(number)
            async for line in original(self, file_id):
                if last[0] == at and not after:
                    raise Killed
                yield line
                if last[0] == at:
                    raise Killed

        return lines

    for name in ("upload", "create", "get", "find"):
        monkeypatch.setattr(BatchApi, name, dying(getattr(BatchApi, name)))
    monkeypatch.setattr(BatchApi, "lines", dying_lines(BatchApi.lines))
    return lambda: last[0]


@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_dies_at_any_call_is_gone_on_with_and_nothing_is_billed_twice(
    tmp_path: Path, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = 0
    for at in count(1):
        run = Run(tmp_path / f"run-{at}")
        with batch_server() as server:
            with monkeypatch.context() as patch:
                reached = kill_at(patch, at, after=after)
                try:
                    asked(run, server, 1)
                except Killed:
                    died += 1
                if reached() < at:
                    break
            tally = asked(run, server, 1)
        assert tally.done == 4
        whole(run, 4)
        assert set(server.billed.values()) == {1}, f"call {at}"
        assert len(server.batches) <= 3  # a first batch whose results were half taken proves nothing
    assert died >= 8


def test_a_batch_that_expires_gives_what_it_has_and_only_the_rest_goes_into_the_next(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    seen: set[int] = set()

    def half(number: int, body: dict[str, Any]) -> Any:
        first = body["seed"] not in seen
        seen.add(body["seed"])
        return "expired" if number == 1 and first and body["seed"] % 2 else None

    with batch_server(fate=half, status=lambda number: "expired" if number == 1 else "completed") as server:
        tally = asked(run, server)
    assert tally.replies == 20
    whole(run)
    assert set(server.billed.values()) == {1}
    assert server.sizes[:2] == [3, 17]
    assert server.sizes[2] == tally.retried > 0
    assert journal.counts(run.journal_dir) == {"reply": 20, "failed": tally.retried}


@pytest.mark.parametrize("said", [429, 500, "error", "unanswered", "lost", b"no reply", {"choices": []}])
def test_a_request_without_a_reply_goes_into_the_next_batch(tmp_path: Path, said: Any) -> None:
    told: set[int] = set()

    def once(number: int, body: dict[str, Any]) -> Any:
        if number == 1 and len(told) < 4:
            told.add(body["seed"])
            return said if not isinstance(said, bytes) else said.decode()
        return None

    run = Run(tmp_path / "run")
    with batch_server(fate=once) as server:
        tally = asked(run, server)
    assert tally.replies == 20
    whole(run)
    assert server.sizes == [3, 17, 4]


def test_a_request_that_never_gets_a_reply_is_left_after_six_batches(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with batch_server(fate=lambda number, body: 500 if "0 + 0" in str(body) else None) as server:
        tally = asked(run, server)
    assert (tally.replies, tally.failed, tally.set_aside) == (16, 4, 0)
    assert len(server.sizes) == MAX_TRIES + 1
    assert "500" in str(tally.last_error)


def test_a_request_that_is_refused_for_good_is_set_aside_and_not_sent_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with batch_server(fate=lambda number, body: 400 if "0 + 0" in str(body) else None) as server:
        tally = asked(run, server)
    assert (tally.replies, tally.set_aside) == (16, 4)
    assert server.sizes == [3, 17]
    assert journal.counts(run.journal_dir) == {"reply": 16, "fatal": 4}


def test_an_endpoint_that_answers_no_first_request_costs_three_and_no_more(tmp_path: Path) -> None:
    with batch_server(fate=lambda number, body: 400) as server, pytest.raises(EndpointError, match="none of the first"):
        asked(Run(tmp_path / "run"), server)
    assert server.sizes == [3, 3]  # the second without vLLM's flag for token ids


def test_the_flag_for_token_ids_is_left_out_where_the_first_batch_is_refused_for_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with batch_server(fate=lambda number, body: 400 if "return_token_ids" in body else None) as server:
        assert asked(run, server).replies == 20
        assert server.sizes == [3, 3, 17]
        assert asked(run, server, 6).replies == 4  # the journal knows: no first batch again
    assert server.sizes == [3, 3, 17, 4]


def test_a_recipe_that_needs_logprobs_ends_after_the_small_first_batch_where_there_are_none(tmp_path: Path) -> None:
    with batch_server(logprobs=False) as server, pytest.raises(EndpointError, match="gives no logprobs"):
        asked(Run(tmp_path / "run"), server, selector="mean_delta")
    assert server.sizes == [3]


def problem(line: int | None, code: str = "invalid") -> list[dict[str, Any]]:
    return [{"code": code, "line": line, "message": f"{code} at {line}", "param": None}]


def test_validation_that_names_a_line_sets_that_request_aside_and_sends_the_others(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with batch_server(problems=lambda number, lines: problem(2) if number == 1 else []) as server:
        tally = asked(run, server)
    assert (tally.replies, tally.set_aside) == (19, 1)
    assert server.sizes == [3, 17, 16]
    assert set(server.billed.values()) == {1}


def test_validation_that_refuses_the_whole_batch_ends_the_run_and_says_that_nothing_was_billed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    problems = lambda number, lines: problem(None, "bad_file") if number else []  # noqa: E731
    said = "Nothing of its 17 requests was billed"
    with batch_server(problems=problems) as server, pytest.raises(EndpointError, match=said):
        asked(run, server)
    assert journal.counts(run.journal_dir) == {"reply": 3, "failed": 17}


def test_a_full_queue_of_the_provider_makes_batches_smaller(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")

    def full(number: int, lines: list[Any]) -> list[dict[str, Any]]:
        return problem(None, "token_limit_exceeded") if len(lines) > 5 else []

    with batch_server(problems=full) as server:
        tally = asked(run, server)
    assert tally.replies == 20
    assert server.sizes[:3] == [3, 17, 8]
    assert len(server.sizes) < 20
    assert set(server.billed.values()) == {1}


def test_torn_files_foreign_ids_and_lines_twice_lose_nothing_and_pay_for_nothing_twice(tmp_path: Path) -> None:
    foreign = json.dumps({"custom_id": "f" * 64, "response": {"status_code": 200, "body": {}}}).encode()

    def worse(lines: list[bytes]) -> list[bytes]:
        return [b"", b"no json", foreign, lines[0], *lines]

    run = Run(tmp_path / "run")
    with batch_server(extra_lines=worse, cut_bytes=40) as server:
        tally = asked(run, server)
    assert tally.replies == 20
    whole(run)
    assert set(server.billed.values()) == {1}
    assert tally.errors["line in a batch for no request"] >= 2
    assert tally.errors["unreadable line in a batch"] >= 2


def test_a_file_that_stays_torn_gives_up_its_last_line_only(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")

    def tear(lines: list[bytes]) -> list[bytes]:
        return [*lines[:-1], lines[-1][:-30]] if len(lines) == 17 else lines

    with batch_server(extra_lines=tear) as server:
        tally = asked(run, server)
    assert tally.replies == 20
    assert server.sizes == [3, 17, 1]
    assert journal.counts(run.journal_dir) == {"reply": 20, "retryable": 1}  # what came of it is kept


def test_a_bare_nan_in_a_result_line_loses_no_reply() -> None:
    line = b'{"custom_id": "' + b"a" * 64 + b'", "response": {"status_code": 200, "body": {"choices": [NaN]}}}'
    result = read_line(line)
    assert result is not None
    assert result.key == "a" * 64
    assert result.body == b'{"choices": [NaN]}'


@pytest.mark.parametrize("gone", ["batch_001", "file-003"])
def test_what_the_endpoint_has_forgotten_is_asked_again_only_by_a_rerun(tmp_path: Path, gone: str) -> None:
    run = Run(tmp_path / "run")
    with batch_server(gone={gone}) as server:
        with pytest.raises(EndpointError, match="may be billed") as told:
            asked(run, server)
        assert "sends these requests again" in str(told.value)
        assert len(server.batches) == 2
        assert journal.counts(run.journal_dir)["maybe_billed"] == 17
        server.gone.clear()
        assert asked(run, server).done == 20
    whole(run)


def test_without_a_list_a_create_of_unknown_fate_stops_once_and_says_what_may_be_billed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with batch_server(lists=False, faults={"POST /batches": [None, DROP]}) as server:
        with pytest.raises(EndpointError, match="cannot list its batches"):
            asked(run, server)
        assert journal.counts(run.journal_dir) == {"reply": 3, "maybe_billed": 17}
        assert states(run) == ["ended", "lost"]
        assert asked(run, server).done == 20
    whole(run)


def test_a_batch_that_someone_cancelled_gives_what_it_has_and_is_not_sent_again_by_itself(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with batch_server(
        status=lambda number: "cancelled" if number == 1 else "completed",
        fate=lambda number, body: "unanswered" if number == 1 and body["seed"] % 2 else None,
    ) as server:
        with pytest.raises(EndpointError, match="was cancelled at"):
            asked(run, server)
        stored = run.rows("responses")
        assert 3 < stored < 20
        assert len(server.batches) == 2
        assert asked(run, server).done == 20
    assert set(server.billed.values()) == {1}


def test_an_account_without_money_stops_the_run(tmp_path: Path) -> None:
    said = {"error": {"code": "insufficient_quota", "message": "pay"}}
    line = json.dumps({"custom_id": "a" * 64, "response": {"status_code": 429, "body": said}}).encode()
    result = read_line(line)
    assert result is not None
    assert result.no_money
    assert not result.is_final


def test_a_run_that_goes_online_waits_for_its_open_batches_and_pays_for_nothing_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    with batch_server() as server:
        with monkeypatch.context() as patch:
            kill_at(patch, 7, after=True)
            with pytest.raises(Killed):
                asked(run, server)
        assert states(run) == ["ended", "open"]
        tally = asked(run, server, 6, batch=None)
    assert tally.done == 24
    whole(run, 24)
    assert server.calls.count("POST /chat/completions") == 4
    assert set(server.billed.values()) == {1}


def test_a_batch_that_is_open_at_another_address_is_named_and_not_paid_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    with batch_server() as server, batch_server() as other:
        with monkeypatch.context() as patch:
            kill_at(patch, 7, after=True)
            with pytest.raises(Killed):
                asked(run, server)
        for section in ({}, None):
            with pytest.raises(EndpointError, match="asking there would pay twice"):
                asked(run, other, batch=section)
        assert not other.batches
        tally = generate(run, recipe(other.url), questions(5), forget_missing=True)
    assert tally.done == 20
    assert states(run) == ["ended", "lost", "ended", "ended"]


def test_requests_in_an_open_batch_of_another_shard_count_are_not_asked_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    with batch_server() as server:
        with monkeypatch.context() as patch:
            kill_at(patch, 3, after=False)
            with pytest.raises(Killed):
                generate(run, recipe(server.url), questions(5), shard=(1, 2))
        with pytest.raises(EndpointError, match="open batches of other shards"):
            asked(run, server)
        assert generate(run, recipe(server.url, None), questions(5)).failed == server.sizes[0]
        generate(run, recipe(server.url), questions(5), shard=(1, 2))
        assert asked(run, server).done == 20
    whole(run)
    assert set(server.billed.values()) == {1}


def test_a_limit_on_money_cuts_batches_smaller_and_is_never_exceeded(tmp_path: Path) -> None:
    run, most = Run(tmp_path / "run"), 0.001
    with batch_server() as server:
        prices = recipe(server.url).require_teacher()
        tally = generate(run, recipe(server.url), questions(5), budget=open_budget(run, prices, most, None))
        assert tally.limit is not None
        assert "--max-cost" in tally.limit
        assert max(server.sizes) < 17
        spent = run.read("responses")["cost_usd"].sum()
        assert spent <= most
        used = open_budget(run, prices, most, None)
        assert used.cost == pytest.approx(spent)
        more = generate(run, recipe(server.url), questions(5), budget=open_budget(run, prices, 1.0, None))
    assert more.done == 20


def test_half_the_price_is_in_tables_manifest_and_stays_when_the_recipe_goes_online(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with batch_server() as server:
        tally = asked(run, server, 2)
        online = recipe(server.url, None)
        rows = run.read("responses")
        prices = (rows["prompt_tokens"] * 1.0 + rows["completion_tokens"] * 10.0) / 1e6
        assert rows["cost_usd"].to_list() == pytest.approx((prices / 2).to_list())
        assert calls(run)["cost_usd"] == pytest.approx(tally.cost_usd) == pytest.approx(prices.sum() / 2)
        for part in (*run.parts("responses"), *run.parts("logprobs")):
            part.unlink()
        generate(run, online, questions(2))  # sealed again from the bodies
    assert run.read("responses")["cost_usd"].sum() == pytest.approx(prices.sum() / 2)


def test_the_endpoint_of_a_batch_carries_its_price() -> None:
    assert price_factor_of(batch_route("https://api.example/v1", 0.5)) == 0.5
    assert price_factor_of("https://api.example/v1/batches") == 1.0


def test_an_interruption_leaves_batches_running_and_a_rerun_takes_them(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with batch_server(polls=10**6) as server:
        threading.Thread(
            target=lambda: (wait_until(lambda: bool(server.looks)), os.kill(os.getpid(), signal.SIGINT))
        ).start()
        tally = asked(run, server)
        assert tally.stopped
        assert tally.batches.startswith("1 batch: in_progress 0 of 3, 1,4")
        assert note(tally, 1.0) == tally.batches  # the meter's line
        assert states(run) == ["open"]
        server.polls = 1
        assert asked(run, server).done == 20
    assert set(server.billed.values()) == {1}


def test_an_endpoint_that_is_silent_for_an_hour_ends_the_call_and_not_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "PATIENCE_S", 0.02)
    run = Run(tmp_path / "run")
    with batch_server(faults={"GET /batches/{id}": [503] * 50}) as server:
        with pytest.raises(EndpointError, match="1 batches are open there and go on"):
            asked(run, server)
        server.faults.clear()
        assert asked(run, server).done == 20
    assert set(server.billed.values()) == {1}


def test_an_endpoint_without_batches_is_refused_and_nothing_is_billed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    said = "without it the same requests go online"
    with batch_server(faults={"POST /files": [404]}) as server, pytest.raises(EndpointError, match=said):
        asked(run, server)
    assert journal.counts(run.journal_dir) == {"failed": 3}


def test_batches_need_one_endpoint_and_decide_no_row() -> None:
    one = recipe("http://a/v1", {"max_open": 2})
    assert one.hash() == recipe("http://a/v1", None).hash()
    assert "batch" not in recipe("http://a/v1", None).resolved()["teacher"]
    given = one.model_dump()
    given["teacher"]["endpoints"].append({"url": "http://b/v1"})
    with pytest.raises(ValidationError, match="sends to one endpoint"):
        Recipe.model_validate(given)


def test_a_journal_of_before_batches_existed_is_read_as_one_without_any(tmp_path: Path) -> None:
    path = tmp_path / "000.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("create table attempts (attempt_id integer)")
    connection.commit()
    connection.close()
    assert batch_journal.unsettled(path) == []
    assert batch_journal.under_way(tmp_path) == set()
    assert batch_journal.factors(tmp_path) == {}


def test_plan_and_status_tell_of_batches_and_their_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"What is {n} + {n}?"} for n in range(5)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with batch_server(polls=10**6) as server:
        given = recipe(server.url, {"max_requests": 10}).model_dump(mode="json", exclude_unset=True)
        given["prompts"] = [{"source": str(tmp_path / "q.jsonl")}]
        (tmp_path / "toy.yaml").write_text(yaml.safe_dump(given))
        command = [str(tmp_path / "toy.yaml"), "--run", str(tmp_path / "run")]
        plan = CliRunner().invoke(app, ["plan", *command])
        assert plan.exit_code == 0, plan.output
        assert "3 (USD below: prices × 0.5)" in plan.output
        half = [line for line in plan.output.splitlines() if "USD, at most" in line]
        assert "0.01" in half[0]  # 20 requests × 64 tokens at 5 USD a million
        with monkeypatch.context() as patch:
            kill_at(patch, 3, after=False)
            with pytest.raises(Killed):
                CliRunner().invoke(app, ["generate", *command], catch_exceptions=False)
        status = CliRunner().invoke(app, ["status", *command])
        assert status.exit_code == 0, status.output
        assert "batch_000" in status.output
        told = CliRunner().invoke(app, ["status", *command, "--json"])
        assert json.loads(told.stdout)["batches"] == [
            {"journal": "000", "id": "batch_000", "state": "open", "requests": 3, "endpoint": server.url}
        ]
