"""What a Hub keeps of one dataset: commits over trees of files, tags, and an LFS store beside them."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import yaml

SIZES: Final = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")


class Refusal(Exception):
    """An answer other than 200: status, the Hub's error code where it has one, its words."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Blob:
    """A file of a tree. `lfs` is the sha256 of its content where that lies in the LFS store."""

    content: bytes
    lfs: str | None = None

    @property
    def oid(self) -> str:
        """git's object id: of the content, or of the pointer to it."""
        stored = self.content if self.lfs is None else self.pointer
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored, usedforsecurity=False).hexdigest()

    @property
    def pointer(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.lfs}\nsize {len(self.content)}\n".encode()

    @property
    def etag(self) -> str:
        return self.lfs or self.oid


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    author: str
    tree: Mapping[str, Blob]
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}Z")


@dataclass
class Repo:
    """One dataset. Its methods are one step each, under the lock of the server."""

    name: str
    private: bool = True
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    lfs_suffixes: tuple[str, ...] = (".parquet",)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        if not self.commits:
            self._add("initial commit", "hub", {".gitattributes": Blob(b"*.parquet filter=lfs diff=lfs merge=lfs\n")})

    @property
    def head(self) -> Commit:
        return self.at("main")

    def at(self, revision: str) -> Commit:
        """The commit behind a branch, a tag or its own id."""
        wanted = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit.sha == wanted:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def file(self, revision: str, path: str) -> Blob:
        blob = self.at(revision).tree.get(path)
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return blob

    def mode(self, path: str, size: int) -> str:
        return "lfs" if path.endswith(self.lfs_suffixes) or size > 10_000_000 else "regular"

    def commit(self, branch: str, author: str, header: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> str:
        """Apply one commit whole, or refuse it whole; its id."""
        with self.lock:
            if (parent := header.get("parentCommit")) is not None and parent != self.at(branch).sha:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(self.at(branch).tree)
            for change in changes:
                self._apply(tree, change["key"], change["value"])
            return self._add(header["summary"], author, tree, branch)

    def tag(self, name: str, revision: str) -> None:
        with self.lock:
            if name in self.tags:
                raise Refusal(409, "Tag reference exists already")
            self.tags[name] = self.at(revision).sha

    def put(self, files: Mapping[str, bytes], title: str = "by hand") -> str:
        """A commit from inside a test; its id."""
        with self.lock:
            tree = dict(self.head.tree)
            for path, content in files.items():
                lfs = hashlib.sha256(content).hexdigest() if self.mode(path, len(content)) == "lfs" else None
                self.lfs |= {lfs: content} if lfs else {}
                tree[path] = Blob(content, lfs)
            return self._add(title, "someone", tree)

    def contents(self, revision: str) -> dict[str, bytes]:
        """Files of a revision less `.gitattributes`, as a download would give them."""
        return {path: blob.content for path, blob in self.at(revision).tree.items() if path != ".gitattributes"}

    def _apply(self, tree: dict[str, Blob], key: str, value: Mapping[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            tree[path] = Blob(value["content"])
            if path == "README.md" and (problems := card_problems(value["content"].decode())):
                raise Refusal(400, "; ".join(problems))
        elif key == "lfsFile":
            if value["oid"] not in self.lfs:
                raise Refusal(400, f"LFS object {value['oid']} was not uploaded")
            tree[path] = Blob(self.lfs[value["oid"]], value["oid"])
        elif key == "deletedFile":
            if tree.pop(path, None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise Refusal(400, f"unknown operation {key}")

    def _add(self, title: str, author: str, tree: Mapping[str, Blob], branch: str = "main") -> str:
        parent = self.branches.get(branch)
        listed = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(tree.items()))
        sha = hashlib.sha1(f"{parent}{len(self.commits)}{title}\n{listed}".encode(), usedforsecurity=False).hexdigest()
        self.commits.append(Commit(sha, parent, title, author, dict(tree)))
        self.branches[branch] = sha
        return sha


def card_problems(text: str) -> list[str]:
    """What the Hub refuses in a card's front matter, as far as our cards could break it."""
    if not text.startswith("---\n"):
        return []
    try:
        data = yaml.safe_load(text.split("---\n", 2)[1])
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata is no mapping"]
    problems = [
        f'"size_categories" must be one of {SIZES}' for size in data.get("size_categories", []) if size not in SIZES
    ]
    problems += ['"license" must be lower case' for one in [data.get("license", "")] if one != str(one).lower()]
    names = [config.get("config_name") for config in data.get("configs", [])]
    return problems + (['"configs" must have names of their own'] if len(set(names)) < len(names) else [])
