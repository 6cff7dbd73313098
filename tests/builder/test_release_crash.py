"""A release that dies, or finds the one before it damaged: the old state or the new one, never half."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from release_toys import Selected, contents, fill, recipe, whole

from builder import gather, release_files
from builder import release as releasing
from builder.errors import ReleaseError
from builder.release import latest_release, release
from builder.selection import select


def test_an_altered_file_of_the_parent_is_written_anew(made: Selected) -> None:
    run, result = made
    first = release(run, recipe(), result)
    path = first.path / "data/low-temperature/train-00000-of-00001.parquet"
    good = path.read_bytes()
    path.write_bytes(good[:-100] + bytes(100))
    second = release(run, recipe(), result)
    assert second.version == "v2"
    assert (second.path / path.relative_to(first.path)).read_bytes() == good
    whole(second.path)


def failing_at(place: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let every folder, write, sync and rename of a release pass until the one at `place`; counts them."""
    count = 0

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count - 1 == place:
                raise error
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, step)

    for owner, name in (
        (release_files.pq.ParquetWriter, "write_table"),
        (release_files.pq.ParquetWriter, "close"),
        (gather.pa.ipc, "new_stream"),
        (releasing, "render_card"),
        (os, "fsync"),
        (Path, "rename"),
        (Path, "replace"),
        (Path, "mkdir"),
        (Path, "write_text"),
    ):
        counted(owner, name)
    return lambda: count


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "interrupt"]
)
def test_a_crash_anywhere_leaves_the_first_version_whole(
    made: Selected, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    run, result = made
    release(run, recipe(), result)
    before = contents(run.releases)
    fill(run, ("t",), (0.6,))
    result = select(run, recipe())
    with monkeypatch.context() as counting:
        steps = failing_at(-1, error, counting)
        shutil.rmtree(release(run, recipe(), result).path)
        total = steps()
    assert total > 60
    for place in [*range(0, total, 11), total - 2, total - 1]:  # all of them: tests/faults/test_steps.py
        with monkeypatch.context() as failing:
            failing_at(place, error, failing)
            raised = (
                pytest.raises(ReleaseError, match="No space left")
                if isinstance(error, OSError)
                else pytest.raises(KeyboardInterrupt)
            )
            with raised:
                release(run, recipe(), result)
        if place == total - 1:  # the new version stands, only its name is not yet safe from a power cut
            whole(run.releases / "v2")
            shutil.rmtree(run.releases / "v2")
        assert contents(run.releases) == before, f"step {place}"
    assert release(run, recipe(), result).version == "v2"


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from builder import release, store
recipe, selected = pickle.loads(Path(sys.argv[2]).read_bytes())
def kill(*_):
    if sys.argv[3] == "wait":
        print(flush=True)
        signal.pause()
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "rename":
    Path.rename = kill
else:
    release.render_card = kill
release.release(store.Run(Path(sys.argv[1])), recipe, selected)
"""


def killed(made: Selected, tmp_path: Path, place: str) -> list[str]:
    """Command of a release that kills itself, or waits for ever, at that place."""
    (tmp_path / "given").write_bytes(pickle.dumps((recipe(), made[1])))
    return [sys.executable, "-c", KILLED, str(made[0].root), str(tmp_path / "given"), place]


@pytest.mark.parametrize("place", ["card", "rename"])
def test_a_killed_release_does_not_count_and_the_next_one_clears_it_away(
    made: Selected, tmp_path: Path, place: str
) -> None:
    run, result = made
    assert subprocess.run(killed(made, tmp_path, place), check=False).returncode == -signal.SIGKILL
    assert latest_release(run) is None
    assert len([path for path in run.releases.iterdir() if path.name.startswith(".release-")]) == 1
    (run.releases / ".notes").mkdir()
    found = release(run, recipe(), result)
    assert found.version == "v1"
    whole(found.path)
    assert sorted(path.name for path in run.releases.iterdir()) == [".notes", "v1"]


def test_two_releases_of_a_run_at_once_are_refused_and_the_first_goes_on(made: Selected, tmp_path: Path) -> None:
    run, result = made
    with subprocess.Popen(killed(made, tmp_path, "wait"), stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        (work,) = run.releases.iterdir()
        with pytest.raises(ReleaseError, match=r"Another release of .* is being written"):
            release(run, recipe(), result)
        assert (work / "v1" / "data").is_dir()
        first.kill()
    assert release(run, recipe(), result).version == "v1"
