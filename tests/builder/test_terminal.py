"""What a terminal shows: how far, how fast and until when; 80 columns; NO_COLOR; and `--json` of every command."""

import fcntl
import io
import itertools
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main
import yaml
from release_toys import Selected, recipe, replies_of, selected
from rich.console import Console
from score_toys import prompt, reply
from test_cli import write_recipe
from typer.testing import CliRunner

from builder import console, demo, local_server
from builder.cli import app
from builder.config import Benchmark
from builder.console import Progress, Reporter, pace
from builder.decontaminate import update_contaminations
from builder.dedup import update_duplicates
from builder.features import update_features
from builder.release import release
from builder.report import collect, collect_release
from builder.selection import select
from builder.store import Run, columns_table
from builder.toy.train import TEACHER

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9]+)*m")
IN_TURN = """
import json, sys
from builder.cli import main
for call in json.loads(sys.argv[1]):
    try:
        main(call)
    except SystemExit as end:
        assert not end.code, (call, end.code)
"""


def bare(shown: str) -> str:
    """The same without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def on_terminal(folder: Path, *calls: list[str], **environment: str) -> str:
    """What commands, one after the other in one process, write on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    kept = {name: text for name, text in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH", "LANG")}
    with subprocess.Popen(
        [sys.executable, "-c", IN_TURN, json.dumps(calls)],
        cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env=kept | {"TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"} | environment,
    ) as process:  # fmt: skip
        os.close(theirs)
        found = b""
        try:
            while some := os.read(ours, 65536):
                found += some
        except OSError:  # Linux's way to say that the other end is closed
            pass
        os.close(ours)
    assert process.returncode == 0, found.decode()
    return found.decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy.yaml with a selected run, r.yaml with a question, and a run of replies that have no verdict."""
    made = tmp_path_factory.mktemp("terminal")
    selected(made / "runs" / "toy")
    (made / "toy.yaml").write_text(yaml.safe_dump(recipe().resolved()), encoding="utf-8")
    write_recipe(made)
    open_run = Run(made / "runs" / "open")
    open_run.append("prompts", columns_table("prompts", [prompt() | {"verifier": "exact"}]))
    open_run.append("responses", columns_table("responses", replies_of("p")))
    return made


def test_nothing_but_what_must_not_be_folded_is_wider_than_80_columns(folder: Path) -> None:
    calls = (
        ["plan", "r.yaml"],
        ["status", "toy.yaml"],
        ["select", "toy.yaml", "--by", "temperature"],
        ["verify", "toy.yaml", "--run", "runs/open"],
        ["release", "toy.yaml"],
        ["explain", "toy.yaml", "p-1.0-1", "--text"],
        ["sql", "toy.yaml", "--rules"],
        ["compare", "toy.yaml", "--with", "selection.rules=[]", "--sample", "1"],
    )
    shown = bare(on_terminal(folder, *calls))
    assert {"prompts", "release", "selectors", "verify"} <= set(shown.split())
    assert [line for line in re.split(r"[\r\n]+", shown) if len(line) > 80] == []


def test_no_color_takes_every_colour_away(folder: Path) -> None:
    calls = (["select", "toy.yaml"], ["status", "--help"])
    assert COLOUR.search(on_terminal(folder, *calls))
    assert not COLOUR.search(on_terminal(folder, *calls, NO_COLOR="1"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time as the meters see it, to be set."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def every(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that lets plain lines say all that they are told: whenever it is read, a minute has gone."""
    minutes = itertools.count(0.0, 60.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(minutes)))


def reporter_on(terminal: bool) -> tuple[Reporter, io.StringIO]:
    reporter, written = Reporter(), io.StringIO()
    reporter.err = Console(file=written, force_terminal=terminal, width=80, soft_wrap=not terminal)
    return reporter, written


def test_a_plain_line_says_what_how_far_how_fast_and_until_when(clock: SimpleNamespace) -> None:
    reporter, written = reporter_on(terminal=False)
    with reporter.progress("score") as meter:
        for clock.now, done in ((10.0, 400), (40.0, 1_600), (50.0, 2_000), (80.0, 3_200)):
            meter.update(done, 10_000)
        clock.now = 110.0
        meter.update(4_400)
        clock.now = 140.0
        meter.update(4_500, 10_000, "7 tokens/s")
    assert written.getvalue().splitlines() == [
        "score: 1,600 of 10,000, 40/s, 4 min left",
        "score: 3,200 of 10,000, 40/s, 3 min left",
        "score: 4,400 of 10,000, 40/s, 2 min left",
        "score: 4,500 of 10,000, 7 tokens/s",
    ]


def test_each_step_of_a_job_has_a_pace_of_its_own(clock: SimpleNamespace) -> None:
    reporter, written = reporter_on(terminal=False)
    with reporter.progress("release") as meter:
        for clock.now, step, done, total in (
            (100.0, "first", 1, 1),
            (101.0, "second", 0, 900),
            (131.0, "second", 300, 900),
        ):
            meter.step(step, done, total)
    assert written.getvalue().splitlines() == ["first: 1 of 1", "second: 300 of 900, 10/s, 60 s left"]


def test_the_pace_of_a_step_is_that_of_what_it_did_itself(clock: SimpleNamespace) -> None:
    reporter, written = reporter_on(terminal=False)
    with reporter.progress("release") as meter:
        for clock.now, done in ((100.0, 600), (130.0, 660)):
            meter.step("second", done, 900)
    assert written.getvalue().splitlines() == ["second: 600 of 900", "second: 660 of 900, 2/s, 2 min left"]


def test_what_counts_nothing_says_for_how_long_it_goes_on(clock: SimpleNamespace) -> None:
    reporter, written = reporter_on(terminal=False)
    with reporter.progress("report") as meter:
        for clock.now, step in ((40.0, "count replies"), (50.0, "read replies"), (110.0, "read replies")):
            meter.step(step, 0)
    assert written.getvalue().splitlines() == ["count replies", "read replies: 60 s so far"]


def test_lines_come_while_nothing_is_told_and_none_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, written = reporter_on(terminal=False)
    monkeypatch.setattr(console, "_EVERY_S", 0.01)
    with reporter.progress("select") as meter:
        meter.step("rule answer_wrong", 3, 9)
        for _ in range(3000):
            if written.getvalue().count("rule answer_wrong: 3 of 9") > 3:
                break
            time.sleep(0.01)
    assert written.getvalue().count("rule answer_wrong: 3 of 9") > 3
    assert isinstance(meter, console._Lines)
    assert not meter._thread.is_alive()


def test_a_meter_is_silent_when_quiet_and_for_a_program_that_reads_json(every: None) -> None:
    for silent in ("quiet", "as_json"):
        reporter, written = reporter_on(terminal=False)
        setattr(reporter, silent, True)
        with reporter.progress("score") as meter:
            meter.update(1, 10)
        assert (type(meter), written.getvalue()) == (console.Meter, "")
    reporter, written = reporter_on(terminal=True)
    reporter.as_json = True
    with reporter.progress("score") as meter:
        meter.update(1, 10)
    assert "1/10" in bare(written.getvalue())


def test_a_bar_says_the_same(clock: SimpleNamespace) -> None:
    reporter, written = reporter_on(terminal=True)
    with reporter.progress("score") as meter:
        clock.now = 40.0
        meter.update(1_600, 10_000)
    assert re.search(r"score .*1,600/10,000 .*40/s, 4 min left", bare(written.getvalue()))


def test_a_long_note_folds_and_never_hides_how_far_the_job_is() -> None:
    reporter, written = reporter_on(terminal=True)
    note = "64 in flight, 1,234 tokens/s, 12 min left, $12.30, 3 × RateLimitError"
    with reporter.progress("generate") as meter:
        meter.update(2_400, 10_000, note)
    shown = bare(written.getvalue())
    assert "2,400/10,000" in shown
    assert all(word in shown for word in note.split())
    assert max(map(len, re.split(r"[\r\n]+", shown))) <= 80


def test_without_a_total_a_pace_has_no_end_and_nothing_done_has_no_pace() -> None:
    assert pace(50, None, 1000.0) == "0.05/s"
    assert (pace(0, 10, 60.0), pace(5, 10, 0.5)) == ("", "")


def test_features_and_the_rows_of_a_release_tell_how_far_they_are(made: Selected, tmp_path: Path) -> None:
    run, result = made
    told: list[tuple[str, int, int | None]] = []
    release(run, recipe(), result, progress=lambda *now: told.append(now))
    assert told == [
        ("join rows", 0, None),
        ("gather texts", 0, 12),
        ("gather texts", 12, 12),
        ("release low-temperature", 3, 3),
        ("release high-temperature", 3, 3),
        ("release candidates", 12, 12),
        ("statistics and card", 0, None),
    ]
    fresh = Run(tmp_path / "fresh")
    for name in ("p", "q"):
        fresh.append("responses", columns_table("responses", replies_of(name)))
    told.clear()
    assert update_features(fresh, progress=lambda *now: told.append(now)) == 8
    assert told == [("features", 4, 8), ("features", 8, 8)]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_takes_json(command: str) -> None:
    assert "--json" in [option for parameter in COMMANDS[command].params for option in parameter.opts]


def printed(*arguments: str) -> Any:
    """The one JSON object that a command leaves on stdout."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_init_names_what_it_wrote(tmp_path: Path) -> None:
    paths = printed("init", str(tmp_path / "mine"), "--recipe", "demo")["init"]["paths"]
    assert sorted(paths) == sorted(str(path) for path in (tmp_path / "mine").rglob("*") if path.is_file())


def test_serve_says_where_it_listens_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "serve", lambda model, *, ready, **_: ready("http://127.0.0.1:9/v1"))
    where = {"url": "http://127.0.0.1:9/v1", "model": "toy", "engine": "local"}
    assert printed("serve", str(TEACHER), "--model-name", "toy") == {"serve": where}
    command = printed("serve", str(TEACHER), "--engine", "vllm", "--print")["serve"]["command"]
    assert " -m vllm." in command


def test_demo_leaves_its_results_alone_on_stdout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for step in ("_materials", "_show"):
        monkeypatch.setattr(demo, step, lambda made, *_: made.say("said"))
    monkeypatch.setattr(demo, "_teacher", nullcontext)
    monkeypatch.setattr(demo, "_results", lambda _: {"replies": 7})
    ran = demo._Demo.command
    monkeypatch.setattr(
        demo._Demo, "command", lambda made, program, *_: ran(made, "trainer", "--help") if program == "trainer" else ""
    )
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["builder"])
        app(["demo", str(tmp_path / "demo"), "--json"], standalone_mode=False)
    out, err = capfd.readouterr()
    assert json.loads(out) == {"demo": {"replies": 7}}
    assert "said" in err
    assert "Usage" in err


def test_near_copies_and_benchmarks_say_how_far_they_are(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    said: list[tuple[str, int, int]] = []
    text = "One more than {} is needed, as was said. "
    rows = [reply(f"r{number}", "p", reasoning=text.format(number) * 9) for number in range(70)]
    run.append("prompts", columns_table("prompts", [prompt("p")]))
    run.append("responses", columns_table("responses", rows))
    update_duplicates(run, progress=lambda *now: said.append(now))
    assert said[:2] == [("sign replies", 64, 70), ("sign replies", 70, 70)]


def select_it(run: Run, _: Path, progress: Progress) -> None:
    run.replace("rejections", run.schema("rejections").empty_table())
    select(run, recipe(), progress=progress)


def report_it(run: Run, _: Path, progress: Progress) -> None:
    collect(run, recipe(), progress=progress)


def report_release(run: Run, _: Path, progress: Progress) -> None:
    collect_release(str(release(run, recipe(), select(run, recipe())).path), progress=progress)


def release_it(run: Run, _: Path, progress: Progress) -> None:
    release(run, recipe(), select(run, recipe()), progress=progress)


def compare_benchmarks(run: Run, folder: Path, progress: Progress) -> None:
    (folder / "b.jsonl").write_text('{"prompt": "What is 1 + 2, you ask?"}\n', encoding="utf-8")
    update_contaminations(run, {"aime24": Benchmark(source=str(folder / "b.jsonl"))}, progress)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(
    ("job", "steps"),
    [
        (select_it, ["rule response_truncated 0/", "rule answer_wrong 1/", "selector teacher_sentence_count",
                     "stage low-temperature", "stage high-temperature", "write the selection"]),
        (report_it, ["count replies", "read replies", "selector random 1/4", "texts for the lens",
                     "distribution of mean_delta 1/4", "index"]),
        (report_release, ["open the release", "read replies", "selector longest 2/4", "index"]),
        (release_it, ["join rows", "gather texts 0/12", "release candidates 12/12", "statistics and card"]),
        (compare_benchmarks, ["read benchmark aime24 0/1", "index benchmarks 0/1", "compare with benchmarks 0/3"]),
    ],
)  # fmt: skip
def test_a_long_job_names_its_steps_and_says_how_far_it_is(
    made: Selected, tmp_path: Path, every: None, terminal: bool, job: Callable[..., None], steps: list[str]
) -> None:
    reporter, written = reporter_on(terminal)
    with reporter.progress("job") as meter:
        job(made[0], tmp_path, meter.step)
    shown = [re.sub("[━╸╺ ]+", " ", line) for line in re.split(r"[\r\n]+", bare(written.getvalue()))]
    wanted = [step if terminal else re.sub(r" (\d+)/(\d*)$", r": \1 of \2", step) for step in steps]
    assert [step for step in wanted if not any(line.startswith(step) for line in shown)] == []
