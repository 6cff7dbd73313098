import os
import re
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from builder import journal, journal_writer
from builder.claim_file import ShardBusy
from builder.errors import JournalError
from builder.journal import FAILED, FATAL, REPLY, RETRYABLE, Attempt
from builder.journal_writer import Journal

KEY = "ab" * 32


def attempt(key: str = KEY, **other: Any) -> Attempt:
    values: dict[str, Any] = {
        "model": "m",
        "revision": None,
        "request_key": key,
        "prompt_id": "p",
        "role": "teacher",
        "temperature": 0.6,
        "sample_index": 0,
        "seed": 7,
        "max_tokens": 512,
        "endpoint": "http://h/v1",
    }
    return Attempt(**values | other)


def settle(book: Journal, asked: Attempt, body: bytes | None, outcome: str | None, detail: str | None = None) -> int:
    number = book.begin(asked).result(10)
    if body is not None:
        book.store(number, body, 1.5).result(10)
    if outcome is not None:
        book.conclude(number, outcome, detail).result(10)
    return number


def test_a_stored_body_comes_back_whole_with_its_attempt(tmp_path: Path) -> None:
    with Journal(tmp_path) as book:
        for body in (b"", b"{}", os.urandom(5000), b"x" * 10**6):
            settle(book, attempt(), body, REPLY, "stop")
        found = list(journal.bodies(book.path, outcome=REPLY))
    assert [len(stored.body) for stored in found] == [0, 2, 5000, 10**6]
    assert found[1].attempt == attempt()
    assert found[1].latency_s == 1.5


def test_a_request_is_on_disk_before_its_number_is_known(tmp_path: Path) -> None:
    with Journal(tmp_path) as book:
        assert book.begin(attempt()).result(10) == 1
        assert journal.counts(tmp_path) == {"maybe_billed": 1}
        book.store(1, b"{}", 0.1).result(10)
        assert journal.counts(tmp_path) == {"unparsed": 1}
        assert journal.stored_replies(tmp_path) == {}
        book.conclude(1, REPLY, "stop").result(10)
        assert journal.counts(tmp_path) == {"reply": 1}
        assert journal.stored_replies(tmp_path) == {bytes.fromhex(KEY): -1}


@pytest.mark.parametrize(
    ("replies", "cut"),
    [
        ([("length", 512)], 512),
        ([("length", 512), ("length", 256)], 512),
        ([("length", 256), ("length", 512)], 512),
        ([("length", 256), ("stop", 512)], -1),
        ([("stop", 512), ("length", 1024)], -1),
        ([(None, 512)], -1),
    ],
)
def test_a_whole_reply_wins_over_a_cut_one_and_a_larger_limit_over_a_smaller(
    tmp_path: Path, replies: list[tuple[str | None, int]], cut: int
) -> None:
    for shard, (finish, limit) in enumerate(replies):
        with Journal(tmp_path, shard) as book:
            settle(book, attempt(max_tokens=limit), b"{}", REPLY, finish)
    assert journal.stored_replies(tmp_path) == {bytes.fromhex(KEY): cut}


def test_a_prompt_is_answered_once_any_shard_holds_a_reply_to_it(tmp_path: Path) -> None:
    asked = [("a", REPLY), ("b", RETRYABLE), ("c", None), ("d", FAILED), ("a", REPLY)]
    for shard, (prompt, outcome) in enumerate(asked):
        with Journal(tmp_path, shard) as book:
            settle(book, attempt(prompt_id=prompt), b"{}", outcome)
    assert journal.answered_prompts(tmp_path) == {"a"}


def test_what_brought_no_reply_is_counted_by_kind_and_answers_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path, 0) as book:
        settle(book, attempt(), None, FAILED, "429")
        settle(book, attempt(), None, FAILED, "429")
        settle(book, attempt(), b"<html>", RETRYABLE, "no reply")
    with Journal(tmp_path, 1) as book:
        settle(book, attempt(), None, FATAL, "400")
        settle(book, attempt(), None, None)
    assert journal.errors_by_kind(tmp_path) == {"429": 2, "no reply": 1, "400": 1}
    assert journal.counts(tmp_path) == {"failed": 2, "retryable": 1, "fatal": 1, "maybe_billed": 1}
    assert journal.stored_replies(tmp_path) == {}


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from builder.journal import REPLY, Attempt
from builder.journal_writer import Journal

def work(folder, first, out):
    with Journal(folder) as book:
        waiting = []
        for number in range(first, first + 10**6):
            key = f"{number:064x}"
            sent = book.begin(Attempt("m", None, key, "p", "teacher", 0.6, 0, 7, 512, "u")).result()
            os.write(out, f"s{key}\\n".encode())
            waiting.append((key, sent, book.store(sent, key.encode() * 300, 0.1)))
            if len(waiting) == 8:
                for key, sent, stored in waiting:
                    stored.result()
                    os.write(out, f"a{key}\\n".encode())
                    book.conclude(sent, REPLY, "stop")
                waiting = []

random.seed(int(sys.argv[2]))
for round in range(20):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        work(Path(sys.argv[1]), round * 10**6, writing)
    os.close(writing)
    with open(reading) as said:  # killed at any line, however slow the machine; what the pipe still holds was said, too
        lines = [said.readline() for _ in range(random.randrange(2, 60))]
        time.sleep(random.uniform(0, 0.002))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        sys.stdout.write("".join(line for line in [*lines, *said] if len(line) == 66))
"""


def test_nothing_acknowledged_is_lost_under_kill_9(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), "0"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    sent, stored = ({line[1:] for line in said if line[0] == kind} for kind in "sa")
    with Journal(tmp_path) as book:
        pass
    found = {
        each.attempt.request_key: each.body
        for kind in (None, REPLY)
        for each in journal.bodies(book.path, outcome=kind)
    }
    assert len(stored) > 100
    assert stored <= set(found)
    assert all(found[key] == key.encode() * 300 for key in found)
    attempts = journal.counts(tmp_path)
    assert len(sent) <= sum(attempts.values()) <= len(sent) + 20  # one may be committed and not yet said, each round


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    holds = "import sys; from pathlib import Path; from builder.journal_writer import Journal\n"
    holds += "with Journal(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ShardBusy, match=f"written by process {other.pid}"):
            Journal(tmp_path)
        with Journal(tmp_path, 1):
            pass
        other.kill()
    with Journal(tmp_path) as book:  # the system drops a dead process's lock
        settle(book, attempt(), b"{}", REPLY, "stop")


def test_a_refused_or_broken_journal_leaves_no_thread_and_no_open_file(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    (tmp_path / "000.sqlite").write_bytes(b"this is no database at all" * 100)
    before = threading.active_count(), open_files()
    for _ in range(5):
        with pytest.raises(JournalError):
            Journal(tmp_path, 0)
    with Journal(tmp_path, 1) as book:
        for _ in range(5):
            with pytest.raises(ShardBusy):
                Journal(tmp_path, 1)
        settle(book, attempt(), b"{}", REPLY)
    list(journal.bodies(book.path, outcome=REPLY))
    assert (threading.active_count(), open_files()) == before


@pytest.mark.parametrize("damage", ["header", "page", "body"])
def test_a_damaged_journal_is_named_and_nothing_goes_on_without_it(tmp_path: Path, damage: str) -> None:
    with Journal(tmp_path) as book:
        for number in range(40):
            settle(book, attempt(f"{number:064x}"), os.urandom(3000), REPLY, "stop")
    raw = bytearray(book.path.read_bytes())
    if damage == "header":
        raw[:100] = b"x" * 100
    elif damage == "page":
        raw[4096 : len(raw) // 2] = b"\xff" * (len(raw) // 2 - 4096)
    if damage == "body":
        with sqlite3.connect(book.path) as plain:
            plain.execute("update replies set body = x'00ff00' where attempt_id = 7")
        plain.close()
    else:
        book.path.write_bytes(raw)

    def look() -> None:
        journal.stored_replies(tmp_path)
        journal.counts(tmp_path)
        list(journal.bodies(book.path, outcome=REPLY))

    with pytest.raises(JournalError, match=re.escape(str(book.path))) as caught:
        look()
    assert "restore a backup" in str(caught.value)


def test_a_journal_of_another_format_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path) as book:
        pass
    with sqlite3.connect(book.path) as plain:
        plain.execute("update meta set value = '99'")
    plain.close()
    with pytest.raises(JournalError, match=f"has format 99, this version of tempered writes {journal.FORMAT}"):
        Journal(tmp_path)


def fill_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer's file may not grow past 20 pages: SQLite itself then answers "database or disk is full"."""
    connect = journal_writer._connect

    def limited(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("pragma max_page_count = 20")
        return connection

    monkeypatch.setattr(journal_writer, "_connect", limited)


def test_a_failed_write_fails_everything_after_it_and_loses_nothing_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_up(monkeypatch)
    with Journal(tmp_path) as book:
        for number in range(3):
            settle(book, attempt(f"{number:064x}"), b"{}", REPLY, "stop")
        sent = book.begin(attempt()).result(10)
        with pytest.raises(JournalError, match=r"000\.sqlite failed: database or disk is full\. No further") as first:
            book.store(sent, os.urandom(200_000), 0.1).result(10)
        later = [book.begin(attempt()), book.conclude(sent, REPLY), book.store(sent, b"{}", 0.1)]
        assert [str(future.exception(10)) for future in later] == [str(first.value)] * 3
    assert journal.counts(tmp_path) == {"reply": 3, "maybe_billed": 1}
    monkeypatch.undo()  # space is free again
    with Journal(tmp_path) as book:
        settle(book, attempt(), os.urandom(200_000), REPLY, "stop")
    assert journal.counts(tmp_path) == {"reply": 4, "maybe_billed": 1}


def test_a_cancelled_wait_never_stops_the_writer(tmp_path: Path) -> None:
    blocked = threading.Event()
    with Journal(tmp_path) as book:
        book._submit(lambda connection: blocked.wait(10))  # the writer is busy; what follows waits in one batch
        dropped = book.begin(attempt("00" * 32))
        kept = book.begin(attempt("11" * 32))
        assert dropped.cancel()
        blocked.set()
        settle(book, attempt("22" * 32), b"{}", REPLY, "stop")
        assert kept.result(10) == 1
    assert journal.counts(tmp_path) == {"maybe_billed": 1, "reply": 1}  # what was cancelled was never sent


def test_a_record_that_sqlite_cannot_take_is_an_error_not_a_silence(tmp_path: Path) -> None:
    with Journal(tmp_path) as book, pytest.raises(JournalError, match="too large"):
        book.begin(attempt(seed=2**70)).result(10)


def test_a_lone_surrogate_in_an_error_is_recorded_replaced(tmp_path: Path) -> None:
    with Journal(tmp_path) as book:
        settle(book, attempt(), None, FAILED, "said \ud800")
    assert journal.errors_by_kind(tmp_path) == {"said ?": 1}


def test_a_journal_reads_in_a_folder_of_any_name_and_beside_its_writer(tmp_path: Path) -> None:
    folder = tmp_path / "50% of #1? really"
    with Journal(folder) as book:
        settle(book, attempt(), b"{}", REPLY, "stop")
        rows = journal.bodies(book.path, outcome=REPLY)
        first = next(rows)
        settle(book, attempt("cd" * 32), b"{}", REPLY, "stop")  # a reader in the middle does not hold the writer
        assert (first.body, [each.body for each in rows]) == (b"{}", [])
        assert len(journal.stored_replies(folder)) == 2
    assert len(journal.stored_replies(folder)) == 2


def test_a_journal_that_has_only_just_been_made_is_empty_not_broken(tmp_path: Path) -> None:
    (tmp_path / "003.sqlite").touch()
    assert (journal.stored_replies(tmp_path), journal.counts(tmp_path)) == ({}, {})
    assert journal.errors_by_kind(tmp_path) == {}
    assert journal.stored_replies(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    "change",
    ["temperature = 0.7", "sample_index = 1", "request_key = replace(request_key, 'a', 'b')", "outcome = null"],
)
def test_a_record_that_is_not_what_was_written_is_named(tmp_path: Path, change: str) -> None:
    with Journal(tmp_path) as book:
        book.conclude(book.begin(attempt("a" * 64)).result(), journal.REPLY, "stop").result()
    with sqlite3.connect(book.path) as plain:
        plain.execute(f"update attempts set {change}")
    plain.close()
    with pytest.raises(JournalError, match="attempt 1 is not what was written"):
        Journal(tmp_path)
    with sqlite3.connect(book.path) as plain:
        plain.execute("update attempts set checksum = null")
    plain.close()
    Journal(tmp_path).close()
