"""What one command costs: seconds, CPU seconds, and the memory of all its processes together."""

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 0.02
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cost:
    """Of one command and all that it starts. `peak_bytes` is the largest sum of resident memory that was seen."""

    seconds: float
    cpu_s: float
    peak_bytes: float


def measure(command: Sequence[str], *, good: Sequence[int] = (0,)) -> Cost:
    """Run a command to its end; raises SystemExit with what it said where its exit status is not among the good ones.

    Memory is looked at fifty times a second: what lives shorter than that is not seen; pages that processes share are
    counted for each.
    """
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        said: list[str] = []
        assert process.stderr
        reader = threading.Thread(target=lambda: said.append(process.stderr.read()) if process.stderr else None)
        reader.start()
        peak = 0
        while True:
            peak = max(peak, sum(map(_resident, _tree(process.pid))))
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(_EVERY_S)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        reader.join()
    if process.returncode not in good:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(said)}")
    return Cost(seconds, used.ru_utime + used.ru_stime, peak)


def bytes_below(*paths: Path) -> int:
    """Bytes of the files at or below these paths."""
    return sum(
        file.stat().st_size
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    )


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for process in found:
        try:
            for task in Path(f"/proc/{process}/task").iterdir():
                found.extend(map(int, (task / "children").read_text(encoding="ascii").split()))
        except OSError:  # it has ended
            continue
    return found


def _resident(process: int) -> int:
    """Bytes of a process that are in memory; none once it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
