"""Requests of `generate` as offline batches (`teacher.batch`): each recorded before it can cost, none paid twice.

A batch outlives the process: killed or interrupted, a rerun goes on polling it, on another day too. Only the teacher's
own samples go this way; rollouts, continuations, judge and rewriting model are asked online.
"""

import time
from collections import deque
from collections.abc import Iterator
from typing import IO, Final

from builder import batch_journal as batches
from builder.ask import Asker, on_disk
from builder.batch_api import Remote
from builder.batch_config import FIRST_REQUESTS, Batch
from builder.batch_lines import request_line
from builder.batch_open import Draft, Open, UnderWay, request_file, write_line
from builder.batch_results import Results
from builder.budget import prompt_at_most
from builder.client import Lane, RetryableError
from builder.errors import EndpointError, FatalReply
from builder.requests import Request
from builder.tally import MAX_TRIES

PATIENCE_S: Final = 3600.0
"""When the endpoint has not told how a batch is for so long, the call ends; the batch goes on."""
LONGEST_WAIT_S: Final = 600.0
_GONE: Final = 3
"""Times that a batch is not found before it counts as lost; times that a file may end within a line."""
_MOST_POSTPONED: Final = 1000


class Batches:
    """Sends requests in batches to one endpoint and takes the results of all that are open, earlier calls' too.

    `takes_only` sends nothing new. `answered_before`: an earlier reply proved that prompts can be answered at all.
    """

    def __init__(
        self, asker: Asker, lane: Lane, section: Batch, *, answered_before: bool, takes_only: bool = False
    ) -> None:
        self.asker, self.lane, self.section = asker, lane, section
        self.answered_before, self.takes_only = answered_before, takes_only
        self.way = UnderWay(asker, lane, section)
        self.settled: set[str] = set()
        self._again: deque[Request] = deque()
        self._held: list[Request] = []
        self._tries: dict[str, int] = {}
        self._most = section.max_requests
        self._most_open = section.max_open
        self._empty = 0
        self._wait_s = section.poll_s
        self._troubled_since: float | None = None
        self._refusal: EndpointError | None = None
        self._missing: Iterator[Request] = iter(())

    async def send(self, missing: Iterator[Request], *, needs_logprobs: bool, forget_missing: bool = False) -> None:
        """Send what is missing, until nothing is open. `settled` are the keys that need no further asking.

        Raises EndpointError where the endpoint cannot serve this, or what may have been billed cannot be found; open
        batches stay open then, as they do when `stop` is set. `forget_missing` gives up batches at other addresses.
        """
        folder, self._missing = self.way.journal.path.parent, missing
        asked = self.asker.wire.asked
        token_ids = batches.proved(folder, self.way.route, asked.model, asked.revision, logprobs=needs_logprobs)
        if token_ids is not None:
            self.lane.proven, self.lane.gives_token_ids = True, token_ids
        for sent in batches.unsettled(self.way.journal.path):
            await self.way.resume(sent, forget_missing=forget_missing)
        while not self.asker.stop.is_set() and self._refusal is None:
            await self._fill()
            if not self.way.open:
                break
            await self._poll_all()
            if self.way.open and self._refusal is None:
                await self.way.pause(self._wait_s)
        if self._refusal is not None:
            raise self._refusal
        if self._held and not self.asker.stop.is_set() and self.asker.tally.limit is None:
            raise EndpointError(
                f"{len(self._held):,} requests are in open batches of other shards' journals: asking them here would "
                "pay for them twice. builder status names the journals: rerun those shards, numbered as then, "
                "until their batches have ended, then this one."
            )

    async def _fill(self) -> None:
        """New batches, as many as may be open; only one small one before the endpoint has proved itself."""
        while not self.takes_only and self._refusal is None and not self.asker.stop.is_set():
            if len(self.way.open) >= (self._most_open if self.lane.proven else 1):
                return
            with request_file() as file:
                draft = self._draft(file)
                if not draft.requests:
                    return
                await self.way.submit(draft)

    def _draft(self, file: IO[bytes]) -> Draft:
        """The next requests, as many as the limits of a batch and of the budget allow."""
        budget, draft = self.asker.budget, Draft(file)
        most = self._most if self.lane.proven else min(self._most, FIRST_REQUESTS)
        prompts: set[str] = set()
        postponed: list[Request] = []
        while len(draft.requests) < most and len(postponed) < _MOST_POSTPONED:
            request = self._next()
            if request is None:
                break
            if not self.lane.proven and request.prompt_id in prompts:
                postponed.append(request)
                continue
            line = request_line(self.asker.wire, request, token_ids=self.lane.gives_token_ids)
            if len(line) > self.section.max_bytes:
                self._set_aside(
                    request.key,
                    FatalReply(
                        f"a request takes {len(line):,} bytes, a batch {self.section.max_bytes:,} (teacher.batch)"
                    ),
                )
                continue
            size = prompt_at_most(request.messages)
            prompt, completion = draft.prompt_tokens + size, draft.completion_tokens + request.max_tokens
            over = budget.over(prompt, completion)
            if over is not None or draft.size + len(line) > self.section.max_bytes:
                self._again.appendleft(request)
                if over is not None and not draft.requests and not self.way.open:
                    self.asker.tally.limit = over
                break
            write_line(file, line)
            draft.requests[request.key] = request
            prompts.add(request.prompt_id)
            draft.size, draft.prompt_tokens, draft.completion_tokens = draft.size + len(line), prompt, completion
        self._again.extendleft(reversed(postponed))
        return draft

    def _next(self) -> Request | None:
        """The next request that no batch holds; those that one held come again when it has ended."""
        while True:
            request = self._again.popleft() if self._again else next(self._missing, None)
            if request is None:
                ready = [each for each in self._held if each.key not in self.way.elsewhere]
                if not ready:
                    return None
                self._held = [each for each in self._held if each.key in self.way.elsewhere]
                self._again.extend(ready)
            elif request.key in self.way.elsewhere:
                self._held.append(request)
            elif request.key not in self.settled:
                return request

    async def _poll_all(self) -> None:
        for batch in list(self.way.open):
            if self.asker.stop.is_set() or self._refusal is not None:
                return
            try:
                remote = await self.way.api.get(batch.sent.batch_id or "")
                if remote.status != batch.status:
                    await on_disk(batches.note(self.way.journal, batch.sent.reference, status=remote.status))
                self.way.hear(batch, remote)
                if remote.has_ended:
                    await self._finish(batch, remote)
            except RetryableError as error:
                self._be_patient(error)
                return
            except EndpointError as error:
                await self._doubt(batch, error)
            else:
                batch.not_found, self._wait_s, self._troubled_since = 0, self.section.poll_s, None

    def _be_patient(self, error: RetryableError) -> None:
        """The endpoint has trouble: ask it less often, and not for ever."""
        now = time.monotonic()
        self.way.trouble(error)
        self._troubled_since = self._troubled_since or now
        if now - self._troubled_since > PATIENCE_S:
            raise EndpointError(
                f"{self.lane.endpoint.url} has not told for {PATIENCE_S / 60:.0f} minutes how its batches are; last: "
                f"{error}. {len(self.way.open)} batches are open there and go on. Rerun the same command to take them."
            )
        self._wait_s = max(min(2 * self._wait_s, LONGEST_WAIT_S), error.retry_after_s or 0.0)

    async def _doubt(self, batch: Open, error: EndpointError) -> None:
        """The endpoint refuses to tell of a batch. Raises unless it says that there is none, and that not often yet."""
        if not self.way.api.is_gone(error):
            raise error
        batch.not_found += 1
        if batch.not_found >= _GONE:
            raise await self.way.lost(batch, f"or a file of it is gone ({error})")

    async def _finish(self, batch: Open, remote: Remote) -> None:
        """Take what a batch brought; what it did not bring goes into the next."""
        reference, status = batch.sent.reference, remote.status.lower()
        results = self._results(batch)
        if status != "failed":
            batch.torn += 1
            await results.take(remote, accept_torn=batch.torn >= _GONE)
        error = EndpointError(f"batch {remote.id} ended as {status} without a result for a request")
        left = set(results.waiting)
        await on_disk(batches.end(self.way.journal, reference, str(error), with_logprobs=results.with_logprobs))
        self.way.drop(batch, results.used)
        if status == "failed":
            return self._invalid(batch, remote)
        self._most_open = min(self.section.max_open, self._most_open + 1)
        if left and status != "cancelled":
            self.asker.tally.last_error = str(error)
        self.settled |= results.answered - batch.requests.keys()
        refused = results.refused
        if not self.lane.proven:
            if results.sample is not None:
                self.asker.prove(self.lane, results.sample)
            elif not self.takes_only:
                refused = self._unproved(batch, refused)
        for key, refusal in refused.items():
            self._set_aside(key, refusal)
        for key, failure in {**dict.fromkeys(left, error), **results.failed}.items():
            self._retry(batch, key, failure)
        if results.no_money is not None:
            self._refusal = EndpointError(
                f"{results.no_money}. The account has no money left; nothing else will succeed. Pay in, then rerun: "
                "what is stored is not asked again, and open batches are taken."
            )
        elif status == "cancelled":
            self._refusal = EndpointError(
                f"Batch {remote.id} was cancelled at {self.lane.endpoint.url}: {len(left):,} of "
                f"{batch.sent.requests:,} requests have no result, the others are stored. No other batch was sent. "
                "Rerun the same command to ask for the rest."
            )

    def _results(self, batch: Open) -> Results:
        """What was taken so far: a download that broke off goes on, and counts nothing twice."""
        path, reference = self.way.journal.path, batch.sent.reference
        if batch.results is None:
            ours = set(batches.lines(path, reference))
            batch.results = Results(self.asker, self.way.api, batch.sent, batches.waiting(path, reference), ours)
        return batch.results

    def _unproved(self, batch: Open, refused: dict[str, FatalReply]) -> dict[str, FatalReply]:
        """After a first batch without a reply: which refusals stand. Raises EndpointError where it is the endpoint."""
        self._empty += 1
        if refused and batch.sent.token_ids and self.asker.wire.generation.logprobs:
            self.lane.gives_token_ids = False  # which may be what it refuses
            self._empty -= 1
            self._again.extend(batch.requests[key] for key in refused if key in batch.requests)
            return {}
        if not self.answered_before and (len(refused) == batch.sent.requests or self._empty >= FIRST_REQUESTS):
            raise EndpointError(
                f"{self.lane.endpoint.url} answered none of the first requests in a batch; last: "
                f"{self.asker.tally.last_error}. The others were not sent. `builder probe` shows what the endpoint "
                "gives; where it refuses logprobs, set generation.logprobs=false."
            )
        return refused

    def _invalid(self, batch: Open, remote: Remote) -> None:
        """A batch that failed validation: nothing of it was billed."""
        problems = remote.problems
        said = "; ".join(text for *_, text in problems[:3]) or "it says not why"
        self.asker.tally.last_error = f"batch {remote.id} failed validation: {said}"
        everything = list(batch.requests.values())
        if any(code == "token_limit_exceeded" or "enqueued" in text.lower() for code, _, text in problems):
            if self.way.open:
                self._most_open = len(self.way.open)
            elif batch.sent.requests > 1:
                self._most = max(1, batch.sent.requests // 2)
            else:
                raise EndpointError(f"{self.asker.tally.last_error}. Not even one request fits the provider's queue.")
            self._again.extend(everything)
            return
        order = batches.lines(self.way.journal.path, batch.sent.reference)
        named = {order[line - 1]: text for _, line, text in problems if line is not None and line <= len(order)}
        if not self.lane.proven and batch.sent.token_ids and self.asker.wire.generation.logprobs:
            self.lane.gives_token_ids = False
            self._again.extend(everything)
            return
        if not named or len(named) == len(order):
            raise EndpointError(
                f"{self.lane.endpoint.url}: {self.asker.tally.last_error}. Nothing of its {batch.sent.requests:,} "
                "requests was billed. Check teacher.model and generation against what the provider's batches take, "
                "then rerun."
            )
        for key, text in named.items():
            self._set_aside(key, FatalReply(f"the batch's validation refused a request: {text}"))
        for key in order:
            if key not in named:
                self._retry(batch, key, EndpointError(self.asker.tally.last_error))

    def _set_aside(self, key: str, error: FatalReply) -> None:
        self.settled.add(key)
        self.asker.set_aside(error)

    def _retry(self, batch: Open, key: str, error: EndpointError) -> None:
        """Into the next batch, unless the request had all its tries. One of an earlier call comes by itself."""
        self._tries[key] = self._tries.get(key, 0) + 1
        if self._tries[key] >= MAX_TRIES:
            self.settled.add(key)
            self.asker.tally.failed += 1
            self.asker.tally.last_error = str(error)
        elif key in batch.requests:
            self.asker.tally.retried += 1
            self._again.append(batch.requests[key])
