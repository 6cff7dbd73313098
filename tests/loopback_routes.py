"""What a Hub on the loopback answers: the routes that `huggingface_hub`, `datasets` and `hf` ask for a dataset."""

import base64
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs

from loopback_repo import Blob, Commit, Refusal, Repo, card_problems

TOKEN: Final = "hf_" + "w" * 34
"""May write to every name below `org`."""
READER: Final = "hf_" + "r" * 34
"""A member of `org` that may only read."""


@dataclass
class Fault:
    """What happens to a step's requests, `times` of them after the first `skip`.

    kind: a status, instead of doing it · `down`, dropped before · `lost`, done, then dropped · `truncated`, done, half
    an answer · `slow`, done after `seconds` · `wrong`, an answer with other hashes · `kill_before`, `kill_after`: the
    client (`victim` of the Hub) dies before or after it is done · or a function that is called before it is done. Step
    `*` is any.
    """

    step: str
    kind: int | str | Callable[[], None]
    times: int = 1
    skip: int = 0
    seconds: float = 0.3


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Hub:
    """State of the server; tests read and change it."""

    repos: dict[str, Repo] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)
    """Step and path of every request, in order."""
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes that came in by LFS object."""
    victim: int | None = None
    page: int = 1000
    url: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, name: str, files: Mapping[str, bytes] | None = None, *, private: bool = False, tag: str = "") -> Repo:
        """A dataset that is there already, with a commit of `files` and a tag on it."""
        repo = self.repos.setdefault(name, Repo(name, private))
        repo.put(files or {})
        if tag:
            repo.tag(tag, "main")
        return repo

    def steps(self) -> list[str]:
        return [step for step, _ in self.log]

    def asked(self) -> list[str]:
        """Files that were downloaded."""
        return [path.partition("/resolve/")[2].partition("/")[2] for step, path in self.log if step == "resolve"]

    def environment(self, cache: Any, token: str | None = TOKEN) -> dict[str, str]:
        """Variables of a client's process, with nothing of this machine's Hub settings."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        kept |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "XDG_CACHE_HOME": f"{cache}/x",
        }
        return kept | ({"HF_TOKEN": token} if token is not None else {})

    def due(self, step: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.step in (step, "*"):
                    if fault.skip > 0:
                        fault.skip -= 1
                    elif fault.times > 0:
                        fault.times -= 1
                        return fault
        return None

    def kill(self) -> None:
        if self.victim is not None:
            os.kill(self.victim, signal.SIGKILL)

    def repo(self, name: str, token: str | None, *, write: bool = False) -> Repo:
        """A dataset that this token may see, or write to."""
        if token not in (None, TOKEN, READER):
            raise Refusal(401, "Invalid credentials in Authorization header")
        found = self.repos.get(name)
        if found is None or (found.private and token is None):
            raise Refusal(401 if token is None else 404, "Repository not found", "RepoNotFound")
        if write and token != TOKEN:
            raise Refusal(401 if token is None else 403, "Forbidden: pass a token that may write to this repository")
        return found

    # One method a route: what it was asked, to what it answers.

    def do_unknown(self, **_: Any) -> Any:
        raise Refusal(404, "The loopback Hub has no such route")

    def do_whoami(self, token: str | None, **_: Any) -> Any:
        if token not in (TOKEN, READER):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return {"type": "user", "name": "someone", "fullname": "S", "orgs": [{"name": "org", "roleInOrg": "write"}]}

    def do_validate(self, body: bytes, **_: Any) -> Any:
        problems = card_problems(json.loads(body)["content"])
        if problems:
            listed = {"errors": [{"message": one} for one in problems], "warnings": []}
            return Answer(json.dumps(listed).encode(), 400)
        return {"errors": [], "warnings": []}

    def do_create(self, token: str | None, body: bytes, **_: Any) -> Any:
        asked = json.loads(body)
        if token is None or token not in (TOKEN, READER):
            raise Refusal(401, "Invalid credentials in Authorization header")
        if token != TOKEN or asked["organization"] != "org":
            raise Refusal(403, f'You don\'t have the rights to create a dataset under "{asked["organization"]}"')
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.url}/{'datasets/' if asked.get('type') == 'dataset' else ''}{name}"}
        with self.lock:
            if name in self.repos:
                return Answer(json.dumps(url | {"error": "You already created this dataset repo"}).encode(), 409)
            self.repos[name] = Repo(name, asked.get("visibility") == "private")
        return url

    def do_info(self, repo: str, token: str | None, revision: str | None = None, **_: Any) -> Any:
        found = self.repo(repo, token)
        commit = found.at(revision or "main")
        return {
            "id": repo, "author": repo.partition("/")[0], "sha": commit.sha, "private": found.private, "gated": False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [], "lastModified": commit.date,
            "createdAt": found.commits[0].date, "siblings": [{"rfilename": path} for path in sorted(commit.tree)],
        }  # fmt: skip

    def do_refs(self, repo: str, token: str | None, **_: Any) -> Any:
        found = self.repo(repo, token)
        kinds = {"branches": ("heads", found.branches), "tags": ("tags", found.tags), "converts": ("", {})}
        return {
            kind: [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": sha} for name, sha in refs.items()]
            for kind, (where, refs) in kinds.items()
        }

    def do_tree(
        self,
        repo: str,
        token: str | None,
        revision: str,
        query: dict[str, list[str]],
        path: str | None = None,
        **_: Any,
    ) -> Any:
        commit = self.repo(repo, token).at(revision)
        below = f"{path}/" if path else ""
        files = {name: blob for name, blob in sorted(commit.tree.items()) if name.startswith(below)}
        if below and not files:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        folders = {f"{below}{name[len(below) :].split('/')[0]}" for name in files if "/" in name[len(below) :]}
        if query.get("recursive", ["false"])[0].lower() == "true":
            folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
            folders = {name for name in folders if name.startswith(below)}
        else:
            files = {name: blob for name, blob in files.items() if "/" not in name[len(below) :]}
        listed = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)]
        listed += [_entry(name, blob, commit) for name, blob in files.items()]
        start = int(query.get("cursor", ["0"])[0])
        body = json.dumps(listed[start : start + self.page]).encode()
        more = start + self.page < len(listed)
        where = f"{self.url}/api/datasets/{repo}/tree/{revision}{'/' + path if path else ''}"
        asked = f"recursive={query.get('recursive', ['false'])[0]}&cursor={start + self.page}"
        return Answer(body, headers={"Link": f'<{where}?{asked}>; rel="next"'} if more else {})

    def do_paths(self, repo: str, token: str | None, revision: str, body: bytes, **_: Any) -> Any:
        commit = self.repo(repo, token).at(revision)
        wanted = parse_qs(body.decode()).get("paths", [])
        folders = {"/".join(name.split("/")[:depth]) for name in commit.tree for depth in range(1, name.count("/") + 1)}
        listed = [_entry(path, commit.tree[path], commit) for path in wanted if path in commit.tree]
        return listed + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in wanted if p in folders]

    def do_commits(self, repo: str, token: str | None, revision: str, **_: Any) -> Any:
        found = self.repo(repo, token)
        sha: str | None = found.at(revision).sha
        listed = []
        while sha is not None:
            commit = found.at(sha)
            authors = [{"user": commit.author}]
            listed.append({"id": sha, "title": commit.title, "message": "", "authors": authors, "date": commit.date})
            sha = commit.parent
        return listed

    def do_preupload(self, repo: str, token: str | None, revision: str, body: bytes, **_: Any) -> Any:
        found = self.repo(repo, token, write=True)
        tree = found.at(revision).tree
        files = []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            oid = {"oid": tree[path].etag} if path in tree else {}
            files.append({"path": path, "uploadMode": found.mode(path, asked["size"]), "shouldIgnore": False} | oid)
        return {"files": files}

    def do_batch(self, repo: str, token: str | None, body: bytes, **_: Any) -> Any:
        found = self.repo(repo, token, write=True)
        objects = []
        for asked in json.loads(body)["objects"]:
            where = f"{self.url}/lfs/{repo}"
            actions = {"upload": {"href": f"{where}/{asked['oid']}"}, "verify": {"href": f"{where}/verify"}}
            objects.append(asked | ({} if asked["oid"] in found.lfs else {"actions": actions}))
        return {"transfer": "basic", "objects": objects}

    def do_put(self, repo: str, oid: str, body: bytes, **_: Any) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "The content does not have the hash that it was announced by")
        self.sent[oid] = self.sent.get(oid, 0) + len(body)
        self.repos[repo].lfs[oid] = body
        return Answer()

    def do_verify(self, repo: str, body: bytes, **_: Any) -> Any:
        asked = json.loads(body)
        if len(self.repos[repo].lfs.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(422, "The object has another size")
        return {}

    def do_get(self, repo: str, oid: str, **_: Any) -> Any:
        return Answer(self.repos[repo].lfs[oid], headers={"ETag": f'"{oid}"', "Content-Type": "binary/octet-stream"})

    def do_commit(self, repo: str, token: str | None, revision: str, body: bytes, **_: Any) -> Any:
        found = self.repo(repo, token, write=True)
        header, *changes = [json.loads(line) for line in body.splitlines()]
        for change in changes:
            if "content" in change["value"]:
                change["value"]["content"] = base64.b64decode(change["value"]["content"])
        sha = found.commit(revision, "someone", header["value"], changes)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/datasets/{repo}/commit/{sha}"}

    def do_tag(self, repo: str, token: str | None, revision: str, body: bytes, **_: Any) -> Any:
        self.repo(repo, token, write=True).tag(json.loads(body)["tag"], revision)
        return {}

    def do_branch(self, repo: str, token: str | None, name: str, body: bytes, **_: Any) -> Any:
        found = self.repo(repo, token, write=True)
        found.branches[name] = found.at(json.loads(body or b"{}").get("startingPoint", "main")).sha
        return {}

    def do_resolve(self, repo: str, token: str | None, revision: str, path: str, **_: Any) -> Any:
        found = self.repo(repo, token)
        commit = found.at(revision)
        if path not in commit.tree:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        blob = commit.tree[path]
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.sha, "Content-Type": "text/plain"}
        if blob.lfs is None:
            return Answer(blob.content, headers=headers)
        headers |= {"X-Linked-ETag": f'"{blob.lfs}"', "X-Linked-Size": str(len(blob.content))}
        storage = self.url.replace("127.0.0.1", "localhost")  # another host, as in life: it gets no token
        return Answer(b"", 302, headers | {"Location": f"{storage}/lfs/{repo}/{blob.lfs}"})


def _entry(path: str, blob: Blob, commit: Commit) -> dict[str, Any]:
    last = {"id": commit.sha, "title": commit.title, "date": commit.date}
    entry = {"type": "file", "oid": blob.oid, "size": len(blob.content), "path": path, "lastCommit": last}
    lfs = {"oid": blob.lfs, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    return entry | ({"lfs": lfs} if blob.lfs is not None else {})
