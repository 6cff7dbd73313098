"""Endpoints that misbehave: the run ends well or stops with a named error, and the counts add up."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from harness import Site, Spawned, Spawner, Teacher, finish, line

from builder import journal

QUESTIONS = 3
Calm = Callable[[int], dict[str, str]]
IDLE = {"builder.client:_TIMEOUT.read": 0.5}
CAP = {"builder.client:MAX_BODY_BYTES": 2**20}
ONCE: dict[str, dict[str, object]] = {
    "html": {}, "empty": {}, "nochoices": {}, "notjson": {}, "nothing": {}, "drop": {}, "half": {}, "drip": {},
    "stall": IDLE, "hush": IDLE,
}  # fmt: skip
"""What spoils the first answer to each request, and what has to be changed so that this takes a second, not an hour."""


def adds_up(site: Site) -> None:
    """Every request that came to the teacher is an attempt of the journal with an outcome, and the other way round."""
    counts = journal.counts(site.run.journal_dir)
    assert sum(counts.values()) == site.count("ask")
    assert set(counts) <= {"reply", "failed", "retryable", "fatal"}
    assert counts.get("reply", 0) == len(site.account.acknowledged)
    (path,) = journal.journals(site.run.journal_dir)
    bad = list(journal.bodies(path, outcome=journal.RETRYABLE))  # kept as they came: a better parser may read them
    assert len(bad) == counts.get("retryable", 0)


def short(chosen: str, modes: Iterable[str]) -> list[Any]:
    """One of them in every test run, the others with `make faults`."""
    return [mode if mode == chosen else pytest.param(mode, marks=pytest.mark.faults) for mode in modes]


@pytest.mark.parametrize("mode", short("hush", ONCE))
def test_what_goes_wrong_once_is_asked_again_and_the_run_ends_well(
    server: Teacher, spawners: list[Spawner], calm: Calm, tmp_path: Path, mode: str
) -> None:
    table, site = line(f"endpoint: {mode} at first"), Site(server, tmp_path, questions=QUESTIONS, in_flight=16)
    code = spawners[0].run(site.order(site.argv(mode), set=ONCE[mode]))
    assert code == 0, site.out
    site.account.close(calm(QUESTIONS))
    table.add(site.account, 1)
    adds_up(site)
    assert site.count("ask") == site.wanted * (1 if mode == "drip" else 2)


@pytest.mark.faults
def test_logprobs_that_are_no_numbers_cost_no_reply(server: Teacher, spawners: list[Spawner], tmp_path: Path) -> None:
    table, site = line("endpoint: NaN among the logprobs"), Site(server, tmp_path, questions=QUESTIONS)
    assert spawners[0].run(site.order(site.argv("nan"))) == 0, site.out
    site.account.reckon(0)
    table.add(site.account, 1)
    adds_up(site)
    rows = site.run.read("logprobs")
    assert rows["nonfinite_count"].sum() == rows["logprob"].list.eval(_is_null()).list.sum().sum() > 0
    assert site.count("ask") == len(rows) == site.wanted


def _is_null() -> object:
    import polars as pl

    return pl.element().is_null().cast(pl.Int64)


@pytest.mark.faults
@pytest.mark.parametrize("cap", [CAP, {}], ids=["above the cap", "below the cap"])
def test_a_hundred_megabytes_of_nothing_end_in_a_named_error_and_not_in_memory(
    server: Teacher, spawners: list[Spawner], tmp_path: Path, cap: dict[str, object]
) -> None:
    table, site = line(f"endpoint: 100 MB, {'above' if cap else 'below'} the cap"), Site(server, tmp_path, questions=1)
    child = spawners[0].start(site.order(site.argv("huge"), set=cap))
    code = finish(child)
    assert isinstance(child, Spawned)
    if code:
        assert code == 1, site.out
        assert site.out.strip().splitlines()[-1].startswith("EndpointError: "), site.out
    site.account.reckon(0)
    adds_up(site)
    if cap:
        quiet = spawners[0].start(site.order(site.argv(), set=cap))
        assert finish(quiet) == 0, site.out
        site.account.reckon(0)  # no comparison of tables: such a body may end the asking for token ids
        assert len(site.account.acknowledged) == site.run.rows("responses") == site.wanted
        assert child.peak_mb < quiet.peak_mb + 64
    table.add(site.account, 1)


ALWAYS = ("html=always", "empty=always", "drop=always", "status=400", "status=401", "status=500")


@pytest.mark.parametrize("mode", short("html=always", ALWAYS))
def test_an_endpoint_that_never_answers_well_stops_the_run_by_name_after_few_requests(
    server: Teacher, spawners: list[Spawner], calm: Calm, tmp_path: Path, mode: str
) -> None:
    table, site = line(f"endpoint: {mode}"), Site(server, tmp_path, questions=10)
    assert spawners[0].run(site.order(site.argv(mode))) == 1, site.out
    assert site.out.strip().splitlines()[-1].startswith(("EndpointError: ", "RefusedError: ")), site.out
    site.account.reckon(0)
    adds_up(site)
    assert 1 <= site.count("ask") <= 3 * 6
    assert spawners[0].run(site.order(site.argv())) == 0, site.out
    site.account.close(calm(10))
    table.add(site.account, 1)


@pytest.mark.faults
def test_one_bad_endpoint_of_two_costs_nothing_but_its_own_answers(
    server: Teacher, spawners: list[Spawner], calm: Calm, tmp_path: Path
) -> None:
    table, site = line("endpoint: one of two drops at first"), Site(server, tmp_path, questions=QUESTIONS)
    assert spawners[0].run(site.order(site.argv("drop,calm"))) == 0, site.out
    site.account.close(calm(QUESTIONS))
    table.add(site.account, 1)
    adds_up(site)


@pytest.mark.parametrize(
    "seconds", [1, pytest.param(150, marks=[pytest.mark.faults, pytest.mark.timeout(600)])], ids=["short", "minutes"]
)
def test_a_storm_of_429s_is_waited_for_or_named_and_loses_nothing(
    server: Teacher, spawners: list[Spawner], calm: Calm, tmp_path: Path, seconds: int
) -> None:
    table, site = line(f"endpoint: 429 for {seconds} s"), Site(server, tmp_path, questions=QUESTIONS)
    code = spawners[0].run(site.order(site.argv(f"storm={seconds}"), patience=1 if seconds > 10 else 0.2))
    if code:
        assert code == 1, site.out
        assert site.out.strip().splitlines()[-1].startswith("EndpointError: "), site.out
    site.account.reckon(0)
    adds_up(site)
    assert spawners[0].run(site.order(site.argv())) == 0, site.out
    site.account.close(calm(QUESTIONS))
    table.add(site.account, 1)
    assert site.count("ask") > site.count("paid")
