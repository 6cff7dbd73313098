"""What `builder generate` costs beside the bare loop, in one run: `python tests/benchmarks/generate.py [--quick]`.

Three clients ask an endpoint that costs far less than any of them: `bare` (openai over aiohttp, raw responses, one
typed decode, nothing kept), `ours` (`builder.generate`: journal on, everything stored and sealed) and `typed` (openai
as usually called). Every measurement is a process of its own; the server is another. Quoted are medians. Ratios compare
arms of this run and hold on any machine; the absolute numbers do not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_ARMS = ("bare", "ours", "typed")
_FULL = 512
_LATENCY_S = 0.5


@dataclass(frozen=True)
class Case:
    """One kind of reply, and for each arm how many of them are worth the time (0: left out)."""

    title: str
    tokens: int
    alternatives: bool
    in_flight: int  # where CPU is measured, without latency
    replies: dict[str, int]
    at_full: dict[str, int]  # at 512 in flight and 500 ms
    cpu_goal: float  # lessons, last section: × bare


@dataclass(frozen=True)
class Measured:
    """Medians of one arm."""

    per_second: float
    cpu_s: float
    peak_bytes: float


def cases(*, quick: bool) -> list[Case]:
    """What is measured."""
    return [
        Case(
            "64 tokens",
            64,
            False,
            64,
            {"bare": 2000, "ours": 2000, "typed": 1000},
            {"bare": 2048, "ours": 2048, "typed": 0 if quick else 1024},
            1.5,
        ),
        Case(
            "16,000 tokens, one alternative each",
            16_000,
            True,
            8,
            {"bare": 64, "ours": 64, "typed": 4 if quick else 8},
            {"bare": 0 if quick else 1536, "ours": 0 if quick else 1536, "typed": 0},  # typed: over six minutes
            2.5,
        ),
    ]


@contextmanager
def serving(case: Case, latency_s: float) -> Iterator[str]:
    """The server in a process of its own; gives its base address."""
    command = [sys.executable, str(_HERE / "server.py"), str(case.tokens), str(int(case.alternatives)), str(latency_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin and server.stdout
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        finally:
            server.stdin.close()


def one_run(arm: str, url: str, replies: int, in_flight: int, warm_up: int) -> Measured:
    """One process of one arm."""
    numbers = [str(number) for number in (replies, in_flight, warm_up)]
    command = [sys.executable, str(_HERE / "clients.py"), arm, url, *numbers]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{ended.stderr}")
    said = json.loads(ended.stdout.splitlines()[-1])
    return Measured(replies / said["wall_s"], said["cpu_s"] / replies, said["peak_bytes"])


def medians(
    case: Case, replies: dict[str, int], *, latency_s: float, in_flight: int, warm_up: int, repetitions: int
) -> dict[str, Measured]:
    """Every arm, turn by turn, so that whatever else the machine does meets all of them."""
    found: dict[str, list[Measured]] = {arm: [] for arm in _ARMS if replies[arm]}
    with serving(case, latency_s) as url:
        for repetition in range(repetitions):
            for arm, runs in found.items():
                if arm == "typed" and repetition and latency_s:  # minutes each, and no goal hangs on it
                    continue
                runs.append(one_run(arm, url, replies[arm], in_flight, min(warm_up, replies[arm])))
    return {
        arm: Measured(*(statistics.median(values) for values in zip(*map(_values, runs), strict=True)))
        for arm, runs in found.items()
    }


def _values(measured: Measured) -> tuple[float, float, float]:
    return measured.per_second, measured.cpu_s, measured.peak_bytes


def show(case: Case, free: dict[str, Measured], full: dict[str, Measured]) -> None:
    """One table, and whether the goals are met."""
    print(f"\n{case.title}")
    print(f"{'':8}{'no latency':>34}{f'{_FULL} in flight, {_LATENCY_S * 1000:.0f} ms':>46}")
    print(
        f"{'client':8}{'replies/s':>12}{'CPU/reply':>12}{'× bare':>10}"
        f"{'replies/s':>14}{'× bare':>8}{'memory':>14}{'× bare':>10}"
    )
    for arm in _ARMS:
        line = f"{arm:8}"
        if arm in free:
            now, base = free[arm], free["bare"]
            line += f"{now.per_second:12,.1f}{now.cpu_s * 1e3:9,.2f} ms{now.cpu_s / base.cpu_s:10.2f}"
        if arm in full:
            now, base = full[arm], full["bare"]
            line += f"{now.per_second:14,.1f}{now.per_second / base.per_second:8.2f}"
            line += f"{now.peak_bytes / 2**20:10,.0f} MiB{now.peak_bytes / base.peak_bytes:10.2f}"
        print(line)
    ratio = free["ours"].cpu_s / free["bare"].cpu_s
    _goal("CPU per reply", ratio, f"≤ {case.cpu_goal} × bare", ratio <= case.cpu_goal)
    if "ours" in full:
        memory = full["ours"].peak_bytes / full["bare"].peak_bytes
        rate = full["ours"].per_second / full["bare"].per_second
        _goal(f"memory at {_FULL} in flight", memory, "≤ 2 × bare", memory <= 2)
        _goal(f"replies/s at {_FULL} in flight", rate, "≥ 0.9 × bare", rate >= 0.9)


def _goal(what: str, value: float, goal: str, met: bool) -> None:
    print(f"  {'met   ' if met else 'MISSED'}  {what}: {value:.2f}, goal {goal}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, fewer runs, no long replies at 512")
    quick = parser.parse_args().quick
    started = time.perf_counter()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    for case in cases(quick=quick):
        warm_up = 256 if case.tokens < 1000 else 4
        free = medians(
            case,
            case.replies,
            latency_s=0.0,
            in_flight=case.in_flight,
            warm_up=warm_up,
            repetitions=1 if quick else 5,
        )
        full = medians(
            case, case.at_full, latency_s=_LATENCY_S, in_flight=_FULL, warm_up=0, repetitions=1 if quick else 3
        )
        show(case, free, full)
    print(f"\n{time.perf_counter() - started:.0f} s, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
