"""Calls that misbehave cost themselves; workers outlive the run of calls that started them, and nothing else."""

import os
import time
from pathlib import Path

import pytest

from builder.errors import VerifyError
from builder.supervised import Supervised, supervised


@pytest.fixture(autouse=True)
def functions_of_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def misbehave(how: str) -> str:
    if how == "hang":
        time.sleep(60)
    if how == "exit":
        os._exit(3)
    if how == "eat":
        return str(len(bytearray(8 * 1024**3)))
    if how == "raise":
        raise SystemExit("no")
    if how == "print":
        print("this is no answer", flush=True)
    return how


def test_calls_that_hang_crash_raise_or_eat_memory_cost_only_themselves() -> None:
    calls = [[how] for how in ("fine", "hang", "exit", "eat", "raise", "print", "fine")]
    results = supervised("test_supervised:misbehave", calls, workers=2, deadline_s=1.0, memory_bytes=4 * 1024**3)
    by_index = {result.index: (result.status, result.value) for result in results}
    assert [by_index[index][0] for index in range(7)] == ["ok", "timeout", "error", "error", "error", "ok", "ok"]
    assert "exit 3" in by_index[2][1]
    assert "MemoryError" in by_index[3][1]
    assert by_index[5] == ("ok", "print")


def test_a_worker_that_cannot_start_is_one_clear_error() -> None:
    with pytest.raises(VerifyError, match=r"cannot start.*No module named 'absent'"):
        list(supervised("absent:function", [[]]))


def test_no_calls_start_no_process() -> None:
    assert list(supervised("absent:function", [])) == []


def process_id(how: str) -> int:
    """The worker that was asked."""
    misbehave(how)
    return os.getpid()


def test_a_pool_keeps_its_workers_between_runs_and_ends_them_with_its_context() -> None:
    with Supervised("test_supervised:process_id") as pool:
        first, second = (next(pool.run([["fine"]])).value for _ in range(2))
        assert first == second
        os.kill(first, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_deadline_kills_also_in_a_later_run_and_the_next_one_gets_a_new_worker() -> None:
    with Supervised("test_supervised:process_id", deadline_s=0.5) as pool:
        first = next(pool.run([["fine"]])).value
        assert [result.status for result in pool.run([["hang"], ["fine"]])] == ["timeout", "ok"]
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


def test_a_worker_that_died_between_two_runs_costs_no_call() -> None:
    with Supervised("test_supervised:process_id") as pool:
        first = next(pool.run([["fine"]])).value
        os.kill(first, 9)
        pool._pool[0].process.wait()
        assert [result.status for result in pool.run([["fine"], ["fine"]])] == ["ok", "ok"]


def test_a_run_that_is_broken_off_leaves_no_answer_to_the_next() -> None:
    with Supervised("test_supervised:process_id", workers=2) as pool:
        run = pool.run([["fine"], ["hang"], ["fine"]])
        next(run)
        run.close()
        assert [result.index for result in pool.run([["fine"]])] == [0]
