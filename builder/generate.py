"""prompts → responses: ask what is missing, record before and after, resume from whatever is there."""

import asyncio
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

from builder import batch_journal
from builder import journal as journals
from builder.ask import Asker
from builder.batch import Batches
from builder.batch_config import Batch
from builder.batch_online import take_open_batches
from builder.budget import Budget, BudgetSpent
from builder.client import (
    AbsentError,
    BusyError,
    Client,
    Lane,
    RefusedError,
    RejectedError,
    RetryableError,
    endpoints_of,
)
from builder.collector import settled_heap
from builder.config import Recipe
from builder.errors import EndpointError, FatalReply, TableError
from builder.journal_writer import Journal
from builder.prompts import Prompts
from builder.reply import Reply
from builder.requests import Request, requests, satisfied, total
from builder.rescore import check_rescoring
from builder.seal import Sealer, seal_orphans
from builder.store import Run
from builder.tally import MAX_TRIES, Progress, Tally
from builder.wire import Wire

__all__ = ["MAX_TRIES", "Tally", "generate"]

_FIRST_PROMPTS = 3
"""An endpoint that answers none of this many prompts is taken to be at fault, not the prompts."""
_SPARE_WORKERS = 8
"""One worker more for this many places."""


def generate(
    run: Run,
    recipe: Recipe,
    prompts: Prompts,
    *,
    role: str = "teacher",
    shard: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    forget_missing: bool = False,
    budget: Budget | None = None,
) -> Tally:
    """Send every request of the recipe that no stored reply answers, and seal all replies into tables.

    Raises EndpointError when the endpoint cannot serve this recipe, JournalError when a reply cannot be recorded,
    TableError when sealed replies are missing from the tables, unless `forget_missing` lets them be paid for again.
    Requests that keep failing are counted in `Tally.failed`; a later call asks them again. `Tally.limit` says which
    limit of `budget` ended the call, if one did. With `teacher.batch` requests go in offline batches.
    """
    wire = Wire(recipe.require_teacher(), recipe.generation, role)
    wanted = requests(recipe, prompts, shard=shard)
    number = total(recipe, prompts, shard=shard)
    return send(
        run,
        recipe,
        wire,
        wanted,
        number,
        shard=shard,
        progress=progress,
        forget_missing=forget_missing,
        budget=budget,
    )


def send(
    run: Run,
    recipe: Recipe,
    wire: Wire,
    wanted: Iterable[Request],
    number: int,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    forget_missing: bool = False,
    budget: Budget | None = None,
) -> Tally:
    """Send those of `number` requests that no stored reply answers; raises and resumes as `generate`."""
    budget = budget or Budget()
    with (
        budget.spending(run, shard),
        Journal(run.journal_dir, shard[0]) as journal,
        Sealer(run, recipe, journal) as sealer,
    ):
        sealer.catch_up(forget_missing=forget_missing)
        seal_orphans(run, recipe, shard, forget_missing=forget_missing)
        stored = journals.stored_replies(run.journal_dir)
        tally = Tally(total=number)
        work = _Generation(recipe, wire, tally, bool(stored), budget, forget_missing)
        if work.batch is not None and budget.prices is not None:
            budget.prices = budget.prices.times(work.batch.price_factor)
        missing = work.missing(wanted, stored)
        try:
            with settled_heap():
                asyncio.run(work.run(missing, journal, sealer, progress or (lambda tally: None)))
        except (EndpointError, KeyboardInterrupt):
            sealer.flush()
            raise
        sealer.flush()
    return tally


@dataclass
class _Generation:
    """State of one call of `send`: many workers draw requests from one iterator."""

    recipe: Recipe
    wire: Wire
    tally: Tally
    answered_before: bool
    budget: Budget
    forget_missing: bool = False
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: EndpointError | TableError | None = None

    @property
    def batch(self) -> Batch | None:
        """How requests go in offline batches; None where they go online, as all but the teacher's own do."""
        return self.wire.asked.batch if self.wire.role == "teacher" else None

    def missing(self, wanted: Iterable[Request], stored: dict[bytes, int]) -> Iterator[Request]:
        """Requests without a stored answer; counts the others."""
        for request in wanted:
            if satisfied(stored, request):
                self.tally.stored_before += 1
            else:
                yield request

    async def run(self, missing: Iterator[Request], journal: Journal, sealer: Sealer, progress: Progress) -> None:
        first = next(missing, None)
        is_open = self.wire.role == "teacher" and bool(batch_journal.unsettled(journal.path))
        if first is None and not is_open:
            return
        missing = missing if first is None else chain([first], missing)
        if self._needs_logprobs and self.wire.asked.rescore:  # before anything is paid that would be of no use
            await check_rescoring(self.recipe)
        async with Client(endpoints_of(self.wire.asked, self.wire.section)) as client:
            asker = Asker(self.wire, journal, sealer, progress, client, self.tally, self.stop, self._prove, self.budget)
            with _drain_on_interrupt(self.stop):
                closing = asyncio.create_task(self._close_on_stop(client))
                try:
                    if self.batch is not None:
                        await self._in_batches(asker, missing, self.batch)
                    else:
                        await self._work_together(asker, await self._beside_batches(asker, missing))
                except BudgetSpent as spent:  # before the first replies
                    self.tally.limit = str(spent)
                finally:
                    closing.cancel()
        if self.refusal is not None:
            raise self.refusal
        self.tally.stopped = self.stop.is_set() and self.tally.limit is None

    async def _in_batches(self, asker: Asker, missing: Iterator[Request], section: Batch) -> None:
        await self._check_models(asker.client)
        sending = Batches(asker, asker.client.lanes[0], section, answered_before=self.answered_before)
        await sending.send(missing, needs_logprobs=self._needs_logprobs, forget_missing=self.forget_missing)

    async def _beside_batches(self, asker: Asker, missing: Iterator[Request]) -> Iterator[Request]:
        if self.wire.role != "teacher":
            return missing
        before, forget = self.answered_before, self.forget_missing
        return await take_open_batches(asker, missing, answered_before=before, forget_missing=forget)

    async def _work_together(self, asker: Asker, missing: Iterator[Request]) -> None:
        """Every request: the first ones alone, the others by workers, more of them than places at the endpoints.

        So one is ready to go while the reply before it is stored.
        """
        await self._check_models(asker.client)
        missing = chain(await self._first_replies(asker, missing), missing)
        number = asker.client.capacity + asker.client.capacity // _SPARE_WORKERS + 1
        workers = [asyncio.create_task(self._work(asker, missing)) for _ in range(number)]
        try:
            await asyncio.gather(*workers)
        except BaseException:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            raise

    async def _close_on_stop(self, client: Client) -> None:
        """Wake those that wait for a place."""
        await self.stop.wait()
        client.gate.close()

    async def _check_models(self, client: Client) -> None:
        """Raise EndpointError when no endpoint answers, or one lists models and ours is not among them.

        Where some answer, the others are left out until they do.
        """
        absent: list[EndpointError] = []
        for lane in client.lanes:
            try:
                await self._check_model(client, lane)
            except RetryableError as error:
                absent.append(error)
                self.tally.last_error = str(error)
                lane.flow.eject(asyncio.get_running_loop().time())
        if len(absent) == len(client.lanes):
            raise EndpointError(
                f"{absent[0]}. Nothing was sent. Check that the server runs and that the address is its "
                "OpenAI-compatible base, such as http://host:8000/v1."
            )

    async def _check_model(self, client: Client, lane: Lane) -> None:
        """Raise RetryableError when nothing answers, EndpointError when it lists models and ours is not among them."""
        try:
            names = await client.models(lane)
        except AbsentError:
            raise
        except (FatalReply, RefusedError, BusyError):  # a server without a list of models may still answer
            return
        model = self.wire.name
        if names and model not in names:
            raise EndpointError(
                f"{lane.endpoint.url} serves {', '.join(names[:5])}, not {model!r}. Nothing was sent. "
                f"{self.wire.rename}"
            )

    async def _first_replies(self, asker: Asker, missing: Iterator[Request]) -> list[Request]:
        """One request goes alone to each endpoint: one that cannot serve this recipe costs a reply, not a thousand.

        Returns the other requests of prompts that failed here; they wait until the endpoints have proved themselves.
        """
        postponed: list[Request] = []
        present = [lane for lane in asker.client.lanes if not lane.flow.ejected]
        canaries = [self._canary(asker, lane, missing, postponed) for lane in present]
        for ended in await asyncio.gather(*canaries, return_exceptions=True):
            if ended is not None:
                raise ended
        return postponed

    async def _canary(self, asker: Asker, lane: Lane, missing: Iterator[Request], postponed: list[Request]) -> None:
        failed: set[str] = set()
        while not self.stop.is_set() and (request := next(missing, None)) is not None:
            if request.prompt_id in failed:
                postponed.append(request)
                continue
            try:
                reply = await self._ask_first(asker, request, lane)
            except FatalReply as error:
                asker.set_aside(error)
                if self.answered_before:  # the prompt is at fault, not the endpoint
                    continue
                reply = None
            except BusyError:  # the others need not wait for it
                lane.flow.eject(asyncio.get_running_loop().time())
                return postponed.append(request)
            if reply is not None:
                return None
            failed.add(request.prompt_id)
            if len(failed) == _FIRST_PROMPTS:
                raise EndpointError(
                    f"{lane.endpoint.url} answered none of the first {_FIRST_PROMPTS} prompts; last: "
                    f"{self.tally.last_error}. The others were not sent. `builder probe` shows what the endpoint "
                    "gives; where it refuses logprobs, set generation.logprobs=false."
                )
        return None

    async def _ask_first(self, asker: Asker, request: Request, lane: Lane) -> Reply | None:
        """`ask`, and again without vLLM's flag for token ids where the endpoint may have refused that."""
        try:
            return await asker.ask(request, lane)
        except RejectedError:
            if not self.wire.generation.logprobs:
                raise
        lane.gives_token_ids = False
        try:
            return await asker.ask(request, lane)
        except RejectedError:
            lane.gives_token_ids = True  # it was not the flag
            raise

    def _prove(self, lane: Lane, reply: Reply) -> None:
        """An endpoint's first reply: with logprobs, where the recipe cannot do without. Raises EndpointError."""
        if self._needs_logprobs and not self.wire.asked.rescore and not reply.logprobs:
            raise EndpointError(
                f"{lane.endpoint.url} gives no logprobs, and this recipe selects by divergence, which needs them. "
                "One reply was paid and is kept. Serve the model where logprobs are given (builder probe shows); or "
                "where it gives those of a prompt, let builder score ask for them (teacher.rescore=true); or "
                "select without the student: selection.selector=random (or longest), no rule score_missing, and "
                "generation.logprobs=false."
            )
        lane.proven = True

    @property
    def _needs_logprobs(self) -> bool:
        wanted = self.wire.generation.logprobs and self.wire.role == "teacher"
        return wanted and self.recipe.selection.needs_logprobs

    async def _work(self, asker: Asker, missing: Iterator[Request]) -> None:
        while not self.stop.is_set() and (request := next(missing, None)) is not None:
            try:
                await asker.ask(request)
            except FatalReply as error:
                asker.set_aside(error)
            except BudgetSpent as spent:
                self.tally.limit = str(spent)
                self.stop.set()
            except (EndpointError, TableError) as error:  # send no more, but wait for what is in flight: it is paid
                self.refusal = error
                self.stop.set()


@contextmanager
def _drain_on_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C lets requests in flight finish; the second ends at once. Only where signals can be set."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, lambda: _interrupt(stop, loop))
    except (NotImplementedError, RuntimeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _interrupt(stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    if stop.is_set():
        loop.remove_signal_handler(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    stop.set()
