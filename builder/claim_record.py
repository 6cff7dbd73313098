"""The record in a lock file: which process of which host holds a claim, and that it is alive."""

import json
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from socket import gethostname
from typing import Final

_RECORD_BYTES: Final = 1024


@dataclass(frozen=True)
class Record:
    """Who holds a claim. `boot` and `started` (clock ticks since boot) tell a process from a later one of its id.

    `beat` counts up while the holder lives; `allowance` is what it may spend, see `builder.budget`.
    """

    host: str
    boot: str
    pid: int
    started: str
    nonce: str
    what: str
    index: int
    count: int
    settings: str = ""
    beat: int = 0
    allowance: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_here(self) -> bool:
        """Whether it is of this host, as it runs since its last boot."""
        return (self.host, self.boot) == (host(), _boot())

    @property
    def is_of_this_host(self) -> bool:
        """Whether its host has this host's name."""
        return self.host == host()

    @property
    def is_running(self) -> bool:
        """Whether its process runs; only for one of this host."""
        return bool(self.started) and _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def host() -> str:
    """Name of this host."""
    return gethostname()


def read_record(path: Path) -> Record | None:
    """The record of a claim that did not end; None for an empty file, none, or one that is no record."""
    for _ in range(3):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")  # opened anew: a network disk asks its server
        except FileNotFoundError:
            return None
        try:
            return Record(**json.loads(text)) if text.strip() else None
        except (TypeError, ValueError):
            time.sleep(0.01)  # the middle of a write
    return None


def write_record(path: Path, record: Record) -> None:
    """Write it in place, as the lock is on this very file; closed at once, as a network disk sends it then."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.pwrite(descriptor, json.dumps(asdict(record)).ljust(_RECORD_BYTES).encode(), 0)
    finally:
        os.close(descriptor)


def this_process(what: str, shard: tuple[int, int], settings: str = "") -> Record:
    """A record of this process, with a nonce of its own."""
    me = os.getpid()
    return Record(host(), _boot(), me, _started(me), uuid.uuid4().hex, what, *shard, settings)


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _started(pid: int) -> str:
    """When a process of this host started, clock ticks since boot; empty where it does not run or nobody tells."""
    with suppress(OSError, IndexError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[18] if state not in "ZX" else ""  # dead, and its parent has not noticed
    return ""
