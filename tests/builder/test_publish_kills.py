"""kill -9 before and after a request of a publication: nothing is half there, and the same command finishes it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from loopback_hub import Fault, Hub, hub
from publish_toys import NAME, Versions, holds, versions


class Publisher:
    """`builder publish` of a release in a process of its own; one at a time."""

    def __init__(self, state: Hub, cache: Path) -> None:
        self.hub = state
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("publish_child.py")), NAME],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=state.environment(cache) | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
        )

    def run(self, folder: Path) -> int:
        """Exit code; minus the signal where one killed it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(folder, file=self.process.stdin, flush=True)
        child = int(self.process.stdout.readline())
        self.hub.victim = child
        print("begin", file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        self.hub.victim = None
        return code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return versions(tmp_path_factory.getbasetemp() / "publish")


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    with hub() as state:
        running = Publisher(state, tmp_path_factory.mktemp("cache"))
        yield running
        running.process.kill()
        running.process.communicate()


def killed_and_run_again(publisher: Publisher, made: Versions, fault: Fault) -> bool:
    """v2 after v1, killed by `fault`; then again. Whether it came to be killed."""
    remote = publisher.hub
    remote.repos.clear()
    assert publisher.run(made.v1.path) == 0
    remote.faults[:] = [fault]
    code = publisher.run(made.v2.path)
    remote.faults.clear()
    assert code == (0 if fault.times else -9)
    assert set(remote.repos[NAME].tags) in ({"v1"}, {"v1", "v2"})
    holds(remote, made.v1)
    assert publisher.run(made.v2.path) == 0
    holds(remote, made.v2)
    return code != 0


def killed_while_it_is_new(publisher: Publisher, made: Versions, fault: Fault) -> bool:
    """The same with v1 of a dataset that is not there yet."""
    remote = publisher.hub
    remote.repos.clear()
    remote.faults[:] = [fault]
    code = publisher.run(made.v1.path)
    remote.faults.clear()
    assert code == (0 if fault.times else -9)
    assert publisher.run(made.v1.path) == 0
    holds(remote, made.v1)
    return code != 0


@pytest.mark.parametrize("kind", ["kill_before", "kill_after"])
@pytest.mark.parametrize("step", ["commit", "tag"])
def test_a_publisher_killed_at_a_step_that_counts_is_finished_by_another(
    publisher: Publisher, made: Versions, step: str, kind: str
) -> None:
    assert killed_and_run_again(publisher, made, Fault(step, kind))


@pytest.mark.parametrize("kind", ["kill_before", "kill_after"])
@pytest.mark.parametrize("step", ["create", "put"])
def test_a_publisher_killed_while_it_makes_the_dataset_is_finished_by_another(
    publisher: Publisher, made: Versions, step: str, kind: str
) -> None:
    assert killed_while_it_is_new(publisher, made, Fault(step, kind))


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["kill_before", "kill_after"])
@pytest.mark.parametrize("case", [killed_and_run_again, killed_while_it_is_new])
def test_a_publisher_killed_at_any_request_is_finished_by_another(
    publisher: Publisher, made: Versions, case: Callable[[Publisher, Versions, Fault], bool], kind: str
) -> None:
    at = 0
    while case(publisher, made, Fault("*", kind, skip=at)):
        at += 1
    assert at >= 10, "fewer requests than a publication has"


@pytest.mark.faults
def test_of_two_publishers_at_the_same_time_exactly_one_gets_the_number(
    publisher: Publisher, made: Versions, tmp_path: Path
) -> None:
    remote = publisher.hub
    other = Publisher(remote, tmp_path)
    for _ in range(10):
        remote.repos.clear()
        with ThreadPoolExecutor(2) as together:
            codes = list(together.map(Publisher.run, (publisher, other), (made.v1.path, made.rival.path)))
        assert sorted(codes) == [0, 1]
        holds(remote, made.v1 if codes[0] == 0 else made.rival)
    other.process.kill()
    other.process.communicate()
