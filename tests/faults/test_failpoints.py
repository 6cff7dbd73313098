"""One operation fails: the first, the second, the third … until a run gets through without reaching it."""

import random
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from child import DISK, NET
from harness import Line, Site, Spawner, Teacher, in_parallel, line

DIES = 137
QUESTIONS = 2
NAMED = ("JournalError: ", "TableError: ")
VIEW = ".live."
"""What `builder status` reads while a run goes on: no run ends for it."""
SEALS_OFTEN = {"builder.seal:_SEAL_REPLIES": 3}
"""So that a run of eight replies makes several parts, and drops the raw bodies of those before."""
Calm = Callable[[int], dict[str, str]]


def strike(site: Site, spawner: Spawner, where: str, kind: str, at: int) -> bool:
    """A run with that fault, and all that must hold after it; whether the fault came to pass."""
    before = len(site.events())
    order = site.order(
        site.argv(), kind=kind, at=at, disk=where == "disk", net=where == "net", set=SEALS_OFTEN
    )  # fmt: skip
    code = spawner.run(order)
    events = site.events()[before:]
    hits = [place for place, (what, _) in enumerate(events) if what == "hit"]
    told, name = site.out, hit_name(site)
    assert not any(what == "unsynced" for what, _ in events), "something counts before its bytes are on disk"
    if not hits:
        assert code == 0, told
    elif kind in ("exit", "exit-after"):
        assert code == DIES, told
    elif kind in ("late", "reset") or VIEW in name:
        assert code == 0, f"{name}: {told}"
    elif not (kind == "broken-after" and " mkdir " in name and code == 0):  # it is there: that is all one wants
        assert code == 1, f"{name}: {told}"
        assert told.strip().splitlines()[-1].startswith(NAMED), f"{name}: {told}"
        later = sum(what == "ask" for what, _ in events[hits[0] :])
        assert later <= site.in_flight, f"{later} requests were sent after {name} had failed"
    site.account.reckon(site.in_flight if code else 0)
    return bool(hits)


def recover(site: Site, spawner: Spawner, calm: dict[str, str]) -> None:
    """A run without a fault makes everything good."""
    assert spawner.run(site.order(site.argv(), set=SEALS_OFTEN)) == 0, site.out
    site.account.close(calm)


def hit_name(site: Site) -> str:
    lines = site.log.read_text().splitlines() if site.log.exists() else []
    return next((each for each in reversed(lines) if each.startswith("hit")), "nothing")


KINDS = [*(("disk", kind) for kind in DISK), *(("net", kind) for kind in NET)]


def test_a_dozen_failures_of_one_run_lose_nothing_and_pay_for_nothing_that_is_stored(
    server: Teacher, spawners: list[Spawner], calm: Calm, tmp_path: Path
) -> None:
    """One after the other, each in the run that goes on after the one before."""
    dice, table, site = random.Random(4), line("one operation fails (short)"), Site(server, tmp_path, questions=10)
    kinds = [each for each in KINDS if each[1] != "late"] * 2
    hits = [strike(site, spawners[0], *each, dice.randrange(1, 40 if each[0] == "disk" else 8)) for each in kinds[:12]]
    recover(site, spawners[0], calm(10))
    table.add(site.account, len(hits))
    assert sum(hits) >= 10


def one(
    server: Teacher, folder: Path, spawner: Spawner, calm: dict[str, str], table: Line, where: str, kind: str, at: int
) -> bool:
    """That fault in a run of its own; whether it came to pass."""
    site = Site(server, folder, questions=QUESTIONS)
    try:
        hit = strike(site, spawner, where, kind, at)
        recover(site, spawner, calm)
        left = [path.name for path in site.run.root.rglob(".*") if path.is_file()]
        assert kind.startswith("exit") or not left, f"temporary files stay: {left}"
    except AssertionError as error:
        raise AssertionError(f"{where} {kind} at {at} ({hit_name(site)}): {error}") from error
    finally:
        table.add(site.account, 1)
    return hit


SERIES = [
    ("disk", ("exit",), 1),
    ("disk", ("full", "broken"), 1),
    ("disk", ("broken-after",), 2),
    ("disk", ("exit-after",), 4),  # nearly the next operation's exit
    ("disk", ("late",), 4),
    *(("net", (kind,), 1) for kind in NET),
]
"""Where, kinds in turn, and every how manieth operation."""


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("where", "kinds", "step"), SERIES, ids=[f"{each[0]}-{each[1][0]}" for each in SERIES])
def test_a_failure_at_every_operation_loses_nothing_and_pays_for_nothing_that_is_stored(
    server: Teacher, spawners: list[Spawner], calm: Calm, tmp_path: Path, where: str, kinds: tuple[str, ...], step: int
) -> None:
    table, expected = line(f"{where}: {' or '.join(kinds)}, one operation after the other"), calm(QUESTIONS)
    numbers, through, wrong = count(1, step), [], []

    def loop(spawner: Spawner) -> Callable[[], None]:
        def act() -> None:
            while not through:
                at = next(numbers)
                try:
                    if not one(server, tmp_path, spawner, expected, table, where, kinds[at % len(kinds)], at):
                        through.append(at)
                except AssertionError as error:  # go on: one table shows them all
                    wrong.append(str(error))

        return act

    in_parallel([loop(spawner) for spawner in spawners], len(spawners))
    assert not wrong, "\n\n".join(wrong)
    assert through[0] > {"disk": 60, "net": 12}[where]
