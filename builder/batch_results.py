"""Results of an offline batch: each body is stored before it is parsed, and sealed as online replies are."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from builder import journal as journals
from builder.ask import Asker, on_disk
from builder.batch_api import BatchApi, Remote
from builder.batch_journal import Sent
from builder.batch_lines import Result, read_line
from builder.client import RetryableError
from builder.errors import EndpointError, FatalReply
from builder.journal import Attempt, Stored
from builder.prefix import parse
from builder.reply import Reply

_GROUP: Final = 512
_GROUP_BYTES: Final = 2**24
"""So many results, or bytes of them, share a commit: one sync each would take a millisecond a reply and more."""


@dataclass
class Results:
    """Takes what the files of one batch hold. `waiting` are its requests without a result, by key; `ours` all of them.

    `refused` and `failed` are requests that brought no reply, with what was said: not to be asked again, and to be.
    """

    asker: Asker
    api: BatchApi
    sent: Sent
    waiting: dict[str, tuple[int, Attempt]]
    ours: set[str]
    with_logprobs: int = 0
    used: tuple[int, int] = (0, 0)
    sample: Reply | None = None
    answered: set[str] = field(default_factory=set)
    refused: dict[str, FatalReply] = field(default_factory=dict)
    failed: dict[str, EndpointError] = field(default_factory=dict)
    no_money: str | None = None
    _group: list[tuple[int, Attempt, bytes]] = field(default_factory=list)

    async def take(self, remote: Remote, *, accept_torn: bool) -> None:
        """Read the output file, then the file of errors, as they arrive.

        Raises RetryableError for a file that breaks off or ends within a line, unless `accept_torn`: what came before
        is stored, and `waiting` lacks it. RefusedError for a file that is gone.
        """
        for file_id in (remote.output_file_id, remote.error_file_id):
            if file_id is None or not self.waiting:
                continue
            torn: bytes | None = None
            try:
                async for line in self.api.lines(file_id):
                    if torn is not None:
                        await self._unreadable(torn)
                    torn = None if await self._line(line) else line
            finally:
                await self._store()
            if torn is not None and not accept_torn:
                raise RetryableError(f"{self.sent.url} gave file {file_id} with a torn last line")
            if torn is not None:
                await self._unreadable(torn)
                await self._store()

    async def _line(self, line: bytes) -> bool:
        """Take one line; whether it can be read."""
        if not line.strip():
            return True
        result = read_line(line)
        if result is None or result.is_torn:
            return False
        await self._result(result)
        return True

    async def _unreadable(self, line: bytes) -> None:
        result = read_line(line)
        if result is None:
            self._count("unreadable line in a batch")
        else:
            await self._result(result)

    async def _result(self, result: Result) -> None:
        found = self.waiting.pop(result.key, None)
        if found is None:  # an earlier line had it, or nobody asked
            if result.key not in self.ours:
                self._count("line in a batch for no request")
            return
        attempt_id, attempt = found
        if result.body is not None:
            self._group.append((attempt_id, attempt, result.body))
            if len(self._group) >= _GROUP or sum(len(body) for *_, body in self._group) >= _GROUP_BYTES:
                await self._store()
            return
        self._count("refused in a batch" if result.is_final else "no reply in a batch", result.error)
        outcome = journals.FATAL if result.is_final else journals.FAILED
        await on_disk(self.asker.journal.conclude(attempt_id, outcome, result.error))
        if result.no_money:
            self.no_money = result.error
        if result.is_final:
            self.refused[result.key] = FatalReply(result.error)
        else:
            self.failed[result.key] = EndpointError(result.error)

    async def _store(self) -> None:
        """Bodies on disk first, then replies."""
        group, self._group = self._group, []
        latency_s = max(0.0, time.time() - self.sent.recorded_at)
        journal = self.asker.journal
        stored = [on_disk(journal.store(number, body, latency_s)) for number, _, body in group]
        await asyncio.gather(*stored)
        replies, concluded = [], []
        for number, attempt, body in group:
            try:
                reply = parse(body, attempt.prefix, attempt.role)
            except EndpointError as error:
                self._count(error.kind, str(error))
                if isinstance(error, FatalReply):
                    self.refused[attempt.request_key] = error
                else:
                    self.failed[attempt.request_key] = error
                outcome = journals.FATAL if isinstance(error, FatalReply) else journals.RETRYABLE
                concluded.append(on_disk(journal.conclude(number, outcome, str(error))))
            else:
                replies.append((number, attempt, reply))
                concluded.append(on_disk(journal.conclude(number, journals.REPLY, reply.finish_reason)))
        await asyncio.gather(*concluded)
        for number, attempt, reply in replies:  # only now: what is sealed loses its body
            self._add(Stored(attempt, number, b"", datetime.now(UTC).timestamp(), latency_s), reply)

    def _add(self, stored: Stored, reply: Reply) -> None:
        self.answered.add(stored.attempt.request_key)
        self.with_logprobs += bool(reply.logprobs)
        prompt, completion = self.used
        self.used = (prompt + (reply.prompt_tokens or 0), completion + (reply.completion_tokens or 0))
        if self.sample is None or (reply.logprobs and not self.sample.logprobs):
            self.sample = reply
        self.asker.count(reply, self.asker.sealer.add(stored, reply))

    def _count(self, kind: str, said: str | None = None) -> None:
        tally = self.asker.tally
        tally.errors[kind] = tally.errors.get(kind, 0) + 1
        tally.last_error = said or kind
