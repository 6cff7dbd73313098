"""Claims: which process works on which shard of a step, on this host and on others that share the disk."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from builder.claim_file import BEAT_S, POLL_S, Claim, ClaimLost, ShardBusy, hold, holders, lies, lock_files, locked
from builder.claim_record import Record
from builder.identity import canonical_json, sha256_hex
from builder.store import Run

if TYPE_CHECKING:
    from builder.config import Recipe

__all__ = ["STEPS", "Claim", "ClaimLost", "ShardBusy", "claimed", "settings_of", "shard_of"]

_DECIDES: Final = {
    "generate": ("prompts", "teacher", "generation"),
    "score": ("prompts", "teacher", "generation", "student"),
    "verify": ("prompts", "judge"),
    "pairs": ("prompts", "judge", "preference"),
    "rewrite": ("prompts", "judge", "rewrite"),
    "mix": ("prompts", "teacher", "generation", "student", "mixed_policy"),
}
"""Sections of the recipe that decide a step's rows."""
STEPS: Final = (*_DECIDES, "features", "signatures")
"""Steps that claim shards."""


def settings_of(recipe: "Recipe", what: str) -> str:
    """16 hex digits of what decides the rows of step `what`, less endpoints, concurrency and folders."""
    decisive = recipe.decisive()
    return sha256_hex(canonical_json([decisive.get(name) for name in _DECIDES.get(what, ())]))[:16]


@contextmanager
def claimed(
    run: Run, what: str, shard: tuple[int, int] = (0, 1), *, settings: str = "", wait: bool = False
) -> Iterator[Claim]:
    """Hold shard I of N of step `what` while inside, on every host that shares the run directory.

    Raises ShardBusy where another process holds it, or where living shards of the step have another N (both could pay
    for one request) or other `settings` (see `settings_of`); with `wait` that is waited for, and said. Raises
    JournalError for a disk without locks, and ClaimLost at the end where the claim did not hold all the while.
    """
    folder = run.root / "claims"
    claim = _claim(folder, what, shard, settings, wait)
    if claim.before is not None:
        _say(
            f"{what}: {shard_of(claim.before)} ({claim.before}) ended without a word; going on from what it stored. "
            "What it had in flight counts as maybe_billed."
        )
    try:
        yield claim
    finally:
        claim.release()
    claim.check()


def _claim(folder: Path, what: str, shard: tuple[int, int], settings: str, wait: bool) -> Claim:
    began, told = time.monotonic(), False
    path = folder / f"{what}-{shard[0]:03d}.lock"
    while True:
        with locked(folder / f"{what}.starting"):  # two that start at once see each other
            try:
                _refuse_others(folder, path, what, shard, settings)
                return hold(path, what, shard, settings=settings)
            except ShardBusy as error:
                if not wait:
                    raise
                if not told and time.monotonic() - began >= BEAT_S:
                    _say(f"waiting: {error}")
                    told = True
        time.sleep(POLL_S)


def _refuse_others(folder: Path, own: Path, what: str, shard: tuple[int, int], settings: str) -> None:
    """Raise for living shards that do not go together with this one; forget dead ones that it stands for."""
    index, count = shard
    for other in holders(path for path in lock_files(folder, what) if path != own):
        record = other.record
        if not other.is_alive:
            if record.index >= count and record.index % count == index:
                with suppress(OSError):  # `builder status` would name it once more, no more
                    os.truncate(other.path, 0)
            continue
        if not other.is_locked:
            raise lies(other.path, record)
        if record.count != count:
            raise ShardBusy(
                f"{shard_of(record)} of {what} is being worked on by {record}, and this is shard {index} of {count}. "
                f"Two divisions at once could work on one prompt twice, and pay twice. Use --shard I/{record.count}, "
                "or wait until all shards of the other division have ended; nothing that they stored is paid again."
            )
        if record.settings != settings:
            raise ShardBusy(
                f"{shard_of(record)} of {what} is being worked on by {record} from another recipe: shards of "
                "different recipes would make one table of two kinds of rows. Give all shards the same recipe and "
                "overrides, or wait until that one has ended."
            )


def shard_of(record: Record) -> str:
    """Its shard in words."""
    return f"shard {record.index} of {record.count}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
