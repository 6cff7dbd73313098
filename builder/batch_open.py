"""Offline batches that are under way: each recorded with its attempts, uploaded, created, found again, dropped."""

import asyncio
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO, TypeVar

from builder import batch_journal as batches
from builder import flow
from builder.ask import Asker, on_disk
from builder.batch_api import BatchApi, Remote
from builder.batch_config import Batch, batch_route
from builder.batch_journal import Sent
from builder.batch_results import Results
from builder.budget import Reservation
from builder.client import BusyError, Lane, RetryableError
from builder.errors import EndpointError, JournalError
from builder.journal_writer import Journal
from builder.requests import Request
from builder.tally import MAX_TRIES

_T = TypeVar("_T")


@dataclass
class Open:
    """A batch under way. `requests` are those of this call, by key: a batch of an earlier one brings none."""

    sent: Sent
    reservation: Reservation
    keys: set[str]
    requests: dict[str, Request] = field(default_factory=dict)
    done: int = 0
    left_s: float | None = None
    status: str = ""
    not_found: int = 0
    torn: int = 0
    results: Results | None = None


@dataclass
class Draft:
    """A batch that is being put together: its file, and what it may take at its dearest."""

    file: IO[bytes]
    requests: dict[str, Request] = field(default_factory=dict)
    size: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class UnderWay:
    """The open batches of one endpoint. `elsewhere` are keys of requests that some open batch holds."""

    def __init__(self, asker: Asker, lane: Lane, section: Batch) -> None:
        self.asker, self.lane, self.section = asker, lane, section
        self.api = BatchApi(lane)
        self.open: list[Open] = []
        self.elsewhere = batches.under_way(self.journal.path.parent)

    @property
    def journal(self) -> Journal:
        """Where batches are recorded."""
        return self.asker.journal

    @property
    def route(self) -> str:
        """What the journal calls this endpoint."""
        return batch_route(self.lane.endpoint.url, self.section.price_factor)

    async def submit(self, draft: Draft) -> None:
        """Record the batch with its attempts, upload its file, create it."""
        asked, requests = self.asker.wire.asked, draft.requests
        sent = batches.new(
            uuid.uuid4().hex,
            self.route,
            model=asked.model,
            revision=asked.revision,
            token_ids=self.lane.gives_token_ids,
            requests=len(requests),
            prompt_tokens=draft.prompt_tokens,
            completion_tokens=draft.completion_tokens,
        )
        attempts = [self.asker.attempt(request, self.route) for request in requests.values()]
        await on_disk(batches.record(self.journal, sent, attempts))
        held = self.asker.budget.hold(draft.prompt_tokens, draft.completion_tokens)
        batch = Open(sent, held, set(requests), requests)
        self.open.append(batch)
        self._show()
        try:
            file_id = await self._trying(lambda: self.api.upload(f"{sent.reference}.jsonl", draft.file))
        except EndpointError as error:
            raise await self._not_sent(batch, error) from None
        await on_disk(batches.note(self.journal, sent.reference, state=batches.UPLOADED, file_id=file_id))
        await self._create(batch, file_id, may_be=False)

    async def _create(self, batch: Open, file_id: str, *, may_be: bool) -> None:
        """Create the batch, or take up the one that an earlier try has made. `may_be`: such a try is possible."""
        reference, wire = batch.sent.reference, self.asker.wire
        for attempt in range(1, MAX_TRIES + 1):
            if may_be and (found := await self._look(batch)) is not None:
                await on_disk(batches.note(self.journal, reference, state=batches.OPEN, batch_id=found.id))
                batch.sent = replace(batch.sent, state=batches.OPEN, batch_id=found.id)
                return
            if self.asker.stop.is_set() and attempt > 1:
                return
            try:
                made = await self.api.create(file_id, wire.route, self.section.completion_window, reference)
            except RetryableError as error:
                may_be = may_be or not isinstance(error, BusyError)  # who is busy or absent made none
                self.trouble(error)
                if attempt == MAX_TRIES:
                    raise EndpointError(
                        f"Creating a batch of {batch.sent.requests:,} requests failed {MAX_TRIES} times; last: {error}."
                        " It may exist: rerun the same command, which looks for it before it creates another."
                    ) from None
                await self.pause(flow.backoff_s(attempt, error.retry_after_s))
            except EndpointError as error:
                raise await self._not_sent(batch, error) from None
            else:
                await on_disk(batches.note(self.journal, reference, state=batches.OPEN, batch_id=made.id))
                batch.sent = replace(batch.sent, state=batches.OPEN, batch_id=made.id)
                self.hear(batch, made)
                return

    async def _look(self, batch: Open) -> Remote | None:
        """The endpoint's batch that carries our reference. Asked twice: a list may lag behind."""
        for last in (False, True):
            try:
                found = await self._trying(lambda: self.api.find(batch.sent.reference))
            except RetryableError:
                raise
            except EndpointError as error:
                raise await self.lost(
                    batch, f"may have been created, and the endpoint cannot list its batches ({error})"
                ) from None
            if found:
                for other in found[1:]:  # a try that seemed to fail and another: one is enough
                    with suppress(EndpointError):
                        await self.api.cancel(other.id)
                return found[0]
            if not last:
                await self.pause(self.section.poll_s)
        return None

    async def _not_sent(self, batch: Open, error: EndpointError) -> EndpointError:
        """Nothing of this batch was billed: its requests are free to be asked again."""
        await on_disk(batches.end(self.journal, batch.sent.reference, f"the batch was not sent: {error}"))
        self.drop(batch)
        return EndpointError(
            f"{error} A batch of {batch.sent.requests:,} requests was not sent, nothing of it is billed. teacher.batch "
            "needs POST /files and /batches at this endpoint; without it the same requests go online."
        )

    async def lost(self, batch: Open, what: str) -> EndpointError:
        """A batch that may have been billed is never sent again within the same call."""
        await on_disk(batches.note(self.journal, batch.sent.reference, state=batches.LOST))
        self.drop(batch)
        price = self.asker.budget.price(batch.sent.prompt_tokens, batch.sent.completion_tokens)
        most = f"up to ${price:.2f}, " if price else ""
        name = batch.sent.batch_id or f"with metadata {batch.sent.reference}"
        return EndpointError(
            f"Batch {name} of {batch.sent.requests:,} requests at {batch.sent.url} {what}. What of it has no stored "
            f"result may be billed ({most}counted as maybe_billed). Look at the provider's list of batches and cancel "
            "it there if it runs. Rerunning the same command sends these requests again."
        )

    async def resume(self, sent: Sent, *, forget_missing: bool) -> None:
        """Take up a batch of an earlier call where it stands. Raises EndpointError for one at another address."""
        keys = set(batches.waiting(self.journal.path, sent.reference))
        batch = Open(sent, self.asker.budget.hold(sent.prompt_tokens, sent.completion_tokens), keys)
        self.open.append(batch)
        if sent.state == batches.RECORDED:
            await on_disk(batches.end(self.journal, sent.reference, "its batch was not sent before the process ended"))
            self.drop(batch)
        elif sent.url != self.lane.endpoint.url:
            if not forget_missing:
                raise EndpointError(
                    f"Batch {sent.batch_id or sent.reference} of {sent.requests:,} requests is open at {sent.url}, and "
                    f"the recipe asks {self.lane.endpoint.url}: asking there would pay twice. Put the first address "
                    "back into teacher.endpoints and rerun. To give the batch up and pay again: builder generate "
                    "--forget-missing."
                )
            await self.lost(batch, "was given up")
        elif sent.state == batches.UPLOADED:
            await self._create(batch, sent.file_id or "", may_be=True)
        self._show()

    def drop(self, batch: Open, used: tuple[int, int] = (0, 0)) -> None:
        """The batch is no longer open."""
        self.open.remove(batch)
        self.elsewhere -= batch.keys
        batch.reservation.settle(*used)
        self._show()

    async def _trying(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """The call, again after trouble. Raises its last error, RetryableError for one that kept coming."""
        for attempt in range(1, MAX_TRIES):
            try:
                return await call()
            except RetryableError as error:
                self.trouble(error)
                await self.pause(flow.backoff_s(attempt, error.retry_after_s))
        return await call()

    async def pause(self, seconds: float) -> None:
        """Wait, less where `stop` comes first."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.asker.stop.wait(), seconds)

    def trouble(self, error: EndpointError) -> None:
        """Count a call that failed."""
        tally = self.asker.tally
        tally.last_error = str(error)
        tally.errors[error.kind] = tally.errors.get(error.kind, 0) + 1
        self._show()

    def hear(self, batch: Open, remote: Remote) -> None:
        """What the endpoint tells of a batch; times by one clock each, never one against the other."""
        counts = remote.request_counts
        batch.status, batch.done = remote.status, counts.completed + counts.failed if counts else 0
        if remote.expires_at and remote.created_at:
            batch.left_s = remote.expires_at - remote.created_at - (time.time() - batch.sent.recorded_at)
        self._show()

    def _show(self) -> None:
        """One line for the meter: status n of m, minutes left of the window."""
        tally, number = self.asker.tally, len(self.open)
        tally.in_flight = sum(batch.sent.requests for batch in self.open)
        if not number:
            tally.batches = ""
        else:
            first = self.open[0]
            left = [batch.left_s for batch in self.open if batch.left_s is not None]
            minutes = f", {max(0.0, min(left)) / 60:,.0f} min left" if left else ""
            done = sum(batch.done for batch in self.open)
            what = f"{number} batches" if number > 1 else "1 batch"
            tally.batches = f"{what}: {first.status or 'sending'} {done:,} of {tally.in_flight:,}{minutes}"
        self.asker.progress(tally)


def request_file() -> IO[bytes]:
    """A file for requests that goes with the process. Raises JournalError where the disk refuses."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise _unwritable(error) from error


def write_line(file: IO[bytes], line: bytes) -> None:
    """Add a line to it. Raises as `request_file`."""
    try:
        file.write(line)
        file.flush()
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> JournalError:
    return JournalError(
        f"The file of a batch cannot be written in {tempfile.gettempdir()}: {error}. It was not sent; batches that are "
        "open go on. Free space or set TMPDIR, then rerun the same command."
    )
