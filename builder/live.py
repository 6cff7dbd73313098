"""What `generate` is doing right now, for `builder status` in another terminal: one small file a shard."""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from builder.store import Run
from builder.tally import Tally

EVERY_S: Final = 1.0
STALE_S: Final = 15.0
"""A file that did not change for this long, by a process that is gone, tells of a call that ended without a word."""


@dataclass
class Live:
    """Writes the state of one call of `generate`, at most once a second; gone when the call ends."""

    path: Path
    what: str
    started: float = field(default_factory=time.time)
    _written: float = 0.0

    @classmethod
    def of(cls, run: Run, what: str, shard: int) -> "Live":
        return cls(run.journal_dir / f"{shard:03d}.live.json", what)

    @property
    def seconds(self) -> float:
        """Since the call began."""
        return time.time() - self.started

    def update(self, tally: Tally) -> None:
        """Write the state, unless that was done within the last second. No sync: it is a view, never a record.

        Nor does a run end for it: where the disk refuses, the journal's own write says so, by name.
        """
        now = time.time()
        if now - self._written < EVERY_S:
            return
        self._written = now
        state = {"what": self.what, "pid": os.getpid(), "started": self.started, "updated": now, **asdict(tally)}
        temporary = self.path.with_suffix(".part")
        with suppress(OSError):
            temporary.write_text(json.dumps(state), encoding="utf-8")
            temporary.replace(self.path)

    def end(self) -> None:
        """Take the file away."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def rate(tally: Tally, seconds: float) -> tuple[float, float | None]:
    """Completion tokens a second of this call, and seconds left at its pace; None before it has one."""
    pace = tally.replies / seconds if seconds > 0 else 0.0
    left = max(0, tally.total - tally.done)
    return tally.completion_tokens / seconds if seconds > 0 else 0.0, left / pace if pace else None


def duration(seconds: float) -> str:
    """A time as a person reads it: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def running(run: Run) -> list[dict[str, Any]]:
    """States of the calls that write this run now, of all shards."""
    found = []
    for path in sorted(run.journal_dir.glob("*.live.json")):
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if time.time() - state["updated"] < STALE_S or _is_alive(state["pid"]):
            found.append(state)
    return found


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() if Path("/proc").is_dir() else False
