"""In processes of their own: limits of this one stay as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from endpoint import endpoint

from builder import journal

IN_FLIGHT = 300
LIMITED = (
    "import resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
    "from builder.cli import main\n"
    "main(sys.argv[1:])\n"
)


def generate(folder: Path, url: str, *, soft: int, hard: int) -> "subprocess.CompletedProcess[str]":
    rows = [{"prompt": f"What is {index} + {index}?"} for index in range(2 * IN_FLIGHT)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "toy",
        "prompts": [{"source": str(folder / "q.jsonl")}],
        "teacher": {"model": "toy", "revision": "r1", "endpoints": [{"url": url, "max_in_flight": IN_FLIGHT}]},
        "generation": {"temperatures": 1.0, "samples": 1, "max_tokens": 64},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(recipe))
    program = LIMITED.format(soft=soft, hard=hard)
    command = [sys.executable, "-c", program, "generate", str(folder / "toy.yaml"), "--run", str(folder / "run")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_more_requests_in_flight_than_the_soft_limit_of_open_files_are_held(tmp_path: Path) -> None:
    with endpoint(delay_s=1.0) as server:
        ended = generate(tmp_path, server.url, soft=64, hard=1024)
    assert ended.returncode == 0, ended.stderr
    assert server.most_in_flight > 64
    assert journal.counts(tmp_path / "run/journal") == {"reply": 2 * IN_FLIGHT}  # none failed for want of a file


def test_a_hard_limit_that_is_too_low_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    with endpoint() as server:
        ended = generate(tmp_path, server.url, soft=64, hard=200)
    assert ended.returncode == 2
    assert "max_in_flight add up to 300 connections" in ended.stderr
    assert "428 open files; this system allows the process 200" in ended.stderr
    assert "Lower max_in_flight to 72 in all" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not server.asks


@pytest.mark.parametrize("hard", [-1, 5000])
def test_a_limit_that_suffices_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, hard: int) -> None:
    from builder import open_files

    monkeypatch.setattr(open_files.resource, "getrlimit", lambda which: (1024, hard))
    changed: list[tuple[int, int]] = []
    monkeypatch.setattr(open_files.resource, "setrlimit", lambda which, limits: changed.append(limits))
    open_files.allow_connections(512)
    assert not changed
    open_files.allow_connections(2000)
    assert changed == [(2128, hard)]
