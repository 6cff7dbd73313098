"""Who may work on which shard, on one host and on several, also on a disk whose locks do not hold."""

import errno
import fcntl
import json
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from claim_toys import ELSEWHERE, child, foreign, holder, hurry
from endpoint import Ask, endpoint, wait_until
from test_generate import questions, recipe

from builder import claim, claim_file, claim_record, journal
from builder.claim import ClaimLost, ShardBusy, claimed, settings_of
from builder.claim_file import hold, holders, reading
from builder.claim_record import Record, read_record, this_process, write_record
from builder.console import Reporter
from builder.errors import JournalError
from builder.generate import generate
from builder.journal_writer import Journal
from builder.live import Live, running
from builder.status import show_status
from builder.store import Run
from builder.tally import Tally


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def lock(run: Run, what: str = "generate", index: int = 0) -> Path:
    return run.root / "claims" / f"{what}-{index:03d}.lock"


@pytest.mark.parametrize("host", ["", ELSEWHERE])
def test_a_second_process_on_a_shard_is_refused_by_name_until_the_first_ends(run: Run, host: str) -> None:
    with holder(run.root, host=host) as other:
        words = f"process {other.pid} on {host or claim_record.host()}"
        with pytest.raises(ShardBusy, match=words), claimed(run, "generate"):
            pass
        with claimed(run, "score"), claimed(run, "generate-2"):  # other steps go on
            pass
        other.communicate("")
        assert other.returncode == 0
    assert lock(run).read_bytes() == b""
    with claimed(run, "generate") as mine:
        assert mine.before is None


@pytest.mark.parametrize("host", ["", ELSEWHERE])
def test_a_holder_that_was_killed_is_taken_over_and_that_is_said(
    run: Run, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with holder(run.root, host=host, shard=(1, 3)) as other:
        other.kill()  # and not waited for: a zombie is no holder
        wait_until(lambda: not holders([lock(run, index=1)])[0].is_locked)
        with claimed(run, "generate", (1, 3)) as mine:
            assert mine.before is not None and mine.before.pid == other.pid
    said = capsys.readouterr().err
    assert f"shard 1 of 3 (process {other.pid}" in said and "maybe_billed" in said


def test_who_may_wait_waits_and_says_for_whom(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claim, "BEAT_S", 0.0)
    with holder(run.root, what="features", shard=(0, 2)) as other:  # of another count, too
        done = threading.Event()

        def wait() -> None:
            with claimed(run, "features", wait=True):
                done.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until(lambda: "waiting" in capsys.readouterr().err)
        assert not done.is_set()
        other.communicate("")
        waiting.join(10)
    assert done.is_set()


def test_shards_of_another_count_are_refused_while_one_lives(run: Run) -> None:
    with holder(run.root, shard=(2, 7)) as other:
        with claimed(run, "generate", (3, 7)):
            pass
        words = rf"shard 2 of 7 of generate .* process {other.pid} on .* this is shard 0 of 3.*Use --shard I/7"
        with pytest.raises(ShardBusy, match=words), claimed(run, "generate", (0, 3)):
            pass
        other.communicate("")
    with claimed(run, "generate", (0, 3)):
        pass


def test_shards_of_another_recipe_are_refused_while_one_lives(run: Run) -> None:
    refused = pytest.raises(ShardBusy, match="shards of different recipes")
    with holder(run.root, shard=(0, 2)), refused, claimed(run, "generate", (1, 2), settings="other"):
        pass


def test_of_two_counts_that_start_at_once_one_is_refused(run: Run) -> None:
    for _ in range(5):
        together, over = threading.Barrier(6), threading.Barrier(6)
        held, refused = list[int](), list[int]()

        def start(index: int, count: int) -> None:
            together.wait(20)  # noqa: B023
            try:
                with claimed(run, "generate", (index, count)):
                    held.append(count)  # noqa: B023
                    over.wait(20)  # noqa: B023
            except ShardBusy:
                refused.append(count)  # noqa: B023
                over.wait(20)  # noqa: B023

        shards = [(index, 7) for index in range(3)] + [(index, 9) for index in range(3, 6)]
        threads = [threading.Thread(target=start, args=shard) for shard in shards]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted([held, refused]) == [[7, 7, 7], [9, 9, 9]]


def test_what_decides_no_row_is_no_other_setting() -> None:
    here, there = recipe("http://a:1/v1"), recipe("http://b:2/v1")
    warm = here.model_copy(update={"generation": here.generation.model_copy(update={"max_tokens": 9})})
    assert settings_of(here, "generate") == settings_of(there, "generate") != settings_of(warm, "generate")
    assert settings_of(here, "verify") == settings_of(warm, "verify")


def test_a_disk_that_gives_a_lock_twice_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.raises(JournalError, match=r"gave the lock of .* twice.*nothing was sent.*Mount the disk with locks"):
        Journal(run.journal_dir)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_refused_in_words(run: Run, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(JournalError, match=r"has no locks .*Mount the disk with locks"), claimed(run, "generate"):
        pass


@pytest.mark.parametrize("host", ["", ELSEWHERE])
@pytest.mark.parametrize("shard", [(0, 2), (1, 2)])
def test_a_disk_whose_locks_do_not_reach_a_living_holder_is_refused(
    run: Run, host: str, shard: tuple[int, int]
) -> None:
    with holder(run.root, host=host, shard=(0, 2), lies=True) as other:
        before = read_record(lock(run))
        words = f"process {other.pid}.*is alive: the locks of this disk do not hold"
        with pytest.raises(JournalError, match=words), claimed(run, "generate", shard):
            pass
        after = read_record(lock(run))
        assert before is not None and after is not None and before.nonce == after.nonce


def test_a_later_process_of_a_dead_ones_id_is_not_its_holder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lock(run)
    path.parent.mkdir()
    path.touch()
    mine = this_process("generate", (0, 1))
    write_record(path, Record(mine.host, mine.boot, mine.pid, "1", "n", "generate", 0, 1))
    monkeypatch.setattr(claim_file, "_moving", lambda _: pytest.fail("this host needs no watching"))
    with claimed(run, "generate") as claim_of_mine:
        assert claim_of_mine.before is not None


def test_a_lost_claim_ends_the_step_and_leaves_the_other_holders_record(run: Run) -> None:
    def work() -> None:
        with claimed(run, "generate") as mine:
            mine.check()
            write_record(mine.path, foreign())
            wait_until(lambda: mine.lost is not None)
            with pytest.raises(ClaimLost, match=f"on {ELSEWHERE} works on it, too.*maybe_billed"):
                mine.check()

    with pytest.raises(ClaimLost):
        work()
    assert read_record(lock(run)) == foreign()


def test_a_claim_whose_file_is_deleted_is_lost_even_at_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_file, "BEAT_S", 1000.0)
    with pytest.raises(ClaimLost, match="emptied or deleted"), claimed(run, "generate") as mine:
        mine.path.unlink()


def test_generate_stops_sending_when_its_journal_is_taken_over(run: Run) -> None:
    path = run.journal_dir / "000.lock"

    def taken_over(ask: Ask) -> None:
        if ask.number == 3:
            write_record(path, foreign("journal"))

    refused = pytest.raises(ClaimLost, match="No further request is sent")
    with endpoint(script=taken_over, delay_s=0.05) as server, refused:
        generate(run, recipe(server), questions(200))
    assert 4 <= len(server.asks) < 800
    assert read_record(path) == foreign("journal")


def test_a_journal_that_another_host_writes_is_not_opened_here(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with child(run.root, ELSEWHERE, "journal"):
        opened, connect = list[str](), sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda name, **given: (opened.append(name), connect(name, **given))[1])
        assert journal.stored_replies(run.journal_dir) == {}
        assert journal.answered_prompts(run.journal_dir) == set()
        assert journal.counts(run.journal_dir) == journal.errors_by_kind(run.journal_dir) == {}
        assert list(journal.bodies(run.journal_dir / "000.sqlite", outcome=journal.REPLY)) == []
        assert opened and all(":memory:" in name for name in opened)
    assert journal.counts(run.journal_dir) == {"reply": 1}


def test_a_journal_that_this_host_writes_is_read_beside_its_writer(run: Run) -> None:
    with child(run.root, "", "journal"):
        assert journal.counts(run.journal_dir) == {"reply": 1}
        assert len(journal.stored_replies(run.journal_dir)) == 1


def test_a_writer_waits_for_readers_but_not_for_ever(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(run.journal_dir).close()
    path, reads = run.journal_dir / "000.lock", threading.Event()

    def read() -> None:
        with reading(path) as is_alone:
            assert is_alone
            reads.wait(10)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: not can_lock(path))
    monkeypatch.setattr(claim_file, "READERS_S", 0.0)
    with pytest.raises(ShardBusy):
        Journal(run.journal_dir)
    monkeypatch.setattr(claim_file, "READERS_S", 60.0)
    threading.Timer(0.1, reads.set).start()
    with Journal(run.journal_dir):
        assert reads.is_set()
    reader.join()


def can_lock(path: Path) -> bool:
    with path.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_reading_a_journal_without_a_writer_makes_no_file_beside_it(run: Run) -> None:
    """So it works on a disk that is mounted for reading only."""
    with child(run.root, "", "journal") as writer:
        writer.communicate("")
    before = sorted(run.journal_dir.iterdir())
    for _ in journal.bodies(run.journal_dir / "000.sqlite", outcome=journal.REPLY):
        assert sorted(run.journal_dir.iterdir()) == before
    assert journal.counts(run.journal_dir) == {"reply": 1}
    (run.journal_dir / "000.lock").unlink()
    assert journal.counts(run.journal_dir) == {"reply": 1}


def status(run: Run, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    reporter = Reporter(as_json=True)
    show_status(reporter, run)
    reporter.finish()
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_status_tells_of_another_hosts_writer_and_of_shards_that_died(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with child(run.root, ELSEWHERE, "journal") as writer:
        Live.of(run, "generate", 0).update(Tally(total=3))
        live = run.journal_dir / "000.live.json"
        live.write_text(live.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {writer.pid}'))
        (state,) = running(run)
        assert state["host"] == ELSEWHERE
        with holder(run.root, host=ELSEWHERE, shard=(2, 7)) as lost:
            lost.kill()
            lost.wait()
            said = status(run, capsys)
    (line,) = said["written_elsewhere"]
    assert f"process {writer.pid} on {ELSEWHERE}: what it holds is counted here when that ends" in line
    (line,) = said["lost"]
    assert line == f"generate: shard 2 of 7 ended without a word on {ELSEWHERE} (process {lost.pid}); rerun it"
    with claimed(run, "generate", (1, 2)):  # stands for shards 1, 3, 5 of others
        pass
    assert status(run, capsys)["lost"] == [line]
    with claimed(run, "generate", (0, 2)):
        pass
    assert status(run, capsys)["lost"] == []


def test_hold_on_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("a file")
    with pytest.raises(JournalError, match=r"cannot be written: .*Nothing was sent"):
        hold(tmp_path / "claims" / "generate-000.lock", "generate", (0, 1))
