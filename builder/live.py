"""What `generate` is doing right now, for `builder status` in another terminal: one small file a shard."""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from builder.claim_file import holders
from builder.store import Run
from builder.tally import Tally

EVERY_S: Final = 1.0


@dataclass
class Live:
    """Writes the state of one call of `generate`, at most once a second; gone when the call ends."""

    path: Path
    what: str
    _began: float = field(default_factory=time.monotonic)
    _written: float = -EVERY_S

    @classmethod
    def of(cls, run: Run, what: str, shard: int) -> "Live":
        return cls(run.journal_dir / f"{shard:03d}.live.json", what)

    @property
    def seconds(self) -> float:
        """Since the call began."""
        return time.monotonic() - self._began

    def update(self, tally: Tally) -> None:
        """Write the state, unless that was done within the last second. No sync: it is a view, never a record.

        Nor does a run end for it: where the disk refuses, the journal's own write says so, by name.
        """
        seconds = self.seconds
        if seconds - self._written < EVERY_S:
            return
        self._written = seconds
        state = {"what": self.what, "pid": os.getpid(), "seconds": seconds, **asdict(tally)}
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
    """States of the calls that write this run now, of all shards and hosts: those whose journal is claimed.

    Waits some seconds where only a moving counter can tell whether a call of another host goes on.
    """
    paths = {path.with_name(f"{path.name[:3]}.lock"): path for path in sorted(run.journal_dir.glob("*.live.json"))}
    found = []
    for holder in holders(paths):
        with suppress(OSError, ValueError):  # it ended, or is being written
            state = json.loads(paths[holder.path].read_text(encoding="utf-8"))
            if holder.is_alive and state["pid"] == holder.record.pid:
                found.append({**state, "host": holder.record.host})
    return found
