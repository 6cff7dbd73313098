"""kill -9 at random points, rerun until the run gets through; a few times in every test run, long: `make faults`."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import WORKERS, Child, Site, Spawner, Teacher, finish, in_parallel, kill, line, wait_for

Launch = Callable[[Site, list[str]], Child]


def until_through(site: Site, dice: random.Random, launch: Launch, shards: int, most: int) -> int:
    """Kill and rerun until a run ends by itself; kills. Every child has a shard; the last run of all has none."""
    kills = 0
    while kills < most:
        answered = site.count("paid")
        parts = [["--shard", f"{shard}/{shards}"] if shards > 1 else [] for shard in range(shards)]
        seen = _stamp(site)
        children = [launch(site, site.argv("late=12", "generate", "--quiet", *part)) for part in parts]
        if dice.random() < 0.7:  # amid the replies
            goal = answered + dice.randrange(1, 14)
            wait_for(lambda goal=goal: site.count("paid") >= goal, *children)  # type: ignore[misc]
            moment = 0.012
        else:  # anywhere: reading prompts, catching up, sealing
            wait_for(lambda seen=seen: _stamp(site) != seen, *children)  # type: ignore[misc]
            moment = 0.3
        threading.Event().wait(dice.uniform(0, moment))
        codes = [kill(child) for child in children]
        assert set(codes) <= {0, -9}, site.out
        kills += codes.count(-9)
        site.account.reckon(site.in_flight * shards)
        if set(codes) == {0}:
            break
    assert finish(launch(site, site.argv())) == 0, site.out
    return kills


def _stamp(site: Site) -> int:
    """Changes when a command has loaded everything and begins its work."""
    path = site.run.root / "resolved.yaml"
    return path.stat().st_mtime_ns if path.exists() else 0


def launcher(spawner: Spawner) -> Launch:
    """Children that skip the imports, and seal and prune often."""
    return lambda site, argv: spawner.start(site.order(argv, set={"builder.seal:_SEAL_REPLIES": 8}))


def test_kill_9_loses_nothing_and_pays_for_nothing_that_is_stored(
    server: Teacher, spawners: list[Spawner], calm: Callable[[int], dict[str, str]], tmp_path: Path
) -> None:
    """Six kills; the children skip only the imports."""
    site, table = Site(server, tmp_path, questions=15), line("kill -9 (short)")
    kills = until_through(site, random.Random(4), launcher(spawners[0]), 1, 6)
    assert kills >= 4
    site.account.close(calm(15))
    table.add(site.account, kills)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("what", "shards", "least"),
    [("of the command line", 1, 100), ("of two shards at once", 2, 60), ("of a run that seals often", 0, 60)],
)
def test_two_hundred_kills_lose_nothing_and_pay_for_nothing_that_is_stored(
    server: Teacher,
    spawners: list[Spawner],
    calm: Callable[[int], dict[str, str]],
    tmp_path: Path,
    what: str,
    shards: int,
    least: int,
) -> None:
    table, expected, lock = line(f"kill -9 {what}"), calm(30), threading.Lock()
    launches = [Site.start] * WORKERS if shards else [launcher(spawner) for spawner in spawners]

    def job(number: int, launch: Launch) -> Callable[[], None]:
        def act() -> None:
            dice = random.Random(number)
            while table.rounds < least:
                site = Site(server, tmp_path, questions=30)
                kills = 0
                try:
                    kills = until_through(site, dice, launch, shards or 1, 40)
                    site.account.close(expected)
                finally:
                    with lock:
                        table.add(site.account, kills)

        return act

    in_parallel([job(number, launch) for number, launch in enumerate(launches)], len(launches))
    assert table.rounds >= least
