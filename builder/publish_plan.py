"""What publishing a release would change on the Hub, and whether it may: from what is there now.

A commit whose manifest has our build_id is ours, and so is a tag on one. Only a tag claims a version.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from builder.card import merge_card, render_card
from builder.errors import HubError, ReleaseError
from builder.hub import MANIFEST, WAITS_S, HubDataset, RemoteFile
from builder.release import Release

CARD: Final = "README.md"
_NOT_DATA: Final = {CARD, ".gitattributes", ".gitignore", "LICENSE"}


@dataclass(frozen=True)
class Outgoing:
    """A file as it is to be on the Hub: a path of the release, or a text made for the Hub."""

    content: Path | bytes
    size: int
    sha256: str

    def is_at(self, remote: RemoteFile | None) -> bool:
        """Whether the Hub holds exactly this."""
        if remote is None or remote.size != self.size:
            return False
        return remote.sha256 == self.sha256 if remote.sha256 is not None else remote.oid == self._git_oid()

    def text(self) -> str | Path:
        return self.content if isinstance(self.content, Path) else self.content.decode()

    def _git_oid(self) -> str:
        content = self.content.read_bytes() if isinstance(self.content, Path) else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Remote:
    """What the Hub holds of a dataset: nothing, or its newest commit and its versions."""

    head: str | None = None
    private: bool = True
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None
    card: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a publication would do. `done` says why there is nothing to do; `commit` is then where the version lies."""

    repo: str
    version: str
    url: str
    remote: Remote
    files: Mapping[str, Outgoing] = field(default_factory=dict)
    changed: Sequence[str] = ()
    deleted: Sequence[str] = ()
    done: str | None = None
    commit: str | None = None

    @property
    def card(self) -> str | None:
        """The card as it is to be; None where nothing is to be done."""
        content = self.files[CARD].content if CARD in self.files else None
        return content.decode() if isinstance(content, bytes) else None

    @property
    def new_bytes(self) -> int:
        return sum(self.files[path].size for path in self.changed)


def plan(release: Release, hub: HubDataset, *, public: bool = False) -> Plan:
    """What is to be done, from what the Hub holds now. Raises HubError where that must not be."""
    remote = _look(hub)
    number, version = int(release.version[1:]), release.version
    made = Plan(hub.repo, version, f"{hub.endpoint}/datasets/{hub.repo}", remote)
    if remote.head is None:
        files = _outgoing(release, hub.repo, None)
        return replace(made, files=files, changed=sorted(files))
    _await_tag(hub, release, remote)
    tags = hub.tags()
    if number in tags:
        refuse_other_build(hub, release, tags[number])
        return replace(made, done="published already", commit=tags[number])
    latest = max(tags, default=0)
    if latest and _same_rows(hub.manifest(tags[latest]), release.manifest):
        return replace(made, done=f"its rows are those of v{latest}", commit=tags[latest])
    if latest > number:
        raise _taken(hub.repo, version, f"v{latest} is published already")
    if not remote.private and not public:
        raise HubError(
            f"{hub.repo} is public, and so would {version} be. Say --public if it shall, or choose another name."
        )
    _refuse_foreign(hub.repo, remote)
    files = _outgoing(release, hub.repo, remote.card)
    changed = [path for path, file in sorted(files.items()) if not file.is_at(remote.files.get(path))]
    return replace(made, files=files, changed=changed, deleted=sorted(_managed(remote) - files.keys()))


def _look(hub: HubDataset) -> Remote:
    head = hub.head()
    if head is None:
        return Remote()
    files = hub.files(head.commit)
    manifest = hub.manifest(head.commit) if MANIFEST in files else None
    card = hub.read(head.commit, CARD).decode("utf-8", "replace") if CARD in files else None
    return Remote(head.commit, head.private, files, manifest, card)


def _outgoing(release: Release, repo: str, card: str | None) -> dict[str, Outgoing]:
    """Everything that the version consists of. What else lies in the folder of a release is not published."""
    manifest = {**release.manifest, "repo": repo}
    files = {}
    for entry in release.manifest["files"]:
        path = release.path / entry["path"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise ReleaseError(
                f"{path} is missing or not of {entry['bytes']:,} bytes as the manifest says. A release is never "
                "changed: restore the file, or run builder release again."
            )
        files[entry["path"]] = Outgoing(path, entry["bytes"], entry["sha256"])
    written = (release.path / CARD).read_text(encoding="utf-8") if card is None else card
    texts = {
        CARD: merge_card(render_card(manifest), written),
        MANIFEST: json.dumps(manifest, indent=2, ensure_ascii=False) + "\n",
    }
    for path, text in texts.items():
        content = text.encode()
        files[path] = Outgoing(content, len(content), hashlib.sha256(content).hexdigest())
    return files


def _managed(remote: Remote) -> set[str]:
    """Files at the newest commit that releases made: what a version does not have goes. Others' files stay."""
    named = {entry["path"] for entry in (remote.manifest or {}).get("files", [])}
    return {path for path in remote.files if path.startswith(("data/", ".builder/")) or path in named}


def _refuse_foreign(repo: str, remote: Remote) -> None:
    others = sorted(remote.files.keys() - _NOT_DATA)
    if remote.manifest is None and others:
        raise HubError(
            f"{repo} holds a dataset that builder did not make ({', '.join(others[:3])}, {len(others):,} files); a "
            "release would replace its data. Publish under another name with --repo."
        )


def _await_tag(hub: HubDataset, release: Release, remote: Remote) -> None:
    """Give another build, whose commit of our version is there without a tag, the time to set it; if it died, go on."""
    found = remote.manifest or {}
    if found.get("version") != release.version or found.get("build_id") == release.manifest["build_id"]:
        return
    for wait in WAITS_S:
        if int(release.version[1:]) in hub.tags():
            return
        time.sleep(wait)


def refuse_other_build(hub: HubDataset, release: Release, commit: str) -> None:
    """Raise HubError unless a tagged commit holds this very build."""
    found = hub.manifest(commit) or {}
    if found.get("build_id") != release.manifest["build_id"]:
        build = found.get("build_id", "none of builder's")
        raise _taken(hub.repo, release.version, f"the tag is at commit {commit}, build {build}")
    there, here = (
        {entry["config"]: entry["rowset_hash"] for entry in one["schedule"]} for one in (found, release.manifest)
    )
    if there != here:
        raise HubError(
            f"{release.version} of {hub.repo} (commit {commit}) has the build_id of {release.path}, but other rows in "
            f"{', '.join(sorted(name for name, rows in here.items() if there.get(name) != rows)) or 'other stages'}. "
            "Equal inputs must give equal rows: this is a defect of tempered, report it. Nothing was sent."
        )


def _taken(repo: str, version: str, why: str) -> HubError:
    return HubError(
        f"{version} of {repo} is taken by another build: {why}. A published version is never changed and none is "
        "renumbered: run builder release again for the next free number, then publish that."
    )


def _same_rows(published: Mapping[str, Any] | None, manifest: Mapping[str, Any]) -> bool:
    """Whether a published version says the same of the same rows: then a new one would be one in name only."""
    if published is None:
        return False
    if published.get("build_id") == manifest["build_id"]:
        return True
    return _row_facts(published) == _row_facts(manifest)


def _row_facts(manifest: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a version says of its rows: license, stages with the hashes of their rows, files of all other rows."""
    trained = tuple(f"data/{entry['config']}/train-" for entry in manifest.get("schedule", []))
    others = [
        (entry["path"], entry["sha256"])
        for entry in manifest.get("files", [])
        if entry["path"].startswith("data/") and not entry["path"].startswith(trained)
    ]
    said = (manifest.get(key) for key in ("license", "schedule", "withdrawn", "held_out"))
    return *(value or None for value in said), sorted(others)
