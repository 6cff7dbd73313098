"""Run a program that nobody has read: under bubblewrap with limits, or not at all.

bubblewrap (`bwrap` 0.7 or later, Linux) gives it namespaces of its own for users, processes, network and IPC; a root
of read-only system directories and the Python installation, nothing of the home directories or the run; an empty `/tmp`
of bounded size as the only place that can be written. Inside, `builder.sandbox_child` adds the kernel's limits and a
filter of system calls before the program's first line. There is no second way: without bubblewrap `sandbox_problem`
says why and nothing is run.

Only processor time bounds the kernel's own memory for file names: 4 s make a million empty files, 2.6 GB, gone with the
program. A builder that is killed in the 10 ms in which bubblewrap starts may leave that one process behind.
"""

import contextlib
import functools
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from builder.errors import VerifyError
from builder.sandbox_child import CANNOT_LIMIT

_HERE: Final = Path(__file__).parent
_MODULES: Final = ("sandbox_child.py", "sandbox_calls.py", "sandbox_tests.py")
_PROGRAM: Final = "/sandbox/program.py"
_BOOT: Final = "import sys; sys.path.insert(0, '/sandbox'); from builder.sandbox_child import main; main()"
_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")

Role = Literal["script", "serve", "evaluate"]


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    `cpu_s` and `wall_s` are seconds; `memory_bytes` is address space; `processes` are threads, since no process can be
    started; `file_bytes` bounds a file and all of `/tmp`; `output_bytes` what is read of its output.
    """

    cpu_s: int = 6
    wall_s: float = 10.0
    memory_bytes: int = 1024**3
    processes: int = 64
    file_bytes: int = 16 * 1024**2
    open_files: int = 64
    output_bytes: int = 16 * 1024**2

    def kernel(self) -> dict[str, int]:
        """Names of `resource.RLIMIT_*` and values."""
        return {
            "CPU": self.cpu_s,
            "AS": self.memory_bytes,
            "NPROC": self.processes,
            "FSIZE": self.file_bytes,
            "NOFILE": self.open_files,
            "CORE": 0,
        }


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True)
class Ran:
    """How a process ended: exit status (128 + signal, if one killed it; None if we did), output, and why we did."""

    status: int | None
    output: bytes
    stopped: Literal["", "time", "output"]
    wall_s: float

    @property
    def used_up_time(self) -> bool:
        """Whether time ended it: ours, or the kernel's limit on processor time, which is all that SIGKILL comes for."""
        return self.stopped == "time" or self.status == 137


def bwrap_command(role: Role, program: Path | None, limits: Limits, *, bwrap: str = "bwrap") -> list[str]:
    """The command line for one process in the sandbox; `program` is the file that it may read as its program."""
    python = os.path.realpath(sys.executable)
    base = os.path.realpath(sys.base_prefix)
    command = [bwrap]
    command += ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    # The program is process 1: one of bubblewrap's own beside it would have no limits, and its memory can be written.
    command += ["--as-pid-1"]
    command += ["--unshare-cgroup-try", "--die-with-parent", "--cap-drop", "ALL", "--clearenv"]
    for name, value in (("PYTHONHASHSEED", "0"), ("PYTHONUTF8", "1"), ("HOME", "/tmp"), ("PATH", "/usr/bin:/bin")):
        command += ["--setenv", name, value]
    # Before the rest: an interpreter may itself be installed below /tmp.
    command += ["--proc", "/proc", "--dev", "/dev", "--size", str(limits.file_bytes), "--tmpfs", "/tmp"]
    for directory in _SYSTEM:
        command += ["--ro-bind-try", directory, directory]
    command += ["--ro-bind", base, base]
    for module in _MODULES:
        command += ["--ro-bind", str(_HERE / module), f"/sandbox/builder/{module}"]
    if program is not None:
        command += ["--ro-bind", str(program), _PROGRAM]
    # /proc as well: where root builds, its /proc/sys has the settings of the host's kernel, for their owner to write.
    command += ["--remount-ro", "/dev", "--remount-ro", "/proc", "--remount-ro", "/", "--chdir", "/tmp"]
    # -S: the standard library only; -P: nothing of the working directory; -B: no byte code written
    given = [f"{name}={value}" for name, value in limits.kernel().items()]
    return [*command, "--", python, "-S", "-P", "-B", "-c", _BOOT, role, _PROGRAM, *given]


@functools.cache
def sandbox_problem() -> str | None:
    """Why no program can be run here, and what to do; None where the sandbox works. Tried once per process."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        said = "bubblewrap (`bwrap`) is not installed"
    else:
        try:
            said = _probe(bwrap)
        except (OSError, subprocess.TimeoutExpired) as problem:
            said = f"{bwrap} does not run: {problem}"
    if not said:
        return None
    return (
        f"{said}. Programs of a model are run in its sandbox or not at all, so code cannot be verified here. Install "
        "bubblewrap 0.7 or later on Linux, where unprivileged user namespaces must be allowed, and rerun."
    )


def _probe(bwrap: str) -> str:
    """Run a program of one line; the last line of what went wrong, or nothing."""
    with tempfile.TemporaryDirectory(prefix="builder-sandbox-") as folder:
        program = Path(folder, "program.py")
        program.write_text("print('ready')")
        command = bwrap_command("script", program, DEFAULT_LIMITS, bwrap=bwrap)
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    if (ran.returncode, ran.stdout) == (0, b"ready\n"):
        return ""
    last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "no message"
    what = "sets no limits on programs" if ran.returncode == CANNOT_LIMIT else "cannot make a sandbox"
    return f"{bwrap} {what} (exit {ran.returncode}: {last[:300]})"


def sandboxed(role: Role, program: Path | None, limits: Limits) -> list[str]:
    """The command to start a process of the sandbox with. Raises VerifyError where there is none that works."""
    if problem := sandbox_problem():
        raise VerifyError(problem)
    return bwrap_command(role, program, limits, bwrap=shutil.which("bwrap") or "bwrap")


def start(command: list[str], *, stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    """Start a command of `sandboxed`, in its own session and group; with `--die-with-parent` none of it outlives us."""
    return subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=stderr, env={}, cwd="/", bufsize=0, start_new_session=True
    )


def finish(process: subprocess.Popen[bytes], data: bytes, limits: Limits) -> Ran:
    """Feed `data`, read the output, wait; kill at the limit on time or output. Bounded for any process."""
    started = time.monotonic()
    output, stopped = bytearray(), ""
    try:
        stopped = _exchange(process, data, started + limits.wall_s, limits.output_bytes, output)
        if not stopped:
            try:
                process.wait(max(0.0, started + limits.wall_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                stopped = "time"
    finally:
        end(process)
    status = process.returncode
    ended = None if stopped else status if status >= 0 else 128 - status
    why: Literal["", "time", "output"] = "time" if stopped == "time" else "output" if stopped else ""
    return Ran(ended, bytes(output[: limits.output_bytes]), why, time.monotonic() - started)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill, wait, close. The whole group: while it starts, bubblewrap's own child does not die with it yet."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _exchange(
    process: subprocess.Popen[bytes], data: bytes, due: float, most: int, output: bytearray
) -> Literal["", "time", "output"]:
    """Write all input and read all output at the same time: either alone could wait for ever."""
    rest = memoryview(data)
    with selectors.DefaultSelector() as selector:
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, due - time.monotonic()))
            if time.monotonic() >= due:
                return "time"
            for key, _ in ready:
                stream = key.fileobj
                if stream is process.stdin and process.stdin is not None:
                    with contextlib.suppress(BlockingIOError):
                        try:
                            rest = rest[os.write(key.fd, rest[:65536]) :] if rest else rest
                        except BrokenPipeError:  # it does not read its input: its business
                            rest = rest[len(rest) :]
                    if not rest:
                        selector.unregister(stream)
                        process.stdin.close()
                    continue
                part = os.read(key.fd, 65536)
                output += part
                if len(output) > most:
                    return "output"
                if not part:
                    selector.unregister(stream)
    return ""
