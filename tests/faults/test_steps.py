"""The steps after `generate`: one disk operation fails, then the next, until a run gets through. The tables come out as
if nothing had happened, and no reply is asked again."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from harness import Site, Spawner, Teacher, in_parallel, line

from builder.release import read_manifest
from builder.rowset import rowset_hash
from builder.store import file_sha256

STEPS = {"verify": ["verdicts"], "select": ["features", "rejections", "selection"], "release": []}
"""Steps in their order, and the tables that each one makes; a release is files."""
RULES = {"verify": ["answer_wrong"], "select": ["answer_wrong"], "release": []}
"""The teacher's answers are all wrong: none would be left to release."""
STRIDES = {"release": 5}
"""A release has many operations: every fifth, each kind at others."""
KINDS = ("exit", "full", "broken", "exit-after", "broken-after")


@dataclass
class Bench:
    """Runs at the moment before a step, and what the step makes of them when nothing fails."""

    server: Teacher
    spawner: Spawner
    folder: Path
    before: dict[str, Site] = field(default_factory=dict)
    calm: dict[str, dict[str, str]] = field(default_factory=dict)

    def copy(self, before: Site | None, step: str) -> Site:
        site = Site(self.server, self.folder, questions=2, selection={"selector": "random", "rules": RULES[step]})
        if before is not None:
            shutil.copytree(before.run.root, site.run.root)
        return site

    def prepare(self) -> None:
        done = self.copy(None, "verify")
        run(done, self.spawner, "generate")
        for step in STEPS:
            self.before[step] = done
            done = self.copy(done, step)
            run(done, self.spawner, step)
            self.calm[step] = contents(done, step)


@pytest.fixture(scope="module")
def bench(server: Teacher, spawners: list[Spawner], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(server, spawners[0], tmp_path_factory.mktemp("steps"))
    made.prepare()
    return made


def run(site: Site, spawner: Spawner, step: str) -> None:
    assert spawner.run(site.order(site.argv("calm", step))) == 0, site.out


def contents(site: Site, step: str) -> dict[str, str]:
    if step == "release":
        return released(site)
    return {name: rowset_hash(site.run.read(name), site.run.content_columns(name)) for name in STEPS[step]}


def released(site: Site) -> dict[str, str]:
    """Files of v1 but those that hold its time, each as the manifest says, and nothing beside it."""
    assert [path.name for path in site.run.releases.iterdir()] == ["v1"]
    v1 = site.run.releases / "v1"
    listed = {entry["path"]: entry["sha256"] for entry in read_manifest(v1)["files"]}
    found = {path.relative_to(v1).as_posix(): file_sha256(path) for path in v1.rglob("*") if path.is_file()}
    assert found.pop("README.md") and found.pop(".builder/manifest.json")
    assert found == listed
    return found


def half_released(site: Site) -> bool:
    """Whether there is a version that is not whole."""
    versions = list(site.run.releases.glob("v*"))
    return any(not (path / ".builder" / "manifest.json").is_file() for path in versions) or len(versions) > 1


def one(bench: Bench, spawner: Spawner, step: str, kind: str, at: int) -> bool:
    """The step with that fault, and again without; whether the fault came to pass."""
    site = bench.copy(bench.before[step], step)
    code = spawner.run(site.order(site.argv("calm", step), kind=kind, at=at, net=False))
    hit = site.log.read_text().splitlines()[-1] if site.count("hit") else ""
    told = f"{step} {kind} at {at} ({hit}): {site.out}"
    if hit and kind.startswith("exit"):
        assert code == 137, told
    elif not (kind == "broken-after" and " mkdir " in hit and code == 0):  # it is there: that is all one wants
        assert code == bool(hit), told
        assert "Traceback" not in site.out, told
        assert not hit or "Error: " in site.out.strip().splitlines()[-1], told
    assert not half_released(site), told
    run(site, spawner, step)
    assert contents(site, step) == bench.calm[step], told
    assert not site.count("ask"), told
    shutil.rmtree(site.root)
    return bool(hit)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_says_so_and_the_next_run_makes_it_good(
    bench: Bench, spawners: list[Spawner], step: str
) -> None:
    table = line(f"{step}: one operation fails (short)")
    assert one(bench, spawners[0], step, "full", 3)
    table.more()


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_every_operation_of_a_step_harms_nothing(
    bench: Bench, spawners: list[Spawner], step: str, kind: str
) -> None:
    table = line(f"{step}: {kind}, one operation after the other")
    stride = STRIDES.get(step, 1)
    numbers, through, wrong = count(1 + KINDS.index(kind) * (stride // 5), stride), list[int](), list[str]()

    def loop(spawner: Spawner) -> Callable[[], None]:
        def act() -> None:
            while not through:
                at = next(numbers)
                try:
                    if not one(bench, spawner, step, kind, at):
                        through.append(at)
                except AssertionError as error:
                    wrong.append(str(error))
                table.more()

        return act

    in_parallel([loop(spawner) for spawner in spawners], len(spawners))
    assert not wrong, "\n\n".join(wrong[:5])
    assert through[0] > 5
