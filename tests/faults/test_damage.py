"""A journal that somebody or something has damaged: named, nothing sent, nothing touched."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from harness import Site, Spawner, Teacher, line

QUESTIONS = 6
Calm = Callable[[int], dict[str, str]]
Damage = Callable[[Path, random.Random], None]


def flip(path: Path, dice: random.Random, low: float, high: float, number: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    for _ in range(number):
        place = dice.randrange(int(low * len(raw)), max(int(low * len(raw)) + 1, int(high * len(raw))))
        raw[place] ^= 1 << dice.randrange(8)
    path.write_bytes(raw)


def header(path: Path, dice: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    place = dice.randrange(16)  # the magic string
    raw[place] ^= 1 << dice.randrange(8)
    path.write_bytes(raw)


def truncated(path: Path, dice: random.Random) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: dice.randrange(1, len(raw) - 4096)])


def page(path: Path, dice: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    first = dice.randrange(1, len(raw) // 4096)
    raw[first * 4096 : (first + 1) * 4096] = dice.randbytes(4096)
    path.write_bytes(raw)


def body(path: Path, dice: random.Random) -> None:
    """One bit of one stored body."""
    plain = sqlite3.connect(path)
    rows = plain.execute("select attempt_id, body from replies").fetchall()
    number, stored = dice.choice(rows)
    raw = bytearray(stored)
    raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    plain.execute("update replies set body = ? where attempt_id = ?", (bytes(raw), number))
    plain.commit()
    plain.execute("pragma wal_checkpoint(truncate)")
    plain.close()


CHANGES = [
    "seed = seed + 256",
    "temperature = temperature / 2",
    "sample_index = 1 - sample_index",
    "max_tokens = 65",
    "request_key = replace(request_key, '0', '1')",
    "outcome = 'fatal'",
    "detail = 'length'",
]


def record(path: Path, dice: random.Random) -> None:
    """One value of one row about an attempt."""
    change = dice.choice(CHANGES)
    plain = sqlite3.connect(path)
    plain.execute(f"update attempts set {change} where attempt_id = ?", (dice.randrange(1, 10),))
    plain.commit()
    plain.execute("pragma wal_checkpoint(truncate)")
    plain.close()


def wal_header(path: Path, dice: random.Random) -> None:
    flip(wal(path), dice, 0, 32 / wal(path).stat().st_size)


def wal_middle(path: Path, dice: random.Random) -> None:
    flip(wal(path), dice, 0.1, 0.8)


def wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def bytes_of(site: Site) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in site.run.journal_dir.iterdir()
        if path.suffix in (".sqlite", ".sqlite-wal")
    }


@pytest.fixture(scope="module")
def half(server: Teacher, spawners: list[Spawner], tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Site]:
    """A run that was killed amid its replies (most of its journal is in the WAL), and one that ended after half."""
    folder = tmp_path_factory.mktemp("half")
    killed = Site(server, folder, questions=QUESTIONS)
    order = killed.order(killed.argv(), kind="exit", at=15, only="sqlite update*", net=False)
    assert spawners[0].run(order) == 137
    ended = Site(server, folder, questions=QUESTIONS)
    assert spawners[0].run(ended.order(ended.argv("calm", "generate", "--limit", "3"))) == 0
    for site in (killed, ended):
        site.account.reckon(site.in_flight)
        assert len(site.account.acknowledged) >= 10
    assert wal(killed.run.journal_dir / "000.sqlite").stat().st_size > 40_000
    return killed, ended


def damaged(site: Site, half: Site, damage: Damage, dice: random.Random, *, unsealed: bool) -> dict[str, bytes]:
    shutil.copytree(half.run.root, site.run.root)
    if unsealed:
        shutil.rmtree(site.run.root / "tables", ignore_errors=True)
    damage(site.run.journal_dir / "000.sqlite", dice)
    return bytes_of(site)


LOUD = {"header": (header, 1), "truncated": (truncated, 1), "body": (body, 1), "record": (record, 1)}
LOUD |= {"wal header": (wal_header, 0), "wal middle": (wal_middle, 0)}


STAYS = {"body": "select * from replies", "record": "select * from attempts"}
"""What must be as before, where the file reads as a database and SQLite may write to it."""


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as plain:
        return plain.execute(query).fetchall()


def is_named(site: Site, code: int, before: dict[str, bytes]) -> bool:
    """Whether it is also as it was, byte by byte."""
    assert code == 1, site.out
    last = site.out.strip().splitlines()[-1]
    assert last.startswith("JournalError: "), site.out
    assert "000.sqlite" in last
    assert site.events() == []
    return bytes_of(site) == before


@pytest.mark.parametrize(
    ("what", "times"),
    [*((what, 1) for what in LOUD), *(pytest.param(what, 20, marks=pytest.mark.faults) for what in LOUD)],
)
def test_a_damaged_journal_is_named_and_neither_touched_nor_paid_around(
    server: Teacher, spawners: list[Spawner], half: tuple[Site, Site], tmp_path: Path, what: str, times: int
) -> None:
    damage, which = LOUD[what]
    table, dice = line(f"journal damaged: {what}"), random.Random(4)
    for _ in range(times):
        site = Site(server, tmp_path, questions=QUESTIONS)
        before = damaged(site, half[which], damage, dice, unsealed=True)
        path = site.run.journal_dir / "000.sqlite"
        stored = rows(path, STAYS[what]) if what in STAYS else []
        untouched = is_named(site, spawners[0].run(site.order(site.argv())), before)
        assert untouched or stored, f"{what}: the files of the journal have changed"
        if stored:
            assert rows(path, STAYS[what]) == stored
        table.add(site.account, 1)


def named_or_harmless(  # a page may lie where nothing is read: in an index, or in a reply that the tables hold
    server: Teacher, spawner: Spawner, half: Site, calm: dict[str, str], folder: Path, dice: random.Random
) -> tuple[Site, bool]:
    site = Site(server, folder, questions=QUESTIONS)
    before = damaged(site, half, page, dice, unsealed=dice.random() < 0.7)
    code = spawner.run(site.order(site.argv()))
    if code:
        is_named(site, code, before)
    else:
        paid = {seed for event, seed in site.events() if event == "paid"}
        assert not half.account.acknowledged & paid
        assert site.content() == calm
        site.account.acknowledged = site.journal().acknowledged
    return site, bool(code)


def test_a_page_of_noise_is_named_or_harms_nothing(
    server: Teacher, spawners: list[Spawner], half: tuple[Site, Site], calm: Calm, tmp_path: Path
) -> None:
    table, dice = line("journal damaged: page (short)"), random.Random(4)
    for _ in range(2):
        site, _ = named_or_harmless(server, spawners[0], half[1], calm(QUESTIONS), tmp_path, dice)
        table.add(site.account, 1)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_sixty_pages_of_noise_are_named_or_harm_nothing(
    server: Teacher, spawners: list[Spawner], half: tuple[Site, Site], calm: Calm, tmp_path: Path
) -> None:
    table, dice, named = line("journal damaged: page"), random.Random(4), 0
    for _ in range(60):
        site, loud = named_or_harmless(server, spawners[0], half[1], calm(QUESTIONS), tmp_path, dice)
        table.add(site.account, 1)
        named += loud
    assert named > 30
