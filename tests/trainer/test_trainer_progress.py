import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer import plan, train


@pytest.mark.parametrize("first", [True, False])
def test_elsewhere_than_on_a_terminal_the_first_process_says_a_line_now_and_then(
    first: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: clock[0])
    shown = train.Progress(SimpleNamespace(name="low-temperature", kind="sft"), None, says=True)
    log = [{"loss": 0.5}, {"loss": 0.25}, {"eval_loss": 0.75}]
    state = SimpleNamespace(is_world_process_zero=first, global_step=0, max_steps=1200, log_history=log)
    control = SimpleNamespace(should_save=False, should_log=False)
    for second in range(1, 64):
        clock[0], state.global_step = float(second), second * 10
        shown.on_step_end(None, state, control)
    assert not control.should_log
    said = [f"stage low-temperature: {step} of 1,200 steps, loss 0.250" for step in (300, 600)]
    assert capsys.readouterr().err.splitlines() == (said if first else [])


@pytest.mark.parametrize("quiet", [True, False])
def test_elsewhere_than_on_a_terminal_rendering_says_lines_of_how_far_it_is_unless_quiet(
    quiet: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    release: Path,
    student: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(plan, "EVERY_S", 0.0)
    job = plan.Job(str(release), str(student), tmp_path / "out", "smoke", quiet=quiet)
    for _ in range(2):  # the second time they are there
        plan.rendered(job, job.stages[0], tmp_path)
    said = capsys.readouterr().err.splitlines()
    line = r"render low-temperature: 100%\|#+\| 12/12 \[\d\d:\d\d<00:00, .*rows/s\]"
    assert [bool(re.fullmatch(line, text)) for text in said] == ([] if quiet else [True])


def test_on_a_terminal_rendering_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, release: Path, student: Path, tmp_path: Path
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(plan, "EVERY_S", 0.0)
    job = plan.Job(str(release), str(student), tmp_path / "out", "smoke", quiet=False)
    monkeypatch.setattr(plan.sys, "stderr", terminal)
    plan.rendered(job, job.stages[1], tmp_path)
    assert re.search(r"render high-temperature:   0%.* 0/8 ", terminal.getvalue())
    assert "\n" not in terminal.getvalue()
