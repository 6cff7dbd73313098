"""Sealing: parts are written, checked and only then do raw bodies leave the journal; a crash anywhere loses nothing."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from endpoint import endpoint, reply_to
from test_generate import content, distinct, no_waiting, questions, recipe

from builder import journal, seal
from builder.errors import JournalError, TableError
from builder.generate import generate
from builder.identity import sha256_hex
from builder.journal import FATAL, REPLY, RETRYABLE, Attempt
from builder.journal_writer import Journal
from builder.schema import TABLES
from builder.seal import Sealer
from builder.store import Run, columns_table

__all__ = ["no_waiting"]
SEGMENT = 8
NOBODY = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "_SEAL_REPLIES", SEGMENT)
    monkeypatch.setattr(seal, "_LOOSE_REPLIES", 3)
    monkeypatch.setattr(seal, "_KEPT_RAW", 10**12)


def bodies(run: Run) -> int:
    return sum(len(list(journal.bodies(path, outcome=REPLY))) for path in journal.journals(run.journal_dir))


def parts_by_attempt(run: Run) -> list[tuple[str | None, str | None]]:
    with sqlite3.connect(run.journal_dir / "000.sqlite") as plain:
        rows = plain.execute("select responses_part, logprobs_part from attempts order by 1, 2").fetchall()
    plain.close()
    return rows


def store(book: Journal, number: int, body: bytes | None = None, outcome: str | None = REPLY, **other: Any) -> str:
    """One attempt with its body, as `generate` leaves it; returns its request key."""
    key = sha256_hex(str(number))
    given: dict[str, Any] = {
        "model": "toy", "revision": None, "request_key": key, "prompt_id": f"p{number}", "role": "teacher",
        "temperature": 0.6, "sample_index": 0, "seed": number, "max_tokens": 64, "endpoint": "http://h/v1",
    }  # fmt: skip
    asked = {"messages": [], "seed": number, "max_tokens": 64, "logprobs": True, "return_token_ids": True, "model": "t"}
    attempt_id = book.begin(Attempt(**given | other)).result(10)
    book.store(attempt_id, body or json.dumps(reply_to(asked)).encode(), 0.5).result(10)
    if outcome is not None:
        book.conclude(attempt_id, outcome, "stop" if outcome == REPLY else "an error").result(10)
    return key


def caught_up(run: Run, **options: Any) -> None:
    with Journal(run.journal_dir) as book, Sealer(run, recipe(NOBODY), book) as sealer:
        sealer.catch_up(**options)


def test_bodies_leave_the_journal_once_they_fill_a_segment_and_the_rest_stay(tmp_path: Path) -> None:
    run, calm = Run(tmp_path / "a"), Run(tmp_path / "b")
    with endpoint() as server:
        generate(run, recipe(server), questions(5))  # 20 replies
        assert bodies(run) == 20 - 2 * SEGMENT
        assert len(run.parts("responses")) == len(run.parts("logprobs")) == 3
        assert generate(run, recipe(server), questions(5)).stored_before == 20
        assert len(server.asks) == 20
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(seal, "_SEAL_REPLIES", 4096)
            generate(calm, recipe(server), questions(5))
    assert distinct(run) == 20
    assert content(run) == content(calm)
    assert bodies(calm) == 20
    assert journal.counts(run.journal_dir) == {"reply": 20}


def test_an_attempt_says_in_which_parts_its_reply_stands(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        generate(run, recipe(server), questions(5))
    for table, named in zip(("responses", "logprobs"), zip(*parts_by_attempt(run), strict=True), strict=True):
        rows = {part.name: pq.read_metadata(part).num_rows for part in run.parts(table)}
        assert {name: named.count(name) for name in set(named)} == rows


def test_below_one_segment_every_body_stays_and_the_tables_come_back(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        generate(run, recipe(server, samples=1), questions(3))
    before = content(run)
    shutil.rmtree(run.table_dir("responses"))
    assert generate(run, recipe(NOBODY, samples=1), questions(3)).stored_before == 6
    assert content(run) == before
    shutil.rmtree(run.table_dir("logprobs"))
    generate(run, recipe(NOBODY, samples=1), questions(3))
    assert content(run) == before
    assert bodies(run) == distinct(run) == 6


def test_many_short_calls_are_pruned_together(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        for number in range(1, 8):
            generate(run, recipe(server, samples=1), questions(number))  # two replies more each time
            assert bodies(run) < SEGMENT
    assert distinct(run) == 14


def test_what_the_tables_do_not_hold_whole_stays_raw(tmp_path: Path) -> None:
    run = Run(tmp_path)
    unaligned = {"message": {"content": "x"}, "logprobs": {"content": [{"token": "y", "logprob": -1.0}]}}
    calls = {"message": {"content": "x", "tool_calls": [{}]}, "finish_reason": "tool_calls"}
    with Journal(run.journal_dir) as book:
        kept = {store(book, number, json.dumps({"choices": [kind]}).encode()) for number, kind in
                enumerate((unaligned, calls))}  # fmt: skip
        store(book, 2, b"<html>", RETRYABLE)
        store(book, 3, b'{"choices": [{}, {}]}', FATAL)
        for number in range(4, 4 + SEGMENT):
            store(book, number)
    caught_up(run)
    path = run.journal_dir / "000.sqlite"
    assert {stored.attempt.request_key for stored in journal.bodies(path, outcome=REPLY)} < kept | {
        sha256_hex(str(number)) for number in range(4, 4 + SEGMENT)
    }
    assert kept <= {stored.attempt.request_key for stored in journal.bodies(path, outcome=REPLY)}
    assert [stored.body for stored in journal.bodies(path, outcome=RETRYABLE)] == [b"<html>"]
    assert len(list(journal.bodies(path, outcome=FATAL))) == 1
    assert run.rows("responses") == 2 + SEGMENT


def test_one_body_in_so_many_stays_the_same_ones_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "_KEPT_RAW", 4)
    left = []
    for name in "ab":
        run = Run(tmp_path / name)
        with Journal(run.journal_dir) as book:
            for number in range(10 * SEGMENT):
                store(book, number)
        caught_up(run)
        left.append({each.attempt.request_key for each in journal.bodies(book.path, outcome=REPLY)})
    assert left[0] == left[1]
    assert left[0] == {key for key in (sha256_hex(str(n)) for n in range(10 * SEGMENT)) if int(key[:8], 16) % 4 == 0}
    assert 5 < len(left[0]) < 40


def test_continuations_are_pruned_too_and_stay_whole_in_the_tables(tmp_path: Path) -> None:
    run = Run(tmp_path)
    body = json.dumps(
        {"choices": [{"text": " and so", "finish_reason": "stop", "logprobs": {"tokens": [" and", " so"],
         "token_logprobs": [-0.5, -0.25]}}]}
    ).encode()  # fmt: skip
    with Journal(run.journal_dir) as book:
        for number in range(SEGMENT):
            store(book, number, body, role="mixed", prefix="It is 7", prefix_response_id="r")
    caught_up(run)
    before = run.read("responses").sort("response_id")
    assert bodies(run) == 0
    assert set(before["answer"]) == {"It is 7 and so"}
    assert set(before["prefix_chars"]) == {7}
    caught_up(run)
    assert run.read("responses").sort("response_id").equals(before)


CRASHES = """
import os, sys
from pathlib import Path
from builder import journal_writer, seal, store
from builder.config import Recipe
from builder.journal_writer import Journal
from builder.store import Run

folder, point, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
left = [times]
def die():
    left[0] -= 1
    if not left[0]:
        os._exit(9)
def dying(function, when=lambda *a, **k: True, after=False):
    def wrapped(*a, **k):
        if after:
            result = function(*a, **k)
            if when(*a, **k):
                die()
            return result
        if when(*a, **k):
            die()
        return function(*a, **k)
    return wrapped
into = lambda table: lambda temporary, path: path.parent.name == table
if point == "before logprobs":
    store.publish_new = dying(store.publish_new, into("logprobs"))
if point == "between tables":
    store.publish_new = dying(store.publish_new, into("logprobs"), after=True)
if point == "recorded, not renamed":
    store.publish_new = dying(store.publish_new, into("responses"))
if point == "renamed, not pruned":
    store.publish_new = dying(store.publish_new, into("responses"), after=True)
if point == "inside prune":
    submit = Journal._submit
    def submitted(self, operation):
        def dies(connection):
            result = operation(connection)
            if operation.__name__ == "delete":
                die()
            return result
        dies.__name__ = operation.__name__
        return submit(self, dies)
    Journal._submit = submitted
if point == "pruned":
    seal.Sealer._prune = dying(seal.Sealer._prune, after=True)
seal._SEAL_REPLIES, seal._KEPT_RAW = 8, 10**12
recipe = Recipe.model_validate({"name": "toy", "teacher": {"model": "toy", "revision": "r1"}})
run = Run(folder)
with Journal(run.journal_dir) as book, seal.Sealer(run, recipe, book) as sealer:
    sealer.catch_up()
"""
POINTS = ["before logprobs", "between tables", "recorded, not renamed", "renamed, not pruned", "inside prune", "pruned"]


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_of_sealing_loses_and_doubles_nothing(tmp_path: Path, point: str) -> None:
    run, calm = Run(tmp_path / "a"), Run(tmp_path / "b")
    for each in (run, calm):
        with Journal(each.journal_dir) as book:
            for number in range(30):
                store(book, number, outcome=REPLY if number % 3 else None)
    for times in (1, 2):
        ended = subprocess.run([sys.executable, "-c", CRASHES, str(run.root), point, str(times)], check=False)
        assert ended.returncode == 9
        held = {
            each.attempt.request_key for kind in (None, REPLY) for each in journal.bodies(book_path(run), outcome=kind)
        }
        known = run.ids("responses")
        assert {row["response_id"] for row in run.read("responses").to_dicts()} == known
        pruned = [each for each in journal.sealed(book_path(run)) if not each.has_body]
        assert {each.response_id for each in pruned} <= known & run.ids("logprobs")
        assert len(held) + len(pruned) == 30
    caught_up(run)
    caught_up(calm)
    assert distinct(run) == 30
    assert content(run) == content(calm)
    assert bodies(run) < SEGMENT


def test_bodies_recorded_for_a_part_that_never_appeared_are_not_pruned_with_another(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with Journal(run.journal_dir) as book:
        for number in range(30):
            store(book, number)
        part = "part-000-00000.parquet"  # replies that came early fill the first part, whichever request they answer
        book.seal([(part, part, attempt_id) for attempt_id in range(20, 20 + SEGMENT)]).result(10)
    ended = subprocess.run([sys.executable, "-c", CRASHES, str(run.root), "pruned", "1"], check=False)
    assert ended.returncode == 9
    assert len(list(journal.bodies(book_path(run), outcome=REPLY))) == 30 - SEGMENT
    caught_up(run)
    assert distinct(run) == 30


def book_path(run: Run) -> Path:
    return run.journal_dir / "000.sqlite"


@pytest.mark.parametrize("table", ["responses", "logprobs"])
def test_a_lost_part_whose_bodies_are_pruned_is_named_and_nothing_is_paid_again(tmp_path: Path, table: str) -> None:
    run = Run(tmp_path / "run")
    with endpoint() as server:
        generate(run, recipe(server), questions(5))
        before = content(run)
        lost = run.parts(table)[1]
        lost.rename(tmp_path / "backup")
        with pytest.raises(TableError, match=rf"{SEGMENT} paid replies .*tables/{table}/{lost.name} \({SEGMENT}\)"):
            generate(run, recipe(server), questions(6))
        assert len(server.asks) == 20
        (tmp_path / "backup").rename(lost)
        assert generate(run, recipe(server), questions(5)).stored_before == 20
        assert len(server.asks) == 20
    assert content(run) == before


@pytest.mark.parametrize("table", ["responses", "logprobs"])
def test_lost_replies_are_asked_again_only_when_told_and_leave_nothing_stale(tmp_path: Path, table: str) -> None:
    run = Run(tmp_path)
    with endpoint() as server:
        generate(run, recipe(server), questions(5))
        before = content(run)
        ids = pq.read_table(run.parts("responses")[0])["response_id"].to_pylist()
        stale = [{"response_id": each, "rule_name": "r", "observed": None, "threshold": None} for each in (ids[0], "z")]
        run.append("rejections", columns_table("rejections", stale))
        run.parts(table)[0].unlink()
        tally = generate(run, recipe(server), questions(5), forget_missing=True)
        assert (tally.replies, len(server.asks)) == (SEGMENT, 20 + SEGMENT)
        assert generate(run, recipe(server), questions(5)).stored_before == 20
    assert distinct(run) == 20
    assert content(run) == before
    assert run.ids("rejections") == {"z"}
    assert journal.counts(run.journal_dir) == {"reply": 20, "given_up": SEGMENT}


def test_the_journal_of_a_long_run_does_not_grow_with_its_replies(tmp_path: Path) -> None:
    run, segments, size = Run(tmp_path), 16, 10_000
    with Journal(run.journal_dir) as book, Sealer(run, recipe(NOBODY), book) as sealer:
        for number in range(segments * SEGMENT):
            text = os.urandom(size).hex()  # does not compress below its bytes
            body = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()
            store(book, number, body, None)
            if number % SEGMENT == SEGMENT - 1:
                sealer.catch_up()
    assert run.rows("responses") == segments * SEGMENT
    assert book.path.stat().st_size < 4 * SEGMENT * size


def test_parts_are_written_away_from_the_thread_that_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    monkeypatch.setattr(seal, "_read_back", lambda file, rows: threads.append(threading.current_thread()))
    with endpoint() as server:
        generate(Run(tmp_path), recipe(server), questions(5))
    assert len(threads) == 6
    assert threading.main_thread() not in threads


def test_a_part_that_cannot_be_written_stops_the_sending_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, append = Run(tmp_path), Run.append

    def full(self: Run, name: str, *rows: Any, **options: Any) -> Path | None:
        if name == "responses" and len(self.parts(name)) == 2:
            raise TableError("the disk is full")
        return append(self, name, *rows, **options)

    with endpoint() as server:
        monkeypatch.setattr(Run, "append", full)
        with pytest.raises(TableError, match="the disk is full"):
            generate(run, recipe(server), questions(50))
        sent = len(server.asks)
        assert sent < 150
        monkeypatch.undo()
        assert generate(run, recipe(server), questions(50)).stored_before == sent
        assert len(server.asks) == distinct(run) == 200


@pytest.mark.parametrize("damage", ["other", "torn"])
def test_a_part_that_reads_otherwise_than_written_never_appears_and_its_bodies_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    run, write = Run(tmp_path), pq.write_table

    def damaged(rows: pa.Table, path: Path, **options: Any) -> None:
        if damage == "other":
            write(rows.slice(1), path, **options)
        else:
            write(rows, path, **options)
            path.write_bytes(path.read_bytes()[:-20])

    with endpoint() as server:
        monkeypatch.setattr(pq, "write_table", damaged)
        with pytest.raises(TableError, match="replies are still in the journal"):
            generate(run, recipe(server), questions(5))
        monkeypatch.undo()
        assert list(run.root.rglob("*part-*")) == []
        generate(run, recipe(server), questions(5))
        assert len(server.asks) == distinct(run) == 20


def test_token_columns_hold_null_where_a_logprob_is_missing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    body = b'{"choices": [{"message": {"content": "ab"}, "logprobs": {"content": [{"token": "a", "logprob": NaN},'
    body += b'{"token": "b", "logprob": -1.5}]}}]}'
    with Journal(run.journal_dir) as book:
        store(book, 0, body)
    caught_up(run)
    (row,) = pq.read_table(run.parts("logprobs")[0]).to_pylist()
    assert (row["logprob"], row["token_ids"], row["token_end"], row["nonfinite_count"]) == ([None, -1.5], [], [1, 2], 1)
    assert TABLES["logprobs"].schema.equals(pq.read_schema(run.parts("logprobs")[0]))


def test_a_journal_that_fails_while_a_part_is_recorded_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    broken = JournalError("Writing the journal failed")

    def refuse(self: Journal, parts: Any) -> Any:
        raise broken

    with endpoint() as server:
        monkeypatch.setattr(Journal, "seal", refuse)
        with pytest.raises(JournalError, match="Writing the journal failed"):
            generate(run, recipe(server), questions(50))
        monkeypatch.undo()
        assert run.parts("responses") == []
        generate(run, recipe(server), questions(50))
        assert distinct(run) == 200
        assert len(server.asks) <= 200 + 8  # what was in flight may be paid twice


LEAN = """
import json, sys
from pathlib import Path
import builder.cli, builder.generate, builder.pipeline
from builder.budget import open_budget
from builder.config import Recipe
from builder.journal_writer import Journal
from builder.prompts import Prompts, write_prompts
from builder.seal import Sealer
from builder.store import Run
run = Run(Path(sys.argv[1]))
recipe = Recipe.model_validate({"name": "toy", "teacher": {"model": "toy", "revision": "r1"}})
row = {"prompt_id": sys.argv[2], "messages": [{"role": "user", "content": "?"}], "sources": [], "gold_conflicts": 0}
write_prompts(run, Prompts([row], 1, 0, 0))
used = open_budget(run, recipe.require_teacher(), None, 10**9).tokens
with Journal(run.journal_dir) as book, Sealer(run, recipe, book) as sealer:
    sealer.catch_up()
import pyarrow
loaded = [name for name in ("polars", "pandas") if name in sys.modules]
print(json.dumps([loaded, used > 0, run.rows("responses"), pyarrow.default_memory_pool().backend_name]))
"""


def test_generating_and_sealing_take_neither_polars_nor_pandas_nor_an_allocator_that_keeps_memory(
    tmp_path: Path,
) -> None:
    """First a new run, then one that goes on: 44, 47 and 20 MB of the memory of `builder generate`."""
    run = Run(tmp_path)
    without = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    for replies in (3, 5):
        with Journal(run.journal_dir) as book:
            for number in range(run.rows("responses"), replies):
                store(book, number)
        command = [sys.executable, "-c", LEAN, str(run.root), f"p{replies}"]
        ended = subprocess.run(command, check=True, capture_output=True, text=True, env=without)
        assert json.loads(ended.stdout) == [[], True, replies, "system"]  # what only the journal holds is used, too


def test_rows_wait_in_arrow_and_a_row_that_does_not_fit_is_said_each_time(tmp_path: Path) -> None:
    segment = seal._Segment()
    row = {"response_id": "a", "token_ids": [1, 2], "nonfinite_count": 0}
    for _ in range(4):
        segment.add(None, row, 2)
    assert [rows.num_rows for rows in segment.logprobs.packed] == [3]
    assert segment.logprobs.table().equals(columns_table("logprobs", [row] * 4))
    segment.logprobs.loose.append(row | {"token_ids": ["x"]})
    for _ in range(2):
        with pytest.raises(TableError, match="logprobs"):
            segment.logprobs.table()
    assert len(segment.logprobs) == 5
