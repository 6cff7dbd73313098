"""A version reaches the Hub whole, once and under its own number; what is there already stays."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from loopback_hub import EXCUSED, Hub, hub, use
from loopback_routes import READER
from publish_toys import NAME, Versions, holds, manifest_at, versions
from release_toys import recipe, selected

from builder.errors import BuilderError, HubError, ReleaseError, SecretError, UsageError
from builder.hub import HubDataset, published_build, remote_versions
from builder.publish import publish
from builder.publish_plan import plan
from builder.release import Release, release

pytestmark = EXCUSED


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return versions(tmp_path_factory.getbasetemp() / "publish")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub() as state:
        use(state, monkeypatch, tmp_path / "cache")
        yield state


def copied(release: Release, folder: Path) -> Release:
    """A release of one's own to spoil."""
    return replace(release, path=Path(shutil.copytree(release.path, folder / release.version)))


def test_a_version_is_one_private_commit_with_its_tag(remote: Hub, made: Versions) -> None:
    done = publish(made.v1, NAME)
    holds(remote, made.v1)
    repo = remote.repos[NAME]
    assert repo.private and repo.tags == {"v1": done.commit} and repo.head.sha == done.commit
    steps = remote.steps()
    assert steps.count("commit") == steps.count("tag") == 1
    assert max(at for at, step in enumerate(steps) if step == "put") < steps.index("commit") < steps.index("tag")
    assert "tree" in steps[steps.index("commit") : steps.index("tag")]
    assert steps[-1] == "refs"


def test_public_is_only_what_was_asked_to_be(remote: Hub, made: Versions) -> None:
    publish(made.v1, NAME, public=True)
    assert not remote.repos[NAME].private
    with pytest.raises(HubError, match=r"is public, and so would v2 be\. Say --public"):
        publish(made.v2, NAME)
    publish(made.v2, NAME, public=True)
    holds(remote, made.v2)


def test_a_second_time_sends_nothing(remote: Hub, made: Versions) -> None:
    publish(made.v1, NAME)
    remote.log.clear()
    assert publish(made.v1, NAME).done == "published already"
    assert not {"create", "preupload", "put", "commit", "tag"} & set(remote.steps())


def test_the_next_version_sends_what_changed_and_deletes_what_is_gone(remote: Hub, made: Versions) -> None:
    publish(made.v1, NAME)
    sent = dict(remote.sent)
    done = publish(made.v2, NAME)
    holds(remote, made.v1)
    holds(remote, made.v2)
    assert done.deleted == ["data/high-temperature/train-00000-of-00001.parquet"]
    assert not any(path.startswith("data/") for path in done.changed)
    assert remote.sent == sent, "unchanged data was sent again"
    assert done.new_bytes == sum(len(remote.repos[NAME].contents("v2")[path]) for path in done.changed)


def test_the_same_rows_under_another_number_publish_nothing(remote: Hub, made: Versions, tmp_path: Path) -> None:
    publish(made.v1, NAME)
    renumbered = replace(made.v1, manifest={**made.v1.manifest, "version": "v2"})
    assert publish(renumbered, NAME).done == "its rows are those of v1"
    rebuilt = replace(renumbered, manifest={**renumbered.manifest, "build_id": "b" * 64})
    assert publish(rebuilt, NAME).done == "its rows are those of v1"
    assert remote.repos[NAME].tags.keys() == {"v1"}


def test_what_people_wrote_and_added_stays(remote: Hub, made: Versions) -> None:
    publish(made.v1, NAME)
    card = remote.repos[NAME].contents("main")["README.md"].decode()
    remote.repos[NAME].put({"README.md": f"{card}\n## Thanks\n\nTo everybody.\n".encode(), "LICENSE": b"MIT"})
    publish(made.v2, NAME)
    found = remote.repos[NAME].contents("v2")
    assert "## Thanks\n\nTo everybody." in found["README.md"].decode() and found["LICENSE"] == b"MIT"
    assert f'"{NAME}"' in found["README.md"].decode() and 'revision="v2"' in found["README.md"].decode()


def test_a_server_that_takes_data_as_small_files_holds_the_same(remote: Hub, made: Versions) -> None:
    HubDataset(NAME).create(public=False)
    remote.repos[NAME].lfs_suffixes = (".none",)
    publish(made.v1, NAME)
    assert "put" not in remote.steps()
    holds(remote, made.v1)


def test_trees_of_many_pages_are_read_whole(remote: Hub, made: Versions) -> None:
    remote.page = 3
    publish(made.v1, NAME)
    holds(remote, made.v1)


def test_a_taken_number_is_refused_and_never_renumbered(remote: Hub, made: Versions) -> None:
    publish(made.rival, NAME)
    before = remote.repos[NAME].head
    with pytest.raises(HubError, match=r"v1 of .* is taken by another build: .*run builder release again"):
        publish(made.v1, NAME)
    assert remote.repos[NAME].head == before
    holds(remote, made.rival)


def test_other_rows_of_the_same_build_are_a_defect_that_is_told(remote: Hub, made: Versions) -> None:
    publish(made.v1, NAME)
    schedule = [{**entry, "rowset_hash": "0" * 64} for entry in made.v1.manifest["schedule"]]
    with pytest.raises(HubError, match=r"has the build_id of .*, but other rows in high-temperature, low-temperature"):
        publish(replace(made.v1, manifest={**made.v1.manifest, "schedule": schedule}), NAME)


def test_an_older_number_than_the_published_one_is_refused(remote: Hub, made: Versions) -> None:
    publish(made.v2, NAME)
    with pytest.raises(HubError, match="v2 is published already"):
        publish(made.v1, NAME)
    assert remote.repos[NAME].tags.keys() == {"v2"}


def test_a_dataset_of_others_is_not_replaced(remote: Hub, made: Versions) -> None:
    repo = remote.add(NAME, {"data/train.parquet": b"theirs", "README.md": b"# Theirs\n"}, private=True)
    with pytest.raises(HubError, match=r"did not make \(data/train.parquet, 1 files\)"):
        publish(made.v1, NAME)
    assert "data/train.parquet" in repo.contents("main") and not repo.tags


def test_versions_and_builds_on_the_hub_are_known(remote: Hub, made: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote_versions(NAME) == []
    publish(made.v1, NAME)
    publish(made.v2, NAME)
    remote.repos[NAME].tag("best", "main")
    assert remote_versions(NAME) == [1, 2]
    assert published_build(NAME, 2) == made.v2.manifest["build_id"]
    assert published_build(NAME, 3) is None
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="does not exist or is private, and HF_TOKEN is not set"):
        remote_versions(NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"no answer.*run the same command again when it is back"):
        remote_versions(NAME)


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (None, NAME, "HF_TOKEN is not set, so nothing can be published"),
        ("hf_wrong" + "x" * 26, NAME, "does not accept HF_TOKEN .*401: Invalid credentials"),
        (READER, NAME, "HF_TOKEN may not do this to .*403"),
        ("", NAME, "HF_TOKEN is not set"),
        ("hf_a b", NAME, "HF_TOKEN holds white space"),
    ],
)
def test_tokens_that_do_not_serve_are_told(
    remote: Hub, made: Versions, monkeypatch: pytest.MonkeyPatch, token: str | None, repo: str, message: str
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BuilderError, match=message) as error:
        publish(made.v1, repo)
    assert not token or token not in str(error.value)
    assert not remote.repos


def test_an_organisation_that_is_not_ones_own_is_refused(remote: Hub, made: Versions) -> None:
    with pytest.raises(HubError, match='403: You don\'t have the rights to create a dataset under "nobody"'):
        publish(made.v1, "nobody/toy")
    assert not remote.repos


@pytest.mark.parametrize("name", ["toy", "a/b/c", "org/", "/toy", "org/to y", "org/a--b", "org/x.git", "o/" + "x" * 95])
def test_names_that_no_dataset_can_have_are_refused(made: Versions, name: str) -> None:
    with pytest.raises(UsageError, match="must be ORG/NAME"):
        publish(made.v1, name)


@pytest.mark.parametrize("cut", [0, 1])
def test_a_release_that_was_altered_is_not_sent(remote: Hub, made: Versions, tmp_path: Path, cut: int) -> None:
    spoilt = copied(made.v1, tmp_path)
    path = spoilt.path / "data/candidates/train-00000-of-00001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + (b"" if cut else b"x"))
    with pytest.raises(ReleaseError, match=r"candidates.*restore the file, or run builder release again"):
        publish(spoilt, NAME)
    assert not remote.repos


def test_a_key_in_any_file_stops_everything(remote: Hub, made: Versions, tmp_path: Path) -> None:
    key = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
    spoilt = copied(made.v1, tmp_path)
    card = spoilt.path / "README.md"
    card.write_text(f"{card.read_text()}\n## How to get it\n\nUse {key}.\n")
    with pytest.raises(SecretError, match=r"README.md, line \d+: Hugging Face token hf_A…") as error:
        publish(spoilt, NAME)
    assert key not in str(error.value) and not remote.repos


def test_a_plan_writes_nothing(remote: Hub, made: Versions) -> None:
    found = plan(made.v1, HubDataset(NAME))
    assert found.card is not None and f'"{NAME}"' in found.card
    assert sorted(found.changed) == sorted(found.files) and not remote.repos
    publish(made.v1, NAME)
    remote.log.clear()
    assert plan(made.v2, HubDataset(NAME)).deleted
    assert not {"create", "preupload", "put", "commit", "tag"} & set(remote.steps())


def test_another_builds_commit_without_a_tag_is_no_claim(remote: Hub, made: Versions) -> None:
    publish(made.rival, NAME)
    del remote.repos[NAME].tags["v1"]
    publish(made.v1, NAME)
    assert manifest_at(remote, "v1")["build_id"] == made.v1.manifest["build_id"]
    assert json.dumps(remote.steps()).count('"tag"') == 2


def test_who_lost_the_race_for_a_number_gets_the_next_one_for_the_same_rows(remote: Hub, tmp_path: Path) -> None:
    mine = {"release": {"license": "mit", "repo": NAME}}
    here, there = selected(tmp_path / "here", **mine), selected(tmp_path / "there", ("p", "q"), **mine)
    first, rival = release(here[0], recipe(**mine), here[1]), release(there[0], recipe(**mine), there[1])
    publish(rival, NAME)
    with pytest.raises(HubError, match="run builder release again"):
        publish(first, NAME)
    again = release(here[0], recipe(**mine), here[1])
    assert (again.is_new, again.version, again.manifest["parent"]) == (True, "v2", "v1")
    publish(again, NAME)
    assert manifest_at(remote, "v2")["build_id"] == first.manifest["build_id"]
    assert not release(here[0], recipe(**mine), here[1]).is_new
