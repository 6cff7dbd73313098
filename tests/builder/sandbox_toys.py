"""The sandbox's child process without bubblewrap: for the harmless programs of these tests, never for others.

It still sets its limits and forbids processes and sockets; what is missing are the namespaces and the read-only root.
"""

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builder import sandbox
from builder.sandbox import Limits, Role, bwrap_command, sandbox_problem

needs_bwrap = pytest.mark.skipif(sandbox_problem() is not None, reason=f"no sandbox here: {sandbox_problem()}")


def without_bwrap(folder: Path) -> Callable[[Role, Path | None, Limits], list[str]]:
    """`builder.sandbox.sandboxed`, less bubblewrap; the child's modules are copied below `folder`."""
    (folder / "builder").mkdir()
    for module in sandbox._MODULES:
        shutil.copy(Path(sandbox.__file__).parent / module, folder / "builder" / module)

    def command(role: Role, program: Path | None, limits: Limits) -> list[str]:
        whole = bwrap_command(role, program, limits)
        inner = whole[whole.index("--") + 1 :]
        return [part.replace("/sandbox/program.py", str(program)).replace("/sandbox", str(folder)) for part in inner]

    return command


def lives_on(limits: Limits) -> bool:
    """Whether a process of a sandbox with these limits is there, ten seconds from now at the latest."""
    mark = f"NOFILE={limits.open_files}\0".encode()
    due = time.monotonic() + 10
    while (found := any(mark in line for line in _command_lines())) and time.monotonic() < due:
        time.sleep(0.05)
    return found


def _command_lines() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.append(path.read_bytes())
    return found
