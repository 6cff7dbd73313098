"""release → the Hub: the files of a version in one commit, checked there, then its immutable tag.

Every step asks first what is there, so a publication that died anywhere is finished by running it again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from builder.errors import HubError, ReleaseError
from builder.hub import WAITS_S, HubDataset, RemoteFile
from builder.publish_plan import Outgoing, Plan, plan, refuse_other_build
from builder.release import Release
from builder.secrets_scan import refuse_secrets
from builder.store import file_sha256

Progress = Callable[[str, int, int], None]
"""Gets what is being done, bytes done, bytes in all."""
_TOGETHER: Final = 8
"""Files that are uploaded before progress is told."""


def publish(
    release: Release,
    repo: str,
    *,
    public: bool = False,
    keys: Sequence[str] = (),
    progress: Progress = lambda *_: None,
) -> Plan:
    """Make the Hub hold this release as its version, private unless `public`; what was done.

    `keys` are this process' own, which no file may hold. Raises ReleaseError for a release that was altered,
    SecretError for one that holds a key, HubError where the Hub refuses, where the version is another build's, or where
    the dataset is not ours to change. At worst a commit without a tag is left, and a rerun finishes that.
    """
    hub = HubDataset(repo, writes=True)
    made = plan(release, hub, public=public)
    if made.done is not None:
        return made
    check_release(release, made.files, keys, progress)
    if made.remote.head is None:
        _create(hub, public=public)
        made = plan(release, hub, public=public)
    for wait in (*WAITS_S, None):
        if made.done is not None:
            return made
        try:
            commit = _commit(hub, made, progress)
        except HubError as error:
            if wait is None or not (error.is_transient or error.status in (409, 412)):
                raise
            time.sleep(wait)
            # Another commit came in between, or ours did although its answer was lost: what is there decides.
            made = plan(release, hub, public=public)
            continue
        _verify(hub, made, commit)
        _tag(hub, release, made, commit)
        return replace(made, commit=commit)
    raise AssertionError("the last try returns or raises")


def check_release(
    release: Release, files: Mapping[str, Outgoing], keys: Sequence[str], progress: Progress = lambda *_: None
) -> None:
    """Raise ReleaseError where a file is not as the manifest says, SecretError where one holds a key."""
    total = sum(file.size for file in files.values())
    done = 0
    for entry in release.manifest["files"]:
        path = release.path / entry["path"]
        found = file_sha256(path)
        if found != entry["sha256"]:
            raise ReleaseError(
                f"{path} was altered since it was released: sha256 {found}, the manifest says {entry['sha256']}. A "
                "release is never changed: restore the file, or run builder release again."
            )
        done += entry["bytes"]
        progress("check", done, total)
    texts = {path: file.text() for path, file in files.items()}
    refuse_secrets(texts, keys, lambda scanned: progress("look for keys", scanned, total))


def _create(hub: HubDataset, *, public: bool) -> None:
    try:
        hub.create(public=public)
    except HubError as error:
        if not error.is_transient or hub.head() is None:
            raise


def _commit(hub: HubDataset, made: Plan, progress: Progress) -> str:
    """The commit that holds the release: the newest, where nothing is left to change, else one more on it."""
    from huggingface_hub import CommitOperationAdd

    parent = made.remote.head
    if parent is None:
        raise HubError(f"{made.repo} was made, but the Hub does not show it yet. Run the same command again.")
    if not made.changed and not made.deleted:
        return parent
    contents = [made.files[path].content for path in made.changed]
    additions = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in zip(made.changed, contents, strict=True)
    ]
    done = 0
    for start in range(0, len(additions), _TOGETHER):
        progress("upload", done, made.new_bytes)
        hub.upload(additions[start : start + _TOGETHER])
        done += sum(made.files[path].size for path in made.changed[start : start + _TOGETHER])
    return hub.commit(parent, additions, made.deleted, f"{made.version} of {made.repo}")


def _verify(hub: HubDataset, made: Plan, commit: str) -> None:
    """Raise HubError unless the commit holds every file as it is here, and none of what was to go."""
    found = hub.files(commit)
    wrong = [path for path, file in made.files.items() if not file.is_at(found.get(path))]
    left = [path for path in made.deleted if path in found]
    if wrong or left:
        path = (wrong or left)[0]
        there, here = found.get(path), made.files.get(path)
        raise HubError(
            f"Commit {commit} of {made.repo} does not hold {made.version} as it is here. {len(wrong) + len(left)} "
            f"files differ, first {path}: there {_facts_of(there)}, here {_facts_of(here)}. No tag was set. Run the "
            "same command again to repair it."
        )


def _facts_of(file: RemoteFile | Outgoing | None) -> str:
    if file is None:
        return "nothing"
    return f"{file.size:,} bytes, {f'sha256 {file.sha256}' if file.sha256 else 'another hash'}"


def _tag(hub: HubDataset, release: Release, made: Plan, commit: str) -> None:
    """Set the tag, whatever becomes of the answers; then ask where it points."""
    number = int(release.version[1:])
    for wait in (*WAITS_S, None):
        try:
            hub.tag(release.version, commit)
        except HubError as error:
            if error.status != 409 and not error.is_transient:
                raise
            failed: HubError | None = error
        else:
            failed = None
        target = hub.tags().get(number)
        if target == commit:
            return
        if target is not None:
            refuse_other_build(hub, release, target)
            return
        if wait is None:
            break
        time.sleep(wait)
    raise HubError(
        f"Commit {commit} of {made.repo} holds {release.version}, but its tag is not there"
        f"{f': {failed}' if failed else ', although the Hub took it'}. Run the same command again: it will only tag."
    )
