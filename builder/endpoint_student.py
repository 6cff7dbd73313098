"""The student behind an OpenAI-compatible server: logprobs of given token ids through vLLM's prompt logprobs."""

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from builder.client import Client, RefusedError, RetryableError
from builder.config import Student
from builder.errors import EndpointError, FatalReply, ScoreError
from builder.flow import backoff_s
from builder.prompt_logprobs import read_logprobs
from builder.student import CannotRender, NoLogprobs, Rendered, StudentTokenizer

_TRIES: Final = 6
_ALONE: Final = 2
"""Times that a row may take the server down while nothing else is in flight, before it is given up."""
_TEST: Final = "One and two is three; 17 + 25 = 42.\n\n    naïve 每个苹果三元 🍎"
_NEEDED: Final = (
    "The server must serve this very model, tokenizer included, and give prompt logprobs for token ids, as vLLM does. "
    "Nothing was scored. Mend the server, or set student.backend=local."
)


class _Died(Exception):
    """The server does not score even a short row any more."""


class _Gone(Exception):
    """It did not come back; the message says what was seen last."""


class EndpointStudent(StudentTokenizer):
    """A student that is served elsewhere. Raises ScoreError unless the endpoint serves it and gives prompt logprobs.

    What cannot be checked from here is that the server holds the weights of `student.revision`: a server is started
    with them, and tokens that agree do not show it.
    """

    def __init__(self, student: Student) -> None:
        super().__init__(student)
        if student.endpoint is None:
            raise ScoreError("The student has no endpoint; add student.endpoint.url=http://host:8000/v1.")
        self.endpoint = student.endpoint
        text, self._short = self._test_row()
        self.served_as = asyncio.run(self._prove(text))

    def logprobs(self, rows: Sequence[Rendered]) -> list[np.ndarray | NoLogprobs]:
        """Logprob of each completion token, nats, float32, one array a row; or why there is none.

        A reason that is not `lasting` means that the server went away: such rows wait for another call.
        """
        return asyncio.run(self._logprobs(rows))

    def _test_row(self) -> tuple[str, Rendered]:
        """A short text, with the chat template's own tokens where it renders, and the same as token ids."""
        try:
            text = self.prompt([{"role": "user", "content": "What is 17 + 25?"}])[0] + _TEST
        except CannotRender:
            text = _TEST
        try:
            ids = self.ids(text)
        except CannotRender as error:
            raise ScoreError(
                f"Student {self.student.model!r} cannot read a test text: {error}. Check student.model."
            ) from None
        return text, Rendered(ids[:1], ids[1:], [])

    async def _prove(self, text: str) -> str:
        """The name under which the endpoint serves this student, after two short requests: as text and as ids."""
        async with Client([self.endpoint]) as client:
            server = _Server(client, "", self._short)
            try:
                server.model = self._name(await _listed(client))
                found = await server.logprobs(self._short, prompt=text, add_special_tokens=False)
                if isinstance(found, np.ndarray):
                    found = await server.logprobs(self._short)
            except RetryableError as error:
                raise ScoreError(
                    f"{error}. Nothing was scored. Check that the server runs and that student.endpoint.url is its "
                    "OpenAI-compatible base, such as http://host:8000/v1."
                ) from None
            except EndpointError as error:
                raise ScoreError(f"{error}. {_NEEDED}") from None
        if isinstance(found, NoLogprobs):
            tokens = len(self._short.prompt_ids + self._short.completion_ids)
            raise ScoreError(f"{self.endpoint.url}: for a test text of {tokens} tokens {found.reason}. {_NEEDED}")
        return server.model

    def _name(self, listed: list[str]) -> str:
        """The name to ask for; a folder's name says little, so what is served alone may stand for a folder."""
        wanted = self.student.model
        here = Path(wanted).is_dir()
        short = Path(wanted).resolve().name if here else wanted.split("/")[-1]
        for name in (wanted, short):
            if name in listed:
                return name
        if not listed:  # a server without a list of models may still answer
            return short if here else wanted
        if here and len(listed) == 1:
            return listed[0]
        raise ScoreError(
            f"{self.endpoint.url} serves {', '.join(listed[:5])}, not {wanted!r}. Nothing was scored. "
            f"Serve the student under its name (vLLM: --served-model-name {short})."
        )

    async def _logprobs(self, rows: Sequence[Rendered]) -> list[np.ndarray | NoLogprobs]:
        async with Client([self.endpoint]) as client:
            work = _Pass(_Server(client, self.served_as, self._short), rows)
            return await work.run(self.endpoint.max_in_flight)


async def _listed(client: Client) -> list[str]:
    try:
        return await client.models()
    except (FatalReply, RefusedError):
        return []


class _Server:
    """One request for one row, and whether the server still answers at all."""

    def __init__(self, client: Client, model: str, short: Rendered) -> None:
        self.client = client
        self.model = model
        self._short = short

    async def logprobs(self, row: Rendered, **changes: Any) -> np.ndarray | NoLogprobs:
        """Ask once. Raises EndpointError."""
        request = {
            "model": self.model,
            "prompt": row.prompt_ids + row.completion_ids,
            "max_tokens": 1,  # vLLM refuses 0 without echo
            "temperature": 0.0,
            "prompt_logprobs": 0,  # the token itself and no alternatives
            "return_token_ids": True,
            **changes,
        }
        return read_logprobs(await self.client.post("/completions", request), row)

    async def patiently(self, row: Rendered) -> np.ndarray | NoLogprobs:
        """Ask, again after failures of this row alone. Raises _Died once the server fails a short row too."""
        said = ""
        for attempt in range(1, _TRIES + 1):
            try:
                return await self.logprobs(row)
            except FatalReply as error:
                sent = len(row.prompt_ids) + len(row.completion_ids)
                return NoLogprobs(f"the endpoint refuses {sent:,} tokens and a new one: it {self._unplaced(error)}")
            except EndpointError as error:
                said = self._unplaced(error)
                if not await self._scores():
                    raise _Died(said) from None
                wish = error.retry_after_s if isinstance(error, RetryableError) else None
            if attempt < _TRIES:
                await asyncio.sleep(backoff_s(attempt, wish))
        return NoLogprobs(f"the endpoint failed {_TRIES} times, but not for a short row; last, it {said}")

    async def back(self) -> None:
        """Wait, about half a minute, until the server scores a short row. Raises _Gone when it does not."""
        said = ""
        for attempt in range(1, _TRIES + 1):
            try:
                found = await self.logprobs(self._short)
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
            return isinstance(await self.logprobs(self._short), np.ndarray)
        except EndpointError:
            return False

    def _unplaced(self, error: EndpointError) -> str:
        """The message without the address: it is stored in a table, and the same row has the same reason anywhere."""
        return str(error).removeprefix(f"{self.client.endpoints[0].url} ")


class _Pass:
    """One call of `logprobs`. Rows go together until the server dies; those it died on go alone, then all others."""

    def __init__(self, server: _Server, rows: Sequence[Rendered]) -> None:
        self._server = server
        self._rows = rows
        self._found: dict[int, np.ndarray | NoLogprobs] = {}

    async def run(self, max_in_flight: int) -> list[np.ndarray | NoLogprobs]:
        """Every row's logprobs, or why there are none."""
        waiting = deque(sorted(range(len(self._rows)), key=self._tokens))
        index = 0
        try:
            while waiting:
                lost: list[int] = []
                await asyncio.gather(*(self._work(waiting, lost) for _ in range(min(max_in_flight, len(waiting)))))
                for index in sorted(lost, key=self._tokens):
                    self._found[index] = await self._alone(index)
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
                self._found[index] = await self._server.patiently(self._rows[index])
            except _Died:
                lost.append(index)

    async def _alone(self, index: int) -> np.ndarray | NoLogprobs:
        """A row with nothing else in flight. Raises _Gone."""
        said = ""
        for _ in range(_ALONE):
            await self._server.back()
            try:
                return await self._server.patiently(self._rows[index])
            except _Died as died:
                said = str(died)
        await self._server.back()
        return NoLogprobs(
            f"the endpoint broke down {_ALONE} times over its {self._tokens(index):,} tokens alone; last, it {said}"
        )

    def _tokens(self, index: int) -> int:
        return self._rows[index].training_tokens
