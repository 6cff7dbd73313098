"""What a crash leaves of SQLite's log, and what it does not."""

import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from builder.wal import _checksum, damage


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A log of forty transactions; its database is open, so nothing is written back."""
    connection = sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute("pragma wal_autocheckpoint = 0")
    connection.execute("create table a (b blob)")
    for _ in range(40):
        connection.execute("insert into a values (?)", (os.urandom(1500),))
    yield tmp_path / "a.sqlite-wal"
    connection.close()


def test_the_checksum_is_the_one_that_the_format_describes() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, 1026, dtype=np.uint32)
    first, second = 5, 2**32 - 1
    for x, y in words.reshape(-1, 2).tolist():
        first = (first + x + second) % 2**32
        second = (second + y + first) % 2**32
    assert _checksum(words, (5, 2**32 - 1)) == (first, second)


def test_a_log_that_ends_anywhere_is_what_a_crash_leaves(log: Path) -> None:
    raw, database = log.read_bytes(), log.with_name("a.sqlite")
    for length in [*range(0, len(raw), 1009), len(raw)]:
        log.write_bytes(raw[:length])
        assert damage(database) is None


def test_a_last_transaction_with_holes_is_what_a_crash_leaves(log: Path) -> None:
    connection, before = sqlite3.connect(log.with_name("a.sqlite"), isolation_level=None), log.stat().st_size
    connection.execute("insert into a values (zeroblob(40000))")
    raw = bytearray(log.read_bytes())
    assert len(raw) > before + 8 * 4096
    raw[before + 5000 : before + 9000] = bytes(4000)  # its end came to the disk first, and then the power went
    log.write_bytes(raw)
    assert damage(log.with_name("a.sqlite")) is None
    log.write_bytes(raw[:before])
    connection.close()


@pytest.mark.parametrize("low", [0, 0.25, 0.5, 0.75])
def test_a_bit_that_flips_before_the_end_is_damage(log: Path, low: float) -> None:
    raw, database, dice = log.read_bytes(), log.with_name("a.sqlite"), random.Random(4)
    assert damage(database) is None
    for _ in range(25):
        place = dice.randrange(int(low * len(raw)), int((low + 0.2) * len(raw)))
        spoiled = bytearray(raw)
        spoiled[place] ^= 1 << dice.randrange(8)
        log.write_bytes(spoiled)
        assert "is damaged at frame" in (damage(database) or ""), place


def test_a_header_of_noise_is_damage(log: Path) -> None:
    raw = log.read_bytes()
    log.write_bytes(os.urandom(32) + raw[32:])
    assert "transactions stand behind it" in (damage(log.with_name("a.sqlite")) or "")


def test_what_an_earlier_round_left_behind_the_end_is_no_damage(log: Path) -> None:
    database = log.with_name("a.sqlite")
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("pragma wal_checkpoint(restart)")
    connection.execute("insert into a values (x'00')")
    assert log.stat().st_size > 100_000
    assert damage(database) is None
    connection.close()
