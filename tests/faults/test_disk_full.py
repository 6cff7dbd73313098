"""A disk of a few hundred kilobytes, really full, then freed. It needs the right to mount a tmpfs of one's own."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Site, Spawner, Teacher, line

SIZE = 8 * 2**20
QUESTIONS = 10
CALLS = (("unshare", "--mount"), ("unshare", "--mount", "--map-root-user"))
"""As root, or as a user who may make namespaces."""
Calm = Callable[[int], dict[str, str]]


class Disk:
    """A tmpfs that only one spawner and its children see; from here it is below /proc."""

    def __init__(self, place: Path, call: tuple[str, ...]) -> None:
        mounts = 'mount -t tmpfs -o size=$0 none "$1" && shift && exec "$@"'
        self.spawner = Spawner(*call, "sh", "-c", mounts, str(SIZE), str(place))
        self.root = Path(f"/proc/{self.spawner.process.pid}/root{place}")

    @property
    def used(self) -> int:
        found = os.statvfs(self.root)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def leave(self, free: int) -> None:
        """Fill it up, or with everything `free`, empty the ballast."""
        ballast = self.root / "ballast"
        ballast.unlink(missing_ok=True)
        if (size := SIZE - self.used - free) > 0:
            ballast.write_bytes(bytes(size))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    try:
        call = next(each for each in CALLS if _mounts(each, place))
    except (StopIteration, FileNotFoundError):
        pytest.skip("a tmpfs cannot be mounted here; the failpoints have the error of a full disk all the same")
    made = Disk(place, call)
    yield made
    made.spawner.close()


def _mounts(call: tuple[str, ...], place: Path) -> bool:
    return (
        subprocess.run([*call, "mount", "-t", "tmpfs", "none", str(place)], capture_output=True, check=False).returncode
        == 0
    )


def fill_and_free(disk: Disk, server: Teacher, folder: Path, calm: dict[str, str], free: int) -> tuple[Site, bool]:
    """One run into a full disk and one when it is free again; whether the disk stopped the first."""
    site = Site(server, folder, questions=QUESTIONS, run=disk.root / f"run-{free}")
    disk.leave(free)
    code = disk.spawner.run(site.order(site.argv("long")))
    told = site.out
    if code:
        assert code == 1, f"{free} bytes free: {told}"
        assert told.strip().splitlines()[-1].startswith(("JournalError: ", "TableError: ")), f"{free} free: {told}"
    site.account.reckon(site.in_flight if code else 0)
    disk.leave(SIZE)
    assert disk.spawner.run(site.order(site.argv("long"))) == 0, site.out
    site.account.close(calm)
    shutil.rmtree(site.run.root)
    return site, bool(code)


def sizes(disk: Disk, server: Teacher, folder: Path) -> int:
    """Bytes that an undisturbed run leaves."""
    site = Site(server, folder, questions=QUESTIONS, run=disk.root / "calm")
    before = disk.used
    assert disk.spawner.run(site.order(site.argv("long"))) == 0, site.out
    size = disk.used - before
    shutil.rmtree(site.run.root)
    return size


def test_a_full_disk_stops_the_sending_and_the_run_goes_on_when_it_is_freed(
    disk: Disk, server: Teacher, calm: Calm, tmp_path: Path
) -> None:
    table, expected = line("disk full, then freed (short)"), calm(QUESTIONS)
    whole = sizes(disk, server, tmp_path)
    site, stopped = fill_and_free(disk, server, tmp_path, expected, whole // 2)
    table.add(site.account, 1)
    assert stopped
    assert site.count("ask") > 0


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_disk_that_is_full_at_any_point_stops_the_sending_and_loses_nothing(
    disk: Disk, server: Teacher, calm: Calm, tmp_path: Path
) -> None:
    table, expected = line("disk full, then freed"), calm(QUESTIONS)
    step, stops, free = max(4096, sizes(disk, server, tmp_path) // 30), 0, 0
    while True:
        site, stopped = fill_and_free(disk, server, tmp_path, expected, free)
        table.add(site.account, 1)
        if not stopped:
            break
        stops, free = stops + 1, free + step
    assert stops > 15
