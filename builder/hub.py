"""The Hub as releases need it: what a dataset holds at a commit, one commit more, one tag more.

The client retries uploads, listings and downloads by itself, never commit, tag and create: after a failure of those the
caller asks what is there. The token comes from HF_TOKEN alone, the address from HF_ENDPOINT.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from builder.errors import HubError, UsageError
from builder.secrets_scan import masked

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi

T = TypeVar("T")

MANIFEST: Final = ".builder/manifest.json"
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_VERSION: Final = re.compile(r"v([1-9]\d*)")
_TIMEOUT_S: Final = 120.0
"""Silence of the Hub after which a request has failed; the client itself would wait for ever."""
_QUICK_S: Final = 10.0
"""The same where the answer is wanted, not needed."""
WAITS_S: Final = (1.0, 2.0, 4.0)
"""Between tries of a request that may be repeated."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at a commit: `oid` is git's hash of a small file, `sha256` the content's hash of a large one."""

    size: int
    oid: str
    sha256: str | None


@dataclass(frozen=True)
class Head:
    commit: str
    private: bool


class HubDataset:
    """One dataset on the Hub. Every method raises HubError, whose `status` is None where the Hub did not answer."""

    def __init__(self, repo: str, *, writes: bool = False, patient: bool = True) -> None:
        check_name(repo)
        self.repo = repo
        self._waits_s: Sequence[float] = WAITS_S if patient else ()
        self._timeout_s = _TIMEOUT_S if patient else _QUICK_S
        self._token = _token()
        if writes and not self._token:
            raise HubError(
                f"HF_TOKEN is not set, so nothing can be published to {repo}. Export a token of {self.endpoint} that "
                "may write to it."
            )

    @cached_property
    def _api(self) -> "HfApi":
        from huggingface_hub import HfApi

        _prepare()
        return HfApi(endpoint=self.endpoint, token=self._token or False)

    @property
    def endpoint(self) -> str:
        return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")

    def head(self) -> Head | None:
        """The newest commit of `main`; None where there is no such dataset."""
        try:
            found = self._ask(lambda: self._api.dataset_info(self.repo, revision="main", timeout=self._timeout_s))
        except HubError as error:
            if error.status == 404 or (error.status == 401 and self._token and error.is_missing):
                return None
            raise
        return Head(str(found.sha), bool(found.private))

    def tags(self) -> dict[int, str]:
        """Commit of each version: tags `vN` by N; of other tags nothing is said."""
        refs = self._ask(lambda: self._api.list_repo_refs(self.repo, repo_type="dataset"))
        named = {_VERSION.fullmatch(tag.name): tag.target_commit for tag in refs.tags}
        return {int(match[1]): commit for match, commit in named.items() if match is not None}

    def files(self, commit: str) -> dict[str, RemoteFile]:
        """All files at a commit, by path."""
        from huggingface_hub.hf_api import RepoFile

        tree = self._once(
            lambda: list(self._api.list_repo_tree(self.repo, repo_type="dataset", revision=commit, recursive=True))
        )
        return {
            one.path: RemoteFile(one.size, one.blob_id, one.lfs.sha256 if one.lfs else None)
            for one in tree
            if isinstance(one, RepoFile)
        }

    def read(self, commit: str, path: str) -> bytes:
        """A small file at a commit."""
        found = self._once(lambda: self._api.hf_hub_download(self.repo, path, repo_type="dataset", revision=commit))
        return Path(found).read_bytes()

    def manifest(self, commit: str) -> dict[str, Any] | None:
        """The manifest of the release at a commit; None where there is none that can be read."""
        try:
            found = json.loads(self.read(commit, MANIFEST))
        except HubError as error:
            if error.status == 404:
                return None
            raise
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def create(self, *, public: bool) -> None:
        """Make the dataset, private unless `public`; one that exists stays as it is."""
        self._once(lambda: self._api.create_repo(self.repo, repo_type="dataset", private=not public, exist_ok=True))

    def upload(self, additions: Sequence["CommitOperationAdd"]) -> None:
        """Send the large ones of these files ahead of their commit; what the Hub has already is not sent again."""
        self._once(lambda: self._api.preupload_lfs_files(self.repo, additions, repo_type="dataset", free_memory=False))

    def commit(
        self, parent: str, additions: Sequence["CommitOperationAdd"], deleted: Sequence[str], message: str
    ) -> str:
        """One commit on `parent`, which must still be the newest (else status 412); its id."""
        from huggingface_hub import CommitOperationDelete

        operations: list[Any] = [*additions, *(CommitOperationDelete(path, is_folder=False) for path in deleted)]
        made = self._once(
            lambda: self._api.create_commit(
                self.repo, operations, commit_message=message, repo_type="dataset", parent_commit=parent
            )
        )
        return str(made.oid)

    def tag(self, version: str, commit: str) -> None:
        """Name a commit by a version (status 409 where the name is taken)."""
        self._once(lambda: self._api.create_tag(self.repo, tag=version, revision=commit, repo_type="dataset"))

    def _ask(self, call: Callable[[], T]) -> T:
        """A request that changes nothing and that the client does not repeat by itself while the Hub is away."""
        for wait in self._waits_s:
            try:
                return self._once(call)
            except HubError as error:
                if not error.is_transient:
                    raise
                time.sleep(wait)
        return self._once(call)

    def _once(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:  # the Hub client raises a dozen unrelated classes; the message names the cause
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> HubError:
        cause: BaseException = error
        while not hasattr(cause, "response") and cause.__cause__ is not None:
            cause = cause.__cause__
        response = getattr(cause, "response", None)
        status = getattr(response, "status_code", None)
        code = response.headers.get("X-Error-Code") if response is not None else None
        said = ". ".join(dict.fromkeys((_words(error), _words(cause))))
        reason = masked(said, (self._token,) if self._token else ())
        return HubError(self._advice(status, reason), status=status, is_missing=code == "RepoNotFound")

    def _advice(self, status: int | None, reason: str) -> str:
        if status == 401 and not self._token:
            return (
                f"{self.repo} does not exist or is private, and HF_TOKEN is not set. Export a token of {self.endpoint} "
                "that may write to it."
            )
        if status == 401:
            return (
                f"{self.endpoint} does not accept HF_TOKEN for {self.repo} (401: {reason}). Make a token that may "
                "write to it and export it, then run the same command again."
            )
        if status == 403:
            return (
                f"HF_TOKEN may not do this to {self.repo} (403: {reason}). Check the name of the organisation, and "
                "that the token may write to it."
            )
        if status is None or status == 429 or status >= 500:
            return (
                f"The Hub at {self.endpoint} failed on {self.repo} ({status or 'no answer'}: {reason}). Nothing is "
                "lost: run the same command again when it is back."
            )
        return f"The Hub refused {self.repo} ({status}: {reason})."


def check_name(repo: str) -> None:
    """Raise UsageError unless `repo` is ORG/NAME as the Hub allows it."""
    if not _NAME.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith((".git", ".", "-")) or len(repo) > 96:
        raise UsageError(
            f"{repo!r} is no name of a dataset on the Hub: it must be ORG/NAME of letters, digits, `-`, `_` and `.`, "
            "at most 96 characters, such as my-org/gsm8k-distill-gpt-oss."
        )


def remote_versions(repo: str) -> list[int]:
    """Numbers of the published versions, ascending; none where the dataset does not exist.

    Raises HubError where that cannot be known: the Hub is away, or the token is not accepted or missing.
    """
    hub = HubDataset(repo, patient=False)
    return sorted(hub.tags()) if hub.head() is not None else []


def published_build(repo: str, version: int) -> str | None:
    """build_id of a published version; None where that version is not there or no release of builder.

    Raises HubError as `remote_versions` does.
    """
    hub = HubDataset(repo, patient=False)
    commit = hub.tags().get(version) if hub.head() is not None else None
    manifest = hub.manifest(commit) if commit is not None else None
    return str(manifest.get("build_id")) if manifest is not None else None


def _token() -> str | None:
    """HF_TOKEN. Raises UsageError for one that cannot be sent, without showing it."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise UsageError("HF_TOKEN holds white space or characters that no token has. Export it again, without quotes.")
    return token or None


def _words(error: BaseException) -> str:
    """One line of what an error says; of the Hub's own answer where there is one."""
    said = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    return " ".join(said.split()).rstrip(".")[:300]


@cache
def _prepare() -> None:
    """Once a process, for it closes connections: requests that end, and no bars beside our own progress."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils.tqdm import disable_progress_bars

    set_client_factory(_client)
    disable_progress_bars()


def _client() -> "httpx2.Client":
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], _limit]}
    return client


def _limit(request: "httpx2.Request") -> None:
    """Give a request that would wait for ever an end."""
    asked: Mapping[str, Any] = request.extensions.get("timeout") or {}
    limits = {name: asked.get(name) or _TIMEOUT_S for name in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}
