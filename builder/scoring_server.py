"""A server that gives logprobs of token ids: its proof, and many rows through it, however often it breaks down."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from builder.client import Client, RefusedError, RetryableError
from builder.errors import EndpointError, FatalReply, ScoreError
from builder.flow import backoff_s
from builder.prompt_logprobs import REQUESTS, Way, read_echo, read_logprobs
from builder.section import Endpoint
from builder.student import NoLogprobs
from builder.windows import Row, Windowed, sizes, windows

TEST_TEXT: Final = "One and two is three; 17 + 25 = 42.\n\n    naïve 每个苹果三元 🍎"
Outcome = np.ndarray | Windowed | NoLogprobs
_TRIES: Final = 6
_ALONE: Final = 2
"""Times that a row may take the server down while nothing else is in flight, before it is sent in windows."""


class _Died(Exception):
    """The server does not score even a short row any more."""


class _Gone(Exception):
    """It did not come back; the message says what was seen last."""


class _TooMuch(Exception):
    """The server lives, but does not score this row as it is; the message says what it said."""


@dataclass(frozen=True)
class ProofText:
    """A short text for the proof of a server: itself, its token ids, and the text of each token."""

    text: str
    row: Row
    texts: list[str]


@dataclass(frozen=True)
class ScoringServer:
    """An endpoint that has proved to give logprobs of token ids, under which name and in which way."""

    endpoint: Endpoint
    model: str
    way: Way
    short: Row

    @classmethod
    async def proved(
        cls, endpoint: Endpoint, test: ProofText, *, name: Callable[[list[str]], str], advice: str
    ) -> "ScoringServer":
        """Ask for a short text as text and as ids; where that gives no prompt logprobs, as ids with echo.

        `name` picks the model's name from those that the server lists. Raises ScoreError, which ends with `advice`,
        for a server that does neither.
        """
        async with Client([endpoint]) as client:
            seen: list[str] = []
            try:
                model = name(await _listed(client))
                for way in REQUESTS:
                    asker = _Asker(client, cls(endpoint, model, way, test.row))
                    found = await asker.proof(test)
                    if isinstance(found, np.ndarray):
                        return asker.server
                    seen.append(f"{found.reason} (asked by {way})")
            except RetryableError as error:
                raise ScoreError(
                    f"{error}. Nothing was scored. Check that the server runs and that its address is its "
                    "OpenAI-compatible base, such as http://host:8000/v1."
                ) from None
            except EndpointError as error:
                raise ScoreError(f"{error}. {advice}") from None
        said = "; ".join(dict.fromkeys(seen))
        raise ScoreError(f"{endpoint.url}: for a test text of {len(test.row.ids)} tokens {said}. {advice}")

    async def score(self, rows: Sequence[Row]) -> list[Outcome]:
        """Logprobs of the completion ids of each row, or why there are none.

        Rows that the server does not bear as they are come in windows (`Windowed`). A reason that is not `lasting`
        means that the server went away: such rows wait for another call.
        """
        async with Client([self.endpoint]) as client:
            return await _Pass(_Asker(client, self), rows).run(self.endpoint.max_in_flight)


async def _listed(client: Client) -> list[str]:
    try:
        return await client.models()
    except (FatalReply, RefusedError):
        return []


@dataclass(frozen=True)
class _Asker:
    """One request for one row, and whether the server still answers at all."""

    client: Client
    server: ScoringServer

    async def logprobs(self, row: Row) -> np.ndarray | NoLogprobs:
        """Ask once. Raises EndpointError."""
        body = await self._post(row)
        return read_logprobs(body, row) if self.server.way == "prompt_logprobs" else read_echo(body, row)

    async def _post(self, row: Row, **changes: Any) -> bytes:
        request = {
            "model": self.server.model,
            "prompt": row.ids,
            "max_tokens": 1,  # vLLM refuses 0 without echo
            "temperature": 1.0,  # leaves logprobs alone on servers that scale the prompt's too
            **REQUESTS[self.server.way],
            **changes,
        }
        return await self.client.post("/completions", request)

    async def proof(self, test: ProofText) -> np.ndarray | NoLogprobs:
        """The test text's logprobs, as text and then as ids. Raises RefusedError and RetryableError.

        What the server makes of the text shows its vocabulary; some put a token of their own before any text.
        """
        try:
            body = await self._post(test.row, prompt=test.text, add_special_tokens=False)
            if self.server.way == "prompt_logprobs":
                found = read_logprobs(body, test.row)
                return found if isinstance(found, NoLogprobs) else await self.logprobs(test.row)
            found = read_echo(body, test.row, test.texts)
            behind = read_echo(body, test.row, test.texts, lead=1)
            if isinstance(found, NoLogprobs) and isinstance(behind, NoLogprobs):
                return found
            return read_echo(await self._post(test.row), test.row, test.texts)
        except FatalReply as error:
            return NoLogprobs(f"it {self._unplaced(error)}")

    async def patiently(self, row: Row) -> np.ndarray | NoLogprobs:
        """Ask, again after failures of this row alone. Raises _TooMuch, and _Died once a short row fails too."""
        said = ""
        for attempt in range(1, _TRIES + 1):
            try:
                return await self.logprobs(row)
            except FatalReply as error:
                refused = f"the endpoint refuses {row.tokens - 1:,} tokens and a new one: it {self._unplaced(error)}"
                raise _TooMuch(refused) from None
            except EndpointError as error:
                said = self._unplaced(error)
                if not await self._scores():
                    raise _Died(said) from None
                wish = error.retry_after_s if isinstance(error, RetryableError) else None
            if attempt < _TRIES:
                await asyncio.sleep(backoff_s(attempt, wish))
        raise _TooMuch(f"the endpoint failed {_TRIES} times, but not for a short row; last, it {said}")

    async def in_windows(self, row: Row, size: int) -> Windowed | NoLogprobs:
        """The row in requests of `size` tokens, one after the other. Raises as `patiently`."""
        found = []
        for part in windows(row, size):
            values = await self.patiently(part)
            if isinstance(values, NoLogprobs):
                return values
            found.append(values)
        return Windowed(np.concatenate(found), size)

    async def back(self) -> None:
        """Wait, about half a minute, until the server scores a short row. Raises _Gone when it does not."""
        said = ""
        for attempt in range(1, _TRIES + 1):
            try:
                found = await self.logprobs(self.server.short)
            except (FatalReply, RefusedError) as error:  # it will not change its mind
                raise _Gone(str(error)) from None
            except EndpointError as error:
                said = str(error)
            else:
                if isinstance(found, np.ndarray):
                    return
                said = found.reason
            if attempt < _TRIES:
                await asyncio.sleep(backoff_s(attempt, None))
        raise _Gone(said)

    async def _scores(self) -> bool:
        try:
            return isinstance(await self.logprobs(self.server.short), np.ndarray)
        except EndpointError:
            return False

    def _unplaced(self, error: EndpointError) -> str:
        """The message without the address: it is stored in a table, and the same row has the same reason anywhere."""
        return str(error).removeprefix(f"{self.server.endpoint.url} ")


class _Pass:
    """One call of `score`. Rows go together until the server dies; those it died on go alone, then all others."""

    def __init__(self, asker: _Asker, rows: Sequence[Row]) -> None:
        self._asker = asker
        self._rows = rows
        self._found: dict[int, Outcome] = {}
        self._deadly: int | None = None  # tokens that took the server down with nothing else in flight

    async def run(self, max_in_flight: int) -> list[Outcome]:
        """Every row's logprobs, or why there are none."""
        waiting = deque(sorted(range(len(self._rows)), key=self._tokens))
        index = 0
        try:
            while waiting:
                lost: list[int] = []
                await asyncio.gather(*(self._work(waiting, lost) for _ in range(min(max_in_flight, len(waiting)))))
                for index in sorted(lost, key=self._tokens):
                    self._found[index] = await self._alone(self._rows[index])
        except _Gone as gone:
            reason = f"{gone}; it went away while it scored rows of up to {self._tokens(index):,} tokens"
            rest = NoLogprobs(reason, lasting=False)
            return [self._found.get(index, rest) for index in range(len(self._rows))]
        return [self._found[index] for index in range(len(self._rows))]

    async def _work(self, waiting: deque[int], lost: list[int]) -> None:
        """Draw rows until there are none or the server died under some worker; `lost` are rows then in flight."""
        while waiting and not lost:
            index = waiting.popleft()
            try:
                self._found[index] = await self._together(self._rows[index])
            except _Died:
                lost.append(index)

    def _attempts(self, row: Row) -> list[int | None]:
        """None for the row as it is, then windows of half the size each time; nothing that is known to be deadly."""
        deadly = self._deadly
        smaller = [size for size in sizes(row) if deadly is None or size < deadly]
        return [*smaller] if smaller and deadly is not None and row.tokens >= deadly else [None, *smaller]

    async def _together(self, row: Row) -> Outcome:
        """A row as it is, else in the largest windows that the server bears. Raises _Died."""
        said = ""
        for size in self._attempts(row):
            try:
                return await self._once(row, size)
            except _TooMuch as error:
                said = said or str(error)
        return NoLogprobs(said)

    async def _alone(self, row: Row) -> Outcome:
        """The same with nothing else in flight, so that a death is this row's. Raises _Gone."""
        refused, died, deaths = "", "", 0
        attempts = self._attempts(row)
        whole = [None] * (_ALONE - 1) if attempts[0] is None else []
        for size in [*whole, *attempts]:
            await self._asker.back()
            try:
                return await self._once(row, size)
            except _TooMuch as error:
                refused = refused or str(error)
            except _Died as error:
                died, deaths = str(error), deaths + 1
                if size is not None or deaths == _ALONE:
                    self._deadly = min(size or row.tokens, self._deadly or row.tokens)
        await self._asker.back()
        if not deaths:
            return NoLogprobs(refused)
        return NoLogprobs(
            f"the endpoint broke down {deaths} times over its {row.tokens:,} tokens alone; last, it {died}"
        )

    async def _once(self, row: Row, size: int | None) -> Outcome:
        return await (self._asker.patiently(row) if size is None else self._asker.in_windows(row, size))

    def _tokens(self, index: int) -> int:
        return self._rows[index].tokens
