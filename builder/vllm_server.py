"""`builder serve --engine vllm`: vLLM as a child process, from its own environment, ended with all its workers."""

import contextlib
import ctypes
import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final

from builder.errors import ServeError
from builder.vllm_command import VllmCommand, vllm_command

_LAST_LINES: Final = 8
_STOP_SECONDS: Final = 20.0
_CAUSE: Final = re.compile(r"^(?:\(\w+ pid=\d+\) )?(?:ERROR [^\]]*\] )?(?:[\w.]*(?:Error|Exception)|[\w.]+: error): ")
_PR_SET_PDEATHSIG: Final = 1


def find_python() -> str:
    """The interpreter that runs vLLM: VLLM_PYTHON, else that of `.venv-vllm`, else this one. Raises ServeError."""
    if named := os.environ.get("VLLM_PYTHON"):
        if (program := shutil.which(named)) is None:
            raise ServeError(f"VLLM_PYTHON is {named}, which is no program. Name the Python that has vLLM installed.")
        return program
    for folder in (Path.cwd(), Path(__file__).resolve().parents[1]):
        python = folder / ".venv-vllm" / "bin" / "python"
        if python.is_file():
            return str(python)
    found = importlib.util.find_spec("vllm")
    if found is not None and found.origin is not None:
        return sys.executable
    raise ServeError(
        "There is no vLLM here: no VLLM_PYTHON, no .venv-vllm, and no package vllm beside this builder. Its pins clash "
        "with the builder's, so give it an environment of its own: `make vllm` (CPU), or on GPUs "
        "`python -m venv .venv-vllm && .venv-vllm/bin/pip install vllm`. For toy models --engine local needs none."
    )


def printable(command: VllmCommand) -> str:
    """The command as one line for a shell; `python` where this machine has no vLLM, so that another may run it."""
    try:
        return command.shell(find_python())
    except ServeError:
        return command.shell("python")


def serve_vllm(command: VllmCommand, *, ready: Callable[[str], None]) -> int:
    """Run vLLM until it ends or is told to; its output goes to stderr, its exit code is returned.

    SIGINT, SIGTERM and SIGHUP are passed on; a second one, or 20 s, ends it the hard way. `ready` gets the base URL
    once it listens. Raises ServeError with its last lines when it ends before that by itself, or the port is in use.
    """
    python = find_python()
    _check_port(command.host, command.port)
    if command.is_open:
        where = f"{command.host}:{command.port}"
        sys.stderr.write(f"note: whoever reaches {where} can use this model; set VLLM_API_KEY to ask for a key.\n")
    process = _start(python, command, subprocess.PIPE)
    last: deque[str] = deque(maxlen=400)
    listens, stopped = threading.Event(), threading.Event()
    told: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        told.append(number)
        if len(told) == 1:
            process.send_signal(number)
            threading.Thread(target=_kill_unless, args=(stopped, process), daemon=True).start()
        else:
            _kill_group(process)

    def announce() -> None:
        while not stopped.is_set() and not told:
            if _healthy(command):
                listens.set()
                return ready(_url(command))
            stopped.wait(0.5)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    reader = threading.Thread(target=_echo, args=(process.stdout, last), daemon=True)
    watcher = threading.Thread(target=announce, daemon=True)
    try:
        reader.start()
        watcher.start()
        code = process.wait()
    finally:
        stopped.set()
        _kill_group(process)  # workers that outlived their engine
        watcher.join()
        reader.join()
        if process.stdout is not None:
            process.stdout.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if told:
        return 0 if code == 0 else 128 + told[0]
    if not listens.is_set():
        raise ServeError(_death(code, list(last)))
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def running_vllm(model: str | Path, *, port: int = 0, start_seconds: float = 300.0, **options: Any) -> Iterator[str]:
    """vLLM on this machine for the time of the block: gives its base URL, `http://127.0.0.1:…/v1`.

    Options are those of `vllm_command`. Port 0 takes a free port. Raises ServeError where the port is in use, and with
    vLLM's last lines when it dies or does not listen within `start_seconds`. All its processes end with the block.
    """
    command = vllm_command(str(model), port=port or free_port(), **options)
    python = find_python()
    _check_port(command.host, command.port)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = _start(python, command, log)
        try:
            deadline = time.monotonic() + start_seconds
            while not _healthy(command):
                code = process.poll()
                if code is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise ServeError(_death(code, log.read().splitlines(), start_seconds))
                time.sleep(0.25)
            yield _url(command)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            _kill_group(process)
            process.wait()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.create_server((host, 0)) as found:
        return int(found.getsockname()[1])


def _start(python: str, command: VllmCommand, output: Any) -> "subprocess.Popen[str]":
    """The child in a process group of its own: Ctrl-C reaches it through us, and all its workers can be ended."""
    theirs = {name: value for name, value in os.environ.items() if name != "VLLM_PYTHON"}  # vLLM warns of unknown ones
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return subprocess.Popen(
        [python, *command.arguments],
        env=theirs | command.environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call; nothing else ends vLLM after our SIGKILL
    )


def _echo(output: IO[str] | None, last: deque[str]) -> None:
    for line in output or ():
        sys.stderr.write(line)
        last.append(line.rstrip())


def _kill_unless(stopped: threading.Event, process: "subprocess.Popen[str]") -> None:
    if not stopped.wait(_STOP_SECONDS):
        _kill_group(process)


def _kill_group(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _check_port(host: str, port: int) -> None:
    """Said at once rather than after a minute of loading."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        raise ServeError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another --port or --host."
        ) from None


def _address(command: VllmCommand) -> str:
    """Where to reach it from here."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(command.host, command.host)


def _url(command: VllmCommand) -> str:
    host = _address(command)
    return f"http://{f'[{host}]' if ':' in host else host}:{command.port}/v1"


def _healthy(command: VllmCommand) -> bool:
    connection = http.client.HTTPConnection(_address(command), command.port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _death(code: int | None, lines: list[str], waited: float = 0.0) -> str:
    """What ended it: the first lines that name an error, which stand far above the last, then the last ones."""
    how = f"ended with exit code {code} before it listened" if code is not None else f"did not listen in {waited:.0f} s"
    end = lines[-_LAST_LINES:]
    causes = list(dict.fromkeys(line.strip() for line in lines[: -len(end)] if _CAUSE.search(line)))[:3]
    shown = "\n".join([*causes, *(["…"] if causes else []), *end])
    return (
        f"vLLM {how}. Its own words:\n{shown}\nFlags after -- are passed on to vLLM and win over ours; "
        "`builder serve … --print` shows the whole command."
    )
