"""A dataset on the Hub is pinned to a commit, downloaded, checked; what cannot be had is refused, never replaced."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import EXCUSED, TOKEN, Fault, Hub, hub, use
from trainer_toys import stage_rows, write_release

from trainer import cli

LOW = "data/low-temperature/train-00000-of-00001.parquet"
STAGES = ("1-low-temperature", "2-high-temperature")
RESOLVE = """
import sys
from trainer import data, errors
for name in sys.argv[1:]:
    try:
        release = data.resolve(name)
        print(release.commit, release.source, sum(len(rows) for rows in data.read(release, "low-temperature")))
    except errors.TrainerError as error:
        print(error)
"""


@pytest.fixture
def remote(release: Path, tmp_path: Path) -> Iterator[Hub]:
    """org/toy with v1, and v2, which has three rows more in its first stage."""
    stages = {"low-temperature": stage_rows(0, 15), "high-temperature": stage_rows(100, 8)}
    later = write_release(tmp_path / "v2", stages, version="v2")
    with hub() as state:
        repo = state.add("org/toy", files(release), private=True, tag="v1")
        repo.put(files(later))
        repo.tag("v2", "main")
        yield state


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def resolved(remote: Hub, home: Path, *names: str, token: str | None = TOKEN) -> list[str]:
    """What resolving these datasets says, in a process of its own: the Hub's address is read at import."""
    command = [sys.executable, "-c", RESOLVE, *names]
    done = subprocess.run(command, env=remote.environment(home, token), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_published_version_is_pinned_to_its_commit(remote: Hub, tmp_path: Path) -> None:
    tags = remote.repos["org/toy"].tags
    first, second, missing, nobody = resolved(
        remote, tmp_path / "home", "org/toy@v1", "org/toy@v2", "org/toy@v3", "org/none@v1"
    )
    assert first == f"{tags['v1']} org/toy@v1 12" and second == f"{tags['v2']} org/toy@v2 15"
    assert missing.startswith("Cannot get dataset org/toy at v3: ") and nobody.startswith("Cannot get dataset org/none")
    assert not any("candidates" in path for path in remote.asked()), "a config that no stage reads was downloaded"


def test_a_private_dataset_without_a_token_is_refused(remote: Hub, tmp_path: Path) -> None:
    (told,) = resolved(remote, tmp_path / "home", "org/toy@v1", token=None)
    assert told.startswith("Cannot get dataset org/toy at v1: ") and "HF_TOKEN if it is private" in told


def test_a_stale_cache_never_stands_in_for_a_version_that_cannot_be_had(remote: Hub, tmp_path: Path) -> None:
    before = resolved(remote, tmp_path / "home", "org/toy@v1")
    for kind in ("down", 500):
        remote.faults[:] = [Fault("*", kind, times=10_000)]
        again, refused = resolved(remote, tmp_path / "home", "org/toy@v1", "org/toy@v2")
        assert [again] == before
        assert refused.startswith("Cannot get dataset org/toy at v2: ")


def test_files_that_are_not_as_the_manifest_says_are_refused(remote: Hub, tmp_path: Path) -> None:
    repo = remote.repos["org/toy"]
    repo.put({LOW: repo.contents("v2")[LOW][:-1] + b"x"})
    repo.tag("v3", "main")
    altered, whole = resolved(remote, tmp_path / "home", "org/toy@v3", "org/toy@v2")
    assert LOW in altered and "was altered: sha256" in altered
    assert whole.endswith("org/toy@v2 15")


def test_training_on_a_published_version_records_its_commit(
    remote: Hub,
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(remote, monkeypatch, tmp_path / "cache")
    commit = remote.repos["org/toy"].tags["v2"]
    options = ["--model", str(student), "--output", str(tmp_path / "out"), "--recipe", "smoke", "--json"]
    plan = json.loads(trainer(monkeypatch, capsys, "plan", "--dataset", "org/toy@v2", *options))
    assert plan["dataset"]["commit"] == commit and [stage["rows"] for stage in plan["stages"]] == [15, 8]
    trainer(monkeypatch, capsys, "run", "--dataset", "org/toy@v2", *options)
    records = [json.loads((tmp_path / "out" / name / "training.json").read_text()) for name in STAGES]
    assert [record["dataset"]["commit"] for record in records] == [commit, commit]
    remote.faults[:] = [Fault("*", "down", times=10_000)]
    refused = trainer(monkeypatch, capsys, "run", "--dataset", "org/toy@v3", *options, code=1)
    assert refused.startswith("ReleaseError: Cannot get dataset org/toy at v3")


def test_a_plain_dataset_on_the_hub_is_one_stage_at_its_commit(remote: Hub, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": row["prompt"], "completion": row["completion"]}) for row in stage_rows(0, 5)]
    plain = remote.add("org/plain", {"train.jsonl": "\n".join(rows).encode(), "notes.md": b"no rows"})
    commit = plain.branches["main"]
    code = RESOLVE.replace('"low-temperature"', '"train"')
    home = tmp_path / "home"
    command = [sys.executable, "-c", code, "org/plain@main", f"org/plain@{commit}", "org/plain@v1"]
    public = remote.environment(home, token=None)
    done = subprocess.run(command, env=public, capture_output=True, text=True, check=True)
    main, pinned, missing = done.stdout.splitlines()
    assert main == f"{commit} org/plain@main 5" and pinned == f"{commit} org/plain@{commit} 5"
    assert missing.startswith("Cannot get dataset org/plain at v1: ")


@EXCUSED
def test_a_student_from_the_hub_is_trained_and_its_last_stage_pushed(
    remote: Hub,
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(remote, monkeypatch, tmp_path / "cache")
    base = remote.add("org/base", files(student) | {"pytorch_model.bin": b"a pickle"}, tag="v1")
    commit, output = base.tags["v1"], tmp_path / "out"
    options = ["--dataset", "org/toy@v2", "--model", "org/base", "--output", str(output), "--recipe", "smoke", "--json"]
    plan = json.loads(trainer(monkeypatch, capsys, "plan", *options))
    assert plan["model"] == {"name": "org/base", "revision": commit}
    assert not {"model.safetensors", "pytorch_model.bin"} & set(remote.asked()), "a plan needs no weights"

    told = json.loads(trainer(monkeypatch, capsys, "run", *options, "--push-to-hub", "org/student"))
    assert "pytorch_model.bin" not in remote.asked()
    pushed = remote.repos["org/student"]
    assert pushed.private and told["pushed"].endswith(pushed.branches["main"])
    tree = pushed.contents("main")
    kept = files(output / "2-high-temperature")
    assert {path: content for path, content in tree.items() if path != ".gitattributes"} == kept
    card = tree["README.md"].decode()
    dataset = remote.repos["org/toy"].tags["v2"]
    assert "base_model: org/base" in card and f"datasets/org/toy/tree/{dataset}" in card
    assert not any(str(tmp_path).encode() in content for content in tree.values())

    remote.faults[:] = [Fault("preupload", 500, times=10_000)]
    refused = trainer(monkeypatch, capsys, "run", *options, "--push-to-hub", "org/student", code=1)
    assert "2-high-temperature is trained and kept, but cannot be pushed to org/student" in refused


def trainer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    """What the command says: its result, or its error."""
    monkeypatch.setattr(sys, "argv", ["trainer", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr()
    assert stop.value.code == code, said.err
    return said.out if code == 0 else said.err
