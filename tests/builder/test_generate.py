import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from aiohttp import web
from endpoint import DROP, Ask, Endpoint, endpoint, wait_until

from builder import ask as asking
from builder import client as clients
from builder import flow, journal, journal_writer
from builder import generate as generation
from builder.budget import Budget
from builder.client import RefusedError, RetryableError
from builder.config import Recipe
from builder.errors import EndpointError, JournalError
from builder.generate import generate
from builder.identity import prompt_id
from builder.journal_writer import Journal
from builder.prompts import Prompts
from builder.rowset import rowset_hash
from builder.store import Run
from builder.tally import Tally

LOSSY = [500, 429, DROP, b"", b"<html>keep-alive</html>", b'{"error": "overloaded"}', b'{"choices": []}', 503]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    wait(monkeypatch, 0.0)


def wait(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for module in (asking, flow):
        monkeypatch.setattr(module, "backoff_s", lambda attempt, wish: seconds)


def questions(number: int) -> Prompts:
    rows = []
    for index in range(number):
        messages = [{"role": "user", "content": f"What is {index} + {index}?"}]
        rows.append({"prompt_id": prompt_id(messages), "messages": messages})
    return Prompts(rows, number, 0, 0)


def recipe(*servers: Endpoint | str, selector: str = "random", size: int = 8, **generation: Any) -> Recipe:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    return Recipe.model_validate(
        {
            "name": "toy",
            "teacher": {
                "model": "toy",
                "revision": "r1",
                "endpoints": [{"url": url, "max_in_flight": size} for url in urls],
                "prices": {"input": 1.0, "output": 10.0},
            },
            "generation": {"samples": 2, "max_tokens": 64, **generation},
            "selection": {"selector": selector, "rules": []},
        }
    )


def content(run: Run) -> dict[str, str]:
    return {name: rowset_hash(run.read(name), run.content_columns(name)) for name in ("responses", "logprobs")}


def distinct(run: Run) -> int:
    """Replies in the tables; fails where one is there twice or lacks its logprobs."""
    ids, scored = (run.read(name)["response_id"].to_list() for name in ("responses", "logprobs"))
    assert len(ids) == len(set(ids))
    assert sorted(ids) == sorted(scored)
    return len(ids)


def test_every_question_and_reply_is_accounted_for(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        tally = generate(run, recipe(server), questions(10))
    assert (tally.total, tally.stored_before, tally.replies, tally.done) == (40, 0, 40, 40)
    assert (tally.failed, tally.set_aside, tally.retried, tally.in_flight, tally.stopped) == (0, 0, 0, 0, False)
    assert (tally.prompt_tokens, tally.completion_tokens, tally.cut) == (440, 280, 0)
    assert tally.cost_usd == pytest.approx((440 * 1.0 + 280 * 10.0) / 1e6)
    assert len(server.asks) == 40
    rows = run.read("responses")
    asked = Counter((row["prompt_id"], row["temperature"], row["sample_index"]) for row in rows.to_dicts())
    wanted = {(row["prompt_id"], t, s) for row in questions(10).rows for t in (0.6, 1.0) for s in (0, 1)}
    assert asked == Counter(wanted)
    assert set(rows["role"]) == {"teacher"}
    assert rows["cost_usd"].sum() == pytest.approx(tally.cost_usd)
    assert run.read("logprobs")["align_detail"].null_count() == distinct(run) == 40
    assert journal.counts(run.journal_dir) == {"reply": 40}


def test_what_is_sent_is_what_the_recipe_says(tmp_path: Path) -> None:
    with endpoint() as server:
        extra = {"top_k": 20, "chat_template_kwargs": {"thinking": True}}
        given = recipe(
            server, temperatures=0.6, samples=1, system_prompt="Brief.", extra_body=extra, reasoning_effort="low"
        )
        generate(Run(tmp_path), given, questions(1))
    (row,) = Run(tmp_path).read("responses").to_dicts()
    assert server.asks[0].body == {
        "model": "toy",
        "messages": [{"role": "system", "content": "Brief."}, {"role": "user", "content": "What is 0 + 0?"}],
        "max_tokens": 64,
        "seed": row["seed"],
        "temperature": 0.6,
        "top_p": 1.0,
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
        **extra,
    }


def test_a_rerun_sends_nothing_and_changes_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        generate(run, recipe(server), questions(5))
        before, parts = content(run), run.parts("responses")
        tally = generate(run, recipe(server), questions(5))
        assert len(server.asks) == 20
    assert (tally.total, tally.stored_before, tally.replies) == (20, 20, 0)
    assert (content(run), run.parts("responses")) == (before, parts)
    generate(run, recipe("http://127.0.0.1:9/v1"), questions(5))  # nothing is missing, so nobody is called


def test_more_samples_and_prompts_send_only_the_new_ones(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        generate(run, recipe(server, samples=1), questions(3))
        generate(run, recipe(server, samples=2), questions(5))
        assert len(server.asks) == 20
        assert not any(ask.before for ask in server.asks)
        whole = Run(tmp_path / "whole")
        generate(whole, recipe(server, samples=2), questions(5))
    assert content(run) == content(whole)


def test_a_cut_reply_is_asked_again_with_a_larger_limit_and_both_stay(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        first = generate(run, recipe(server, max_tokens=3), questions(2))
        assert (first.cut, distinct(run), len(server.asks)) == (8, 8, 8)
        generate(run, recipe(server, max_tokens=2), questions(2))
        assert len(server.asks) == 8  # cut later than asked
        second = generate(run, recipe(server, max_tokens=64), questions(2))
        assert (second.stored_before, second.replies, second.cut) == (0, 8, 0)
        assert (distinct(run), len(server.asks)) == (16, 16)
        generate(run, recipe(server, max_tokens=1000), questions(2))
        assert len(server.asks) == 16  # whole replies answer any limit
    assert sorted(run.read("responses")["finish_reason"].to_list()) == ["length"] * 8 + ["stop"] * 8


def test_what_may_pass_is_retried_and_stored_once(tmp_path: Path) -> None:
    def fails_once_each_way(ask: Ask) -> Any:
        return LOSSY[ask.number % len(LOSSY)] if ask.before == 0 else None

    run, calm = Run(tmp_path / "a"), Run(tmp_path / "b")
    with endpoint(script=fails_once_each_way) as server:
        tally = generate(run, recipe(server), questions(10))
        assert len(server.asks) == 80
    assert (tally.replies, tally.retried, tally.failed, tally.set_aside) == (40, 40, 0, 0)
    assert distinct(run) == 40
    counts = journal.counts(run.journal_dir)
    assert counts["reply"] == 40
    assert counts["failed"] + counts["retryable"] == 40
    with endpoint() as server:
        generate(calm, recipe(server), questions(10))
    assert content(run) == content(calm)


def test_what_fails_while_others_succeed_is_set_aside_with_the_reason(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint(script=lambda ask: 500 if ask.question == "What is 1 + 1?" else None) as server:
        tally = generate(run, recipe(server, samples=1), questions(50))
        assert (tally.replies, tally.failed, tally.set_aside, tally.retried) == (98, 0, 2, 10)
        assert "answered 500: " in (tally.last_error or "")
        assert f"it failed {asking.MAX_TRIES} times, and " in (tally.last_error or "")
        assert len(server.asks) == 98 + 2 * asking.MAX_TRIES
    with endpoint() as server:
        tally = generate(run, recipe(server, samples=1), questions(50))
        assert (tally.stored_before, tally.replies, len(server.asks)) == (98, 2, 2)


def test_what_fails_while_nothing_succeeds_is_counted_and_asked_again_by_the_next_call(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint(script=lambda ask: 500 if ask.number else None) as server:
        tally = generate(run, recipe(server, samples=1, temperatures=1.0), questions(3))
        assert (tally.replies, tally.failed, tally.set_aside, tally.retried) == (1, 2, 0, 10)
    with endpoint() as server:
        assert generate(run, recipe(server, samples=1, temperatures=1.0), questions(3)).replies == 2


@pytest.mark.parametrize("poison", [0, 3])
def test_a_poison_prompt_is_set_aside_and_the_others_go_on(tmp_path: Path, poison: int) -> None:
    run, bad = Run(tmp_path), f"What is {poison} + {poison}?"
    with endpoint(script=lambda ask: 400 if ask.question == bad else None) as server:
        tally = generate(run, recipe(server), questions(6))
        assert (tally.replies, tally.set_aside, tally.failed) == (20, 4, 0)
        assert sum(ask.question == bad for ask in server.asks) == 4 + (poison == 0)  # once more without token ids
        tally = generate(run, recipe(server), questions(7))
        assert (tally.stored_before, tally.replies, tally.set_aside) == (20, 4, 4)
    assert all(run.read("logprobs")["token_ids"].list.len() == 7)  # the flag was not at fault


def test_a_reply_that_stays_empty_is_set_aside_and_the_others_go_on(tmp_path: Path) -> None:
    run, bad = Run(tmp_path), "What is 3 + 3?"
    empty = b'{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}'
    with endpoint(script=lambda ask: empty if ask.question == bad else None) as server:
        tally = generate(run, recipe(server), questions(6))
        assert sum(ask.question == bad for ask in server.asks) == 4 * asking.MAX_TRIES
    assert (tally.replies, tally.set_aside, tally.failed) == (20, 4, 0)
    assert f"empty reply, {asking.MAX_TRIES} times in a row" in str(tally.last_error)


def test_many_poison_prompts_never_hide_the_others(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        generate(run, recipe(server), Prompts(questions(6).rows[5:], 1, 0, 0))
        server.script = lambda ask: None if ask.question == "What is 4 + 4?" else 400
        tally = generate(run, recipe(server), questions(6))
    assert (tally.stored_before, tally.replies, tally.set_aside) == (4, 4, 16)


@pytest.mark.parametrize("said", [400, 500, b'{"choices": [{"message": {"content": {"an": "unknown form"}}}]}'])
def test_an_endpoint_that_answers_none_of_three_prompts_is_sent_no_fourth(tmp_path: Path, said: Any) -> None:
    with endpoint(script=lambda ask: said) as server:
        with pytest.raises(EndpointError, match="answered none of the first 3 prompts; last: "):
            generate(Run(tmp_path), recipe(server), questions(50))
        assert {ask.question for ask in server.asks} == {f"What is {i} + {i}?" for i in range(3)}
        assert len(server.asks) == {400: 6, 500: 18}.get(said if isinstance(said, int) else 0, 3)


def test_a_refused_key_stops_after_one_request(tmp_path: Path) -> None:
    with endpoint(script=lambda ask: 401) as server:
        with pytest.raises(RefusedError, match=r"answered 401: .* Check the key in OPENAI_API_KEY"):
            generate(Run(tmp_path), recipe(server), questions(50))
        assert len(server.asks) == 1
    assert journal.counts(tmp_path / "journal") == {"fatal": 1}


def test_a_refusal_in_the_middle_waits_for_what_is_in_flight_and_keeps_it(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def script(ask: Ask) -> Any:
        if ask.number == 20:
            return 402
        time.sleep(0.001 if ask.number < 20 else 0.1)  # longer than the refusal takes to arrive
        return None

    with endpoint(script=script) as server:
        with pytest.raises(RefusedError, match="answered 402"):
            generate(run, recipe(server), questions(50))
        assert 20 <= len(server.asks) <= 20 + 8
        assert distinct(run) == len(server.asks) - 1
    assert journal.counts(run.journal_dir) == {"reply": len(server.asks) - 1, "fatal": 1}


def test_a_wrong_model_name_costs_nothing(tmp_path: Path) -> None:
    with endpoint(model="other") as server:
        with pytest.raises(EndpointError, match=r"serves other, not 'toy'\. Nothing was sent"):
            generate(Run(tmp_path), recipe(server), questions(2))
        assert server.asks == []
    assert journal.counts(tmp_path / "journal") == {}


def test_a_wrong_model_name_at_the_second_endpoint_costs_nothing_either(tmp_path: Path) -> None:
    with endpoint() as right, endpoint(model="other") as wrong:
        with pytest.raises(EndpointError, match="serves other"):
            generate(Run(tmp_path), recipe(right, wrong), questions(2))
        assert right.asks == wrong.asks == []


def test_nobody_at_the_address_costs_nothing(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match=r"cannot be reached.*refused|cannot be reached.*Nothing was sent"):
        generate(Run(tmp_path), recipe("http://127.0.0.1:9/v1"), questions(2))
    assert journal.counts(tmp_path / "journal") == {}


def test_a_server_without_a_list_of_models_is_asked_all_the_same(tmp_path: Path) -> None:
    with endpoint(model=None) as server:
        assert generate(Run(tmp_path), recipe(server), questions(1)).replies == 4


def test_without_logprobs_a_selection_by_divergence_stops_after_one_paid_reply(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint(logprobs=False) as server:
        with pytest.raises(EndpointError, match="gives no logprobs, and this recipe selects by divergence"):
            generate(run, recipe(server, selector="mean_delta"), questions(10))
        assert len(server.asks) == 1
        assert run.rows("responses") == 1  # paid, so kept and sealed
        tally = generate(run, recipe(server, selector="random"), questions(10))
        assert (tally.stored_before, tally.replies, tally.without_logprobs) == (1, 39, 39)
        tally = generate(run, recipe(server, selector="mean_delta", logprobs=False), questions(10))
        assert (tally.stored_before, len(server.asks)) == (40, 40)


def test_a_reply_that_the_run_cannot_use_still_counts_as_spent(tmp_path: Path) -> None:
    budget = Budget(max_tokens=10_000)
    with endpoint(logprobs=False) as server, pytest.raises(EndpointError, match="One reply was paid"):
        generate(Run(tmp_path), recipe(server, selector="mean_delta"), questions(1), budget=budget)
    (paid,) = Run(tmp_path).read("responses").select(pl.col("prompt_tokens") + pl.col("completion_tokens")).to_series()
    assert budget.tokens == paid > 0


def test_every_endpoint_must_give_logprobs_not_only_the_first(tmp_path: Path) -> None:
    with endpoint() as good, endpoint(logprobs=False) as bad:
        with pytest.raises(EndpointError, match=f"{bad.url} gives no logprobs"):
            generate(Run(tmp_path), recipe(good, bad, selector="mean_delta"), questions(10))
        assert (len(good.asks), len(bad.asks)) == (1, 1)


def test_token_ids_are_left_out_only_where_they_are_refused(tmp_path: Path) -> None:
    def strict(ask: Ask) -> Any:
        return web.Response(status=400, text="bad request") if "return_token_ids" in ask.body else None

    run = Run(tmp_path)
    with endpoint() as loose, endpoint(script=strict) as server:
        tally = generate(run, recipe(loose, server), questions(10))
        assert sum("return_token_ids" in ask.body for ask in server.asks) == 1
        assert all("return_token_ids" in ask.body for ask in loose.asks)
    assert (tally.replies, tally.set_aside) == (40, 0)
    assert 0 < sum(run.read("logprobs")["token_ids"].list.len() > 0) < 40


def test_a_body_too_large_says_nothing_of_token_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second endpoint proves itself later than the first, and its oversized answers are its own fault."""
    monkeypatch.setattr(clients, "MAX_BODY_BYTES", 20_000)

    def large(ask: Ask) -> Any:
        return b" " * 30_000 if ask.number < 2 else None

    with endpoint() as good, endpoint(script=large, model=None) as late:
        given = recipe(good, late)

        async def absent_at_first(self: Any, client: Any, lane: Any) -> None:
            if lane.endpoint.url == late.url:
                raise RetryableError("not there yet")

        monkeypatch.setattr(generation._Generation, "_check_model", absent_at_first)
        tally = generate(Run(tmp_path), given, questions(30))
        assert (tally.replies, tally.set_aside) == (120, 0)
        assert late.asks
        assert all("return_token_ids" in ask.body for ask in late.asks)


def test_two_endpoints_share_the_load_by_their_size(tmp_path: Path) -> None:
    with endpoint(delay_s=0.02) as one, endpoint(delay_s=0.02) as other:
        given = recipe(one, other, size=6)
        generate(Run(tmp_path), given, questions(30))
        assert len(one.asks) + len(other.asks) == 120
        assert min(len(one.asks), len(other.asks)) > 40
        assert one.most_in_flight <= 6
        assert other.most_in_flight <= 6


def test_shards_give_the_rows_of_one_run_and_pay_once(tmp_path: Path) -> None:
    run, alone = Run(tmp_path / "a"), Run(tmp_path / "b")
    with endpoint() as server:
        tallies = [generate(run, recipe(server), questions(10), shard=(index, 3)) for index in range(3)]
        assert sum(tally.replies for tally in tallies) == len(server.asks) == 40
        assert all(tally.total == tally.replies for tally in tallies)
        assert generate(run, recipe(server), questions(10)).stored_before == 40
        assert generate(run, recipe(server), questions(10), shard=(1, 2)).replies == 0
        assert len(server.asks) == 40
        generate(alone, recipe(server), questions(10))
    assert content(run) == content(alone)


def crashed(run: Run, asked: Recipe, prompts: Prompts, shard: tuple[int, int] = (0, 1), parse: bool = True) -> None:
    """Leave the run as a crash does between the journal and the tables; `parse` false: even before parsing."""
    generate(run, asked, prompts, shard=shard)
    for name in ("responses", "logprobs"):
        for part in run.parts(name):
            part.unlink()
    if not parse:
        with sqlite3.connect(run.journal_dir / f"{shard[0]:03d}.sqlite") as plain:
            plain.execute("update attempts set outcome = null, detail = null, checksum = null")
        plain.close()


@pytest.mark.parametrize("parse", [True, False])
def test_replies_in_no_table_come_back_from_the_journal(tmp_path: Path, parse: bool) -> None:
    run, calm = Run(tmp_path / "a"), Run(tmp_path / "b")
    with endpoint() as server:
        generate(calm, recipe(server), questions(4))
        crashed(run, recipe(server), questions(4), parse=parse)
    assert run.rows("responses") == 0
    tally = generate(run, recipe("http://127.0.0.1:9/v1"), questions(4))
    assert (tally.stored_before, tally.replies) == (16, 0)
    assert content(run) == content(calm)


def test_a_crash_between_the_two_tables_doubles_no_row(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        generate(run, recipe(server), questions(4))
    (part,) = run.parts("responses")
    part.unlink()
    generate(run, recipe("http://127.0.0.1:9/v1"), questions(4))
    assert distinct(run) == 16


def test_a_shard_that_todays_count_lacks_is_sealed_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        for index in range(3):
            crashed(run, recipe(server), questions(9), shard=(index, 3))
        with Journal(run.journal_dir, 2):  # another process is still at work on it: that one seals it
            assert generate(run, recipe(server), questions(9)).stored_before == 36
            assert 0 < run.rows("responses") < 36
        assert generate(run, recipe(server), questions(9)).stored_before == 36
        assert len(server.asks) == 36
    assert distinct(run) == 36


def test_a_body_that_an_older_version_could_not_read_is_not_paid_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        crashed(run, recipe(server), questions(2))
    with sqlite3.connect(run.journal_dir / "000.sqlite") as plain:
        plain.execute("update attempts set outcome = 'fatal', detail = 'a form that is not known', checksum = null")
    plain.close()
    assert generate(run, recipe("http://127.0.0.1:9/v1"), questions(2)).stored_before == 8


def test_a_write_that_fails_stops_the_sending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, connect = Run(tmp_path), journal_writer._connect

    def small_disk(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("pragma max_page_count = 20")
        return connection

    monkeypatch.setattr(journal_writer, "_connect", small_disk)
    with endpoint() as server:
        with pytest.raises(JournalError, match="database or disk is full"):
            generate(run, recipe(server), questions(60))
        sent = len(server.asks)
        assert sent < 200
        monkeypatch.undo()
        wait(monkeypatch, 0.0)
        kept = journal.counts(run.journal_dir)
        assert kept.get("reply", 0) + kept.get("unparsed", 0) >= sent - 2 * 8
        tally = generate(run, recipe(server), questions(60))
        assert tally.done == distinct(run) == 240
        assert len(server.asks) <= 240 + 2 * 8


def test_an_attempt_is_on_disk_when_the_endpoint_sees_it(tmp_path: Path) -> None:
    seen = []

    def look(ask: Ask) -> None:
        seen.append(sum(journal.counts(tmp_path / "journal").values()) > ask.number)

    with endpoint(script=look) as server:
        generate(Run(tmp_path), recipe(server), questions(5))
    assert seen == [True] * 20


def test_a_key_never_reaches_journal_tables_or_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2-hunter2")
    with endpoint(
        script=lambda ask: web.Response(status=500, text=ask.authorization) if ask.before == 0 else None
    ) as server:
        tally = generate(Run(tmp_path), recipe(server), questions(2))
        assert server.asks[0].authorization == "Bearer sk-hunter2-hunter2"
    assert "Bearer ***" in (tally.last_error or "")
    assert not any(b"hunter2" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_nothing_stays_open_after_a_call(tmp_path: Path) -> None:
    def held() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    with endpoint(script=lambda ask: 401 if ask.number > 30 else None) as server:
        before = held()
        for index in range(4):
            try:
                generate(Run(tmp_path / str(index)), recipe(server), questions(4))
            except RefusedError:
                continue
        wait_until(lambda: server.in_flight == 0)
        wait_until(lambda: held() <= before)


def cli_recipe(folder: Path, server: Endpoint, number: int, size: int = 8) -> list[str]:
    """Files of a run by the command line; returns the command."""
    rows = questions(number).rows
    (folder / "q.jsonl").write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows))
    given = recipe(server, size=size).resolved() | {"prompts": [{"source": str(folder / "q.jsonl")}]}
    (folder / "toy.yaml").write_text(yaml.safe_dump(given))
    return [sys.executable, "-m", "builder.cli", "generate", str(folder / "toy.yaml"), "--run", str(folder / "run")]


def test_kill_9_in_the_middle_pays_at_most_what_was_in_flight_twice(tmp_path: Path) -> None:
    wanted, in_flight, kills = 120, 8, 1
    with endpoint(delay_s=0.01) as server:
        command = cli_recipe(tmp_path, server, wanted // 4, in_flight)
        for kill in range(kills):
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_until(lambda goal=60 * (kill + 1): len(server.asks) >= goal)  # type: ignore[misc]
            child.send_signal(signal.SIGKILL)
            child.wait()
        wait_until(lambda: server.in_flight == 0)
        ended = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=60)
        tally = json.loads(ended.stdout)["generate"]
        assert tally["stored_before"] + tally["replies"] == tally["total"] == wanted
        assert tally["stored_before"] >= 60 - kills * in_flight
        assert wanted <= len(server.asks) <= wanted + kills * in_flight
        run, calm = Run(tmp_path / "run"), Run(tmp_path / "calm")
        assert journal.counts(run.journal_dir)["reply"] <= wanted
        assert journal.counts(run.journal_dir).get("maybe_billed", 0) <= kills * in_flight
        generate(calm, recipe(server), questions(wanted // 4))
    assert distinct(run) == wanted
    assert content(run) == content(calm)


def test_ctrl_c_waits_for_what_is_in_flight_and_sends_no_more(tmp_path: Path) -> None:
    with endpoint(delay_s=0.1) as server:
        command = cli_recipe(tmp_path, server, 50)
        with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            wait_until(lambda: len(server.asks) >= 20)
            child.send_signal(signal.SIGINT)
            sent = len(server.asks)
            said, errors = child.communicate(timeout=30)
        assert len(server.asks) <= sent + 8
        assert "interrupted" in errors.lower()
        run = Run(tmp_path / "run")
        assert distinct(run) == len(server.asks) == server.answered
        assert journal.counts(run.journal_dir) == {"reply": len(server.asks)}
        if said:
            tally = json.loads(said)["generate"]
            assert (tally["stopped"], tally["total"], tally["failed"]) == (True, 200, 0)


def test_ctrl_c_does_not_wait_for_a_back_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait(monkeypatch, 60.0)

    def script(ask: Ask) -> Any:
        if ask.number == 8:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return 500 if ask.number >= 4 else None

    with endpoint(script=script) as server:
        started = time.monotonic()
        tally = generate(Run(tmp_path), recipe(server), questions(20))
    assert time.monotonic() - started < 10
    assert (tally.stopped, tally.failed, tally.total) == (True, 0, 80)


def test_status_counts_while_a_run_goes_on(tmp_path: Path) -> None:
    from builder.console import Reporter
    from builder.status import show_status

    seen: list[int] = []

    def look(tally: Tally) -> None:
        reporter = Reporter(quiet=True)
        show_status(reporter, Run(tmp_path))
        seen.append(sum(journal.counts(tmp_path / "journal").values()))

    with endpoint() as server:
        generate(Run(tmp_path), recipe(server), questions(2), progress=look)
    assert len(seen) == 8
    assert seen == sorted(seen)
