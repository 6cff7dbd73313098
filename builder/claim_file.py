"""A lock file with a record of who holds it, for hosts that share a disk; `builder.claim` says who may hold what.

The lock is exclusive and goes with the process, however it ends; the record is emptied at a clean end. Its counter
moves every few seconds, so that a host whose locks do not reach another one notices that one nevertheless. No clock of
one host is ever compared with a time that another host wrote.
"""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from builder.claim_record import Record, read_record, this_process, write_record
from builder.errors import JournalError

BEAT_S: Final = 2.0
"""A holder moves its counter this often."""
WATCH_S: Final = 7.0
"""A counter of another host that stands still for so long is a dead process's: three beats and some delay."""
READERS_S: Final = 60.0
"""A writer waits this long for readers of a journal."""
POLL_S: Final = 0.2
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_MEND: Final = (
    "Mount the disk with locks that reach every host (NFS without nolock and local_lock, Lustre with -o flock), or "
    "keep the run directory on a disk that has them."
)


class ShardBusy(JournalError):
    """Another process works on this shard, or on shards that do not go together with it."""


class ClaimLost(JournalError):
    """Another process took over what this one works on: the locks of the disk do not hold."""


@dataclass(frozen=True)
class Holder:
    """A claim that did not end: is its process alive, and does its lock say so?"""

    path: Path
    record: Record
    is_alive: bool
    is_locked: bool


class Claim:
    """What this process holds, until `release`. A thread moves the counter and looks whether the claim still stands."""

    def __init__(self, descriptor: int, path: Path, record: Record, before: Record | None) -> None:
        self.path = path
        self.record = record
        self.before = before
        """The holder that ended without a word, if one did."""
        self.lost: str | None = None
        self._descriptor = descriptor
        self._writing = threading.Lock()
        self._ended = threading.Event()
        write_record(path, record)
        self._thread = threading.Thread(target=self._live, name="claim", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise ClaimLost when the claim no longer stands."""
        if self.lost is not None:
            raise ClaimLost(self.lost)

    def allow(self, allowance: Mapping[str, float]) -> None:
        """Record what this process may spend."""
        with self._writing:
            self.record = replace(self.record, allowance=allowance)
            write_record(self.path, self.record)

    def release(self) -> None:
        """Empty the record, unless it is another's by now, and give the lock back."""
        self._ended.set()
        self._thread.join()
        try:
            self._look()
            if self.lost is None:
                os.truncate(self.path, 0)
        except OSError as error:
            raise JournalError(
                f"The end of a claim could not be recorded in {self.path}: {error}. Rerun the same command: it goes on "
                "from what is stored."
            ) from error
        finally:
            os.close(self._descriptor)

    def _live(self) -> None:
        while self.lost is None and not self._ended.wait(BEAT_S):
            with suppress(OSError), self._writing:  # a disk that fails: the step's own write says so, by name
                self._look()
                if self.lost is None:
                    self.record = replace(self.record, beat=self.record.beat + 1)
                    write_record(self.path, self.record)

    def _look(self) -> None:
        found = read_record(self.path)
        if found is None or found.nonce != self.record.nonce:
            taken = f"{found} works on it, too" if found else "its file was emptied or deleted"
            self.lost = (
                f"This process held {self.path} and no longer does: {taken}. No further request is sent, because two "
                "writers pay twice for one request; what was stored is kept, and what was in flight counts as "
                f"maybe_billed. {_MEND} Then rerun the same command."
            )


def lock_files(folder: Path, what: str) -> list[Path]:
    """Files of a step's claims, one a shard."""
    return sorted(folder.glob(f"{what}-[0-9][0-9][0-9].lock"))


def holders(paths: Iterable[Path]) -> list[Holder]:
    """Claims of these files that did not end. Waits some seconds where only a moving counter can tell who lives.

    Raises JournalError where the disk has no locks.
    """
    found, unsure = list[Holder](), list[Holder]()
    for path in paths:
        record = read_record(path)
        is_locked = not _is_free(path)
        if record is None or (not is_locked and record.nonce != getattr(read_record(path), "nonce", None)):
            continue  # it ended between the looks
        may_live = is_locked or not record.is_here or record.is_running
        (unsure if may_live and not is_locked else found).append(Holder(path, record, may_live, is_locked))
    if unsure:
        moved = _moving(unsure)
        found += [replace(each, is_alive=each.path in moved) for each in unsure]
    return sorted(found, key=lambda each: each.path)


def _moving(unsure: list[Holder]) -> set[Path]:
    """Those whose counter moves while this host watches, by its own clock."""
    until, moved = time.monotonic() + WATCH_S, set[Path]()
    while len(moved) < len(unsure) and time.monotonic() < until:
        time.sleep(POLL_S)
        for each in unsure:
            now = read_record(each.path)
            if now is not None and (now.nonce, now.beat) != (each.record.nonce, each.record.beat):
                moved.add(each.path)
    return moved


def hold(path: Path, what: str, shard: tuple[int, int], *, settings: str = "") -> Claim:
    """Take the claim of one lock file. Raises ShardBusy when another has it, JournalError where locks do not hold."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, path)
            _prove(path)
            return Claim(descriptor, path, this_process(what, shard, settings), _lost(path))
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise JournalError(
            f"{path} cannot be written: {error}. Nothing was sent, because only a claim keeps two processes from "
            "paying for one request. Free space or mend the disk, then rerun."
        ) from error


def _lost(path: Path) -> Record | None:
    """The record of a holder that ended without a word, of a file that this process has locked. Raises where it lives.

    A process of this host that is just dying, or a later one of its id, tells by its counter, too.
    """
    record = read_record(path)
    if record is None or (record.is_here and not record.is_running):
        return record
    if _moving([Holder(path, record, is_alive=True, is_locked=False)]):
        raise lies(path, record)
    return record


def _lock(descriptor: int, path: Path) -> None:
    """An exclusive lock; who only reads is waited for."""
    until = time.monotonic() + READERS_S
    while not _try(descriptor, fcntl.LOCK_EX, path):
        if not _is_free(path) or time.monotonic() > until:
            name = f"Shard {path.stem}" if path.stem.isdecimal() else path.stem
            raise ShardBusy(
                f"{name} of this run is being written by {read_record(path) or 'another process'}. Two writers could "
                "pay twice for one request. Wait for it, stop it, or use another shard."
            )
        time.sleep(POLL_S)


def _prove(path: Path) -> None:
    """A second one that opens the file must not get the lock that this process holds."""
    other = os.open(path, os.O_RDWR)
    try:
        if _try(other, fcntl.LOCK_EX, path):
            raise JournalError(
                f"The disk gave the lock of {path} twice: its locks do not hold. Two shards could write one journal "
                f"and pay twice, so nothing was sent. {_MEND}"
            )
    finally:
        os.close(other)


def lies(path: Path, record: Record) -> JournalError:
    """The error for a living holder whose lock is to be had."""
    return JournalError(
        f"{path} is free, and {record}, which holds it, is alive: the locks of this disk do not hold. Two shards could "
        f"write one journal and pay twice, so nothing was sent. {_MEND} Or stop that process first."
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone while inside, for the moment of a look and a write. Raises as `hold`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise JournalError(f"{path} cannot be written: {error}. Free space or mend the disk, then rerun.") from error
    try:
        while not _try(descriptor, fcntl.LOCK_EX, path):
            time.sleep(POLL_S / 20)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def reading(path: Path) -> Iterator[bool | None]:
    """Keep writers of other hosts out while inside: True. False where one of another host writes now.

    None where one of this host does, or where there is no such file or no lock to be had: the reader is on its own.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):
        yield None
        return
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error}. Mend the disk, then rerun.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            kept: bool | None = True
        except BlockingIOError:
            record = read_record(path)
            kept = None if record is None or record.is_of_this_host else False
        except OSError:  # a disk without locks: writers refuse it
            kept = None
        yield kept
    finally:
        os.close(descriptor)


def _is_free(path: Path) -> bool:
    """Whether nobody holds the claim; readers do not count."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        return _try(descriptor, fcntl.LOCK_SH, path)
    finally:
        os.close(descriptor)


def _try(descriptor: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise JournalError(
            f"The disk of {path} has no locks ({error}). Without them two shards could write one journal and pay "
            f"twice, so nothing was sent. {_MEND}"
        ) from error
    return True
