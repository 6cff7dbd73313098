from types import SimpleNamespace

import pytest

from trainer import progress
from trainer.progress import StageProgress


@pytest.mark.parametrize("first", [True, False])
def test_elsewhere_than_on_a_terminal_the_first_process_says_a_line_now_and_then(
    first: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = StageProgress("low-temperature")
    state = SimpleNamespace(is_world_process_zero=first, global_step=0, max_steps=1200)
    shown.on_train_begin(None, state, None)
    shown.on_log(None, state, None, logs={"loss": 0.25})
    for second in range(1, 64):
        clock[0], state.global_step = float(second), second * 10
        shown.on_step_end(None, state, None)
    shown.on_train_end(None, state, None)
    said = [f"stage low-temperature: {step} of 1,200 steps loss 0.250" for step in (300, 600)]
    assert capsys.readouterr().err.splitlines() == (said if first else [])
