"""Whatever the Hub does to a request, a version is there once and whole, or not at all; a rerun finishes it."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
from loopback_hub import EXCUSED, Fault, Hub, hub, use
from publish_toys import NAME, Versions, holds, is_unpublished, manifest_at, versions

from builder import hub as hub_module
from builder.errors import HubError
from builder.publish import publish
from builder.publish_plan import Plan

pytestmark = EXCUSED
WRITES = ("create", "preupload", "batch", "put", "verify", "validate", "commit", "tag")
QUICK = ("lost", 500)
OTHERS = ("truncated", "down", 429, "slow")
READS = ("info", "tree", "refs", "resolve")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return versions(tmp_path_factory.getbasetemp() / "publish")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub() as state:
        use(state, monkeypatch, tmp_path / "cache")
        yield state


def publish_again(made: Versions) -> Plan:
    """The same command, until it ends well; at most twice."""
    try:
        return publish(made.v1, NAME)
    except HubError:
        return publish(made.v1, NAME)


@pytest.mark.parametrize(("step", "kind"), [*product(WRITES, QUICK), *product(("commit", "tag"), OTHERS)])
def test_one_fault_leaves_one_commit_and_one_tag(
    remote: Hub, made: Versions, monkeypatch: pytest.MonkeyPatch, step: str, kind: int | str
) -> None:
    if kind == "slow":
        monkeypatch.setattr(hub_module, "_TIMEOUT_S", 0.25)
    fault = Fault(step, kind, seconds=0.4)
    remote.faults.append(fault)
    publish_again(made)
    assert fault.times == 0, "the fault did not come up"
    holds(remote, made.v1)


@pytest.mark.parametrize(("step", "kind"), list(product(READS, ("down", 500))))
def test_one_fault_while_reading_leaves_one_commit_and_one_tag(
    remote: Hub, made: Versions, step: str, kind: int | str
) -> None:
    publish(made.v1, NAME)
    fault = Fault(step, kind, skip=int(step != "info"))
    remote.faults.append(fault)
    try:
        publish(made.v2, NAME)
    except HubError:
        publish(made.v2, NAME)
    assert fault.times == 0, "the fault did not come up"
    holds(remote, made.v2)


@pytest.mark.parametrize("step", ["create", "preupload", "batch", "put", "validate", "commit", "tag", "info"])
def test_a_hub_that_stays_down_is_told_and_a_rerun_finishes(remote: Hub, made: Versions, step: str) -> None:
    fault = Fault(step, "down", times=10_000)
    remote.faults.append(fault)
    with pytest.raises(HubError, match="no answer") as error:
        publish(made.v1, NAME)
    assert "again" in str(error.value) and "Traceback" not in str(error.value)
    assert "v1" not in (remote.repos[NAME].tags if NAME in remote.repos else {})
    assert step == "tag" or is_unpublished(remote)
    remote.faults.clear()
    publish(made.v1, NAME)
    holds(remote, made.v1)


@pytest.mark.parametrize("step", ["info", "tree", "refs"])
def test_a_hub_that_says_nothing_is_not_waited_for_for_ever(
    remote: Hub, made: Versions, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    publish(made.v1, NAME)
    monkeypatch.setattr(hub_module, "_TIMEOUT_S", 0.1)
    remote.faults.append(Fault(step, "slow", times=10_000, seconds=0.5))
    with pytest.raises(HubError, match=r"no answer: .*timed out"):
        publish(made.v2, NAME)


def test_lost_answers_need_no_second_command(remote: Hub, made: Versions) -> None:
    remote.faults += [Fault(step, "lost") for step in WRITES]
    publish(made.v1, NAME)
    holds(remote, made.v1)
    assert [remote.steps().count(step) for step in ("create", "commit", "tag")] == [1, 1, 1]


def test_other_hashes_on_the_hub_get_no_tag(remote: Hub, made: Versions) -> None:
    remote.faults.append(Fault("tree", "wrong", skip=1))
    with pytest.raises(HubError, match=r"does not hold v1 as it is here.* files differ.*No tag was set"):
        publish(made.v1, NAME)
    assert not remote.repos[NAME].tags
    publish(made.v1, NAME)
    holds(remote, made.v1)


def test_a_tag_that_the_hub_only_promised_is_missed(
    remote: Hub, made: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopback_repo.Repo.tag", lambda *_: None)
    with pytest.raises(HubError, match="its tag is not there, although the Hub took it"):
        publish(made.v1, NAME)
    monkeypatch.undo()


def meanwhile(remote: Hub, step: str, act: Callable[[], object], skip: int = 0) -> None:
    """Let something happen just before a request of ours is answered."""
    remote.faults.append(Fault(step, act, skip=skip))


@pytest.mark.parametrize("step", ["create", "preupload", "commit", "tag"])
def test_of_two_builds_exactly_one_gets_the_number(remote: Hub, made: Versions, step: str) -> None:
    meanwhile(remote, step, lambda: publish(made.rival, NAME))
    with pytest.raises(HubError, match=r"v1 of .* is taken by another build.*run builder release again"):
        publish(made.v1, NAME)
    assert remote.repos[NAME].tags.keys() == {"v1"}
    assert manifest_at(remote, "v1")["build_id"] == made.rival.manifest["build_id"]
    assert step == "tag" or remote.repos[NAME].head.sha == remote.repos[NAME].tags["v1"], "we committed over it"


@pytest.mark.parametrize("step", ["create", "preupload", "commit", "tag"])
def test_of_two_publishers_of_one_build_both_succeed(remote: Hub, made: Versions, step: str) -> None:
    meanwhile(remote, step, lambda: publish(made.v1, NAME))
    publish(made.v1, NAME)
    holds(remote, made.v1)


def test_a_rival_that_has_committed_but_not_tagged_yet_is_waited_for(
    remote: Hub, made: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(made.rival, NAME)
    commit = remote.repos[NAME].tags.pop("v1")
    monkeypatch.setattr("time.sleep", lambda _: remote.repos[NAME].tags.update(v1=commit))
    with pytest.raises(HubError, match="is taken by another build"):
        publish(made.v1, NAME)
    assert remote.repos[NAME].head.sha == commit


def test_an_edit_of_the_card_in_between_is_kept(remote: Hub, made: Versions) -> None:
    publish(made.v1, NAME)
    card = remote.repos[NAME].contents("main")["README.md"].decode()
    edited = f"{card}\n## Thanks\n\nTo everybody.\n".encode()
    meanwhile(remote, "commit", lambda: remote.repos[NAME].put({"README.md": edited}))
    publish(made.v2, NAME)
    assert b"## Thanks" in remote.repos[NAME].contents("v2")["README.md"]
    assert remote.steps().count("commit") == 3
