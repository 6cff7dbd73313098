"""Fixtures of the fault tests, and their table."""

from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from harness import Site, Spawner, Teacher


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teacher]:
    with harness.teacher(tmp_path_factory.mktemp("teacher")) as running:
        yield running


@pytest.fixture(scope="session")
def spawners() -> Iterator[list[Spawner]]:
    """One for each run that may go on at a time."""
    made = [Spawner(), Spawner()]
    yield made
    for each in made:
        each.close()


@pytest.fixture(scope="session")
def calm(server: Teacher, spawners: list[Spawner], tmp_path_factory: pytest.TempPathFactory) -> "Calm":
    return Calm(server, spawners[0], tmp_path_factory.mktemp("calm"))


class Calm:
    """Hashes of the tables that undisturbed runs make."""

    def __init__(self, server: Teacher, spawner: Spawner, folder: Path) -> None:
        self.server, self.spawner, self.folder = server, spawner, folder
        self.known: dict[int, dict[str, str]] = {}

    def __call__(self, questions: int) -> dict[str, str]:
        if questions not in self.known:
            site = Site(self.server, self.folder, questions=questions)
            assert self.spawner.run(site.order(site.argv())) == 0, site.out
            self.known[questions] = site.content()
            site.account.close(self.known[questions])
            assert site.count("paid") == site.wanted
        return self.known[questions]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not harness.LINES:
        return
    heads = ("rounds", "acknowledged", "lost", "paid twice", "maybe billed", "seconds")
    wide = max(len(line.fault) for line in harness.LINES)
    terminalreporter.section("faults")
    terminalreporter.line("  ".join(["fault".ljust(wide), *heads]))
    for line in harness.LINES:
        numbers = (line.rounds, line.acknowledged, line.lost, line.paid_twice, line.maybe_billed, round(line.seconds))
        cells = [f"{number:,}".rjust(len(head)) for number, head in zip(numbers, heads, strict=True)]
        terminalreporter.line("  ".join([line.fault.ljust(wide), *cells]))
