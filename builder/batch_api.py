"""Offline batches of an OpenAI-compatible endpoint: its routes /files and /batches, typed. Errors as `builder.client`.

Protocol: OpenAI's batch guide and API reference, as the openai package types them (types/batch.py, file_object.py).
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import IO, Any, Final, TypeVar, cast
from urllib.parse import quote

import httpx2
import msgspec
from openai import AsyncStream, Timeout

from builder.client import MAX_BODY_BYTES, Lane, RefusedError, RetryableError, sorted_errors

LABEL: Final = "tempered"
"""Name of the metadata that carries our reference: so a batch is found again whose id nobody wrote down."""
_PAGE: Final = 100
_SMALL_BYTES: Final = 2**24  # of what an answer that describes files or batches may have
_TIMEOUT: Final = Timeout(120.0, connect=15.0)
_TRANSFER: Final = Timeout(None, connect=15.0, read=600.0, write=120.0)


class Counts(msgspec.Struct):
    """Requests of a batch by what became of them."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Remote(msgspec.Struct):
    """A batch as its endpoint tells of it. Times are seconds since 1970 by the endpoint's clock."""

    id: str
    status: str = ""
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: Any = None
    request_counts: Counts | None = None
    created_at: float | None = None
    expires_at: float | None = None
    metadata: dict[str, Any] | None = None

    @property
    def has_ended(self) -> bool:
        return self.status.lower() in ("completed", "failed", "expired", "cancelled")

    @property
    def problems(self) -> list[tuple[str, int | None, str]]:
        """Why validation failed: code, line of the input file from 1 (None: the whole), what was said."""
        data = self.errors.get("data") if isinstance(self.errors, dict) else None
        found = []
        for each in data if isinstance(data, list) else []:
            if isinstance(each, dict):
                line = each.get("line")
                place = line if isinstance(line, int) and line > 0 else None
                found.append((str(each.get("code") or ""), place, str(each.get("message") or each.get("code"))))
        return found


class _File(msgspec.Struct):
    id: str


class _Page(msgspec.Struct):
    data: list[Remote]
    has_more: bool = False


_T = TypeVar("_T")


@dataclass(frozen=True)
class BatchApi:
    """The batch routes of one endpoint. Raises RetryableError, RefusedError or RejectedError as `Client.post` does."""

    lane: Lane

    async def upload(self, name: str, file: IO[bytes]) -> str:
        """The id of an uploaded JSONL file."""
        file.seek(0)
        options: Any = {"headers": {"Content-Type": "multipart/form-data"}, "timeout": _TRANSFER}
        with sorted_errors(self.lane):
            answer = await self.lane.client.post(
                "/files",
                body={"purpose": "batch"},
                files=[("file", (name, file, "application/jsonl"))],
                options=options,
                cast_to=httpx2.Response,
                stream=True,
                stream_cls=AsyncStream[Any],
            )
            return self._read(await _whole(answer), _File, "POST /files").id

    async def create(self, file_id: str, route: str, window: str, reference: str) -> Remote:
        """A new batch over an uploaded file; from here on it costs money."""
        body = {
            "input_file_id": file_id,
            "endpoint": f"/v1{route}",
            "completion_window": window,
            "metadata": {LABEL: reference},
        }
        return self._read(await self._post("/batches", body), Remote, "POST /batches")

    async def get(self, batch_id: str) -> Remote:
        """How far a batch is."""
        return self._read(await self._get(f"/batches/{quote(batch_id, safe='')}"), Remote, "GET /batches/ID")

    async def cancel(self, batch_id: str) -> None:
        """Let a batch end; what it has answered is paid."""
        await self._post(f"/batches/{quote(batch_id, safe='')}/cancel", {})

    async def find(self, reference: str) -> list[Remote]:
        """Batches that carry our reference, the oldest first; all pages of the endpoint's list are read."""
        found, after = [], ""
        while True:
            path = f"/batches?limit={_PAGE}" + (f"&after={quote(after, safe='')}" if after else "")
            page = self._read(await self._get(path), _Page, "GET /batches")
            found += [each for each in page.data if (each.metadata or {}).get(LABEL) == reference]
            if not page.has_more or not page.data or page.data[-1].id == after:
                return sorted(found, key=lambda each: (each.created_at or 0.0, each.id))
            after = page.data[-1].id

    async def lines(self, file_id: str) -> AsyncIterator[bytes]:
        """Lines of a result file as it arrives, without their ends. A last line that is torn comes as it is."""
        path = f"/files/{quote(file_id, safe='')}/content"
        with sorted_errors(self.lane):
            response = await self._stream(path, _TRANSFER)
            async with aclosing(response), aclosing(response.aiter_bytes()) as body:
                rest = bytearray()
                async for part in body:
                    rest += part
                    if b"\n" in part:
                        *whole, last = bytes(rest).split(b"\n")
                        rest = bytearray(last)
                        for line in whole:
                            yield line
                    if len(rest) > MAX_BODY_BYTES:
                        raise RetryableError(
                            f"{self.lane.endpoint.url} sent a line of more than {MAX_BODY_BYTES:,} bytes in file "
                            f"{file_id}, which no reply needs"
                        )
                if rest:
                    yield bytes(rest)

    def is_gone(self, error: Exception) -> bool:
        """Whether the endpoint says that there is no such file, batch or route."""
        said = f"{self.lane.endpoint.url} answered "
        return isinstance(error, RefusedError) and str(error).startswith((f"{said}404:", f"{said}405:"))

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        options: Any = {"timeout": _TIMEOUT}
        with sorted_errors(self.lane):
            answer = await self.lane.client.post(
                path, body=body, options=options, cast_to=httpx2.Response, stream=True, stream_cls=AsyncStream[Any]
            )
            return await _whole(answer)

    async def _get(self, path: str) -> bytes:
        with sorted_errors(self.lane):
            return await _whole(await self._stream(path, _TIMEOUT))

    async def _stream(self, path: str, timeout: Timeout) -> httpx2.Response:
        options: Any = {"timeout": timeout}
        answer = await self.lane.client.get(
            path, options=options, cast_to=httpx2.Response, stream=True, stream_cls=AsyncStream[Any]
        )
        return cast("httpx2.Response", answer)  # `cast_to` decides, which openai's types do not know of streams

    def _read(self, body: bytes, kind: type[_T], what: str) -> _T:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            said = " ".join(body[:200].decode(errors="replace").split())
            raise RetryableError(
                f"{self.lane.endpoint.url} answered {what} with what is none ({error}): {said}"
            ) from None


async def _whole(answer: object) -> bytes:
    """The body of an answer that describes something, cut where no description is so long."""
    response, parts, size = cast("httpx2.Response", answer), [], 0
    async with aclosing(response), aclosing(response.aiter_bytes()) as body:
        async for part in body:
            parts.append(part)
            size += len(part)
            if size > _SMALL_BYTES:
                break
    return b"".join(parts)
