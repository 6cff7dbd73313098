"""Releases to publish, made once, and what the Hub must hold when one of them is there."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from loopback_hub import Hub
from release_toys import STAGES, contents, recipe, selected

from builder.release import Release, release
from builder.selection import select

NAME = "org/toy-distill-teacher"
HERE = {"release": {"license": "mit"}}  # no repo: making them asks no Hub


@dataclass(frozen=True)
class Versions:
    """v1; v2 with one stage less; `rival`, another build that is v1 too."""

    v1: Release
    v2: Release
    rival: Release


@cache
def versions(root: Path) -> Versions:
    """Made once for all test files; nobody changes them."""
    run, result = selected(root / "toy", **HERE)
    v1 = release(run, recipe(**HERE), result)
    fewer = recipe(stages={"low-temperature": STAGES["low-temperature"]}, **HERE)
    v2 = release(run, fewer, select(run, fewer))
    other_run, other_result = selected(root / "other", ("p", "q"), **HERE)
    return Versions(v1, v2, release(other_run, recipe(**HERE), other_result))


def manifest_at(hub: Hub, revision: str) -> dict[str, Any]:
    return dict(json.loads(hub.repos[NAME].contents(revision)[".builder/manifest.json"]))


def holds(hub: Hub, made: Release, *, commits: int = 1) -> None:
    """Exactly one tag of this version, on a commit with exactly its files, after so many commits of builder."""
    repo = hub.repos[NAME]
    titles = [commit.title for commit in repo.commits if commit.title != "initial commit"]
    assert titles.count(f"{made.version} of {NAME}") == commits, titles
    found, local = repo.contents(made.version), contents(made.path)
    assert found.keys() == local.keys()
    generated = ("README.md", ".builder/manifest.json")  # they name the dataset
    assert all(found[path] == local[path] for path in local if path not in generated)
    assert manifest_at(hub, made.version) == {**made.manifest, "repo": NAME}
    assert f'load_dataset("{NAME}"' in found["README.md"].decode()


def is_unpublished(hub: Hub) -> bool:
    """Whether nobody sees anything of a publication: no tag, no commit of ours."""
    repo = hub.repos.get(NAME)
    return repo is None or (not repo.tags and len(repo.commits) == 1)
