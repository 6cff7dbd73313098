"""Calls that may hang, crash or eat all memory: each with a deadline, in worker processes that are killed past it.

`concurrent.futures` cannot kill a running call, and a signal cannot interrupt a loop inside C. Here a worker is a plain
child process with pipes: it gets one call at a time, and losing it costs that one call. Workers import the function by
name, so nothing of the caller's `__main__` runs again.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

from builder.errors import VerifyError

START_LIMIT_S = 120.0
"""Seconds a worker may take to import its function; sympy takes 1 to 2 on a free core."""

_CALLS_BEFORE_RECYCLING = 5000  # sympy's caches grow; a fresh worker costs a second
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from builder.supervised import _serve; _serve()"


@dataclass(frozen=True)
class Result:
    """What became of call `index`: `ok` with its value; `timeout`; `error` with the reason as value."""

    index: int
    status: Literal["ok", "timeout", "error"]
    value: Any


class Supervised:
    """One function in up to `workers` processes, as a context: they start with the first calls and end with it.

    `function` is "module:name"; `deadline_s` are seconds for one call, `memory_bytes` address space of one process.
    """

    def __init__(
        self, function: str, *, workers: int = 1, deadline_s: float = 5.0, memory_bytes: int = 2 * 1024**3
    ) -> None:
        self.workers = workers
        self._start = (function, deadline_s, memory_bytes)
        self._pool: list[_Worker] = []

    def __enter__(self) -> "Supervised":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._pool:
            worker.kill()
        self._pool.clear()

    def run(self, calls: Iterable[Sequence[Any]]) -> Iterator[Result]:
        """Call the function with each argument list, lazily, in any order of completion; one `run` at a time.

        Arguments and values must be JSON. Raises VerifyError when no worker can be started at all.
        """
        try:
            for index, arguments in enumerate(calls):
                self._free().send(index, arguments)
                while len(self._pool) >= self.workers and all(worker.index is not None for worker in self._pool):
                    yield from _collect(self._pool)
            while any(worker.index is not None for worker in self._pool):
                yield from _collect(self._pool)
        finally:
            for worker in [worker for worker in self._pool if worker.index is not None]:  # the caller broke off
                worker.kill()
                self._pool.remove(worker)

    def _free(self) -> "_Worker":
        """A worker without a call; one that died since its last call is replaced."""
        for worker in [worker for worker in self._pool if worker.index is None]:
            if worker.process.poll() is None:
                return worker
            worker.kill()
            self._pool.remove(worker)
        self._pool.append(_Worker(*self._start))
        return self._pool[-1]


def supervised(function: str, calls: Iterable[Sequence[Any]], **limits: Any) -> Iterator[Result]:
    """These calls alone: `Supervised(function, **limits)` and its `run`."""
    with Supervised(function, **limits) as pool:
        yield from pool.run(calls)


def _collect(pool: list["_Worker"]) -> list[Result]:
    """Wait for the next answer, death or deadline; workers that are gone leave the pool."""
    busy = [worker for worker in pool if worker.index is not None]
    wait_s = max(0.0, min(worker.due for worker in busy) - time.monotonic())
    readable = set(select.select([worker.output for worker in busy], [], [], wait_s)[0])
    results = []
    for worker in busy:
        result = worker.read() if worker.output in readable else None
        if result is None and time.monotonic() >= worker.due:
            result = worker.expire()
        if result is not None:
            results.append(result)
            if worker.finished:
                worker.kill()
                pool.remove(worker)
    return results


class _Worker:
    """One child process and the call it is busy with. Before its first answer it has the time to import as well."""

    def __init__(self, function: str, deadline_s: float, memory_bytes: int) -> None:
        self.deadline_s = deadline_s
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in kill)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path), function, str(deadline_s), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then kills its workers
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.stream = self.process.stdin, self.process.stdout
        self.output = self.stream.fileno()
        self.buffer = b""
        self.index: int | None = None
        self.ready = self.finished = False
        self.calls = 0
        self.due = time.monotonic() + START_LIMIT_S

    def send(self, index: int, arguments: Sequence[Any]) -> None:
        self.index = index
        self.calls += 1
        if self.ready:
            self.due = time.monotonic() + self.deadline_s
        with contextlib.suppress(BrokenPipeError):  # it died idle: reading says so, and the call becomes an error
            self.input.write(json.dumps(list(arguments)).encode() + b"\n")
            self.input.flush()

    def read(self) -> Result | None:
        data = os.read(self.output, 65536)
        if not data:
            return self._died()
        self.buffer += data
        if not self.ready and b"\n" in self.buffer:
            self.buffer = self.buffer.partition(b"\n")[2]
            self.ready = True
            self.due = time.monotonic() + self.deadline_s
        line, newline, rest = self.buffer.partition(b"\n")
        if not newline:
            return None
        self.buffer = rest
        status, value = json.loads(line)
        self.finished = status == "error" or self.calls >= _CALLS_BEFORE_RECYCLING
        return self._result(status, value)

    def expire(self) -> Result:
        if not self.ready:
            raise VerifyError(
                f"A verifier process did not start within {START_LIMIT_S:.0f} s. Nothing can be verified. "
                "Is the machine overloaded? Rerun the same command; verdicts so far are kept."
            )
        self.finished = True
        return self._result("timeout", f"no answer within {self.deadline_s:g} s")

    def _died(self) -> Result:
        code = self.process.wait()
        if not self.ready:
            self.log.seek(0)
            said = self.log.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise VerifyError(
                f"A verifier process cannot start (exit {code}: {said or 'no message'}). Nothing can be verified. "
                "Check that math-verify is installed in this environment, then rerun; verdicts so far are kept."
            )
        self.finished = True
        if code == -signal.SIGXCPU:
            return self._result("timeout", "processor time used up")
        return self._result("error", f"the process died (exit {code})")

    def _result(self, status: Literal["ok", "timeout", "error"], value: Any) -> Result:
        assert self.index is not None
        result = Result(self.index, status, value)
        self.index = None
        return result

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.input.close()
        self.stream.close()
        self.log.close()


def _serve() -> None:
    """The child: import the function, say so, then answer calls line by line until the pipe closes."""
    import importlib
    import resource

    name, deadline_s, memory_bytes = sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not look like an answer
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    for limit, value in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # macOS refuses RLIMIT_AS; the deadline still holds
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
    channel.write(b"ready\n")
    for line in sys.stdin.buffer:
        _limit_processor_time(2 * deadline_s + 1)
        try:
            answer = ("ok", function(*json.loads(line)))
        except BaseException as error:  # a call must never take the worker's protocol with it
            answer = ("error", f"{type(error).__name__}: {str(error)[:200]}")
        channel.write(json.dumps(answer).encode() + b"\n")


def _limit_processor_time(seconds: float) -> None:
    """The kernel ends the process past this, also if the parent that keeps the deadline was killed."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
